"""Which samples make up which batch, on which rank: plain arithmetic, so that any batch of an epoch can be the first.

An *order* is a sequence of all samples of an epoch; ``order[a:b]`` is a range or an int64 array. Its samples are dealt to
the ranks batch by batch: with W ranks and batches of B, batch k takes positions ``k * W * B`` to ``(k + 1) * W * B`` of the
order, and rank r of them the r-th B. So an epoch that stopped at a position goes on there with any number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple, Protocol

import numpy as np

NdArray = np.ndarray[Any, Any]

CHUNK = 16384  # samples of an order that are computed at once


class Planned(NamedTuple):
    """A batch that is to be read."""

    indices: Any  # of its samples
    numbers: NdArray  # one for each of them that no other has in this epoch, on no rank: uint64
    position: int  # where the epoch goes on behind it


class Schedule(Protocol):
    """The batches of one epoch on one rank."""

    def __len__(self) -> int:
        """How many there are from the beginning."""

    def batches(self, position: int) -> Iterator[Planned]:
        """Yield those from `position` on."""

    def ended(self, position: int) -> bool:
        """Return whether there are none from `position` on."""


class OrderSchedule:
    """An order, dealt to ranks. The last batch is shorter, and filled up from the beginning of the order where ranks
    would get different numbers of samples; or dropped.
    """

    def __init__(self, order: Sequence[int], batch_size: int, drop_last: bool, rank: int, world_size: int) -> None:
        self._order, self._size, self._drop_last = order, batch_size, drop_last
        self._rank, self._world_size = rank, world_size

    def __len__(self) -> int:
        step = self._size * self._world_size
        return len(self._order) // step if self._drop_last else -(-len(self._order) // step)

    def batches(self, position: int) -> Iterator[Planned]:
        """Yield the batches from sample `position` of the order on."""
        n, size = len(self._order), self._size
        step = size * self._world_size
        whole = position + (n - position) // step * step  # behind the last whole batch
        for chunk in range(position, whole, max(1, CHUNK // step) * step):
            indices = _array(self._order[chunk : min(whole, chunk + max(1, CHUNK // step) * step)])
            for start in range(self._rank * size, len(indices), step):
                yield Planned(
                    indices[start : start + size],
                    np.arange(chunk + start, chunk + start + size, dtype=np.uint64),
                    chunk + start - self._rank * size + step,
                )
        if whole < n and not self._drop_last:
            each = -(-(n - whole) // self._world_size)
            start = whole + self._rank * each
            places = np.arange(start, start + each)
            indices = _array(self._order[whole:n])
            if each * self._world_size > n - whole:
                more = np.resize(_array(self._order[: self._world_size]), each * self._world_size - len(indices))
                indices = np.concatenate([indices, more])
            yield Planned(indices[places - whole], places.astype(np.uint64), n)

    def ended(self, position: int) -> bool:
        """Return whether the rest behind sample `position` of the order makes no batch."""
        left = len(self._order) - position
        return left < self._size * self._world_size if self._drop_last else left <= 0


class SamplerSchedule:
    """A torch sampler: what it yields for this rank, in batches. A position is a number of samples."""

    def __init__(self, sampler: Any, batch_size: int, drop_last: bool, rank: int, world_size: int) -> None:
        self._sampler, self._size, self._drop_last = sampler, batch_size, drop_last
        self._rank, self._world_size = rank, world_size

    def __len__(self) -> int:
        return len(self._sampler) // self._size if self._drop_last else -(-len(self._sampler) // self._size)

    def batches(self, position: int) -> Iterator[Planned]:
        """Yield the batches from sample `position` of the sampler on."""
        indices = islice(iter(self._sampler), position, None)
        while batch := list(islice(indices, self._size)):
            if len(batch) < self._size and self._drop_last:
                return
            numbers = np.arange(position, position + len(batch), dtype=np.uint64) * self._world_size + self._rank
            position += len(batch)
            yield Planned(batch, numbers.astype(np.uint64), position)

    def ended(self, position: int) -> bool:
        """Return whether the rest of the sampler behind sample `position` makes no batch."""
        needed = position + (self._size if self._drop_last else 1)
        return hasattr(self._sampler, "__len__") and len(self._sampler) < needed


class BatchSamplerSchedule:
    """A torch batch sampler: the lists of indices that it yields for this rank. A position is a number of batches."""

    def __init__(self, batch_sampler: Iterable[Any], rank: int, world_size: int) -> None:
        self._sampler, self._rank, self._world_size = batch_sampler, rank, world_size

    def __len__(self) -> int:
        return len(self._sampler)  # type: ignore[arg-type]

    def batches(self, position: int) -> Iterator[Planned]:
        """Yield the batches from number `position` on."""
        for number, batch in enumerate(islice(iter(self._sampler), position, None), position):
            first = (number * self._world_size + self._rank) << 32
            yield Planned(batch, np.arange(first, first + len(batch), dtype=np.uint64), number + 1)

    def ended(self, position: int) -> bool:
        """Return whether there are no batches from number `position` on, as far as the sampler has a length."""
        return hasattr(self._sampler, "__len__") and len(self) <= position


def _array(indices: Any) -> NdArray:
    if isinstance(indices, range):
        return np.arange(indices.start, indices.stop, indices.step, dtype=np.int64)
    return np.asarray(indices)
