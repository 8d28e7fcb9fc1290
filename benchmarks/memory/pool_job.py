"""One configuration, in a process of its own: a method of an object that holds data goes through ``Pool.map``.

    python -m benchmarks.memory.pool_job CONTENDER METHOD FILE ROWS SIZE

The pool has two workers, started by fork or spawn, and gets four tasks, each of which reads a quarter of the rows; both
workers do two of them. Prints JSON: how many bytes the first task is pickled to, and the private memory of the worker that has
most, before its first task and at the end of a task, the object still there. Private are anonymous pages that no other process
has (mmds/smaps.py). Only for the dataset do workers import torch; they have done so before their first task.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import sys
from dataclasses import asdict, dataclass
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np

import mmds
from mmds.smaps import read_process

WORKERS = 2
TASKS = 4
WAIT = 300  # seconds for the other worker to get its task

NdArray = np.ndarray[Any, Any]

_before: int  # of a worker: its private memory before its first task
_meeting: Any  # of all workers: where they wait for each other, so that each gets a task


@dataclass(frozen=True)
class Result:
    """What a configuration took, in bytes; private memory of the worker with most."""

    contender: str
    method: str
    pickled: int
    before: int
    after: int


class Job:
    """Work on data that it holds."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def work(self, rows: range) -> tuple[int, int, int]:
        """Return the sum of some rows, and this worker's private memory before its first task and now."""
        total = sum(int(self.data[row].sum(dtype=np.int64)) for row in rows)
        now = private()
        _meeting.wait(WAIT)
        return total, _before, now


def make(rows: int, size: int) -> NdArray:
    """Return the data, uint8 (rows, size)."""
    return np.frombuffer(np.random.default_rng(0).bytes(rows * size), np.uint8).reshape(rows, size).copy()


def write_file(path: Path, data: NdArray) -> None:
    """Write the data to an mmds file."""
    with mmds.Writer(path, {"x": mmds.Array("uint8", data.shape[1:])}) as writer:
        writer.write_batch({"x": data})


def load(contender: str, path: Path, rows: int, size: int) -> Any:
    """Return the data as a contender has it."""
    if contender == "dataset":
        return mmds.MemoryMappedDataset(path, fields="x", format="numpy")
    data = make(rows, size)
    return mmds.share(list(data)) if contender == "share" else data


def private() -> int:
    """Return the private memory of this process."""
    found = read_process(os.getpid(), "", frozenset())
    assert found is not None  # this process has not ended
    return found[0].private


def begin(contender: str, meeting: Any) -> None:
    """Make a worker ready."""
    global _before, _meeting
    if contender == "dataset":
        importlib.import_module("mmds.dataset")
    _before, _meeting = private(), meeting


def run(contender: str, method: str, path: Path, rows: int, size: int) -> tuple[Result, int]:
    """Run the tasks; return what they took, and the sum of all rows."""
    job = Job(load(contender, path, rows, size))
    parts = [range(rows * task // TASKS, rows * (task + 1) // TASKS) for task in range(TASKS)]
    pickled = len(ForkingPickler.dumps((job.work, parts[0])))
    context = multiprocessing.get_context(method)
    with context.Pool(
        WORKERS,
        begin,
        (
            contender,
            context.Barrier(WORKERS),
        ),
    ) as pool:
        totals, before, after = zip(*pool.map(job.work, parts, chunksize=1), strict=True)
    return Result(contender, method, pickled, max(before), max(after)), sum(totals)


if __name__ == "__main__":
    found, total = run(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
    print(json.dumps({**asdict(found), "total": total}))
