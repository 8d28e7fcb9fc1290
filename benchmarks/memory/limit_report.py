"""What was read, how far it got, and how much memory it took: a table and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

MB = 10**6
NAMES = {
    "plain": "`readline` of a file",
    "mmap": "`readline` of a map",
    "pyarrow": "pyarrow",
    "datasets": "Hugging Face datasets",
    "mmds": "mmds",
}
WAYS = {"dropped": "dropped", "copies": "copies, kept", "views": "views, kept"}
COLOURS = {"dropped": "#56b4e9", "copies": "#d55e00", "views": "#004d3b"}  # of Okabe and Ito, about: for all eyes
WIDTHS = {"dropped": 5.0, "copies": 1.5, "views": 1.5}  # wide ones below, where lines coincide
DASHES: dict[str, Any] = {"plain": "--", "mmap": "-", "pyarrow": ":", "datasets": "--", "mmds": "-"}


@dataclass(frozen=True)
class Workload:
    """Rows of a size, who reads them in which ways, and the limit."""

    row: str
    sources: tuple[str, ...]
    ways: tuple[str, ...]
    rows: int
    size: int
    limit: int

    def resized(self, rows: int, size: int, limit: int) -> Workload:
        """Return the same with other numbers."""
        return replace(self, rows=rows, size=size, limit=limit)


@dataclass(frozen=True)
class Run:
    """One process: bytes of its own and of mapped files before the first row and after each."""

    row: str
    source: str
    way: str
    limit: int | None
    finished: int
    killed: bool
    own: tuple[int, ...]
    of_files: tuple[int, ...]
    checksum: int

    @property
    def growth(self) -> list[int]:
        """By how much RSS has grown since the file was opened."""
        return [own + of_files - self.own[0] - self.of_files[0] for own, of_files in self._pairs]

    @property
    def growth_of_files(self) -> int:
        """By how much pages of files have grown when RSS was largest."""
        growth = self.growth
        return self.of_files[growth.index(max(growth))] - self.of_files[0]

    @property
    def _pairs(self) -> list[tuple[int, int]]:
        return list(zip(self.own, self.of_files, strict=True))


def table(runs: Sequence[Run], workload: Workload) -> str:
    """Return a markdown table with a line for each source and way."""
    found = {(run.source, run.way, run.limit): run for run in runs if run.row == workload.row}
    total = workload.rows * workload.size / MB
    lines = [
        f"| {workload.rows:,} {workload.row}s of {workload.size / MB:,g} MB, {total:,.0f} MB | each {workload.row} is "
        f"| RSS, no limit | of it, pages of the file | under a limit of {workload.limit / MB:,.0f} MB | RSS |",
        "|---|---|---:|---:|---|---:|",
    ]
    for source in workload.sources:
        for way in workload.ways:
            free, limited = found[source, way, None], found.get((source, way, workload.limit))
            cells = [NAMES[source], WAYS[way], _mb(max(free.growth)), _mb(free.growth_of_files)]
            cells += [_outcome(limited), _mb(max(limited.growth))] if limited else ["-", "-"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _mb(size: int) -> str:
    return f"{size / MB:,.0f} MB"


def _outcome(run: Run) -> str:
    return f"**killed** in {run.row} {run.finished + 1:,}" if run.killed else f"reads all {run.finished:,}"


def plot(runs: Sequence[Run], workloads: Sequence[Workload], path: Path) -> None:
    """Draw RSS against rows: a line of panels per workload, without a limit and under it."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    limited = any(run.limit for run in runs)
    figure, panels = plt.subplots(
        len(workloads), 1 + limited, figsize=(5.5 * (1 + limited), 7), layout="constrained", squeeze=False
    )
    for workload, line in zip(workloads, panels, strict=True):
        for axes, limit in zip(line, (None, workload.limit), strict=False):
            for run in runs:
                if (run.row, run.limit) == (workload.row, limit):
                    _draw(axes, run)
            axes.axhline(workload.limit / MB, color="grey", linestyle=(0, (1, 2)), zorder=0)
            said = f"limit of {workload.limit / MB:,.0f} MB" if limit else "no limit"
            axes.set(title=f"{workload.row}s of {workload.size / MB:g} MB, {said}", xlabel=f"{workload.row}s read")
            axes.set_ylim(0, 1.35 * limit / MB if limit else None)
        line[0].set_ylabel("growth of RSS, MB")
        _legends(line[0], line[-1], workload, limited)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _draw(axes: Any, run: Run) -> None:
    growth = [size / MB for size in run.growth]
    below = 1 if run.way == "dropped" else 2
    axes.plot(growth, DASHES[run.source], color=COLOURS[run.way], linewidth=WIDTHS[run.way], zorder=below)
    if run.killed:
        axes.plot(len(growth) - 1, growth[-1], "X", color="black", markeredgecolor="white", markersize=12, zorder=3)


def _legends(left: Any, right: Any, workload: Workload, limited: bool) -> None:
    """Say in the left panel what colours mean, and in the right one (or the same) what dashes mean."""
    from matplotlib.lines import Line2D

    colours = [Line2D([], [], color=COLOURS[way], linewidth=WIDTHS[way], label=WAYS[way]) for way in workload.ways]
    dashes = [
        Line2D([], [], color="black", linestyle=DASHES[source], label=NAMES[source].replace("`", ""))
        for source in workload.sources
    ]
    grey = Line2D([], [], color="grey", linestyle=(0, (1, 2)), label="the limit")
    cross = Line2D([], [], color="black", marker="X", markersize=9, linestyle="", label="killed")
    left.add_artist(left.legend(handles=[*colours, grey], loc="upper left", fontsize="small"))
    right.legend(handles=[*dashes, cross] if limited else dashes, loc="lower right", fontsize="small")
