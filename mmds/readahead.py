"""Asking the kernel for the pages of a batch all at once, before the first of them is missed.

A gather that misses a page waits for the disk, one page after the other, and each miss reads 128 KB around it. Asked
with ``madvise(MADV_WILLNEED)`` beforehand, the disk gets all requests of a batch together, and only what the batch needs.
Once everything is in the page cache that is wasted work, so it is done only while this process still reads from a disk.
"""

from __future__ import annotations

import mmap
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from mmds.gather import PAGE, address

NdArray = np.ndarray[Any, Any]

CHUNK = 2**17  # bytes; the kernel may cut one request to the device's readahead window, by default 128 KiB
BATCHES = 8  # for which it stays on or off until it is decided again
SHARE = 1 / 8  # of the samples that must have been missing for it to be on
BLOCKS = PAGE // 512  # of a page: ru_inblock counts 512 bytes


TAIL = 2**16  # bytes at the end of a file that hold its footer, unless that is unusually long


@contextmanager
def touching_little(mapped: mmap.mmap) -> Iterator[None]:
    """Read both ends of a file at once, and nothing but what is touched: a miss would read megabytes around it."""
    tail = max(0, len(mapped) - TAIL) // PAGE * PAGE
    mapped.madvise(mmap.MADV_RANDOM)
    mapped.madvise(mmap.MADV_WILLNEED, tail, len(mapped) - tail)
    mapped.madvise(mmap.MADV_WILLNEED, 0, min(PAGE, len(mapped)))
    yield
    mapped.madvise(mmap.MADV_NORMAL)


class DiskReads:
    """Whether the samples of recent batches came from a disk, as far as this process can tell."""

    def __init__(self) -> None:
        self._reads = _disk_reads()
        self._on = True  # the first batch of a process: nobody knows
        self._left, self._samples = 1, 0

    def wanted(self, samples: int) -> bool:
        """Return whether a batch of so many samples should be asked for before it is read."""
        if not self._left:
            reads, was_on = _disk_reads(), self._on
            self._on = reads - self._reads > SHARE * self._samples
            # One batch without, to see whether it misses: not all file systems count what was asked for ahead.
            self._left = 1 if was_on and not self._on else BATCHES
            self._reads, self._samples = reads, 0
        self._left -= 1
        self._samples += samples
        return self._on


class Readahead:
    """Readahead for one mapped file."""

    def __init__(self, mapped: mmap.mmap) -> None:
        self._map = mapped
        self._base = address(np.frombuffer(mapped, np.uint8))

    def ask(self, starts: NdArray, stops: NdArray) -> None:
        """Ask the kernel to read the memory from `starts` to `stops`: addresses in the map, int64. Does not wait for it."""
        for start, stop in self._runs(starts, stops):
            for offset in range(start, stop, CHUNK):
                self._map.madvise(mmap.MADV_WILLNEED, offset, min(CHUNK, stop - offset))

    def release(self, starts: NdArray, stops: NdArray) -> None:
        """Take the memory from `starts` to `stops` out of this process; it stays in the page cache."""
        for start, stop in self._runs(starts, stops):
            self._map.madvise(mmap.MADV_DONTNEED, start, stop - start)

    def _runs(self, starts: NdArray, stops: NdArray) -> Iterator[tuple[int, int]]:
        return zip(*_pages(starts - self._base, stops - self._base), strict=True)


def _disk_reads() -> float:
    """Return how many pages this process has made the kernel read from a disk, and how often it has waited for one."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_inblock / BLOCKS + usage.ru_majflt


def _pages(starts: NdArray, stops: NdArray) -> tuple[list[int], list[int]]:
    """Return where the runs of pages that hold the bytes from `starts` to `stops` begin and end: ascending, disjoint.

    >>> _pages(np.array([20000, 10, 4096]), np.array([20001, 20, 9000]))
    ([0, 16384], [12288, 20480])
    """
    order = np.argsort(starts)
    first = starts[order] // PAGE
    last = np.maximum.accumulate(-(-stops[order] // PAGE))
    apart = np.flatnonzero(first[1:] > last[:-1])
    ends = np.append(apart, len(order) - 1) if len(order) else apart
    return (first[np.append([0], apart + 1)[: len(ends)]] * PAGE).tolist(), (last[ends] * PAGE).tolist()
