"""The same samples twice: in one mmds file, and as a list of dicts in a torch Dataset, as people have it.

A sample is a picture of 32 x 32 grey pixels and a class, about 1 KiB. In the list it is
``{"image": bytes, "label": int}``: what unpickling, JSON lines, or the rows of a Parquet table leave behind. Python counts
references inside of each of these objects, so reading one writes to its page, and a worker process gets its own copy of
the page then: "copy-on-read".
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

import mmds

SHAPE = (1, 32, 32)
PAYLOAD = 1024  # bytes of one picture
CLASSES = 1000
CHUNK = 4096  # samples per seed


def chunks(samples: int) -> Iterator[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Yield pictures and labels, seeded, up to 4096 samples at a time."""
    for start in range(0, samples, CHUNK):
        count = min(CHUNK, samples - start)
        rng = np.random.default_rng(start)
        images = np.frombuffer(rng.bytes(count * PAYLOAD), np.uint8).reshape(count, *SHAPE)
        yield images, rng.integers(0, CLASSES, count)


def write_file(path: Path, samples: int) -> None:
    """Write the samples to an mmds file."""
    with mmds.Writer(path, {"image": mmds.Array("uint8", SHAPE), "label": mmds.Scalar("int64")}) as writer:
        for images, labels in chunks(samples):
            writer.write_batch({"image": images, "label": labels})


class ListDataset(Dataset[tuple[torch.Tensor, int]]):
    """The samples as a list of dicts."""

    def __init__(self, samples: int) -> None:
        self.samples = [
            {"image": image.tobytes(), "label": label}
            for images, labels in chunks(samples)
            for image, label in zip(images, labels.tolist(), strict=True)
        ]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        sample: dict[str, Any] = self.samples[index]
        return torch.from_numpy(np.frombuffer(sample["image"], np.uint8).copy().reshape(SHAPE)), sample["label"]


def load(contender: str, path: Path, samples: int) -> Dataset[Any]:
    """Return the dataset of contender "mmds" or "list"."""
    if contender == "list":
        return ListDataset(samples)
    return mmds.MemoryMappedDataset(path, fields=("image", "label"))
