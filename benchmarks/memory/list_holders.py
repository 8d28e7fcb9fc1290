"""COCO-like annotations, and the ways to hold a list of them in a Dataset.

An annotation is a dict of five numbers, a list of 4 floats, and a list with a list of 16 to 120 floats, as `json.load` makes
it of an annotations file: about 75 objects, each of which has a reference count that a worker writes to when it reads it.

list        the list itself
deepcopy    the list, and each access makes a deep copy (detectron2's ``DatasetFromList(serialize=False)``)
pickled     a list of bytes, one pickled sample each
numpy       one flat array of all pickled samples, and one of where each ends (``serialize=True``)
torch       the same as tensors, which PyTorch moves to shared memory when it sends them to a worker
share       `mmds.share`
mmds        an ``.mmds`` file with arrays instead of the lists of floats
empty       nothing: every sample is the same constant. What a worker costs by itself
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

import mmds

CHUNK = 4096  # samples per seed
WIDTH = 640.0  # of the pictures that coordinates are in
CONSTANT = {"id": 0, "image_id": 0, "category_id": 1, "iscrowd": 0, "area": 1.0, "bbox": [0.5] * 4, "segmentation": []}
Sample = dict[str, Any]


def coco_like(samples: int) -> Iterator[Sample]:
    """Yield annotations, seeded; no two of them have an object in common.

    >>> [(one["id"], len(one["bbox"]), len(one["segmentation"])) for one in coco_like(2)]
    [(0, 4, 1), (1, 4, 1)]
    >>> sorted({len(polygon) for one in coco_like(5000) for polygon in one["segmentation"]}) == list(range(16, 121, 2))
    True
    """
    for start in range(0, samples, CHUNK):
        rng = np.random.default_rng(start)
        count = min(CHUNK, samples - start)
        ends = np.cumsum(2 * rng.integers(8, 61, count)).tolist()  # polygons of 8 to 60 points
        coordinates = (WIDTH * rng.random(ends[-1])).round(2).tolist()
        boxes = (WIDTH * rng.random((count, 4))).round(2).tolist()
        areas = (WIDTH**2 * rng.random(count)).round(4).tolist()
        images, categories = rng.integers(10**5, 6 * 10**5, count).tolist(), rng.integers(1, 91, count).tolist()
        for i in range(count):
            yield {
                "id": start + i,
                "image_id": images[i],
                "category_id": categories[i],
                "iscrowd": 0,
                "area": areas[i],
                "bbox": boxes[i],
                "segmentation": [coordinates[ends[i - 1] if i else 0 : ends[i]]],
            }


def weigh(sample: Sample) -> float:
    """Return the sum of all numbers of an annotation but its id: every object of it is touched."""
    numbers = sample["image_id"] + sample["category_id"] + sample["iscrowd"] + sample["area"]
    return float(numbers + sum(sample["bbox"]) + sum(map(sum, sample["segmentation"])))


class Holder(Protocol):
    """What a Dataset needs of what holds its samples."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


class DeepCopied(list[Sample]):
    """A list that hands out copies."""

    def __getitem__(self, index: Any) -> Any:
        return copy.deepcopy(super().__getitem__(index))


class Pickled(list[bytes]):
    """A list of pickled samples."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        super().__init__(map(pickle.dumps, samples))

    def __getitem__(self, index: Any) -> Any:
        return pickle.loads(super().__getitem__(index))  # noqa: S301 (pickled above)


class FlatNumpy:
    """All pickled samples in one array."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        pickled = list(map(pickle.dumps, samples))
        self.ends = np.cumsum([len(data) for data in pickled], dtype=np.int64)
        self.data = np.frombuffer(b"".join(pickled), np.uint8)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> Any:
        start, stop = self.ends[index - 1] if index else 0, self.ends[index]
        return pickle.loads(self.data[start:stop].data)  # noqa: S301 (pickled above)


class FlatTorch:
    """All pickled samples in one tensor."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        flat = FlatNumpy(samples)
        self.ends, self.data = torch.from_numpy(flat.ends), torch.from_numpy(flat.data.copy())

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> Any:
        start, stop = self.ends[index - 1].item() if index else 0, self.ends[index].item()
        return pickle.loads(self.data[start:stop].numpy().data)  # noqa: S301 (pickled above)


class Nothing:
    """As many samples as there are, all of them one constant."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self.length = sum(1 for _ in samples)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        return CONSTANT


HOLDERS: dict[str, Callable[[Iterable[Sample]], Holder]] = {
    "empty": Nothing,
    "list": list,
    "deepcopy": DeepCopied,
    "pickled": Pickled,
    "numpy": FlatNumpy,
    "torch": FlatTorch,
    "share": mmds.share,
}


def write_file(path: Path, samples: int) -> None:
    """Write the annotations to an mmds file."""
    numbers = dict.fromkeys(("id", "image_id", "category_id", "iscrowd"), mmds.Scalar("int64"))
    kinds = {**numbers, "area": mmds.Scalar("float64"), "bbox": mmds.Array("float64", (4,))}
    with mmds.Writer(path, {**kinds, "segmentation": (mmds.Array("float64", (None,)),)}) as writer:
        for one in coco_like(samples):
            polygons = tuple(np.array(polygon) for polygon in one["segmentation"])
            writer.write({**one, "bbox": np.array(one["bbox"]), "segmentation": polygons})


def hold(name: str, samples: int, file: Path) -> Holder:
    """Return the annotations, held in the way `name`; for "mmds", `file` has them."""
    if name == "mmds":
        return mmds.MemoryMappedDataset(file, format="numpy")
    return HOLDERS[name](coco_like(samples))


def packed_bytes(holder: Holder) -> int | None:
    """Return how many bytes the samples take where they are one piece."""
    if isinstance(holder, (FlatNumpy, FlatTorch)):
        return int(holder.ends.nbytes + holder.data.nbytes)
    if isinstance(holder, mmds.MemoryMappedDataset):
        assert isinstance(holder.path, Path)
        return holder.path.stat().st_size
    return getattr(holder, "nbytes", None)


class Annotations(Dataset[tuple[int, float]]):
    """What is loaded: of each annotation its id and its weight, so that sending a batch costs next to nothing."""

    def __init__(self, held: Holder) -> None:
        self.held = held

    def __len__(self) -> int:
        return len(self.held)

    def __getitem__(self, index: int) -> tuple[int, float]:
        sample = self.held[index]
        return sample["id"], weigh(sample)
