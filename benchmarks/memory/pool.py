"""What goes through `Pool.map`: a method of an object that holds an array of 800 MB, or the same data in memory for all.

    python -m benchmarks.memory.pool [--quick] [--json FILE] [--plots FOLDER]

`Pool.map(job.work, ...)` pickles `job`, and all that it holds, for every task, whichever way the workers were started. The
object holds a numpy array; or a `MemoryMappedDataset`, which pickles to the path of its file; or what `mmds.share` returned,
which pickles to where the memory is. Each configuration is a fresh process (pool_job.py, which says what is measured).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.machine import describe
from benchmarks.memory.pool_job import TASKS, WORKERS, Result, make, write_file
from benchmarks.progress import progress, say

MB = 10**6
CONTENDERS = {"array": "numpy array", "dataset": "`MemoryMappedDataset`", "share": "`mmds.share(list of arrays)`"}
METHODS = ("fork", "spawn")
ROWS, QUICK_ROWS, SIZE = 8000, 400, 100_000  # samples, and bytes of each


def measure_all(rows: int) -> list[Result]:
    """Measure all configurations, each in a fresh process."""
    results = []
    with tempfile.TemporaryDirectory(prefix="mmds-pool-") as folder:
        file = Path(folder) / "data.mmds"
        say("writing the file")
        data = make(rows, SIZE)
        expected = int(data.sum())
        write_file(file, data)
        del data
        configurations = [(contender, method) for contender in CONTENDERS for method in METHODS]
        for contender, method in progress(configurations, "configurations"):
            command = [sys.executable, "-m", "benchmarks.memory.pool_job", contender, method, str(file)]
            command += [str(rows), str(SIZE)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found = json.loads(done.stdout)
            if found.pop("total") != expected:
                raise AssertionError(f"{contender} over {method}: not all rows were read")
            results.append(Result(**found))
    return results


def table(results: Sequence[Result]) -> str:
    """Return a markdown table with a line per contender and start method."""
    lines = ["| the object holds | workers by | pickled per task | private memory per worker |", "|---|---|---:|---:|"]
    for one in results:
        private = f"{one.before / MB:,.0f} → {one.after / MB:,.0f} MB ({(one.after - one.before) / MB:+,.0f})"
        lines.append(f"| {CONTENDERS[one.contender]} | {one.method} | {one.pickled:,} bytes | {private} |")
    return "\n".join(lines)


def plot(results: Sequence[Result], payload: int, path: Path) -> None:
    """Draw bars: what is pickled per task, and what a worker's private memory grows by."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    names = [name.replace("`", "").replace("(", "\n(") for name in CONTENDERS.values()]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for number, (method, colour) in enumerate(zip(METHODS, ("#0072b2", "#e69f00"), strict=True)):
        found = [one for one in results if one.method == method]
        places = [place + 0.38 * (number - 0.5) for place in range(len(found))]
        pickled = [one.pickled for one in found]
        growth = [max(one.after - one.before, 0) / MB for one in found]
        bars = left.bar(places, pickled, 0.36, color=colour, label=method)
        left.bar_label(
            bars, [f"{size / MB:,.0f} MB" if size > MB else f"{size} B" for size in pickled], fontsize="small"
        )
        bars = right.bar(places, growth, 0.36, color=colour, label=method)
        right.bar_label(bars, [f"{size:,.0f}" if size >= 10 else f"{size:.1f}" for size in growth], fontsize="small")
    left.set(title="pickled per task (logarithmic)", yscale="log", ylabel="bytes", ylim=(10, payload * 20))
    right.set(title="private memory that a worker gains", ylabel="MB", ylim=(0, None))
    right.axhline(payload / MB, color="grey", linestyle=":", label="the data itself")
    right.margins(y=0.15)
    for axes in (left, right):
        axes.set_xticks(range(len(names)), names)
    right.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(command_line: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="What Pool.map pickles, and what its workers keep.")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROWS * SIZE // MB} MB of data")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="draw memory-pool.png in this folder")
    arguments = parser.parse_args(command_line)
    rows = QUICK_ROWS if arguments.quick else ROWS
    results = measure_all(rows)
    machine = describe("torch", "numpy")
    if arguments.plots:
        plot(results, rows * SIZE, arguments.plots / "memory-pool.png")
    if arguments.json:
        figures = {"machine": machine, "data_bytes": rows * SIZE, "runs": [asdict(one) for one in results]}
        arguments.json.write_text(json.dumps(figures, indent=2))
    print(table(results))
    print(
        f"\n{rows:,} arrays of {SIZE:,} bytes, {rows * SIZE / MB:,.0f} MB, in `Pool({WORKERS}).map(job.work, parts)`: {TASKS} "
        "tasks that read a quarter each. Private memory: of the worker with most, before its first task and at the end of "
        "a task. Workers by spawn import anew: Python and numpy, for `MemoryMappedDataset` torch as well."
    )
    print(machine)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
