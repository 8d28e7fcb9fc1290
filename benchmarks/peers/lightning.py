"""LitData."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.peers.base import NdArray, Peer
from benchmarks.suite_workloads import Samples

BLOCKS = 2  # as many as there are processes


class LitData(Peer):
    name, module, packages = "litdata", "litdata", ("litdata",)
    install = "pip install litdata"
    how = "optimize(chunk_bytes=64MB); StreamingDataset(shuffle=True), dataset[i], StreamingDataLoader with 2 processes"
    lacks = dict.fromkeys(("epoch", "pickle"), "litdata has an iterable dataset, for its own loader")

    def write(self, folder: Path, samples: Samples) -> None:
        import litdata

        is_bytes = self.workload.shape is None and self.workload.dtype == "uint8"
        size = -(-samples.count // BLOCKS)
        litdata.optimize(
            fn=partial(_block, samples, is_bytes, size), inputs=list(range(BLOCKS)), output_dir=str(folder / "all"),
            chunk_bytes="64MB", num_workers=1, reorder_files=False, verbose=False, start_method="fork",
        )  # fmt: skip

    def open(self, folder: Path) -> None:
        import litdata

        self.data = litdata.StreamingDataset(str(folder / "all"), shuffle=True)

    def single(self, i: int) -> Any:
        return self.data[i]

    def batch(self, indices: NdArray) -> Any:
        return [self.data[i] for i in indices.tolist()]

    def dataset(self, folder: Path) -> Any:
        return None

    def loader(self, batch_size: int, threads: int, seed: int) -> Any:
        import litdata

        return litdata.StreamingDataLoader(
            self.data, batch_size=batch_size, num_workers=threads, collate_fn=self.joined, persistent_workers=True
        )

    def joined(self, samples: list[Any]) -> Any:
        return self.collated([self.loaded(sample) for sample in samples])


def _block(samples: Samples, is_bytes: bool, size: int, number: int) -> Iterator[Any]:
    for i in range(number * size, min((number + 1) * size, samples.count)):
        yield samples.get(i).tobytes() if is_bytes else samples.get(i)
