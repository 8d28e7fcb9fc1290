"""A picture of watched memory over time."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any

from mmds.errors import missing, printable
from mmds.memoryreport import MEANING, NAMED, TITLES, datasets, growths
from mmds.smaps import Snapshot


def require_matplotlib() -> Any:
    """Return the class of figures."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise missing("matplotlib", "memory", "a picture of memory") from None
    return Figure


def plot(snapshots: Sequence[Snapshot], path: str | PathLike[str]) -> None:
    """Write a PNG: what the tree has, the private memory of its processes, and what of each dataset is in memory."""
    figure = require_matplotlib()(figsize=(9, 9), layout="constrained")
    whole, each, files = figure.subplots(3, 1, sharex=True)
    seconds = [snapshot.seconds for snapshot in snapshots]
    parts = [_gib(snapshot.total(f"pss_{kind}") for snapshot in snapshots) for kind in MEANING]
    whole.stackplot(seconds, *parts, labels=[title.lower() for title in TITLES.values()])
    whole.plot(seconds, _gib(s.total("rss") for s in snapshots), "k:", label="RSS (shared pages many times)")
    whole.set_title("All processes: PSS")
    for row in growths(snapshots)[:NAMED]:
        known = [{process.pid: process.private for process in s.processes} for s in snapshots]
        each.plot(seconds, _gib(now.get(row["pid"]) for now in known), label=_label(f"{row['pid']} {row['name']}"))
    each.set_title("Processes that grew most: private memory")
    for name in list(dict.fromkeys(dataset.path for dataset in datasets(snapshots)))[:NAMED]:
        there = [{d.path: d.resident for d in snapshot.datasets}.get(name) for snapshot in snapshots]
        files.plot(seconds, _gib(there), label=_label(name))
    files.set_title("Mapped datasets: in memory")
    files.set_xlabel("seconds")
    for axes in (whole, each, files):
        axes.set_ylabel("GiB")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(loc="upper left", fontsize="small")
    figure.savefig(path, format="png", dpi=110)


def _gib(amounts: Any) -> list[float]:
    return [float("nan") if amount is None else amount / 2**30 for amount in amounts]


def _label(text: str) -> str:
    """Return text of a picture: no formula, and no letter that the font may not have."""
    return (
        printable(f"...{text[-50:]}" if len(text) > 50 else text)
        .encode("ascii", "backslashreplace")
        .decode()
        .replace("$", r"\$")
    )
