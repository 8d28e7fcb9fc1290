"""What `benchmarks.stores` keeps in every store: seeded samples in column batches, and how a DataLoader collates them."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

import mmds
from benchmarks.picture_folder import with_comment
from examples.pictures import PHOTOGRAPHS, photograph

BATCH = 256
SHAPE = (3, 96, 96)
DISTINCT = 480  # pictures that are really encoded; a comment in each file makes all of them differ
SIDES, QUALITY = (128, 260), 90  # of the crops
SIZES = (6_000, 30_000)  # bytes of a file; what is smaller shows a plain sky or lawn
TOKENS = (5.6, 0.9)  # mean and deviation of the logarithm of a document's length: median 270 tokens, mean 400


def images(count: int) -> Iterator[dict[str, Any]]:
    """Yield batches of random pixels and labels."""
    for start in range(0, count, BATCH):
        rng = np.random.default_rng([1, start])
        size = min(BATCH, count - start)
        yield {"image": rng.integers(0, 256, (size, *SHAPE), np.uint8), "label": rng.integers(0, 1000, size)}


@cache
def pictures() -> list[bytes]:
    """Return the JPEG files that are really encoded; made before contenders are forked, none has to make them."""
    rng = np.random.default_rng(2)
    found: list[bytes] = []
    photographs = [photograph(name) for name in sorted(PHOTOGRAPHS)]
    while len(found) < DISTINCT:
        picture = photographs[len(found) % len(photographs)]
        side = min(int(rng.integers(*SIDES)), *picture.size)
        x, y = (int(rng.integers(0, size - side + 1)) for size in picture.size)
        file = io.BytesIO()
        picture.crop((x, y, x + side, y + side)).save(file, "JPEG", quality=QUALITY)
        if SIZES[0] <= file.tell() <= SIZES[1]:
            found.append(file.getvalue())
    return found


def jpegs(count: int) -> Iterator[dict[str, Any]]:
    """Yield batches of JPEG files, crops of photographs, and labels."""
    crops = pictures()
    for start in range(0, count, BATCH):
        numbers = range(start, min(start + BATCH, count))
        files = [with_comment(crops[number % DISTINCT], b"%d" % number) for number in numbers]
        yield {"image": files, "label": np.array(numbers) % 1000}


def documents(count: int) -> Iterator[dict[str, Any]]:
    """Yield batches of token documents, whose lengths follow a log-normal distribution."""
    for start in range(0, count, BATCH):
        rng = np.random.default_rng([3, start])
        lengths = np.exp(rng.normal(*TOKENS, min(BATCH, count - start))).astype(int) + 1
        yield {"tokens": [rng.integers(0, 50_000, length).astype(np.uint16) for length in lengths]}


def _tokens(batch: Sequence[Any]) -> Any:
    import torch  # not in every contender's process: it takes seconds to load

    return torch.from_numpy(np.concatenate([sample["tokens"] for sample in batch]))


def _files(batch: Sequence[Any]) -> Any:
    import torch

    return torch.from_numpy(np.frombuffer(bytearray().join(sample["image"] for sample in batch), np.uint8))


@dataclass(frozen=True)
class Workload:
    """Samples of one sort."""

    title: str
    fields: dict[str, Any]
    batches: Callable[[int], Iterator[dict[str, Any]]]
    samples: int
    quick: int
    format: str  # of the Dataset
    collate: Callable[[Sequence[Any]], Any] | None  # None: default collation


WORKLOADS: dict[str, Workload] = {
    "images": Workload(
        f"images uint8 {SHAPE} + label",
        {"image": mmds.Array("uint8", SHAPE), "label": mmds.Scalar("int64")},
        images, 4096, 260, "torch", None,
    ),
    "jpegs": Workload(
        "JPEG bytes + label", {"image": mmds.Image(), "label": mmds.Scalar("int64")}, jpegs, 8192, 260, "raw", _files
    ),
    "tokens": Workload(
        "token documents, ragged uint16",
        {"tokens": mmds.Array("uint16", (None,), align=2)},
        documents, 32768, 300, "numpy", _tokens,
    ),
}  # fmt: skip
