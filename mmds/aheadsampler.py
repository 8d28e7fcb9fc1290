"""`ahead`: a sampler for `DataLoader` that has shards downloaded before the workers need them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain, islice
from typing import Any

import numpy as np

from mmds.errors import missing

try:
    from torch.utils.data import Sampler
except ImportError:
    raise missing("torch", "torch", "ahead") from None

from mmds.dataset import MemoryMappedDataset
from mmds.lookahead import SAMPLES

CHUNK = 32  # indices that are looked at together: few, since a shard of large samples has few


class Ahead(Sampler[Any]):
    """What another sampler yields, while the shards of what it will yield next are downloaded. Made by `ahead`."""

    def __init__(self, dataset: MemoryMappedDataset, sampler: Any, samples: int) -> None:
        self.dataset, self.sampler, self.samples = dataset, sampler, samples
        self._yielded = 0  # in the last iteration

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Any]:
        self._yielded = 0
        return self._draw(iter(self.sampler))

    def _draw(self, indices: Iterator[Any]) -> Iterator[Any]:
        first = list(islice(indices, 1))
        length = 1 if first and np.ndim(first[0]) else CHUNK  # a batch, or indices
        indices = chain(first, indices)
        chunks = iter(lambda: list(islice(indices, length)), [])
        for chunk in self.dataset.looking_ahead(chunks, _rows, self.samples):
            for index in chunk:
                self._yielded += 1
                yield index

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch on to the sampler."""
        self.sampler.set_epoch(epoch)

    def state_dict(self, used: int | None = None) -> dict[str, Any]:
        """Return the state of the `BlockShuffleSampler` behind what was yielded, or behind `used` samples of that."""
        state: dict[str, Any] = self.sampler.state_dict(self._yielded if used is None else used)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Pass a state on to the sampler."""
        self.sampler.load_state_dict(state)


def ahead(dataset: MemoryMappedDataset, sampler: Any, *, samples: int = SAMPLES) -> Ahead:
    """Return a sampler that yields what `sampler` does, and downloads shards into the cache of `dataset` ahead of it.

    For ``DataLoader(dataset, sampler=ahead(dataset, sampler), ...)``: threads of the main process look up which shards the
    next `samples` samples need, and fetch them into the cache that the workers share, as many as fit beside those in use.
    A sampler of batches goes the same way: ``batch_sampler=ahead(dataset, batch_sampler)``. `mmds.Loader` needs none.

    Epoch and state are those of `sampler`. Without a cache, and for a dataset that is one file, nothing is done ahead.
    """
    if not isinstance(dataset, MemoryMappedDataset):
        raise TypeError(
            f"dataset: expected a MemoryMappedDataset, whose shards are known, got {type(dataset).__name__}"
        )
    if type(samples) is not int or samples < 1:
        raise ValueError(f"samples={samples!r}: expected an int of at least 1")
    return Ahead(dataset, sampler, samples)


def _rows(chunk: list[Any]) -> list[Any]:
    """Return the indices of a chunk, which of a sampler of batches is one batch."""
    return list(chunk[0]) if np.ndim(chunk[0]) else chunk
