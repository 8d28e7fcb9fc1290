"""Lance."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.base import NdArray, Peer
from benchmarks.suite_workloads import Samples


class Lance(Peer):
    name, module, packages = "lance", "lance", ("pylance", "pyarrow")
    install = "pip install pylance"
    how = "write_dataset of record batches; dataset.take(indices); its workers are spawned, for it does not survive a fork"
    start_method = "spawn"

    def write(self, folder: Path, samples: Samples) -> None:
        import lance
        import pyarrow

        value = pyarrow.from_numpy_dtype(self.workload.dtype)
        variable = pyarrow.large_binary() if self.workload.dtype == "uint8" else pyarrow.list_(value)
        kind = pyarrow.list_(value, math.prod(self.workload.shape)) if self.workload.shape else variable

        def batches() -> Iterator[Any]:
            for block in samples.blocks():
                if block.offsets is None:
                    column = pyarrow.FixedSizeListArray.from_arrays(block.values.reshape(-1), type=kind)
                elif kind == pyarrow.large_binary():
                    buffers = [None, pyarrow.py_buffer(block.offsets), pyarrow.py_buffer(block.values)]
                    column = pyarrow.Array.from_buffers(kind, block.count, buffers)
                else:
                    column = pyarrow.ListArray.from_arrays(block.offsets.astype(np.int32), block.values)
                yield pyarrow.record_batch([column], ["x"])

        lance.write_dataset(batches(), str(folder / "all.lance"), schema=pyarrow.schema({"x": kind}))

    def open(self, folder: Path) -> None:
        import lance

        self.data = lance.dataset(str(folder / "all.lance"))

    def single(self, i: int) -> Any:
        found = self.batch(np.array([i]))
        return found[0] if self.workload.shape else found[0][found[1][0] : found[1][1]]

    def batch(self, indices: NdArray) -> Any:
        column = self.data.take(indices.tolist(), columns=["x"])["x"].combine_chunks()
        if self.workload.shape:
            return column.flatten().to_numpy().reshape(-1, *self.workload.shape).copy()
        if self.workload.dtype != "uint8":
            return column.flatten().to_numpy().copy(), column.offsets.to_numpy() - column.offsets[0].as_py()
        _, offsets, values = column.buffers()
        bounds = np.frombuffer(offsets, np.int64)[column.offset : column.offset + len(column) + 1]
        return np.frombuffer(values, np.uint8)[bounds[0] : bounds[-1]].copy(), bounds - bounds[0]
