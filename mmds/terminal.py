"""What people see in a terminal: tables, progress with rate and time left, pictures. Quiet where nobody looks."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from mmds.conversion import Conversion
from mmds.errors import printable
from mmds.summary import tree_size

HISTOGRAM_CLASSES = 30  # more do not help anybody on one screen
LISTED_ERRORS = 20
UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def size(count: int) -> str:
    """Return a number of bytes for people.

    >>> size(999), size(27_648), size(5 * 2**30)
    ('999 B', '27.0 KiB', '5.0 GiB')
    """
    value, unit = float(count), 0
    while value >= 1024 and unit < len(UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.1f} {UNITS[unit]}" if unit else f"{count} B"


class _Rate(ProgressColumn):
    """Samples per second."""

    def render(self, task: Task) -> Text:
        rate = task.finished_speed or task.speed
        return Text("" if rate is None else f"{rate:,.0f}/s", style="progress.data.speed")


@contextlib.contextmanager
def progress(what: str, *, in_bytes: bool, shown: bool = True) -> Iterator[Callable[..., None] | None]:
    """Yield a function of (done, total, errors=0) that draws a progress bar on stderr, or None if it is no terminal."""
    console = Console(stderr=True)
    if not shown or not console.is_terminal:
        yield None
        return
    counts = [DownloadColumn(binary_units=True), TransferSpeedColumn()] if in_bytes else [MofNCompleteColumn(), _Rate()]
    left = (TimeRemainingColumn(), TextColumn("{task.fields[errors]}"))
    with Progress(
        TextColumn("{task.description}"), BarColumn(), *counts, *left, console=console, transient=True
    ) as bar:
        task = bar.add_task(what, total=None, errors="")

        def update(done: int, total: int | None, errors: int = 0) -> None:
            bar.update(task, completed=done, total=total, errors=f"{errors} errors" if errors else "")

        yield update


def print_conversion(conversion: Conversion) -> None:
    """Print what a conversion did: files to stdout; bad and ignored things, all counted and named, to stderr."""
    for output in conversion.outputs:
        nbytes = f", {size(tree_size(output.path))}" if isinstance(output.path, Path) else ""
        sys.stdout.write(f"{printable(output.path, 4096)}: {output.samples:,} samples{nbytes}\n")
    for reason, ignored in conversion.ignored.items():
        names = ", ".join(printable(name) for name in ignored.examples)
        more = ", …" if ignored.count > len(ignored.examples) else ""
        sys.stderr.write(f"ignored {ignored.count:,}: {printable(reason)} ({names}{more})\n")
    if conversion.errors:
        sys.stderr.write(f"left out {len(conversion.errors):,} bad samples:\n")
        for name, reason in conversion.errors[:LISTED_ERRORS]:
            sys.stderr.write(f"  {printable(name)}: {printable(reason, 500)}\n")
        if len(conversion.errors) > LISTED_ERRORS:
            sys.stderr.write(
                f"  … and {len(conversion.errors) - LISTED_ERRORS:,} more; --on-error quarantine lists all\n"
            )
    if conversion.quarantine is not None:
        sys.stderr.write(f"all of them are listed in {printable(conversion.quarantine, 4096)}\n")


def print_table(headers: list[str], rows: list[list[str]], *, right: tuple[int, ...] = ()) -> None:
    """Print rows of text under headers; `right` names the columns to align right. In a pipe: tab-separated lines."""
    if not sys.stdout.isatty():
        for row in rows:
            sys.stdout.write("\t".join(row) + "\n")
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, header in enumerate(headers):
        table.add_column(Text(printable(header)), justify="right" if number in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


def print_summary(summary: dict[str, Any]) -> None:
    """Print what `summarize` returns, for people."""
    out = Console(highlight=False, soft_wrap=True)
    out.print(Text(printable(summary["path"], 4096), style="bold"))
    samples, total = summary["samples"], summary["file_bytes"]
    parts = ""
    if "data_bytes" in summary:
        parts = f" = {size(summary['data_bytes'])} data + {size(summary['index_bytes'])} index"
    average = f", {size(total // samples)} each" if samples else ""
    out.print(
        Text(
            f"{samples:,} samples{average}; {size(total)}{parts}; {summary['format']}, content {summary['content_id']}"
        )
    )
    if "shards" in summary:
        count, least, most = summary["shards"].values()
        added = f"; sidecars: {summary['sidecars']:,}" if summary["sidecars"] else ""
        out.print(Text(f"shards: {count:,}, of {size(least)} to {size(most)}{added}"))
    rows = [
        [
            printable(field["name"]),
            field["kind"] + ("?" if field["nullable"] else ""),
            field["type"],
            field.get("stored", ""),
            "" if field.get("bytes_per_sample") is None else f"{field['bytes_per_sample']:,}",
        ]
        for field in summary["fields"]
    ]
    print_table(["field", "kind", "type", "stored in", "bytes"], rows, right=(4,))
    for field in summary["fields"]:
        if "classes" in field:
            _print_histogram(out, field["name"], field["classes"])
    if summary["metadata"]:
        out.print("metadata")
        for key, value in summary["metadata"].items():
            out.print(Text(f"  {printable(key)}: {printable(value, 1000)}"))


def _print_histogram(out: Console, name: str, classes: dict[str, Any]) -> None:
    if None in classes.values():  # at a URL: not counted
        out.print(Text(f"{printable(name)}: {len(classes)} classes: {printable(', '.join(classes), 2000)}"))
        return
    largest = max(classes.values(), default=0)
    out.print(Text(f"{printable(name)}: {len(classes)} classes"))
    shown = list(classes.items())[:HISTOGRAM_CLASSES]
    width = max((len(printable(label, 30)) for label, _ in shown), default=0)
    for label, count in shown:
        bar = "█" * round(40 * count / largest) if largest else ""
        out.print(Text(f"  {printable(label, 30):{width}}  {count:>9,}  {bar}"))
    if len(classes) > len(shown):
        rest = [count for _, count in list(classes.items())[HISTOGRAM_CLASSES:]]
        out.print(Text(f"  … and {len(rest)} more, with {min(rest):,} to {max(rest):,} samples each"))


def value_text(value: Any, limit: int = 200) -> str:
    """Return one leaf of a sample in short: what it is, and as much of it as fits."""
    if isinstance(value, np.ndarray):
        text = f"{value.dtype} {value.shape}"
        if value.size and value.dtype.kind in "biuf":
            text += f", {value.min():.6g} to {value.max():.6g}, mean {value.mean():.6g}"
        return text
    if isinstance(value, bytes):
        return f"{len(value):,} bytes, {value[:16].hex(' ')}{' …' if len(value) > 16 else ''}"
    return printable(value if isinstance(value, str) else repr(value), limit)


def print_picture(pixels: np.ndarray[Any, Any]) -> None:
    """Draw a uint8 picture of shape (height, width, 1, 3 or 4) with two pixels per character, as wide as fits."""
    from PIL import Image

    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
    console = Console()
    width = min(console.width, image.width, 100)
    height = max(2, round(image.height * width / image.width) // 2 * 2)
    small = np.asarray(image.resize((width, height)))
    for upper, lower in zip(small[::2], small[1::2], strict=True):
        line = Text(end="\n")
        for top, bottom in zip(upper.tolist(), lower.tolist(), strict=True):
            line.append("▀", style=f"rgb({top[0]},{top[1]},{top[2]}) on rgb({bottom[0]},{bottom[1]},{bottom[2]})")
        console.print(line, soft_wrap=True, end="")
