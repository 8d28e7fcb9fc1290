"""Downloading shards before they are needed, in the order in which an epoch needs them."""

from __future__ import annotations

import os
import sys
import threading
import time
import warnings
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np

from mmds.cachedshards import Stopped
from mmds.errors import MmdsError, printable
from mmds.shards import Shards
from mmds.sidecar import Joined
from mmds.store import Store

T = TypeVar("T")

SAMPLES = 2**18  # that are looked ahead: 2 MB of numbers
FIRST, MORE = 64, 4  # batches looked at before the first one is yielded, and before each of the others
GUESSED = 128  # batches on their way
AT_ONCE = 2  # downloads: one is checked and synced while another arrives, for which `Remote` has several connections
PATIENCE = 0.5  # seconds after which room is looked for again
OFTEN = 3  # times that an order fetches each shard, on an average, before it is told

_END: Any = object()
_told: weakref.WeakSet[Shards] = weakref.WeakSet()  # datasets whose order has been warned of


def looking_ahead(
    batches: Iterable[T],
    rows_of: Callable[[T], Any],
    store: Store,
    samples: int = SAMPLES,
    in_flight: int | None = None,
) -> Iterator[T]:
    """Yield `batches`; where `store` downloads its shards into a cache, those of the next `samples` samples meanwhile.

    `rows_of` gives the samples of a batch, as they are numbered in the store. The last `in_flight` batches that were
    yielded are taken for being read. None: nobody knows how many those are, so it is 128, of which the shards take
    at most half of the cache.
    """
    shards = store.shards if isinstance(store, Joined) else store
    if not isinstance(shards, Shards) or shards.downloads is None or shards.manifest is None:
        yield from batches
        return
    if all(map(shards.downloads.has, shards.manifest.shards)):
        yield from batches
        return
    rest = iter(batches)
    waiting: deque[tuple[T, list[int], int]] = deque()  # a batch, its shards, how many samples it has
    prefetch, fetches, look, samples_ahead = Prefetch(shards, in_flight), Fetches(shards), FIRST, 0
    try:
        while True:
            while look and not (waiting and (samples_ahead >= samples or prefetch.is_full)):
                batch = next(rest, _END)
                if batch is _END:
                    break
                rows = np.asarray(rows_of(batch))
                waiting.append((batch, shards.numbers(rows), len(rows)))
                prefetch.add(waiting[-1][1])
                fetches.count(waiting[-1][1])
                samples_ahead, look = samples_ahead + len(rows), look - 1
            if not waiting:
                return
            batch, numbers, length = waiting.popleft()
            samples_ahead, look = samples_ahead - length, MORE
            prefetch.take(numbers)
            yield batch
    except BaseException:  # not at the end: the last batches are still to be read, from shards that are on their way
        prefetch.close()
        raise


class Prefetch:
    """Threads that download shards into the cache of a dataset. They end with `close`, and with the main thread.

    They are no pool's: the interpreter would wait for one at its end as long as there is work, with the main thread alive.
    And no daemons: one that comes back from obstore while the interpreter goes down takes the process with it.
    """

    def __init__(self, shards: Shards, in_flight: int | None = None) -> None:
        assert shards.manifest is not None
        self._entries, self._downloads = shards.manifest.shards, shards.downloads
        self._room: int | None = self._downloads.room
        self._in_flight = GUESSED if in_flight is None else in_flight
        self._most_past = self._room // 2 if in_flight is None and self._room is not None else sys.maxsize
        self._ahead: dict[int, deque[int]] = {}  # shards that batches will need, and the numbers of these batches
        self._past: OrderedDict[int, int] = OrderedDict()  # those of batches being read, and the last of these
        self._bytes = self._past_bytes = 0  # of all of these, and of `_past`
        self._added = self._taken = 0  # batches
        self._untried: set[int] = set()
        self._is_closed = False
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._is_idle = False  # nothing to be done until other shards are needed
        self._begin_again = 0.0  # when, after there was no room

    @property
    def is_full(self) -> bool:
        """Whether the shards that are needed fill the cache."""
        return self._room is not None and self._bytes >= self._room

    def add(self, numbers: list[int]) -> None:
        """Say which shards the batch behind all others will need, each once."""
        if self._pid != os.getpid():  # threads do not come along into a forked process
            self._begin()
        with self._lock:
            for number in numbers:
                uses = self._ahead.get(number)
                if uses is None:
                    uses = self._ahead[number] = deque()
                    if number not in self._past:
                        self._enter(number)
                uses.append(self._added)
            self._added += 1

    def take(self, numbers: list[int]) -> None:
        """Say that the first batch that was added is being read, which needs these shards, and download what is missing."""
        if self._pid != os.getpid():
            self._begin()
        with self._lock:
            for number in numbers:
                uses = self._ahead[number]
                uses.popleft()
                if not uses:
                    del self._ahead[number]
                if number not in self._past:
                    self._past_bytes += self._entries[number].bytes
                self._past[number] = self._taken
                self._past.move_to_end(number)
            while self._past and self._is_past(next(iter(self._past.values()))):
                number, _ = self._past.popitem(last=False)
                self._past_bytes -= self._entries[number].bytes
                if number not in self._ahead:
                    self._leave(number)
            self._taken += 1
            wanted = 0 if self._is_idle else min(AT_ONCE, len(self._untried))
        if wanted and time.monotonic() >= self._begin_again:
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            while len(self._threads) < wanted:
                self._threads.append(threading.Thread(target=self._download, name="mmds-prefetch"))
                self._threads[-1].start()

    def close(self) -> None:
        """Want nothing any more. What is being downloaded is given up soon, but not waited for."""
        self._is_closed = True

    # Which shards are needed; with the lock held

    def _enter(self, number: int) -> None:
        self._bytes += self._entries[number].bytes
        if not self._downloads.has(self._entries[number]):
            self._untried.add(number)
            self._is_idle = False

    def _leave(self, number: int) -> None:
        self._bytes -= self._entries[number].bytes
        self._untried.discard(number)
        self._is_idle = False

    def _is_past(self, last: int) -> bool:
        """Return whether a shard whose last batch is `last` is read no more, or takes room that the next ones need."""
        return last <= self._taken - self._in_flight or (self._past_bytes > self._most_past and last < self._taken)

    def _next(self) -> tuple[int, list[int], list[int]] | None:
        """Return a shard to download, those that are needed sooner, and those that are needed later, soonest first."""
        ahead = [number for number in self._ahead if number not in self._past]
        needed = [*reversed(self._past), *sorted(ahead, key=lambda number: self._ahead[number][0])]
        place = next((place for place, number in enumerate(needed) if number in self._untried), None)
        if place is not None:
            number, sooner, later = needed[place], needed[:place], needed[place + 1 :]
            held = {0, number, *sooner}  # the first one stays open
            if self._room is None or sum(self._entries[other].bytes for other in held) <= self._room:
                self._untried.discard(number)
                return number, sooner, later
        self._is_idle = True
        return None

    # Threads

    def _stopped(self) -> bool:
        return self._is_closed or not threading.main_thread().is_alive()

    def _download(self) -> None:
        while not self._stopped():
            with self._lock:
                found = self._next()
            if found is None:
                return
            number, sooner, later = found
            try:
                is_here = self._fetch(number, sooner, later)
            except Stopped:
                return
            except RuntimeError:  # no thread can be started any more: this process ends
                return
            except (MmdsError, OSError):  # whoever needs it tries again, and meets what is wrong
                continue
            if not is_here:
                with self._lock:
                    self._begin_again = time.monotonic() + PATIENCE
                    if number in self._ahead or number in self._past:
                        self._untried.add(number)
                return

    def _fetch(self, number: int, sooner: list[int], later: list[int]) -> bool:
        entry, keep = self._entries[number], [self._entries[other] for other in sooner]
        if self._room is not None:
            self._downloads.renew([*keep, *(self._entries[other] for other in later)])
        found: bool = self._downloads.fetch(entry, keep, self._stopped)
        return found


class Fetches:
    """How often an order fetches shards into a cache of its size that keeps what was used last; warns if that is often."""

    def __init__(self, shards: Shards) -> None:
        assert shards.manifest is not None
        self._shards, self._entries, self._room = shards, shards.manifest.shards, shards.downloads.room
        self._all = sum(entry.bytes for entry in self._entries)
        self._is_known = self._room is None or self._all <= self._room or shards in _told
        self._here: OrderedDict[int, None] = OrderedDict()  # used last last
        self._seen: set[int] = set()
        self._here_bytes = self._seen_bytes = self._fetched = 0

    def count(self, numbers: list[int]) -> None:
        """Take the shards of the next batch into account."""
        if self._is_known:
            return
        for number in numbers:
            size = self._entries[number].bytes
            if number not in self._here:
                self._here_bytes, self._fetched = self._here_bytes + size, self._fetched + size
            self._here[number] = None
            self._here.move_to_end(number)
            if number not in self._seen:
                self._seen.add(number)
                self._seen_bytes += size
            while self._here_bytes > self._room:
                self._here_bytes -= self._entries[self._here.popitem(last=False)[0]].bytes
        if self._fetched > OFTEN * self._seen_bytes:
            self._tell()

    def _tell(self) -> None:
        self._is_known = True
        _told.add(self._shards)
        count = len(self._entries)
        window = max(1, self._room * count // (2 * self._all))
        warnings.warn(
            f"{printable(self._shards.source)}: {count} shards of together {self._all} bytes are read in an order that fetches "
            f"each of them again and again, since cache_size={self._room} is less: take BlockShuffleSampler(dataset, "
            f"block_size={max(entry.n for entry in self._entries)}, window={window}), or a larger cache",
            RuntimeWarning,
            stacklevel=2,
        )
