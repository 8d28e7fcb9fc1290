"""Hugging Face datasets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.base import NdArray, Peer
from benchmarks.suite_workloads import Samples


class HuggingFace(Peer):
    name, module, packages = "datasets", "datasets", ("datasets", "pyarrow")
    install = "pip install datasets"
    how = 'Dataset.from_generator, save_to_disk; load_from_disk().with_format("numpy")[indices]'
    lazy = False

    def write(self, folder: Path, samples: Samples) -> None:
        import datasets

        work, kind = self.workload, datasets.Value(self.workload.dtype)
        feature: Any = datasets.Value("binary")
        if work.shape is not None:
            feature = (
                datasets.Array3D(work.shape, work.dtype) if len(work.shape) == 3 else datasets.List(kind, *work.shape)
            )
        elif work.dtype != "uint8":
            feature = datasets.List(kind)

        def rows() -> Iterator[dict[str, Any]]:
            for sample in samples.all():
                yield {"x": sample.tobytes() if feature == datasets.Value("binary") else sample}

        datasets.disable_progress_bars()
        made = datasets.Dataset.from_generator(
            rows, datasets.Features({"x": feature}), str(folder.with_suffix(".cache")), fingerprint=folder.parent.name
        )
        made.save_to_disk(folder / "all")

    def open(self, folder: Path) -> None:
        import datasets

        self.data = datasets.load_from_disk(folder / "all").with_format("numpy")

    def single(self, i: int) -> Any:
        return self.data[i]["x"]

    def batch(self, indices: NdArray) -> Any:
        found = self.data[indices]["x"]
        return list(found) if self.workload.shape is None else np.asarray(found)
