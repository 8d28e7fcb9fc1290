"""Loading items in parallel and in order, in bounded memory.

Processes for what computes, threads for what waits for the disk. The results come in the order of the items, whatever
the number of workers, and only as fast as they are taken.
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any

from mmds.converters import Item
from mmds.errors import SourceError, printable

CHUNK = 16  # items per call of a worker: a call between processes costs about 0.1 ms
CHUNK_BYTES = 8 * 2**20  # a worker hands over what it has when it has this much, so that a window of chunks stays small
AHEAD = 2  # calls per worker under way at the same time

Load = Callable[[Any], Any]


@dataclass(frozen=True)
class Failure:
    """In place of a sample: why there is none."""

    reason: str


def load_in_order(
    load: Load, items: Iterable[Item], *, num_workers: int, processes: bool
) -> Generator[tuple[Item, Any | Failure]]:
    """Yield (item, sample or `Failure`) for each of `items`, in order.

    `load` returns a sample or raises `SourceError`; any other exception of it ends the iteration, as does a worker
    process that dies (`SourceError`). With one worker everything happens in the calling thread.
    """
    if num_workers == 1:
        for item in items:
            yield item, _attempt(load, item)
        return
    remaining = iter(items)
    chunks = iter(lambda: list(itertools.islice(remaining, CHUNK)), [])
    window = num_workers * AHEAD
    if not processes:
        with ThreadPoolExecutor(num_workers, "mmds-read") as pool:
            yield from _in_order(pool, load, chunks, window)
        return
    # Spawned, not forked: the caller may have threads (torch has), and a fork would copy their locks in any state.
    context = get_context("spawn")
    leash, hand = context.Pipe(duplex=False)
    with leash, hand, ProcessPoolExecutor(num_workers, context, _begin_worker, (leash,)) as workers:
        try:
            yield from _in_order(workers, load, chunks, window)
        except BaseException:  # Ctrl-C, and GeneratorExit too: nobody wants the rest
            hand.close()
            raise


def _in_order(
    pool: Executor, load: Load, chunks: Iterator[list[Item]], window: int
) -> Generator[tuple[Item, Any | Failure]]:
    pending: deque[tuple[list[Item], Future[list[Any]]]] = deque()
    try:
        while True:
            for chunk in itertools.islice(chunks, window - len(pending)):
                pending.append((chunk, pool.submit(load_chunk, load, chunk)))
            if not pending:
                return
            chunk, future = pending.popleft()
            results = future.result()
            rest = chunk[len(results) :]
            if rest:  # the worker stopped early; what is left comes before anything else
                pending.appendleft((rest, pool.submit(load_chunk, load, rest)))
            yield from zip(chunk, results, strict=False)
            del results, future  # or they would be kept until the next chunk is there
    except BrokenProcessPool:
        raise SourceError(
            f"a worker process died (out of memory, killed, or crashed by a sample) at {printable(chunk[0][0])} or "
            "in the samples around it; num_workers=1 shows which. In a script, call convert() under "
            "if __name__ == '__main__':"
        ) from None


def load_chunk(load: Load, chunk: list[Item]) -> list[Any]:
    """Return the samples (or failures) of the first items of `chunk`: of all, or until they hold `CHUNK_BYTES`."""
    results: list[Any] = []
    size = 0
    for item in chunk:
        results.append(_attempt(load, item))
        size += nbytes(results[-1])
        if size >= CHUNK_BYTES:
            break
    return results


def _attempt(load: Load, item: Item) -> Any:
    try:
        return load(item)
    except SourceError as error:
        return Failure(str(error))
    except Exception as error:
        error.add_note(f"while {printable(item[0])} was loaded")
        raise


def nbytes(sample: Any) -> int:
    """Return about how many bytes `sample` holds."""
    if isinstance(sample, (dict, tuple, list)):
        return sum(map(nbytes, sample.values() if isinstance(sample, dict) else sample))
    size = getattr(sample, "nbytes", None)
    return size if isinstance(size, int) else len(sample) if isinstance(sample, (bytes, str)) else 8


def _begin_worker(leash: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers itself
    threading.Thread(target=_end_with, args=(leash,), daemon=True).start()


def _end_with(leash: Connection) -> None:
    """End this process when its parent lets go of the other end, or is gone: the pool alone would let it go on."""
    wait([leash])
    os._exit(1)
