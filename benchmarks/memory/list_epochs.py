"""One configuration, in a process of its own: two epochs of a DataLoader over annotations, and memory at their two ends.

    python -m benchmarks.memory.list_epochs CONFIGURATION FILE

where CONFIGURATION is a `Configuration` as JSON, prints a `Measurement` as JSON. Memory is read off the kernel
(/proc/PID/smaps) for each rank's main process and its workers, when each worker has delivered its first batch and when the
last batch of the last epoch has been delivered, workers still alive. Two ranks are two processes started by spawn, with a
gloo group on the loopback interface; each holds all samples in its own way (`share`: together), and reads its half of every
epoch. The process that has started them holds nothing and is not counted, nor is the server of forkserver.
"""

from __future__ import annotations

import ctypes
import gc
import json
import multiprocessing
import os
import socket
import sys
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.distributed
import torch.multiprocessing
from torch.utils.data import DataLoader, DistributedSampler

from benchmarks.memory.epoch import Memory
from benchmarks.memory.list_holders import Annotations, hold, packed_bytes

EPOCHS = 2


@dataclass(frozen=True)
class Configuration:
    """What is measured; `workers` are those of each rank.

    `frozen`: `gc.freeze` is called before workers are forked. Without, as soon as a worker's garbage collector looks at
    everything, it writes to all objects that the worker has from the main process, those of torch as well. Whether that
    happens in two epochs is chance, and it has nothing to do with the samples.
    """

    holder: str
    method: str
    ranks: int
    workers: int
    samples: int
    batch: int
    frozen: bool = False

    def __str__(self) -> str:
        return f"{self.holder}, {self.method}, {self.ranks} rank(s) of {self.workers} workers"


@dataclass(frozen=True)
class Process:
    """Bytes of one process.

    `uss` is the pages that it alone has, `shared` those that others have too, `pss` its own and its part of the shared ones.
    `private` is `uss` without pages of shared mappings, which it has alone only until another process reads them as well.
    """

    pss: int
    uss: int
    shared: int
    private: int

    @classmethod
    def of(cls, pid: int) -> Process:
        """Return what process `pid` has now."""
        memory = Memory.of(pid, Path("/"))
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        [rss] = [line.split()[1] for line in lines if line.startswith("Rss:")]
        return cls(memory.pss, memory.uss, max(int(rss) * 1024 - memory.uss, 0), memory.private)


@dataclass(frozen=True)
class Moment:
    """All processes at one time: the main one of each rank, and all workers."""

    mains: tuple[Process, ...]
    workers: tuple[Process, ...]

    @classmethod
    def now(cls, ranks: int) -> Moment:
        """Return the memory of this process and its workers; of all ranks, where there are some."""
        if ranks > 1:
            torch.distributed.barrier()
        workers = [Process.of(child.pid) for child in multiprocessing.active_children() if child.pid is not None]
        own = Process.of(os.getpid()), workers
        everybody: list[Any] = [own] * ranks
        if ranks > 1:
            torch.distributed.all_gather_object(everybody, own)
        return cls(tuple(main for main, _ in everybody), tuple(one for _, rank in everybody for one in rank))

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> Moment:
        """Return what `dataclasses.asdict` has made a dict of."""
        return cls(*(tuple(Process(**one) for one in found[part]) for part in ("mains", "workers")))

    @property
    def total(self) -> int:
        """The memory of everybody: the sum of PSS."""
        return sum(process.pss for process in (*self.mains, *self.workers))


@dataclass(frozen=True)
class Measurement:
    """What `read` found."""

    configuration: Configuration
    packed: int | None  # bytes of all samples, where they are one piece
    first: Moment
    last: Moment

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> Measurement:
        """Return what this module has printed."""
        first, last = Moment.from_dict(found["first"]), Moment.from_dict(found["last"])
        return cls(Configuration(**found["configuration"]), found["packed"], first, last)

    def growth(self, what: str) -> int:
        """Return by how many bytes `what` ("uss" or "private") of the worker that gained most has grown."""
        ends = zip(self.first.workers, self.last.workers, strict=True)
        return max(int(getattr(last, what) - getattr(first, what)) for first, last in ends)


def read(configuration: Configuration, file: Path, rank: int = 0) -> Measurement:
    """Read all samples that are this rank's twice, in random order."""
    warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores: here it is the question
    ranks, workers = configuration.ranks, configuration.workers
    held = hold(configuration.holder, configuration.samples, file)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # how much malloc keeps of what packing has freed depends on the heap's history
    dataset = Annotations(held)
    sampler: DistributedSampler[Any] = DistributedSampler(dataset, ranks, rank)
    loader = DataLoader(
        dataset,
        configuration.batch,
        sampler=sampler,
        num_workers=workers,
        multiprocessing_context=configuration.method,
        persistent_workers=True,
    )
    if len(loader) <= workers:
        raise ValueError(f"{configuration.samples} samples are too few for {configuration}")
    if configuration.frozen:
        gc.freeze()
    first = last = None
    seen = 0
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        for number, (ids, _) in enumerate(loader, 1):
            seen += len(ids)
            if epoch == 0 and number == workers:
                first = Moment.now(ranks)
            if epoch == EPOCHS - 1 and number == len(loader):
                last = Moment.now(ranks)
    if first is None or last is None or seen != len(sampler) * EPOCHS:
        raise AssertionError(f"{seen} samples of {len(sampler) * EPOCHS} arrived")
    return Measurement(configuration, packed_bytes(held), first, last)


def report(configuration: Configuration, file: Path, rank: int = 0) -> None:
    """Print what this rank has measured, if it is the first one."""
    found = read(configuration, file, rank)
    if rank == 0:
        print(json.dumps(asdict(found)), flush=True)


def report_rank(rank: int, configuration: Configuration, file: Path, port: int) -> None:
    """Take part as rank `rank`."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=configuration.ranks
    )
    try:
        report(configuration, file, rank)
    finally:
        torch.distributed.destroy_process_group()


def main(configuration: Configuration, file: Path) -> None:
    """Measure one configuration."""
    if configuration.ranks == 1:
        report(configuration, file)
        return
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = configuration, file, port
    torch.multiprocessing.spawn(report_rank, arguments, configuration.ranks)  # type: ignore[attr-defined, no-untyped-call]


if __name__ == "__main__":
    main(Configuration(**json.loads(sys.argv[1])), Path(sys.argv[2]))
