"""mmds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import mmds
from benchmarks.peers.base import NdArray, Peer
from benchmarks.suite_workloads import CROP, Samples, decode


class Mmds(Peer):
    name, module, packages = "mmds", "mmds", ("mmds",)
    install = 'pip install "mmds[torch,image]"'
    how = 'Writer.write_batch; reader[i], reader[indices], MemoryMappedDataset(ragged="jagged")[indices], mmds.Loader'

    def write(self, folder: Path, samples: Samples) -> None:
        work = self.workload
        kind: Any = mmds.Array(work.dtype, work.shape or (None,), align=np.dtype(work.dtype).itemsize)
        files = work.dtype == "uint8" and work.shape is None
        if files:
            kind = mmds.Image() if work.encoded else mmds.Bytes()
        with mmds.Writer(folder / "all.mmds", {"x": kind}) as writer:
            for block in samples.blocks():
                values: Any = block.values if work.shape else list(block.all())
                writer.write_batch({"x": [value.tobytes() for value in values] if files else values})

    def open(self, folder: Path) -> None:
        self.reader = mmds.open(folder / "all.mmds", fields="x")
        self.data = self.raw(folder)

    def single(self, i: int) -> Any:
        value = self.reader[i]
        return np.array(value) if isinstance(value, np.ndarray) else value

    def batch(self, indices: NdArray) -> Any:
        return self.reader[indices] if self.workload.shape else self.data[indices]

    def raw(self, folder: Path) -> Any:
        return mmds.MemoryMappedDataset(folder / "all.mmds", fields=["x"], decode=False, ragged="jagged")

    def dataset(self, folder: Path) -> Any:
        data = self.raw(folder)
        if self.workload.encoded:
            data.transform = _decoded
        return data

    def loader(self, batch_size: int, threads: int, seed: int) -> Any:
        if not hasattr(mmds, "Loader"):
            return None
        options: dict[str, Any] = {}
        if self.workload.encoded:
            from mmds.images import RandomResizedCrop

            options["images"] = [RandomResizedCrop(CROP)]
        return mmds.Loader(self.data, batch_size, shuffle=True, seed=seed, num_threads=threads, **options)


def _decoded(sample: Any) -> Any:
    return {"x": decode(sample["x"])}
