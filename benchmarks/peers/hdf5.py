"""HDF5."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.arrays import as_columns, pieces
from benchmarks.peers.base import NdArray, Peer
from benchmarks.suite_workloads import Samples


class Hdf5(Peer):
    name, module, packages = "hdf5", "h5py", ("h5py",)
    install = "pip install h5py"
    how = "contiguous datasets, offsets in memory; read_direct of each row into the batch"

    def write(self, folder: Path, samples: Samples) -> None:
        import h5py

        with h5py.File(folder / "all.h5", "w") as file:
            for name, array in as_columns(samples).items():
                file[name] = array

    def open(self, folder: Path) -> None:
        import h5py

        file = h5py.File(folder / "all.h5", "r")
        self.x = file["x"]
        self.offsets = file["offsets"][:] if "offsets" in file else None

    def single(self, i: int) -> Any:
        return self.x[i] if self.offsets is None else self.x[self.offsets[i] : self.offsets[i + 1]]

    def batch(self, indices: NdArray) -> Any:
        if self.offsets is not None:
            return pieces(self.x, self.offsets, indices)
        batch = np.empty((len(indices), *self.x.shape[1:]), self.x.dtype)
        for position, i in enumerate(indices.tolist()):
            self.x.read_direct(batch, i, position)
        return batch
