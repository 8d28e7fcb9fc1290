"""Zarr."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.arrays import as_columns, pieces
from benchmarks.peers.base import NdArray, Peer
from benchmarks.suite_workloads import Samples

CHUNK, SHARD = 2**15, 2**24  # bytes


class Zarr(Peer):
    name, module, packages = "zarr", "zarr", ("zarr",)
    install = "pip install zarr"
    how = "format 3, no compression, chunks of 32 KB in shards of 16 MB; array[i], array.oindex[sorted rows]"

    def write(self, folder: Path, samples: Samples) -> None:
        import zarr

        group = zarr.create_group(folder / "all.zarr")
        for name, array in as_columns(samples).items():
            row = array.itemsize * math.prod(array.shape[1:])
            rows = max(CHUNK // row, 1)
            chunks, shards = ((size, *array.shape[1:]) for size in (rows, rows * (SHARD // (row * rows))))
            store = group.create_array(
                name, shape=array.shape, dtype=array.dtype, chunks=chunks, shards=shards, compressors=None
            )
            store[:] = array

    def open(self, folder: Path) -> None:
        import zarr

        group: Any = zarr.open_group(folder / "all.zarr", mode="r")
        self.x = group["x"]
        self.offsets = None if self.workload.shape else group["offsets"][:]

    def single(self, i: int) -> Any:
        return self.x[i] if self.offsets is None else self.x[self.offsets[i] : self.offsets[i + 1]]

    def batch(self, indices: NdArray) -> Any:
        if self.offsets is not None:
            return pieces(self.x, self.offsets, indices)
        rows, inverse = np.unique(indices, return_inverse=True)
        return self.x.oindex[rows][inverse]
