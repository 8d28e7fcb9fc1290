"""FFCV."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.base import Peer
from benchmarks.suite_workloads import CROP, Samples


class Ffcv(Peer):
    name, module, packages = "ffcv", "ffcv", ("ffcv", "numba")
    install = "apt install libopencv-dev libturbojpeg0-dev pkg-config; pip install ffcv opencv-python-headless"
    how = "DatasetWriter; Loader(OrderOption.RANDOM, os_cache=True) with 2 threads; JPEG files encoded again by itself"
    lacks = dict.fromkeys(
        ("single", "batch", "cold", "epoch", "pickle"), "ffcv reads through its Loader only"
    ) | dict.fromkeys(("ragged", "tokens"), "ffcv pads every batch to the longest sample of the file")
    exact = False

    @classmethod
    def prepare(cls) -> None:
        import ffcv.fields
        import ffcv.loader
        import ffcv.writer  # noqa: F401

    def write(self, folder: Path, samples: Samples) -> None:
        import simplejpeg
        from ffcv.fields import NDArrayField, RGBImageField
        from ffcv.writer import DatasetWriter

        work = self.workload
        field: Any = RGBImageField("jpg") if work.encoded else NDArrayField(np.dtype(work.dtype), work.shape)
        made = _Pairs(samples, simplejpeg.decode_jpeg if work.encoded else np.asarray)
        DatasetWriter(str(folder / "all.beton"), {"x": field}, num_workers=1).from_indexed_dataset(made)

    def open(self, folder: Path) -> None:
        self.path = str(folder / "all.beton")

    def loader(self, batch_size: int, threads: int, seed: int) -> Any:
        from ffcv.fields.decoders import NDArrayDecoder, RandomResizedCropRGBImageDecoder
        from ffcv.loader import Loader, OrderOption
        from ffcv.transforms import ToTensor, ToTorchImage

        steps: list[Any] = [NDArrayDecoder(), ToTensor()]
        if self.workload.encoded:
            steps = [RandomResizedCropRGBImageDecoder((CROP, CROP)), ToTensor(), ToTorchImage()]
        return Loader(
            self.path, batch_size, min(threads, len(os.sched_getaffinity(0))), os_cache=True,
            order=OrderOption.RANDOM, seed=seed, pipelines={"x": steps}, drop_last=False,
        )  # fmt: skip


class _Pairs:
    """What FFCV's writer takes: a Dataset of tuples."""

    def __init__(self, samples: Samples, convert: Any) -> None:
        self.samples, self.convert = samples, convert

    def __len__(self) -> int:
        return self.samples.count

    def __getitem__(self, i: int) -> tuple[Any]:
        return (self.convert(self.samples.get(i)),)
