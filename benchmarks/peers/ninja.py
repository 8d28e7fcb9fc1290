"""mmap_ninja."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.base import NdArray, Peer
from benchmarks.suite_workloads import Samples


class MmapNinja(Peer):
    name, module, packages = "mmap_ninja", "mmap_ninja", ("mmap_ninja",)
    install = "pip install mmap_ninja"
    how = "numpy.from_ndarray, RaggedMmap.from_generator(batch_size=1024); mapped[i], mapped[indices]"
    lazy = False

    def write(self, folder: Path, samples: Samples) -> None:
        import mmap_ninja.numpy
        import mmap_ninja.ragged

        if samples.offsets is None:
            mmap_ninja.numpy.from_ndarray(folder / "all", samples.values)
        else:
            mmap_ninja.ragged.RaggedMmap.from_generator(folder / "all", samples.all(), 1024)

    def open(self, folder: Path) -> None:
        import mmap_ninja.numpy
        import mmap_ninja.ragged

        opening: Any = mmap_ninja.numpy.open_existing if self.workload.shape else mmap_ninja.ragged.RaggedMmap
        self.x = opening(folder / "all")

    def single(self, i: int) -> Any:
        return np.array(self.x[i])

    def batch(self, indices: NdArray) -> Any:
        found = self.x[indices]
        return np.asarray(found) if self.workload.shape else [np.array(value) for value in found]
