"""Contenders of `benchmarks.stores`: a process each, taking turns, none for longer than its share.

Processes are forked from one that has imported every library and used none, so that a fresh one costs milliseconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import multiprocessing
import os
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.conversion import DROP_CACHES
from benchmarks.progress import say
from benchmarks.store_worker import Worker, serve
from mmds.converters.stores import STORES

SUFFIXES = {"mmds": ".mmds"} | {store.name: store.suffixes[0] for store in STORES}


_pipes: set[Any] = set()  # to all contenders that are alive


class Failed(Exception):
    """What a contender says when it cannot do what it is asked for."""


class Contender:
    """The process of one store, read through mmds or by its own library, and workload."""

    def __init__(self, workload: str, store: str, via: str, path: Path) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        self.pid = os.fork()  # a process of multiprocessing would be taken for a worker of a DataLoader
        if self.pid == 0:
            code = 1
            try:
                for pipe in (*_pipes, self._pipe):  # or contenders would live on where this process is killed
                    pipe.close()
                keep_freed_memory()
                serve(theirs, Worker(workload, store, via, path))
                code = 0
            finally:
                os._exit(code)
        theirs.close()
        _pipes.add(self._pipe)

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Have something done and return the answer; `Failed` with the reason."""
        try:
            self._pipe.send((do, arguments))
            answer: dict[str, Any] = self._pipe.recv()
        except (EOFError, OSError):
            raise Failed(f"its process ended with {self._wait()}") from None
        if "error" in answer:
            raise Failed(answer["error"])
        return answer

    def seconds(self, do: str, **arguments: Any) -> float:
        """Have something done and return how long it took."""
        return float(self.ask(do, **arguments)["seconds"])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._pipe.send(None)
        self._pipe.close()
        _pipes.discard(self._pipe)
        self._wait()

    def _wait(self) -> int:
        if self.pid:
            self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            self.pid = 0
        return self._code


def keep_freed_memory() -> None:
    """Have malloc keep what is freed, in every contender alike.

    Otherwise a batch of bytes is given back to the kernel and asked for again, page by page, or not, depending on whether
    some other object happens to lie behind it: a factor of 3 that has nothing to do with stores.
    """
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(-1, 2**28)  # M_TRIM_THRESHOLD
        libc.mallopt(-3, 2**25)  # M_MMAP_THRESHOLD, whose maximum this is


def load_libraries(stores: list[str]) -> None:
    """Import what the contenders are going to use; none of it starts a thread before it is used."""
    import torch.utils.data  # noqa: F401

    for store in STORES:
        if store.name in stores:
            importlib.import_module(store.package)
            importlib.import_module(store.module)


def available(wanted: list[str]) -> tuple[list[str], list[str]]:
    """Return the stores that can be measured, ``.mmds`` first, and a line for each that cannot."""
    found, notes = ["mmds"], []
    for store in STORES:
        if store.name not in wanted:
            continue
        if importlib.util.find_spec(store.package) is None:
            notes.append(
                f'{store.name} is not measured: {store.package} is missing. Run: pip install "mmds[{store.extra}]"'
            )
        else:
            found.append(store.name)
    return found, notes


def in_turns(
    tasks: Mapping[Any, Callable[[int], float]], rounds: int, budget: float, failures: dict[Any, str]
) -> dict[Any, list[float]]:
    """Call each task once per round, in random order; a task that has taken `budget` seconds is not called again.

    A task that fails is out, with its reason in `failures`.
    """
    order = random.Random(0)
    seconds: dict[Any, list[float]] = {}
    for number in range(rounds):
        names = list(tasks)
        order.shuffle(names)
        for name in names:
            if name in failures or sum(seconds.get(name, ())) > budget:
                continue
            say(f"round {number + 1} of {rounds}: {name}")
            try:
                seconds.setdefault(name, []).append(tasks[name](number))
            except Failed as failure:
                failures[name] = str(failure)
                seconds.pop(name, None)
    say("")
    return seconds


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files if file.is_file())


def drop_caches() -> None:
    """Have the kernel drop the page cache; takes root."""
    os.sync()
    DROP_CACHES.write_text("1")
