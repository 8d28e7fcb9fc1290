"""What `python -m benchmarks` measures of one workload: every library in processes of its own, which take turns.

write         to the disk, with sync, of samples that are in memory
size          bytes of all files
open          open what was written, again and again
single        one sample, random, all bytes copied; every page is in memory, and mapped by this process
batch         256 of them at once, into what the library gives
epoch         a DataLoader with 2 living workers and shuffling; pictures are decoded and cropped
loader        an epoch of the library's own loader with 2 threads or processes
first         import, open, start 2 workers, and wait for a batch, in a new process that has torch
memory        of that process with 8 workers that have read batches: PSS; the rest is in the JSON file
pickle        bytes of the dataset when it is sent to a worker
cold          open and read a batch, after the kernel has dropped the page cache
"""

from __future__ import annotations

import os
import random
import shutil
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.conversion import DROP_CACHES
from benchmarks.peers import PEERS
from benchmarks.progress import say
from benchmarks.store_contenders import Failed, drop_caches, in_turns, size_of
from benchmarks.suite_worker import Process, Transport, Worker
from benchmarks.suite_workloads import BATCH, Samples, Workload, checksum, make

METRICS = {  # name: heading of its column
    "write": "write", "size": "size", "open": "open", "single": "single", "batch": f"batch {BATCH}", "epoch": "DataLoader",
    "loader": "own loader", "first": "first batch", "memory": "memory", "pickle": "pickle", "cold": "cold batch",
}  # fmt: skip
FLOORS = {"batch": "np.copyto", "epoch": "transport", "memory": "transport", "cold": "device"}
WORKERS = 8  # when memory is measured
CHECKED = 16  # samples whose bytes are compared with what was written, before anything is measured
SLICE = 0.02  # seconds that a turn of single reads takes
DEPTH = 32  # reads under way at once
BLOCK = 4096  # bytes; reads that bypass the page cache begin and end at multiples


@dataclass(frozen=True)
class Effort:
    """How much is measured: rounds of each metric, and seconds after which a peer is not measured again."""

    rounds: int = 7
    epochs: int = 3
    fresh: int = 2  # of what needs a new process each time
    budget: float = 1.0
    scale: float = 0.1
    workers: int = WORKERS


QUICK = Effort(rounds=2, epochs=1, fresh=1, budget=0.1, scale=0.003, workers=2)


class Bench:
    """One workload: its samples, a folder, and what was found so far."""

    def __init__(self, workload: Workload, peers: list[str], folder: Path, effort: Effort, metrics: set[str]) -> None:
        self.workload, self.peers, self.folder, self.effort, self.metrics = workload, peers, folder, effort, metrics
        self.count = workload.count(effort.scale)
        self.found: dict[str, dict[str, list[float]]] = {metric: {} for metric in METRICS}
        self.floors: dict[str, float] = {}
        self.notes: dict[str, dict[str, str]] = {}  # of a peer and metric: why there is no figure
        self.spent: dict[str, float] = {}  # seconds per metric, all peers together
        self.extra: dict[str, dict[str, Any]] = {name: {} for name in peers}
        self.folder.mkdir()
        self.log = folder.with_suffix(".log")

    def run(self) -> dict[str, Any]:
        """Measure everything."""
        samples = make(self.workload, self.count)
        self.bytes = samples.values.nbytes
        self.floor_of_memory(samples)
        self.write(samples)
        self.check(samples)
        total = checksum(samples.values)
        transport = Transport(self.workload, samples)
        del samples  # or the processes below would share its pages
        if self.metrics & {"open", "single", "batch"}:
            self.reads()
        for what in ("epoch", "loader"):
            if what in self.metrics:
                self.epochs(what, total, transport if what == "epoch" else None)
        if self.metrics & {"first", "memory", "pickle"}:
            self.fresh(transport)
        if "cold" in self.metrics and os.access(DROP_CACHES, os.W_OK):
            self.cold()
        shutil.rmtree(self.folder)
        return {
            "title": self.workload.title, "samples": self.count, "bytes": self.bytes, "floors": self.floors,
            "notes": self.notes,
            "spent": self.spent, "extra": self.extra,
            "figures": {
                metric: {name: statistics.median(values) for name, values in by_peer.items() if values}
                for metric, by_peer in self.found.items()
                if metric in self.metrics
            },
        }  # fmt: skip

    # Phases

    def write(self, samples: Samples) -> None:
        """Write all samples, and a small store besides; what cannot be written is out."""

        def write(name: str, number: int) -> float:
            path, small = (self.folder / f"{name}-{part}{number}" for part in ("", "small"))
            with self.process(name, samples) as process:
                seconds = process.seconds("write", path=path, small=small)
            if number:
                shutil.rmtree(path)
            return seconds

        kinds = {name: PEERS[name].lacks for name in self.peers}
        for name in self.peers:
            if self.workload.name in kinds[name]:
                self.note(name, "write", kinds[name][self.workload.name])
        self.peers = [name for name in self.peers if self.workload.name not in kinds[name]]
        rounds = self.effort.fresh if "write" in self.metrics else 1
        self.turns("write", {name: partial(write, name) for name in self.peers}, rounds)
        self.peers = [name for name in self.peers if name in self.found["write"]]
        for name in self.peers:
            self.found["size"][name] = [float(size_of(self.path(name)))]

    def check(self, samples: Samples) -> None:
        """Raise AssertionError where a peer gives other bytes than it was given."""
        rows = self.picks(1, CHECKED)
        expected = sum(checksum(samples.get(row)) for row in rows)
        for name in self.peers:
            with self.process(name) as process:
                try:
                    process.ask("open", path=self.path(name))
                    sums = process.ask("check", rows=rows)
                except Failed as failure:
                    self.note(name, "single", str(failure))
                    continue
            if any(value != expected for value in sums.values()):
                raise AssertionError(f"{name}, {self.workload.name}: the sum of bytes is {sums}, expected {expected}")

    def reads(self) -> None:
        """Measure opening, single samples and batches, all peers being open with all pages mapped."""
        with ExitStack() as stack:
            processes, counts = {}, {}
            for name in self.able("single"):
                processes[name] = process = stack.enter_context(self.process(name))
                try:
                    process.ask("open", path=self.path(name))
                    process.ask("touch", samples=self.count, limit=self.effort.budget)
                    one = process.seconds("single", rows=self.picks(2, 10)) / 10
                    counts[name] = min(max(int(SLICE / one), 3), 2000)
                except Failed as failure:
                    self.note(name, "single", str(failure))

            def single(name: str, number: int) -> float:
                return processes[name].seconds("single", rows=self.picks(number, counts[name])) / counts[name]

            def batch(name: str, number: int) -> float:
                return processes[name].seconds("batch", rows=self.picks(number, BATCH))

            def opening(name: str, number: int) -> float:
                return processes[name].seconds("open", path=self.path(name))

            for metric, function in (("single", single), ("batch", batch), ("open", opening)):
                if metric in self.metrics:
                    self.turns(metric, {name: partial(function, name) for name in counts}, self.effort.rounds)

    def epochs(self, what: str, total: int, transport: Transport | None) -> None:
        """Measure epochs; the first one starts workers, and does not count, but its bytes are checked."""
        with ExitStack() as stack:
            processes: dict[str, Process] = {}
            limit = 3 * self.effort.budget
            for name in self.able(what):
                process = stack.enter_context(self.process(name))
                try:
                    process.ask("at", path=self.path(name))
                    first = process.ask("epoch", what=what, limit=limit, check=True)
                except Failed as failure:
                    self.note(name, what, str(failure))
                    continue
                if not first:
                    self.note(name, what, "no loader of its own" if what == "loader" else "no dataset")
                    continue
                if first["whole"] and first["samples"] != self.count:
                    raise AssertionError(f"{name}: {first['samples']} samples in an epoch, expected {self.count}")
                if first["whole"] and not self.workload.encoded and first["bytes"] != total:
                    raise AssertionError(f"{name}: the sum of an epoch's bytes is {first['bytes']}, expected {total}")
                processes[name] = process
            if transport is not None:
                processes["transport"] = stack.enter_context(Process(transport, self.log))
                processes["transport"].ask("epoch", what=what, limit=limit)

            def epoch(name: str, number: int) -> float:
                return processes[name].seconds("epoch", what=what, limit=limit)

            self.turns(what, {name: partial(epoch, name) for name in processes}, self.effort.epochs)
            if transport is not None:
                self.floors["epoch"] = statistics.median(self.found[what].pop("transport"))

    def fresh(self, transport: Transport) -> None:
        """Measure the time to the first batch, memory and pickles, each in a new process."""

        def first(name: str, number: int) -> float:
            with Process(Worker(PEERS[name], self.workload), self.log, fresh=True) as process:
                seconds = process.seconds("first", path=self.path(name))
                if number == 0 and "memory" in self.metrics:
                    found = self.extra[name]["memory"] = process.ask("memory", workers=self.effort.workers)
                    self.found["memory"][name] = [float(found["pss"])]
            return seconds

        def pickled(name: str, number: int) -> float:
            with self.process(name) as process:
                process.ask("at", path=self.path(name))
                return float(process.ask("pickled")["bytes"])

        if self.metrics & {"first", "memory"}:
            self.turns("first", {name: partial(first, name) for name in self.peers}, self.effort.fresh)
        if "pickle" in self.metrics:
            self.turns("pickle", {name: partial(pickled, name) for name in self.able("pickle")}, 1)
        if "memory" in self.metrics:
            with Process(transport, self.log, fresh=True) as process:
                self.floors["memory"] = process.ask("memory", workers=self.effort.workers)["pss"]

    def cold(self) -> None:
        """Measure a batch from disk; the library is loaded, and has read a small store."""

        def read(name: str, number: int) -> float:
            with self.process(name) as process:
                process.ask("cold", path=self.path(name, "small0"), rows=list(range(CHECKED)))
                drop_caches()
                return process.seconds("cold", path=self.path(name), rows=self.picks(100 + number, BATCH))

        self.turns("cold", {name: partial(read, name) for name in self.able("cold")}, self.effort.fresh)
        self.floors["cold"] = self.device_reads()

    # Floors

    def floor_of_memory(self, samples: Samples) -> None:
        """Copy as many bytes as a batch has from one place to another, many times."""
        size = self.bytes * BATCH // self.count
        source, target = samples.values.reshape(-1).view(np.uint8), np.empty(size, np.uint8)
        starts = np.random.default_rng(0).integers(0, len(source) - size + 1, 40).tolist()
        seconds = []
        for start in starts:
            begun = time.perf_counter()
            np.copyto(target, source[start : start + size])
            seconds.append(time.perf_counter() - begun)
        self.floors["batch"] = statistics.median(seconds[5:])

    def device_reads(self) -> float:
        """Read as many bytes, as often, from random places, past the page cache, `DEPTH` reads at a time; return seconds."""
        size = self.bytes // self.count
        length = -(-size // BLOCK) * BLOCK
        path = self.folder / "device"
        block = np.random.default_rng(0).bytes(2**22)
        with open(path, "wb") as file:
            for _ in range(max(self.bytes, 2**26) // len(block)):
                file.write(block)
            os.fsync(file.fileno())
        total = path.stat().st_size
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
        places = [random.Random(n).randrange((total - length) // BLOCK) * BLOCK for n in range(BATCH)]

        def reader(number: int) -> None:
            import mmap

            with mmap.mmap(-1, length) as buffer:  # begins at a page, as O_DIRECT demands
                for place in places[number::DEPTH]:
                    os.preadv(descriptor, [buffer], place)

        threads = [threading.Thread(target=reader, args=(number,)) for number in range(DEPTH)]
        drop_caches()
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - start
        os.close(descriptor)
        return seconds

    # Inside

    @contextmanager
    def process(self, name: str, samples: Samples | None = None) -> Iterator[Process]:
        """Have a process of its own for a peer."""
        with Process(Worker(PEERS[name], self.workload, samples), self.log) as process:
            yield process

    def path(self, name: str, which: str = "0") -> Path:
        """Return where a peer has written."""
        return self.folder / f"{name}-{which}"

    def picks(self, seed: int, count: int) -> list[int]:
        """Return random rows."""
        return random.Random(seed).choices(range(self.count), k=count)

    def able(self, metric: str) -> list[str]:
        """Return the peers that can do what `metric` needs, and note why others cannot."""
        for name in self.peers:
            if metric in PEERS[name].lacks:
                self.note(name, metric, PEERS[name].lacks[metric])
        return [name for name in self.peers if metric not in PEERS[name].lacks]

    def note(self, name: str, metric: str, reason: str) -> None:
        """Note why there is no figure."""
        self.notes.setdefault(name, {}).setdefault(metric, reason)

    def turns(self, metric: str, tasks: dict[str, Callable[[int], float]], rounds: int) -> None:
        """Have peers take turns."""
        failures: dict[Any, str] = {}
        start = time.perf_counter()
        say(f"{self.workload.name}: {metric}")
        self.found[metric] = in_turns(tasks, rounds, self.effort.budget * 3, failures)
        self.spent[metric] = time.perf_counter() - start
        for name, reason in failures.items():
            self.note(name, metric, reason)
