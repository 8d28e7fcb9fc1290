"""One configuration, in a process of its own: read epochs with a DataLoader, and look at memory at their two ends.

    python -m benchmarks.memory.epoch CONTENDER FILE SAMPLES WORKERS EPOCHS

prints a `Measurement` as JSON. Memory is read off the kernel (/proc/PID/smaps) for the main process and each worker when
each worker has delivered its first batch, and when the last batch of the last epoch has been delivered, workers still
alive.

* *Total* is the sum of all processes' PSS: all their memory, where a page shared by k processes counts 1/k in each.
* *File* is the part of the total that is pages of the dataset's file, in the page cache.
* *Private* is a reader's own copies: pages that it alone maps (what psutil calls USS), without those that come from a
  shared mapping. Linux calls a page of the page cache private as long as a single process has mapped it, and the same
  goes for a batch on its way through /dev/shm; neither is a copy. The total has them all.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from benchmarks.memory.contenders import load

BATCH = 256


@dataclass(frozen=True)
class Memory:
    """Bytes of one process."""

    pss: int
    file: int
    private: int
    uss: int

    @classmethod
    def of(cls, pid: int, file: Path) -> Memory:
        """Return what process `pid` has now; `file` is the dataset's."""
        sums = {"pss": 0, "file": 0, "private": 0, "uss": 0}
        shared = of_file = False
        for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
            name, *words = line.split(maxsplit=5)
            if not name.endswith(":"):  # a mapping begins: addresses, then permissions, offset, device, inode, path
                shared, of_file = words[0].endswith("s"), words[-1] == str(file)
            elif name == "Pss:":
                sums["pss"] += int(words[0])
                sums["file"] += int(words[0]) * of_file
            elif name in ("Private_Clean:", "Private_Dirty:"):
                sums["uss"] += int(words[0])
                sums["private"] += int(words[0]) * (not shared)
        return cls(**{name: kib * 1024 for name, kib in sums.items()})


@dataclass(frozen=True)
class Moment:
    """Bytes at one time: of all processes together, and of each reader (the workers, or main where there are none)."""

    total: int
    file: int
    private: tuple[int, ...]
    uss: tuple[int, ...]

    @classmethod
    def now(cls, file: Path) -> Moment:
        """Return the memory of this process and the workers that it has started."""
        workers = [Memory.of(child.pid, file) for child in multiprocessing.active_children() if child.pid is not None]
        everybody = [Memory.of(os.getpid(), file), *workers]
        readers = workers or everybody
        return cls(
            total=sum(process.pss for process in everybody),
            file=sum(process.file for process in everybody),
            private=tuple(process.private for process in readers),
            uss=tuple(process.uss for process in readers),
        )


@dataclass(frozen=True)
class Measurement:
    """What `run` found."""

    contender: str
    workers: int
    first: Moment
    last: Moment
    samples_per_second: float

    @classmethod
    def from_json(cls, text: str) -> Measurement:
        """Return what this module has printed."""
        found = json.loads(text)
        first, last = (
            Moment(now["total"], now["file"], tuple(now["private"]), tuple(now["uss"]))
            for now in (found.pop("first"), found.pop("last"))
        )
        return cls(**found, first=first, last=last)


def run(contender: str, file: Path, samples: int, workers: int, epochs: int) -> Measurement:
    """Read all samples `epochs` times in random order with `workers` workers, started by fork."""
    torch.manual_seed(0)
    warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores: here it is the question
    loader = DataLoader(
        load(contender, file, samples),
        batch_size=BATCH,
        shuffle=True,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,  # Python 3.14's default would copy a list at once, whole
        persistent_workers=workers > 0,
    )
    if len(loader) <= workers:
        raise ValueError(f"{samples} samples are too few for {workers} workers and batches of {BATCH}")
    first = last = None
    seen = 0
    start = time.perf_counter()
    for epoch in range(epochs):
        for number, (images, labels) in enumerate(loader, 1):
            seen += len(images) if len(images) == len(labels) else 0
            if epoch == 0 and number == max(workers, 1):
                first = Moment.now(file)
            if epoch == epochs - 1 and number == len(loader):
                seconds = time.perf_counter() - start
                last = Moment.now(file)
    if first is None or last is None or seen != samples * epochs:
        raise AssertionError(f"{seen} samples of {samples * epochs} arrived")
    return Measurement(contender, workers, first, last, seen / seconds)


if __name__ == "__main__":
    found = run(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:6]))
    print(json.dumps(asdict(found)))
