"""Read mutated files until there have been enough of them: ``python -m tests.faults.fuzz --cases 1000000 --seed 0``.

Each case is a file that `mutator` makes and `exercise` reads. Whatever comes out but errors of mmds, takes more than a second
or 64 MB, or ends the process, is printed with its seed; ``--cases 1 --seed N`` is that case again.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import resource
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from tests.faults.exercise import exercise
from tests.faults.mutator import mutated
from tests.make_golden import GOLDEN
from tests.resealing import golden

SECONDS, MEGABYTES = 1.0, 64  # that a case may take at most
ADDRESSES = (
    2 * 2**30
)  # bytes of address space that a process may have beside what it needs: what takes more fails at once
HANG = 300.0  # seconds without a new case after which a process is ended
CHUNK = 10_000  # cases after which a process tells how they went
DECISIONS = 96  # bytes: more than most mutations use


@dataclass
class Report:
    """What came of some cases."""

    cases: int = 0
    seconds: float = 0.0  # of processor time
    slowest: float = 0.0
    megabytes: float = 0.0  # more than at the start
    read: int = 0  # files of which all that was wanted could be read
    refused: int = 0
    faults: list[str] = field(default_factory=list)

    def add(self, other: Report) -> None:
        """Add the cases of another process."""
        self.cases, self.seconds = self.cases + other.cases, self.seconds + other.seconds
        self.slowest, self.megabytes = max(self.slowest, other.slowest), max(self.megabytes, other.megabytes)
        self.read, self.refused = self.read + other.read, self.refused + other.refused
        self.faults += other.faults

    def __str__(self) -> str:
        rate = self.cases / max(self.seconds, 1e-9)
        return (
            f"{self.cases:,} cases, {rate:,.0f} cases/s/core: {self.read:,} read, {self.refused:,} refused, "
            f"{len(self.faults)} faults; slowest {self.slowest * 1000:.0f} ms, at most {self.megabytes:.0f} MB more"
        )


def decisions_of(seed: int) -> bytes:
    """Return the decisions of case number `seed`."""
    return random.Random(seed).randbytes(DECISIONS)


def run(seeds: Sequence[int], progress: Any = None) -> Report:
    """Go through cases in this process. `progress` is a list-like whose first item becomes the current seed."""
    report, place = Report(), [0] if progress is None else progress
    before = _peak()
    for seed in seeds:
        place[0] = seed
        start = time.process_time()
        name, data = mutated(decisions_of(seed))
        try:
            message = exercise(data)
        except Exception:  # noqa: BLE001 (that is what is looked for)
            message = "a fault"
            report.faults.append(f"seed {seed} ({name}):\n{traceback.format_exc()}")
        taken = time.process_time() - start
        more = _peak() - before
        if taken > SECONDS or more > max(MEGABYTES, report.megabytes + 1):
            report.faults.append(
                f"seed {seed} ({name}): {taken:.2f} s, {more:.0f} MB more than at the start: {message}"
            )
        report.cases, report.seconds = report.cases + 1, report.seconds + taken
        report.slowest, report.megabytes = max(report.slowest, taken), max(report.megabytes, more)
        report.read, report.refused = report.read + (message == "read"), report.refused + (message != "read")
    return report


def _peak() -> float:
    """Return the most memory in MB that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run_in_processes(cases: int, seed: int, processes: int) -> Report:
    """Go through cases in processes of their own, which a signal would end; the seed of that is a fault, too."""
    context, report = multiprocessing.get_context("spawn"), Report()
    running: dict[Connection, tuple[Any, Any]] = {}
    for number in range(processes):
        receiver, sender = context.Pipe(duplex=False)
        place = context.RawArray("q", 1)
        process = context.Process(target=_work, args=(range(seed + number, seed + cases, processes), place, sender))
        process.start()
        sender.close()
        running[receiver] = process, place
    seen: dict[Connection, tuple[int, float]] = {}
    while running:
        for ready in wait(list(running), timeout=1):
            assert isinstance(ready, Connection)
            try:
                report.add(ready.recv())
            except EOFError:  # the process has ended
                process, place = running.pop(ready)
                process.join()
                if process.exitcode:
                    report.faults.append(f"seed {place[0]}: the process ended with {process.exitcode}")
        for receiver, (process, place) in running.items():
            last, since = seen.get(receiver, (-1, 0.0))
            if last != place[0]:
                seen[receiver] = place[0], time.monotonic()
            elif time.monotonic() - since > HANG:
                process.kill()
    return report


def _work(seeds: range, place: Any, sender: Connection) -> None:
    for name in GOLDEN:  # loads what is loaded on first use
        exercise(golden(name), thorough=True)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for start in range(0, len(seeds), CHUNK):
        sender.send(run(seeds[start : start + CHUNK], place))
    sender.close()


def main() -> int:
    """Run as the command line says, and print what came of it."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.fuzz", description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    report = run_in_processes(options.cases, options.seed, min(options.processes, options.cases))
    print(*report.faults, report, sep="\n")
    return bool(report.faults)


if __name__ == "__main__":
    sys.exit(main())
