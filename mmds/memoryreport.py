"""What people see of watched memory: words that tell private memory from page cache, tables, and CSV."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, TextIO

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from mmds.errors import printable
from mmds.smaps import FIGURES, MappedDataset, ProcessMemory, Snapshot
from mmds.terminal import print_table, size

SLIGHT = 4 * 2**20  # bytes of growth that are not worth a word
NAMED = 5  # processes and datasets that a sentence or a picture names
COLUMNS = ("seconds", "kind", "pid", "name", *FIGURES, "size", "resident")
LABELS = {
    "pss": "PSS, all",
    "pss_private": "  private",
    "pss_cache": "  page cache",
    "pss_shared_memory": "  shared memory",
    "uss": "USS",
    "rss": "RSS",
    "swap": "in swap",
}
MEANING = {
    "private": "copies, new objects or a leak; only the program can give it back.",
    "cache": "pages of mapped files, not a leak; all processes share them, and the kernel takes them back when it needs to.",
    "shared_memory": "batches on their way, mmds.share, /dev/shm; processes share it, and it stays until the last one ends.",
}
TITLES = {"private": "Private memory", "cache": "Page cache", "shared_memory": "Shared memory"}


def summarize(snapshots: Sequence[Snapshot]) -> dict[str, Any]:
    """Return as plain values what the snapshots show.

    `growth` is from the first to the highest; `growth_late` is by how much the highest of the second half of the time is more
    than the highest of the first half. Private memory is anonymous pages in memory and in swap; those that processes share
    after a fork count once.
    """
    if not snapshots:
        return {"seconds": 0.0, "snapshots": 0, "processes": [], "unreadable": [], "datasets": []}
    first, last = snapshots[0], snapshots[-1]
    early = [snapshot for snapshot in snapshots if snapshot.seconds <= (first.seconds + last.seconds) / 2]
    return {
        "seconds": last.seconds - first.seconds,
        "snapshots": len(snapshots),
        **{
            moment: {figure: choose(figure) for figure in FIGURES}
            for moment, choose in (
                ("first", first.total),
                ("highest", lambda figure: max(snapshot.total(figure) for snapshot in snapshots)),
                ("last", last.total),
            )
        },
        "growth": {kind: _most(snapshots, kind) - _most([first], kind) for kind in MEANING},
        "growth_late": {kind: _most(snapshots, kind) - _most(early, kind) for kind in MEANING},
        "processes": growths(snapshots),
        "unreadable": sorted({pid for snapshot in snapshots for pid in snapshot.unreadable}),
        "datasets": [asdict(dataset) for dataset in datasets(snapshots)],
    }


def _most(snapshots: Sequence[Snapshot], kind: str) -> int:
    return max(s.total(f"pss_{kind}") + (s.total("swap") if kind == "private" else 0) for s in snapshots)


def growths(snapshots: Sequence[Snapshot]) -> list[dict[str, Any]]:
    """Return each process with the `private` memory of its own: at first (0 if it began later), at most, and at last."""
    found: dict[int, dict[str, Any]] = {}
    for snapshot in snapshots:
        for process in snapshot.processes:
            first = process.private if snapshot is snapshots[0] else 0
            row = found.setdefault(process.pid, {"pid": process.pid, "name": "", "first": first, "highest": 0})
            row |= {"name": process.name, "highest": max(row["highest"], process.private), "last": process.private}
    return sorted(found.values(), key=lambda row: int(row["first"] - row["highest"]))


def datasets(snapshots: Sequence[Snapshot]) -> list[MappedDataset]:
    """Return every dataset as it was seen last, the largest first."""
    seen: dict[str, list[MappedDataset]] = {}  # several memfds may have one name
    for snapshot in snapshots:
        seen |= {dataset.path: _named(snapshot, dataset.path) for dataset in snapshot.datasets}
    return sorted((dataset for named in seen.values() for dataset in named), key=lambda dataset: -dataset.size)


def _named(snapshot: Snapshot, path: str) -> list[MappedDataset]:
    return [dataset for dataset in snapshot.datasets if dataset.path == path]


def describe(summary: dict[str, Any]) -> str:
    """Return what `summarize` returns in words, as lines for a terminal."""
    if not summary["processes"]:
        unreadable = _unreadable(summary["unreadable"])
        return "\n".join(["Nothing was seen: the process ended too soon, or cannot be read.", *unreadable])
    count = len(summary["processes"])
    lines = [
        f"{_count(count, 'process', 'es')} watched for {summary['seconds']:.1f} s, "
        f"{_count(summary['snapshots'], 'snapshot', 's')}",
        f"{'':16}{'first':>12}{'highest':>12}{'last':>12}",
    ]
    for figure, label in LABELS.items():
        amounts = [summary[moment][figure] for moment in ("first", "highest", "last")]
        if figure != "swap" or any(amounts):
            lines.append(f"{label:16}" + "".join(f"{size(amount):>12}" for amount in amounts))
    lines += [f"{_dataset_words(dataset)}" for dataset in summary["datasets"][:NAMED]]
    if len(summary["datasets"]) > NAMED:
        lines.append(f"… and {len(summary['datasets']) - NAMED:,} more mapped files")
    return "\n".join([*lines, *_unreadable(summary["unreadable"]), *verdict(summary)])


def verdict(summary: dict[str, Any]) -> list[str]:
    """Return sentences that say whether growth is private memory, page cache or shared memory.

    >>> grown = {"private": 0, "cache": 64 * 2**20, "shared_memory": 0}
    >>> totals = {"first": {"rss": 0, "shared": 0}, "highest": {"rss": 2**26, "shared": 2**26}}
    >>> for line in verdict({"growth": grown, "growth_late": grown, "processes": [], "snapshots": 2, **totals}):
    ...     print(line[:80])
    Private memory did not grow.
    Page cache grew by 64.0 MiB: pages of mapped files, not a leak; all processes sh
    RSS grew by 64.0 MiB. It counts in each process what several share; up to 64.0 M
    """
    lines = []
    for kind, grown in summary["growth"].items():
        if grown >= SLIGHT:
            where = _where(summary["processes"]) + _trend(summary) if kind == "private" else ""
            lines.append(f"{TITLES[kind]} grew by {size(grown)}{where}: {MEANING[kind]}")
        elif kind == "private":
            lines.append(f"{TITLES[kind]} did not grow{f' by more than {size(grown)}' if grown else ''}.")
    resident, shared = (summary["highest"][name] - summary["first"][name] for name in ("rss", "shared"))
    if resident >= SLIGHT and shared >= SLIGHT:
        lines.append(
            f"RSS grew by {size(resident)}. It counts in each process what several share; "
            f"up to {size(min(resident, shared))} of it are pages of files and shared memory."
        )
    return lines


def _where(processes: list[dict[str, Any]]) -> str:
    """Say in which processes private memory grew."""
    grown = [row for row in processes if row["highest"] - row["first"] >= SLIGHT // 4]
    if not grown:
        return ""
    named = ", ".join(
        f"{printable(row['name'], 40)} ({row['pid']}) by {size(row['highest'] - row['first'])}" for row in grown[:NAMED]
    )
    more = f", and {len(grown) - NAMED} more" if len(grown) > NAMED else ""
    return f", in {len(grown)} of {_count(len(processes), 'process', 'es')} ({named}{more})"


def _trend(summary: dict[str, Any]) -> str:
    """Say whether private memory still grew at the end: a leak does, getting ready does not."""
    if summary["snapshots"] < 4:
        return ""
    late = summary["growth_late"]["private"]
    return (
        f", {size(late)} of it in the second half of the time"
        if late >= SLIGHT
        else ", none of it in the second half of the time"
    )


def _unreadable(pids: list[int]) -> list[str]:
    if not pids:
        return []
    named = ", ".join(map(str, pids[:NAMED])) + (", …" if len(pids) > NAMED else "")
    return [f"Not counted: {_count(len(pids), 'process', 'es')} of another user ({named})"]


def _dataset_words(dataset: dict[str, Any]) -> str:
    name, there = printable(dataset["path"], 4096), dataset["resident"]
    if there is None:
        return f"{name}: {size(dataset['size'])}; how much of it is in memory cannot be seen"
    return f"{name}: {size(dataset['size'])}, {size(there)} ({_percent(there, dataset['size'])}) of it in memory"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "0 %"


def _count(number: int, noun: str, plural: str) -> str:
    return f"{number:,} {noun}{plural if number != 1 else ''}"


# Tables

PROCESS_HEADERS = ["pid", "process", "RSS", "USS", "PSS", "shared", "private"]
DATASET_HEADERS = ["mapped file", "size", "in memory", ""]


def process_rows(snapshot: Snapshot) -> list[list[str]]:
    """Return the cells of a line for all processes, and of one for each, the largest first."""

    def cells(pid: str, name: str, of: ProcessMemory | Snapshot) -> list[str]:
        get = of.total if isinstance(of, Snapshot) else lambda figure: getattr(of, figure)
        return [pid, name, *(size(get(figure)) for figure in ("rss", "uss", "pss", "shared", "private"))]

    largest = sorted(snapshot.processes, key=lambda process: -process.pss)
    rows = [cells(str(process.pid), printable(process.name, 40), process) for process in largest]
    return [cells("", "all", snapshot), *rows]


def dataset_rows(snapshot: Snapshot) -> list[list[str]]:
    """Return the cells of one line per mapped dataset."""
    return [
        [
            printable(d.path, 4096),
            size(d.size),
            *(("?", "") if d.resident is None else _resident_cells(d.resident, d.size)),
        ]
        for d in snapshot.datasets
    ]


def _resident_cells(there: int, whole: int) -> tuple[str, str]:
    return size(there), _percent(there, whole)


def print_snapshot(snapshot: Snapshot) -> None:
    """Print one snapshot; in a pipe as tab-separated lines, those of datasets after an empty one."""
    print_table(PROCESS_HEADERS, process_rows(snapshot), right=(0, 2, 3, 4, 5, 6))
    if snapshot.datasets:
        print()
        print_table(DATASET_HEADERS, dataset_rows(snapshot), right=(1, 2, 3))


def live_view(snapshot: Snapshot) -> Group:
    """Return what `rich.live` draws of the newest snapshot."""
    parts = [_table(PROCESS_HEADERS, process_rows(snapshot), left=1)]
    if snapshot.datasets:
        parts.append(_table(DATASET_HEADERS, dataset_rows(snapshot), left=0))
    return Group(Text(f"{snapshot.seconds:.0f} s"), *parts)


def _table(headers: list[str], rows: list[list[str]], left: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, header in enumerate(headers):
        table.add_column(header, justify="left" if number == left else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def csv_rows(file: TextIO) -> Callable[[Snapshot], None]:
    """Write the names of the columns to `file`, and return the function that adds a snapshot and flushes."""
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()

    def write(snapshot: Snapshot) -> None:
        seconds = f"{snapshot.seconds:.3f}"
        for process in snapshot.processes:
            row = asdict(process) | {"name": printable(process.name)}
            writer.writerow({"seconds": seconds, "kind": "process", **row})
        for dataset in snapshot.datasets:
            row = {"name": printable(dataset.path, 4096), "size": dataset.size, "resident": dataset.resident}
            writer.writerow({"seconds": seconds, "kind": "dataset", **row})
        file.flush()

    return write
