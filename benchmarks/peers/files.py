"""A folder of files, one per sample, as torchvision's ImageFolder reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.base import NdArray, Peer
from benchmarks.suite_workloads import Samples

IN_FOLDER = 1000  # files


class Files(Peer):
    name, module, packages = "files", "numpy", ("numpy",)
    install = "pip install numpy"
    how = "one file per sample, .npy, .bin or .jpg; open(path).read(), np.load"

    def write(self, folder: Path, samples: Samples) -> None:
        for i, sample in enumerate(samples.all()):
            path = Path(self.path(folder, i))
            if i % IN_FOLDER == 0:
                path.parent.mkdir()
            if self.arrays:
                np.save(path, sample)
            else:
                path.write_bytes(sample.data)

    def open(self, folder: Path) -> None:
        self.folder = folder

    def single(self, i: int) -> Any:
        if self.arrays:
            return np.load(self.path(self.folder, i))
        with open(self.path(self.folder, i), "rb") as file:
            return file.read()

    def batch(self, indices: NdArray) -> Any:
        return [self.single(i) for i in indices.tolist()]

    @property
    def arrays(self) -> bool:
        return self.workload.shape is not None or self.workload.dtype != "uint8"

    def path(self, folder: Path, i: int) -> str:
        suffix = "npy" if self.arrays else "jpg" if self.workload.encoded else "bin"
        return f"{folder}/{i // IN_FOLDER:04}/{i:08}.{suffix}"
