"""One library with one workload in a process of its own, for `python -m benchmarks`: it is told what to do, and answers."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import pickle
import signal
import time
import warnings
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import psutil

from benchmarks.peers.base import Peer
from benchmarks.store_contenders import Failed, keep_freed_memory
from benchmarks.suite_workloads import BATCH, CROP, Samples, Workload, checksum, collate, rows_in

TIMEOUT = 300  # seconds after which a process that does not answer is ended
PATIENCE = 5  # seconds that a process has to end by itself
BATCHES_EACH = 3  # batches that a worker has read when its memory is measured


class Worker:
    """A peer in this process. Every answer holds `seconds`, or what was asked for."""

    def __init__(self, peer: type[Peer], workload: Workload, samples: Samples | None = None) -> None:
        self.kind, self.workload, self.samples = peer, workload, samples
        self.peer: Any = peer(workload)
        self.opened: Path | None = None
        self._loops: dict[str, Any] = {}

    def write(self, path: Path, small: Path) -> dict[str, Any]:
        """Write all samples, and have the kernel bring them to the disk; write a small store besides."""
        assert self.samples is not None
        seconds = 0.0
        for target, samples in ((small, self.samples.first(BATCH)), (path, self.samples)):
            target.with_suffix(".count").write_text(str(samples.count))
            target.mkdir()
            os.sync()
            start = time.perf_counter()
            self.peer.write(target, samples)
            os.sync()
            seconds = time.perf_counter() - start
        return {"seconds": seconds}

    def open(self, path: Path) -> dict[str, Any]:
        """Open what was written, again if it was open."""
        self._loops.clear()
        self.peer, self.opened = self.kind(self.workload), path
        gc.collect()
        start = time.perf_counter()
        self.peer.open(path)
        return {"seconds": time.perf_counter() - start}

    def at(self, path: Path) -> dict[str, Any]:
        """Say where it was written, without opening it: what is open here may not survive the fork of workers."""
        self.opened = path
        return {}

    def single(self, rows: list[int]) -> dict[str, Any]:
        """Read samples one by one."""
        read = self.peer.single
        start = time.perf_counter()
        for row in rows:
            read(row)
        return {"seconds": time.perf_counter() - start}

    def batch(self, rows: list[int]) -> dict[str, Any]:
        """Read a batch."""
        indices = np.array(rows)
        start = time.perf_counter()
        self.peer.batch(indices)
        return {"seconds": time.perf_counter() - start}

    def cold(self, path: Path, rows: list[int]) -> dict[str, Any]:
        """Open and read a batch."""
        opening = self.open(path)["seconds"]
        return {"seconds": opening + self.batch(rows)["seconds"]}

    def touch(self, samples: int, limit: float) -> dict[str, Any]:
        """Read all samples, so that their pages are mapped in this process, or stop after `limit` seconds."""
        start = time.perf_counter()
        for first in range(0, samples, BATCH):
            self.peer.batch(np.arange(first, min(first + BATCH, samples)))
            if time.perf_counter() - start > limit:
                break
        return {"seconds": time.perf_counter() - start}

    def check(self, rows: list[int]) -> dict[str, Any]:
        """Return the checksums of a batch, and of its samples one by one."""
        if self.peer.batch is None:
            return {}
        batch = checksum(self.peer.batch(np.array(rows)))
        return {"batch": batch, "single": sum(checksum(self.peer.single(row)) for row in rows)}

    def epoch(self, what: str, limit: float, check: bool = False) -> dict[str, Any]:
        """Run an epoch: "epoch" of a DataLoader with 2 workers, "loader" of the library's own. The first one starts it.

        After `limit` seconds it ends early, and what it would have taken is reckoned from the batches so far.
        """
        loop = self._loop(what)
        if loop is None:
            return {}
        total = int(self.opened.with_suffix(".count").read_text()) if self.opened else 0
        start, done, seconds, found = time.perf_counter(), 0, 0.0, 0
        for batch in loop:
            seconds = time.perf_counter() - start
            batch = tuple(batch) if isinstance(batch, list) else batch  # DataLoaders make lists of tuples
            done += rows_in(batch)
            if check:
                found += checksum(batch)
            if seconds > limit:
                break
        else:
            seconds = time.perf_counter() - start
        return {"seconds": seconds * total / done, "samples": done, "bytes": found, "whole": done >= total}

    def first(self, path: Path) -> dict[str, Any]:
        """Import the library, open, start two workers (or the library's own loader) and wait for the first batch."""
        start = time.perf_counter()
        self.peer.prepare()
        self.at(path)
        loop = iter(self._either())
        next(loop)
        seconds = time.perf_counter() - start
        del loop
        self._loops.clear()
        return {"seconds": seconds}

    def memory(self, workers: int) -> dict[str, Any]:
        """Return the memory of this process and of `workers` workers which all have read batches: PSS and USS."""
        iterator = iter(self._either(workers))
        for number, _ in enumerate(iterator):
            if number + 1 >= BATCHES_EACH * workers:
                break
        me = psutil.Process()
        found = [process.memory_full_info() for process in (me, *me.children(recursive=True))]
        return {"pss": sum(info.pss for info in found), "uss": sum(info.uss for info in found), "processes": len(found)}

    def pickled(self) -> dict[str, Any]:
        """Return how many bytes the dataset is when it is sent to a worker."""
        assert self.opened is not None
        return {"bytes": len(pickle.dumps(self.peer.dataset(self.opened)))}

    def _either(self, workers: int = 2) -> Any:
        """Return the DataLoader, or where there is none the library's own loader."""
        loop = self._loop("epoch", workers)
        return self._loop("loader", workers) if loop is None else loop

    def _loop(self, what: str, workers: int = 2) -> Any:
        """Return the DataLoader, or the loader of the library, which live on; None where there is none."""
        if what not in self._loops:
            assert self.opened is not None
            made: Any = None
            if what == "loader" and self.peer.loader is not None:
                self.peer.open(self.opened)
                made = self.peer.loader(BATCH, workers, 0)
            elif what == "epoch":
                made = self.peer.dataset(self.opened)
                made = None if made is None else data_loader(made, workers, self.workload, self.kind.start_method)
            self._loops[what] = made
        return self._loops[what]


def data_loader(dataset: Any, workers: int, workload: Workload, start_method: str = "fork") -> Any:
    """Return a shuffling DataLoader whose workers live on."""
    import torch
    from torch.utils.data import DataLoader

    torch.manual_seed(0)
    rows = hasattr(dataset, "peer") or hasattr(dataset, "constant")  # not mmds's, whose own collation is the default
    return DataLoader(
        dataset, BATCH, shuffle=True, num_workers=workers, persistent_workers=True, multiprocessing_context=start_method,
        collate_fn=partial(collate, workload=workload) if rows else None,
    )  # fmt: skip


class Constant:
    """A dataset that reads nothing: all that a batch of it takes is its way from the worker."""

    constant = True

    def __init__(self, count: int, batch: Any) -> None:
        self.count, self.batch = count, batch

    def __len__(self) -> int:
        return self.count

    def __getitems__(self, indices: list[int]) -> Any:
        return self.batch


class Transport(Worker):
    """The floor of an epoch: one constant batch, which is sent again and again."""

    def __init__(self, workload: Workload, samples: Samples) -> None:
        super().__init__(Peer, workload)
        batch: Any = [*samples.first(BATCH).all()]
        if workload.encoded:  # not decoded here: torch's threads would not survive the fork
            batch = np.zeros((BATCH, 3, CROP, CROP), np.uint8)
        self.constant = Constant(samples.count, collate(batch, workload))

    def epoch(self, what: str, limit: float, check: bool = False) -> dict[str, Any]:
        """Run an epoch of it."""
        if what not in self._loops:
            self._loops[what] = data_loader(self.constant, 2, self.workload)
        start = time.perf_counter()
        for _ in self._loops[what]:
            pass
        return {"seconds": time.perf_counter() - start}

    def memory(self, workers: int) -> dict[str, Any]:
        """Return what the interpreter, torch and batches on their way take."""
        self._loops["epoch"] = data_loader(self.constant, workers, self.workload)
        return super().memory(workers)


class Process:
    """A worker in a process of its own. `ask` waits for its answer, though not for ever.

    It is forked from this process, which has loaded all libraries and used none, or, if `fresh`, from one that has loaded
    numpy and torch and no library.
    """

    _pipes: ClassVar[set[Any]] = set()  # to all that are alive

    def __init__(self, worker: Worker, log: Path, *, fresh: bool = False) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        self._process: Any = None
        if fresh:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["torch.utils.data", "benchmarks.suite_worker"])
            self._process = context.Process(target=run, args=(theirs, worker, log))
            self._process.start()
            self.pid = self._process.pid
        else:
            self.pid = os.fork()  # mmds takes a process of multiprocessing for a worker of a DataLoader
            if self.pid == 0:
                try:
                    for pipe in (*self._pipes, self._pipe):  # or processes would live on where this one is killed
                        pipe.close()
                    run(theirs, worker, log)
                finally:
                    os._exit(0)
        theirs.close()
        self._pipes.add(self._pipe)

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Have something done and return the answer; `Failed` with the reason."""
        try:
            self._pipe.send((do, arguments))
            if not self._pipe.poll(TIMEOUT):
                raise Failed(f"{do}: no answer in {TIMEOUT} s")
            answer: dict[str, Any] = self._pipe.recv()
        except (EOFError, OSError):
            raise Failed(f"{do}: its process ended") from None
        if "error" in answer:
            raise Failed(answer["error"])
        return answer

    def seconds(self, do: str, **arguments: Any) -> float:
        """Have something done and return how long it took."""
        return float(self.ask(do, **arguments)["seconds"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Have it end, and end what it has left running: its own group of processes."""
        self._pipe.close()
        self._pipes.discard(self._pipe)
        until = time.monotonic() + PATIENCE
        ended = self._ended()
        while not ended and time.monotonic() < until:
            time.sleep(0.005)
            ended = self._ended()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        if self._process is not None:
            self._process.join()
        elif not ended:
            os.waitpid(self.pid, 0)

    def _ended(self) -> bool:
        if self._process is not None:
            return not self._process.is_alive()
        return os.waitpid(self.pid, os.WNOHANG)[0] != 0


ACTIONS = {"at", "write", "open", "single", "batch", "cold", "touch", "check", "epoch", "first", "memory", "pickled"}


def run(pipe: Connection, worker: Worker, log: Path) -> None:
    """Answer questions until there are no more; what libraries print goes to a file."""
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # a fresh process has inherited another one
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    warnings.simplefilter("ignore")
    keep_freed_memory()
    with contextlib.suppress(EOFError):
        while True:
            do, arguments = pipe.recv()
            try:
                if do not in ACTIONS:
                    raise ValueError(f"{do!r}: expected one of {', '.join(sorted(ACTIONS))}")
                pipe.send(getattr(worker, do)(**arguments))
            except Exception as error:  # noqa: BLE001 (a peer that fails has its reason below the table)
                pipe.send({"error": f"{do}: {type(error).__name__}: {str(error)[:300]}"})
