"""One contender of `benchmarks.stores` in a process of its own: it is told what to do, and answers.

Answers hold `seconds`; `bytes` is the checksum of what was read, the same for all who have read the same samples.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

import mmds
from benchmarks.store_native import NATIVE, Loops, through_mmds
from benchmarks.store_workloads import BATCH, WORKLOADS, Workload
from mmds.converters.stores import find_store

NdArray = np.ndarray[Any, Any]


def checksum(value: Any) -> int:
    """Return the sum of all bytes of what was read, whatever it is packed in."""
    if isinstance(value, dict):
        return sum(map(checksum, value.values()))
    if isinstance(value, (list, tuple)):
        return sum(map(checksum, value))
    if isinstance(value, (bytes, memoryview)):
        return int(np.frombuffer(value, np.uint8).sum(dtype=np.int64))
    return int(np.asarray(value).sum(dtype=np.int64))


class Worker:
    """A store of one workload, open in this process."""

    def __init__(self, name: str, store: str, via: str, path: Path) -> None:
        self.name, self.store, self.via, self.path = name, store, via, path
        self.workload: Workload = WORKLOADS[name]
        self._loops: Loops | None = None
        self._loader: Any = None

    @property
    def loops(self) -> Loops:
        """The loops of mmds or of the library itself; opens the store at first use."""
        if self._loops is None:
            self._loops = (through_mmds if self.via == "mmds" else NATIVE[self.store])(self.name, self.path)
        return self._loops

    def single(self, rows: list[int]) -> dict[str, Any]:
        """Read samples one by one."""
        read = self.loops.single
        start = time.perf_counter()
        for row in rows:
            read(row)
        return {"seconds": time.perf_counter() - start}

    def batch(self, rows: list[int]) -> dict[str, Any]:
        """Read a batch."""
        indices = np.array(rows)
        start = time.perf_counter()
        self.loops.batch(indices)  # opens the store, if this is the first time
        return {"seconds": time.perf_counter() - start}

    def other(self, path: str, rows: list[int]) -> dict[str, Any]:
        """Open another store of the same sort, and read a batch of it."""
        self.path, self._loops = Path(path), None
        return self.batch(rows)

    def touch(self, samples: int, limit: float) -> dict[str, Any]:
        """Read all samples, so that their pages are mapped in this process, or stop after `limit` seconds."""
        start = time.perf_counter()
        for first in range(0, samples, BATCH):
            self.loops.batch(np.arange(first, min(first + BATCH, samples)))
            if time.perf_counter() - start > limit:
                break
        return {"seconds": time.perf_counter() - start}

    def check(self, rows: list[int]) -> dict[str, Any]:
        """Return the checksums of a batch, and of its samples one by one."""
        batch, single = self.loops.batch, self.loops.single
        return {"bytes": [checksum(batch(np.array(rows))), sum(checksum(single(row)) for row in rows)]}

    def epoch(self, limit: float) -> dict[str, Any]:
        """Run an epoch of a DataLoader with two workers that live on; the first one starts them.

        After `limit` seconds it ends early, and what it would have taken is reckoned from the batches so far.
        """
        import torch
        from torch.utils.data import DataLoader

        if self._loader is None:
            torch.manual_seed(0)
            options: dict[str, Any] = {} if self.workload.collate is None else {"collate_fn": self.workload.collate}
            dataset = mmds.MemoryMappedDataset(self.path, format=self.workload.format)
            self._loader = DataLoader(dataset, BATCH, shuffle=True, num_workers=2, persistent_workers=True, **options)
        start, done = time.perf_counter(), 0
        for _ in self._loader:
            done += 1
            if time.perf_counter() - start > limit:
                break
        return {"seconds": (time.perf_counter() - start) * len(self._loader) / done}

    def write(self, count: int, small: str) -> dict[str, Any]:
        """Write the store and make it durable; making the samples does not count. Write a small one beside it, too."""
        for path, samples in ((Path(small), BATCH), (self.path, count)):
            found = find_store(path)
            make: Callable[..., Any] = mmds.Writer if found is None else found.writer
            seconds = 0.0
            writer = make(path, self.workload.fields, overwrite=True)
            for batch in self.workload.batches(samples):
                start = time.perf_counter()
                writer.write_batch(batch)
                seconds += time.perf_counter() - start
            start = time.perf_counter()
            writer.close()
            seconds += time.perf_counter() - start
        return {"seconds": seconds}


def serve(pipe: Connection, worker: Worker) -> None:
    """Answer questions until there are no more."""
    actions: dict[str, Callable[..., dict[str, Any]]] = {
        "single": worker.single, "batch": worker.batch, "other": worker.other, "check": worker.check, "touch": worker.touch,
        "epoch": worker.epoch, "write": worker.write,
    }  # fmt: skip
    with contextlib.suppress(EOFError):
        while (question := pipe.recv()) is not None:
            do, arguments = question
            try:
                pipe.send(actions[do](**arguments))
            except Exception as error:  # noqa: BLE001 (a contender that fails has its reason in the table)
                pipe.send({"error": f"{type(error).__name__}: {error}"})
