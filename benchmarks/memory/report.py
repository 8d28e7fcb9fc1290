"""What the measurements say: a table, two promises that hold or do not, and a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from benchmarks.memory.epoch import Measurement

MIB = 2**20
GROWTH = 2 * MIB  # private memory that a reader may gain during an epoch; a list gains its size


def growth(measurement: Measurement) -> int:
    """Return by how many bytes the private memory of the reader that gained most has grown."""
    ends = zip(measurement.first.private, measurement.last.private, strict=True)
    return max(last - first for first, last in ends)


def broken_promises(measurements: Sequence[Measurement], file_size: int) -> list[str]:
    """Say which measurements of the mmds file break its promises: what it costs each worker, and all together.

    Private memory of a worker grows by less than 2 MiB from its first batch to the last. The total grows by the file's
    pages, each of which counts once however many workers have mapped it, and by less than 2 MiB per process beside that.
    """
    broken = []
    for found in measurements:
        if found.contender != "mmds" or not found.workers:
            continue
        most, processes = growth(found), found.workers + 1
        beside = (found.last.total - found.last.file) - (found.first.total - found.first.file)
        if most >= GROWTH:
            broken.append(f"{found.workers} workers: private memory of one grew by {most / MIB:.1f} MiB")
        if found.last.file > file_size + 4096:  # the kernel counts whole pages
            broken.append(f"{found.workers} workers: {found.last.file} bytes in memory of a file of {file_size}")
        if beside >= GROWTH * processes:
            broken.append(f"{found.workers} workers: the total beside the file grew by {beside / MIB:.1f} MiB")
    return broken


def table(measurements: Sequence[Measurement]) -> str:
    """Return a markdown table with a row per number of workers."""
    found = {(one.contender, one.workers): one for one in measurements}
    lines = [
        "| workers | total, list of dicts | total, mmds | list : mmds | private memory per worker, list | the same, mmds |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for workers in sorted({one.workers for one in measurements}):
        pair = found.get(("list", workers)), found.get(("mmds", workers))
        ratio = f"{pair[0].last.total / pair[1].last.total:.1f}" if pair[0] and pair[1] else "-"
        totals = [f"{one.last.total / MIB:,.0f} MiB" if one else "-" for one in pair]
        private = [_private(one) for one in pair]
        lines.append(f"| {workers or '0 (main)'} | {totals[0]} | {totals[1]} | {ratio} | {private[0]} | {private[1]} |")
    return "\n".join(lines)


def _private(found: Measurement | None) -> str:
    if found is None:
        return "-"
    first, last = (mean(now.private) / MIB for now in (found.first, found.last))
    return f"{first:.1f} → {last:.1f} MiB ({growth(found) / MIB:+.1f})"


def plot(measurements: Sequence[Measurement], payload: int, path: Path) -> None:
    """Draw total memory against the number of workers, into a picture file."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for contender, label, colour in (("list", "list of dicts", "tab:red"), ("mmds", "mmds file", "tab:blue")):
        points = sorted((one.workers, one.last.total / 2**30) for one in measurements if one.contender == contender)
        if points:
            axes.plot(*zip(*points, strict=True), "o-", label=label, color=colour)
    axes.axhline(payload / 2**30, color="grey", linestyle=":", label="the data itself")
    axes.set(xlabel="DataLoader workers", ylabel="memory of all processes (PSS, GiB)", ylim=(0, None))
    axes.set_xticks(sorted({one.workers for one in measurements}))
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)
