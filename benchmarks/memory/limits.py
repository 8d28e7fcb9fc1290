"""Does a memory map leak? Reading a file with and without keeping what was read, with and without a limit on memory.

    python -m benchmarks.memory.limits [--quick] [--json FILE] [--plots FOLDER]

A text file of 2 GB in lines of 128 MB is read by ``readline``, of an open file and of a memory map, with all the memory of
the machine and under a limit of 1 GB. A table of 1,000 rows of 200 KB is read from a map by pyarrow, by Hugging Face
datasets, and by mmds, without a limit and under one of 100 MB. A limit counts what a process takes after it has imported its
library (limit_group.py). Limits need control groups of the kernel, so root as a rule; where no group can be made, the program
says so, and measures the rest.

Each configuration is a fresh process (limit_read.py). The file is dropped from the page cache before each: its pages count
for the group that reads them first.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from benchmarks.machine import describe
from benchmarks.memory.limit_group import kills, memory_group, refusal
from benchmarks.memory.limit_report import Run, Workload, plot, table
from benchmarks.memory.limit_sources import write_lines, write_tables
from benchmarks.progress import progress, say

MB = 10**6
LINES = Workload("line", ("plain", "mmap"), ("dropped", "copies"), 16, 128 * MB, 1000 * MB)
TABLE = Workload("row", ("pyarrow", "datasets", "mmds"), ("dropped", "copies", "views"), 1000, 200_000, 100 * MB)
QUICK = (LINES.resized(16, 8 * MB, 64 * MB), TABLE.resized(200, 200_000, 20 * MB))


def measure(workload: Workload, source: str, way: str, file: Path, limited: bool) -> Run:
    """Measure one configuration in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.memory.limit_read", source, way, str(file), str(workload.rows)]
    evict(file)
    with ExitStack() as stack:
        group = stack.enter_context(memory_group(workload.limit)) if limited else None
        process = stack.enter_context(
            subprocess.Popen([*command, str(group)] if group else command, stdout=subprocess.PIPE, text=True)
        )
        stack.callback(process.kill)  # does nothing if it has ended
        assert process.stdout is not None
        lines = [list(map(int, line.split())) for line in process.stdout if line.endswith("\n")]
        code = process.wait()
        killed = group is not None and code == -signal.SIGKILL and kills(group) > 0
    if code and not killed:
        raise subprocess.CalledProcessError(code, command)
    _, own, of_files, checksums = zip(*lines, strict=True)
    limit = workload.limit if limited else None
    return Run(workload.row, source, way, limit, len(lines) - 1, killed, own, of_files, checksums[-1])


def evict(file: Path) -> None:
    """Drop a file from the page cache."""
    with open(file, "rb") as opened:
        os.fsync(opened.fileno())  # pages that are not written yet stay
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure_all(workloads: Sequence[Workload], folder: Path, limited: bool) -> list[Run]:
    """Write the files and measure all configurations."""
    text, arrow, ours = folder / "lines.txt", folder / "rows.arrow", folder / "rows.mmds"
    lines, rows = workloads
    say("writing the files")
    write_lines(text, lines.rows, lines.size)
    write_tables(arrow, ours, rows.rows, rows.size)
    files = {"plain": text, "mmap": text, "pyarrow": arrow, "datasets": arrow, "mmds": ours}
    configurations = [
        (workload, source, way, limit)
        for workload in workloads
        for source in workload.sources
        for way in workload.ways
        for limit in (False, True)[: 1 + limited]
    ]
    runs = [
        measure(workload, source, way, files[source], limit)
        for workload, source, way, limit in progress(configurations, "configurations")
    ]
    for workload in workloads:
        seen = {run.checksum for run in runs if run.row == workload.row and not run.killed}
        if len(seen) != 1:
            raise AssertionError(f"not every {workload.row} was read: checksums {seen}")
    return runs


def main(command_line: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Does a memory map leak? Reading with and without a limit on memory.")
    parser.add_argument("--quick", action="store_true", help="files of 128 and 40 MB, limits of 64 and 20 MB")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="draw memory-limits.png in this folder")
    parser.add_argument("--folder", type=Path, help="where to write the files, of a disk (default: the system's)")
    arguments = parser.parse_args(command_line)
    workloads = QUICK if arguments.quick else (LINES, TABLE)

    refused = refusal()
    with tempfile.TemporaryDirectory(prefix="mmds-limits-", dir=arguments.folder) as folder:
        runs = measure_all(workloads, Path(folder), refused is None)
    machine = describe("pyarrow", "datasets", "numpy")
    if arguments.plots:
        plot(runs, workloads, arguments.plots / "memory-limits.png")
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, "refused": refused, "runs": [*map(asdict, runs)]}))
    print("\n\n".join(table(runs, workload) for workload in workloads))
    print(
        "\nRSS: by how much it grew at most, seen between rows. Of it, pages of the file: what a map has brought into the "
        "process; they are in the page cache, and the kernel takes them back when it needs the memory."
    )
    if refused:
        print(f"Without limits: {refused}.")
    print(machine)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
