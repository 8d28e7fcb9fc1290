"""Orders in which to read a large file: shuffled, without a list of all indices, and without a disk seek per sample.

An order is a sequence of the indices of one epoch: ``len(order)``, and ``order[a:b]`` as an int64 array in time and
memory that do not depend on its length. `mmds.permutation.Permutation` is one, and `BlockShuffle` is the other. Which of
them to take is on the page docs/shuffling.md.
"""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence, Sized
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from mmds.errors import missing
from mmds.permutation import MAX_N, Order, Permutation, integer, resolve, seeds

try:
    import torch.distributed
    from torch.utils.data import Sampler
except ImportError:
    raise missing("torch", "torch", "BlockShuffleSampler") from None

BLOCK_SIZE, WINDOW = 16, 1024  # samples, blocks: docs/shuffling.md has the figures
CHUNK = 2**13  # indices that a sampler computes at a time

BLOCKS, WITHIN = 0, 1  # what comes behind the seed: (BLOCKS, 0), (WITHIN, number of the window)


class Window(NamedTuple):
    """A part of an epoch whose samples come from a few blocks."""

    start: int  # positions in the order
    stop: int
    blocks: NDArray[np.int64]  # of shape (blocks, 2): where each begins and ends in the file, in samples, ascending


class BlockShuffle(Order):
    """The numbers from 0 to n - 1, shuffled so that at any time only a few short runs of neighbours are in use.

    Runs of `block_size` neighbouring samples, which a disk can read in one piece, are brought into a random order.
    `window` consecutive blocks of this order form a window, and its samples are shuffled among each other. So every
    sample comes exactly once, and while a window is in use, ``window * block_size`` samples are all that is read.
    `window_at` says which they are.

    Args:
        n: how many samples, from 0 to 2**62.
        seed: any int, or a tuple of ints such as (seed, epoch).
        block_size: samples in a block. The last block of a file may be shorter.
        window: blocks in a window, at most. All windows have this many or one less, if there are a few of them: a last
            window of a single block would be hardly shuffled. A window of at least ``n / block_size`` blocks makes a
            full shuffle.

    ``order[i]`` is an int, ``order[a:b]`` and ``order[array of positions]`` are int64 arrays. Ask for thousands at a
    time and for positions in order: each change to another window costs a fraction of a millisecond.

    Raises TypeError and ValueError for arguments that are no integers or out of bounds, and IndexError as sequences do.

    >>> order = BlockShuffle(10, seed=3, block_size=2, window=2)
    >>> order[:].tolist()
    [6, 7, 9, 8, 2, 1, 3, 0, 5, 4]
    """

    def __init__(
        self,
        n: SupportsIndex,
        seed: SupportsIndex | Sequence[SupportsIndex],
        *,
        block_size: SupportsIndex = BLOCK_SIZE,
        window: SupportsIndex = WINDOW,
    ) -> None:
        self._n = integer("n", n, 0, MAX_N)
        self._seed = seeds(seed)
        self._block_size = integer("block_size", block_size, 1, MAX_N)
        self._window = integer("window", window, 1, MAX_N)
        self._blocks = Permutation(-(-self._n // self._block_size), (*self._seed, BLOCKS, 0))
        blocks = len(self._blocks)
        self._windows = -(-blocks // self._window)
        # The first `_longer` windows have `_per_window` + 1 blocks.
        self._per_window, self._longer = divmod(blocks, max(self._windows, 1))
        self._lacking = blocks * self._block_size - self._n  # samples in the last block of the file
        self._short = self._blocks.index(blocks - 1) if self._lacking else blocks  # where this block comes
        self._short_window = int(self._window_of_block(np.asarray(self._short))) if self._lacking else self._windows

    @property
    def seed(self) -> tuple[int, ...]:
        """The seed, as a tuple."""
        return self._seed

    @property
    def block_size(self) -> int:
        """Samples in a block."""
        return self._block_size

    @property
    def window(self) -> int:
        """Blocks in a window, at most."""
        return self._window

    def window_at(self, position: SupportsIndex) -> Window:
        """Return the window that holds a position, for whoever reads its blocks ahead. The next begins at its `stop`."""
        window = int(self._window_of(resolve(integer("position", position, -self._n, self._n - 1), self._n)))
        blocks = np.sort(self._blocks[self._first_block(window) : self._first_block(window + 1)])
        starts = blocks * self._block_size
        stops = np.minimum(starts + self._block_size, self._n)
        return Window(self._start(window), self._start(window + 1), np.stack([starts, stops], axis=1))

    def __contains__(self, value: object) -> bool:
        return value in Permutation(self._n, self._seed)

    def __repr__(self) -> str:
        seed = self._seed[0] if len(self._seed) == 1 else self._seed
        return f"BlockShuffle({self._n}, {seed}, block_size={self._block_size}, window={self._window})"

    # Inside

    def _at(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        values = np.empty(len(positions), np.int64)
        windows = self._window_of(positions)
        cuts = np.flatnonzero(windows[1:] != windows[:-1]) + 1
        for start, stop in itertools.pairwise([0, *cuts.tolist(), len(positions)]):
            if start < stop:
                values[start:stop] = self._in_window(int(windows[start]), positions[start:stop])
        return values

    def _first_block(self, window: int) -> int:
        """Return how many blocks come before a window."""
        return window * self._per_window + min(window, self._longer)

    def _start(self, window: int) -> int:
        """Return how many samples come before a window."""
        lacking = self._lacking if window > self._short_window else 0
        return self._first_block(window) * self._block_size - lacking

    def _window_of_block(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of the window that holds the blocks at these places of the order of blocks."""
        in_longer = self._longer * (self._per_window + 1)
        rest = self._longer + (places - in_longer) // max(self._per_window, 1)
        return np.where(places < in_longer, places // (self._per_window + 1), rest)

    def _window_of(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of the window of each position."""
        if self._lacking:
            behind = positions >= self._start(self._short_window + 1)
            positions = np.where(behind, positions + self._lacking, positions)
        return self._window_of_block(positions // self._block_size)

    def _in_window(self, window: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the samples at positions that are all in one window."""
        start, stop = self._start(window), self._start(window + 1)
        within = Permutation(stop - start, (*self._seed, WITHIN, window))[positions - start]
        first = self._first_block(window)
        slots = within // self._block_size
        places = slots + first
        if window == self._short_window:  # the short block changes places with the last one, so that slots are full
            last = self._first_block(window + 1) - 1
            places = np.where(places == last, self._short, np.where(places == self._short, last, places))
        return (self._blocks[places] - slots) * self._block_size + within


class BlockShuffleSampler(Sampler[int]):
    """A sampler for ``DataLoader(dataset, sampler=...)`` in the order of `BlockShuffle`, for one process or many.

    As with torch's `DistributedSampler`, rank r takes the positions r, r + world_size, ... of the order, and every rank
    gets equally many: the order is continued from its beginning, or cut with `drop_last`.

    Args:
        data_source: a dataset, or its length.
        block_size, window: as in `BlockShuffle`.
        seed: any int, or a tuple of ints; the same on all ranks.
        rank, world_size: which of how many processes this is. Both or neither; without, torch.distributed is asked if it
            is initialised, and otherwise there is one.
        drop_last: whether to leave out up to ``world_size - 1`` samples rather than repeat some.

    Each iteration is another epoch, unless `set_epoch` says which. Yields Python ints.

    `state_dict` and `load_state_dict` save and restore the place in an epoch, in a few numbers. After loading, the next
    iteration begins with the sample that would have been next. The world size may be another one then, if it divides the
    position, which counts the samples of all ranks together.

    Raises TypeError and ValueError for arguments that do not fit.

    >>> sampler = BlockShuffleSampler(10, block_size=2, window=3, rank=0, world_size=2)
    >>> first = list(sampler)
    >>> sampler.set_epoch(0)
    >>> drawn = iter(sampler)
    >>> [next(drawn), next(drawn)] == first[:2]
    True
    >>> state = sampler.state_dict()
    >>> state["epoch"], state["position"]
    (0, 4)
    >>> resumed = BlockShuffleSampler(10, block_size=2, window=3, rank=0, world_size=2)
    >>> resumed.load_state_dict(state)
    >>> list(resumed) == first[2:]
    True
    """

    def __init__(
        self,
        data_source: Sized | SupportsIndex,
        *,
        block_size: SupportsIndex = BLOCK_SIZE,
        window: SupportsIndex = WINDOW,
        seed: SupportsIndex | Sequence[SupportsIndex] = 0,
        rank: SupportsIndex | None = None,
        world_size: SupportsIndex | None = None,
        drop_last: bool = False,
    ) -> None:
        self._n = len(data_source) if isinstance(data_source, Sized) else integer("data_source", data_source, 0, MAX_N)
        self._block_size = integer("block_size", block_size, 1, MAX_N)
        self._window = integer("window", window, 1, MAX_N)
        self._seed = seeds(seed)
        self._rank, self._world_size = _place(rank, world_size)
        self._drop_last = drop_last
        share, left = divmod(self._n, self._world_size)
        self._total = (share + (1 if left and not drop_last else 0)) * self._world_size  # of all ranks
        self._epoch = 0
        self._begin = 0  # position at which this epoch was or will be begun: not 0 after `load_state_dict`
        self._drawn = [0]  # by this rank in its last iteration, which alone counts here
        self._begun = False  # whether this epoch was iterated over

    @property
    def epoch(self) -> int:
        """The epoch of the present iteration, or of the next one if none has begun."""
        return self._epoch

    def order(self, epoch: int | None = None) -> BlockShuffle:
        """Return the order of all samples in an epoch, by default the present one, before it is shared among ranks."""
        seed = (*self._seed, self._epoch if epoch is None else epoch)
        return BlockShuffle(self._n, seed, block_size=self._block_size, window=self._window)

    def set_epoch(self, epoch: int) -> None:
        """Make `epoch` the next epoch. It begins with its first sample, unless `load_state_dict` has led into this epoch."""
        epoch = integer("epoch", epoch, 0, MAX_N)
        if epoch != self._epoch or self._begun:
            self._set(epoch, 0)

    def __len__(self) -> int:
        """Return how many samples this rank draws in a whole epoch, whatever was loaded."""
        return self._total // self._world_size

    def __iter__(self) -> Iterator[int]:
        if self._begun:
            self._set(self._epoch + 1, 0)
        self._begun = True
        return self._draw(self.order(), self._begin + self._rank, self._drawn)

    def state_dict(self, used: int | None = None) -> dict[str, Any]:
        """Return where this sampler is, as a dict of numbers: the same on every rank.

        Args:
            used: how many samples of this rank's iteration have been trained with. By default, as many as were drawn.
                Workers of a `DataLoader` draw batches ahead, so with workers say ``batches * batch_size`` here. That may
                be more than was drawn if the last batch of an epoch, which is shorter, is among them.
        """
        drawn = self._drawn[0]
        if used is not None:
            ended = self._begin + drawn * self._world_size >= self._total
            drawn = min(integer("used", used, 0, MAX_N if ended else drawn), drawn)
        return {**self._identity(), "epoch": self._epoch, "position": self._begin + drawn * self._world_size}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue at the place that `state_dict` returned, on this or on another number of ranks.

        Raises ValueError if the state is of another length, seed, block size or window, and if this world size does not
        divide the position.
        """
        identity = self._identity()
        if missing_keys := {*identity, "epoch", "position"} - {*state}:
            raise ValueError(f"not a state of a BlockShuffleSampler: it has no {', '.join(sorted(missing_keys))}")
        for name, expected in identity.items():
            found = tuple(state[name]) if name == "seed" else state[name]  # JSON makes a list of a tuple
            if found != expected:
                raise ValueError(f"the state has {name}={found!r}, and this sampler {expected!r}; the orders differ")
        epoch = integer("epoch", state["epoch"], 0, MAX_N)
        position = integer("position", state["position"], 0, 2 * MAX_N)
        if position < self._n and position % self._world_size:
            raise ValueError(
                f"position {position} cannot be shared among world_size={self._world_size} ranks: expected a multiple. "
                "Continue with the former number of ranks, or begin the epoch anew with set_epoch"
            )
        self._set(epoch, min(position, self._total) if position < self._n else self._total)

    def __repr__(self) -> str:
        settings = {**self._identity(), "rank": self._rank, "world_size": self._world_size, "epoch": self._epoch}
        return f"BlockShuffleSampler({', '.join(f'{name}={value}' for name, value in settings.items())})"

    # Inside

    def _identity(self) -> dict[str, Any]:
        """Return what decides over the order."""
        return {"length": self._n, "seed": self._seed, "block_size": self._block_size, "window": self._window}

    def _set(self, epoch: int, position: int) -> None:
        self._epoch, self._begin, self._drawn, self._begun = epoch, position, [0], False

    def _draw(self, order: BlockShuffle, first: int, drawn: list[int]) -> Iterator[int]:
        world = self._world_size
        for start in range(first, self._total, CHUNK * world):
            positions = np.arange(start, min(start + CHUNK * world, self._total), world, dtype=np.int64)
            for index in order[positions % self._n if positions[-1] >= self._n else positions].tolist():
                drawn[0] += 1
                yield index


def _place(rank: object, world_size: object) -> tuple[int, int]:
    """Return rank and world size as given, or as torch.distributed knows them."""
    if (rank is None) != (world_size is None):
        raise ValueError(f"rank={rank} and world_size={world_size}: expected both or neither")
    if world_size is None:
        return this_rank()
    size = integer("world_size", world_size, 1, MAX_N)
    return integer("rank", rank, 0, size - 1), size


def this_rank() -> tuple[int, int]:
    """Return rank and world size as torch.distributed knows them; (0, 1), if it is not initialised.

    Warns where a launcher has started several ranks, each of which would now be given all samples.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    if "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1":
        warnings.warn(
            f"this is rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']} (RANK, WORLD_SIZE), but torch.distributed is "
            "not initialised, so it gets the samples of all ranks: call init_process_group before, or give rank and world_size",
            stacklevel=2,
        )
    return 0, 1
