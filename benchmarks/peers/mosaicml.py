"""MosaicML Streaming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.peers.base import NdArray, Peer
from benchmarks.suite_workloads import BATCH, Samples


class Streaming(Peer):
    name, module, packages = "streaming", "streaming", ("mosaicml-streaming",)
    install = "pip install mosaicml-streaming"
    how = "MDSWriter; StreamingDataset(local, shuffle=True), dataset[i], StreamingDataLoader with 2 processes"
    lacks = dict.fromkeys(("epoch", "pickle"), "streaming has an iterable dataset, for its own loader")

    @classmethod
    def prepare(cls) -> None:
        define_vision_operators()
        super().prepare()

    def write(self, folder: Path, samples: Samples) -> None:
        import streaming

        work = self.workload
        is_bytes = work.shape is None and work.dtype == "uint8"
        sizes = "" if work.shape is None else ":" + ",".join(map(str, work.shape))
        columns = {"x": "bytes" if is_bytes else f"ndarray:{work.dtype}{sizes}"}
        with streaming.MDSWriter(out=str(folder / "all"), columns=columns) as writer:
            for sample in samples.all():
                writer.write({"x": sample.tobytes() if is_bytes else sample})

    def open(self, folder: Path) -> None:
        import streaming
        from streaming.base.util import clean_stale_shared_memory

        clean_stale_shared_memory()
        self.data = streaming.StreamingDataset(local=str(folder / "all"), shuffle=True, batch_size=BATCH)

    def single(self, i: int) -> Any:
        return self.data[i]["x"]

    def batch(self, indices: NdArray) -> Any:
        return [self.data[i]["x"] for i in indices.tolist()]

    def dataset(self, folder: Path) -> Any:
        return None

    def loader(self, batch_size: int, threads: int, seed: int) -> Any:
        import streaming

        return streaming.StreamingDataLoader(
            self.data, batch_size=batch_size, num_workers=threads, collate_fn=self.joined, persistent_workers=True
        )

    def joined(self, samples: list[Any]) -> Any:
        return self.collated([self.loaded(sample["x"]) for sample in samples])


_KEPT: list[Any] = []  # what it has defined is gone when a library is


def define_vision_operators() -> None:
    """Have torchvision, which streaming imports, load beside the CPU build of torch, where an operator is missing."""
    import torch

    if not hasattr(torch.ops.torchvision, "nms"):
        library: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for name in ("nms", "qnms"):
            library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)
