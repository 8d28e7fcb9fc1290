"""Doing work on items in parallel, with results in the order of the items, in bounded memory.

Processes for what computes, threads for what waits for the disk, neither for one worker. Results come only as fast as they
are taken.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any, Final

from mmds.converters import Item
from mmds.work import Failure, Outputs, Work, nbytes
from mmds.workers import Workers

CHUNK = 16  # items per call of a thread
CHUNK_BYTES = 8 * 2**20  # a thread hands over what it has when it has this much, so that a window of chunks stays small
AHEAD = 2  # calls per thread under way at the same time

DONE: Final = object()  # in place of a sample: the item gives no more

Run = tuple[list[Item], Outputs]


def in_order(
    work: Work, items: Iterable[Item], *, first: int = 0, num_workers: int, processes: bool
) -> Generator[tuple[int, Item, Any]]:
    """Yield (number, item, sample or `Failure`) for all that `items` give, in order, and (number, item, `DONE`) after each.

    Items are numbered from `first` on. The results are the same whatever the number of workers. A sample has to be used
    before the next one is asked for: its arrays may be in memory that is used again.
    """
    remaining = iter(items)
    if num_workers == 1:
        yield from _named(first, _alone(work, first, remaining))
    elif not processes and work.is_plain:
        with ThreadPoolExecutor(num_workers, "mmds-read") as pool:
            yield from _named(first, _in_threads(pool, work, first, remaining, num_workers * AHEAD))
    else:
        with closing(Workers(work, num_workers)) as workers:
            yield from _named(first, workers.run(first, remaining))


def _named(first: int, runs: Iterator[Run]) -> Iterator[tuple[int, Item, Any]]:
    done = first
    for items, outputs in runs:
        start = done
        for number, value in outputs:
            for each in range(done, number):
                yield each, items[each - start], DONE
            done = max(done, number)
            source = value.item if isinstance(value, Failure) and value.item is not None else number
            yield number, items[source - start], value
        for each in range(done, start + len(items)):
            yield each, items[each - start], DONE
        done = start + len(items)


def _alone(work: Work, first: int, items: Iterator[Item]) -> Iterator[Run]:
    while batch := list(itertools.islice(items, work.batch_size)):
        yield batch, work.run(first, batch)
        first += len(batch)


def _in_threads(pool: ThreadPoolExecutor, work: Work, first: int, items: Iterator[Item], window: int) -> Iterator[Run]:
    chunks = iter(lambda: _chunk(items), [])
    pending: deque[tuple[int, list[Item], Future[list[tuple[int, Any]]]]] = deque()
    while True:
        for chunk in itertools.islice(chunks, window - len(pending)):
            pending.append((first, chunk, pool.submit(load_chunk, work, first, chunk)))
            first += len(chunk)
        if not pending:
            return
        start, chunk, future = pending.popleft()
        results = future.result()
        rest = chunk[len(results) :]
        if rest:  # the thread stopped early; what is left comes before anything else
            after = start + len(results)
            pending.appendleft((after, rest, pool.submit(load_chunk, work, after, rest)))
        yield chunk[: len(results)], iter(results)
        del results, future  # or they would be kept until the next chunk is there


def _chunk(items: Iterator[Item]) -> list[Item]:
    taken: list[Item] = []
    size = 0
    for item in itertools.islice(items, CHUNK):
        taken.append(item)
        size += nbytes(item)  # some carry their data
        if size >= CHUNK_BYTES:
            break
    return taken


def load_chunk(work: Work, first: int, chunk: list[Item]) -> list[tuple[int, Any]]:
    """Return what the first items of `chunk` give, one sample each: of all, or until they hold `CHUNK_BYTES`."""
    results: list[tuple[int, Any]] = []
    size = 0
    for number, sample in work.run(first, chunk):
        results.append((number, sample))
        size += nbytes(sample)
        if size >= CHUNK_BYTES:
            break
    return results
