"""numpy's own files, mapped into memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.arrays import as_columns, pieces
from benchmarks.peers.base import NdArray, Peer
from benchmarks.suite_workloads import Samples


class Npy(Peer):
    name, module, packages = "npy", "numpy", ("numpy",)
    install = "pip install numpy"
    how = "np.save of all; np.load(mmap_mode='r'), rows[indices]; what differs in length: a second file of offsets"
    lazy = False

    def write(self, folder: Path, samples: Samples) -> None:
        for name, array in as_columns(samples).items():
            np.save(folder / f"{name}.npy", array)

    def open(self, folder: Path) -> None:
        self.x = np.load(folder / "x.npy", mmap_mode="r")
        self.offsets = np.load(folder / "offsets.npy") if self.workload.shape is None else None

    def single(self, i: int) -> Any:
        if self.offsets is None:
            return np.array(self.x[i])
        return np.array(self.x[self.offsets[i] : self.offsets[i + 1]])

    def batch(self, indices: NdArray) -> Any:
        return np.asarray(self.x[indices]) if self.offsets is None else pieces(self.x, self.offsets, indices)
