"""Downloading shards before they are needed, in the order in which an epoch needs them."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from mmds.cachedshards import Stopped
from mmds.errors import MmdsError
from mmds.manifest import Shard
from mmds.shards import Shards
from mmds.sidecar import Joined
from mmds.store import Store

T = TypeVar("T")

SAMPLES = 2**18  # that are looked ahead: 2 MB of numbers
BEHIND = 2**12  # samples back whose shards are taken for in use: of batches on their way
FIRST, MORE = 64, 4  # batches looked at before the first one is yielded, and before each of the others
AT_ONCE = 2  # downloads: one is checked and synced while another arrives, for which `Remote` has several connections
PATIENCE = 0.5  # seconds after which room is looked for again

_END: Any = object()


def looking_ahead(
    batches: Iterable[T], rows_of: Callable[[T], Any], store: Store, samples: int = SAMPLES
) -> Iterator[T]:
    """Yield `batches`; where `store` downloads its shards into a cache, those of the next `samples` samples meanwhile.

    `rows_of` gives the samples of a batch, as they are numbered in the store.
    """
    shards = store.shards if isinstance(store, Joined) else store
    if not isinstance(shards, Shards) or shards.downloads is None:
        yield from batches
        return
    rest = iter(batches)
    waiting: deque[tuple[T, list[int], int]] = deque()  # a batch, its shards, how many samples it has
    behind: deque[tuple[list[int], int]] = deque()
    ahead: Counter[int] = Counter()  # shards of the waiting batches, those needed first first, and in how many they are
    samples_ahead = samples_behind = 0
    prefetch, look = Prefetch(shards), FIRST
    try:
        while True:
            while look and not (waiting and (samples_ahead >= samples or prefetch.is_enough(ahead))):
                batch = next(rest, _END)
                if batch is _END:
                    break
                rows = np.asarray(rows_of(batch))
                waiting.append((batch, shards.numbers(rows), len(rows)))
                ahead.update(waiting[-1][1])
                samples_ahead, look = samples_ahead + len(rows), look - 1
            if not waiting:
                return
            batch, numbers, length = waiting.popleft()
            behind.append((numbers, length))
            samples_ahead, samples_behind, look = samples_ahead - length, samples_behind + length, MORE
            while samples_behind - behind[0][1] >= BEHIND:
                samples_behind -= behind.popleft()[1]
            ahead.subtract(numbers)
            for number in numbers:
                if not ahead[number]:
                    del ahead[number]
            in_use = dict.fromkeys(number for used, _ in reversed(behind) for number in used)
            prefetch.want(list(in_use), list(ahead))
            yield batch
    finally:
        prefetch.close()


class Prefetch:
    """Threads that download shards into the cache of a dataset. They end with `close`, and with the main thread."""

    def __init__(self, shards: Shards) -> None:
        assert shards.manifest is not None
        self._entries, self._downloads = shards.manifest.shards, shards.downloads
        self._is_closed = False
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(AT_ONCE, "mmds-prefetch")
        self._tasks: list[Future[None]] = []
        self._wanted: list[int] = []  # in the order in which they are needed
        self._tried: set[int] = set()
        self._begin_again = 0.0  # when, after there was no room

    def is_enough(self, numbers: Iterable[int]) -> bool:
        """Return whether these shards alone fill the cache."""
        room: int | None = self._downloads.room
        return room is not None and sum(self._entries[number].bytes for number in numbers) >= room

    def want(self, in_use: list[int], ahead: list[int]) -> None:
        """Say which shards are being read, and which are needed next, in order. Replaces what was wanted before."""
        if self._pid != os.getpid():  # threads do not come along into a forked process
            self._begin()
        wanted = list(dict.fromkeys((*in_use, *ahead)))
        if wanted == self._wanted and len(self._tried) == len(wanted):
            return
        self._tasks = [task for task in self._tasks if not task.done() or task.result()]
        with self._lock:
            self._wanted = wanted
            self._tried.intersection_update(wanted)
            for number in wanted:
                if number not in self._tried and self._downloads.has(self._entries[number]):
                    self._tried.add(number)
            untried = len(wanted) - len(self._tried)
        if time.monotonic() >= self._begin_again:
            while len(self._tasks) < min(AT_ONCE, untried):
                self._tasks.append(self._pool.submit(self._download))

    def close(self) -> None:
        """Want nothing any more. What is being downloaded is given up soon, but not waited for."""
        self._is_closed = True
        if self._pid == os.getpid():
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _stopped(self) -> bool:
        return self._is_closed or not threading.main_thread().is_alive()

    def _download(self) -> None:
        while not self._stopped():
            with self._lock:
                number = next((number for number in self._wanted if number not in self._tried), None)
                if number is None:
                    return
                self._tried.add(number)
                keep = [self._entries[other] for other in self._wanted[: self._wanted.index(number)]]
                later = [self._entries[other] for other in self._wanted[len(keep) :]]
            try:
                if self._fetch(self._entries[number], keep, later):
                    continue
            except Stopped:
                return
            except (MmdsError, OSError):  # whoever needs it tries again, and meets what is wrong
                continue
            self._tried.discard(number)
            self._begin_again = time.monotonic() + PATIENCE
            return

    def _fetch(self, entry: Shard, keep: list[Shard], later: list[Shard]) -> bool:
        if self._downloads.room is not None:
            self._downloads.renew([*keep, *later])
        found: bool = self._downloads.fetch(entry, keep, self._stopped)
        return found
