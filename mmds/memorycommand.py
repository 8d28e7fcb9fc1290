"""What `mmds memory` does: watch a process, or run a command and watch it; draw while it lasts, and say what it was."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.live import Live

from mmds.memory import Snapshot, Watch, look, require_psutil, watch
from mmds.memoryplot import plot, require_matplotlib
from mmds.memoryreport import csv_rows, describe, live_view, print_snapshot, summarize
from mmds.smaps import FIGURES


def look_once(pid: int, as_json: bool) -> None:
    """Print what process `pid` and its children have now."""
    snapshot = look(pid)
    if as_json:
        totals = {figure: snapshot.total(figure) for figure in FIGURES}
        click.echo(json.dumps({"total": totals, **asdict(snapshot)}, indent=2))
    else:
        print_snapshot(snapshot)


def watch_process(pid: int, *, interval: float, csv: Path | None, png: Path | None, as_json: bool) -> None:
    """Watch process `pid` until it ends or until Ctrl-C, then print what grew."""
    with (
        _outputs(csv, png, live=True) as each,
        watch(pid, interval, each) as watched,
        contextlib.suppress(KeyboardInterrupt),
    ):
        watched.wait()
    _report(watched, png, as_json, to_stderr=False)


def run_command(
    command: list[str], *, interval: float, csv: Path | None, png: Path | None, as_json: bool, live: bool
) -> int:
    """Run a command and watch it until it ends; then print to stderr what grew. Return its exit code, as a shell has it."""
    require_psutil()
    with _outputs(csv, png, live) as each, _passing_on() as started:
        process = subprocess.Popen(command)
        started.append(process)
        try:
            with Watch(process.pid, interval, each) as watched:
                code = _wait(process)
        finally:
            _wait(process)  # whatever fails here, the command is not to be left alone
    _report(watched, png, as_json, to_stderr=True)
    return code if code >= 0 else 128 - code


def _wait(process: subprocess.Popen[bytes]) -> int:
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # the terminal has told the command, too; how it ends is up to it
            continue


@contextlib.contextmanager
def _passing_on() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Yield a list; tell the processes in it to end when a supervisor tells this one, and only this one."""
    started: list[subprocess.Popen[bytes]] = []

    def end(number: int, frame: object) -> None:
        if not started:
            sys.exit(128 + number)
        for process in started:
            process.send_signal(number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield started
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _outputs(csv: Path | None, png: Path | None, live: bool) -> Iterator[Any]:
    """Yield a function that writes a snapshot wherever it shall go; what cannot be written at the end fails now."""
    if png is not None:
        require_matplotlib()
        if not png.parent.is_dir():
            raise FileNotFoundError(f"{png.parent} is no folder, so {png} cannot be written there")
    console = Console(stderr=True)
    with contextlib.ExitStack() as stack:
        outputs = []
        if csv is not None:
            outputs.append(csv_rows(stack.enter_context(open(csv, "w", newline="", encoding="utf-8"))))
        if live and console.is_terminal:
            drawn = stack.enter_context(Live(console=console, auto_refresh=False, transient=True))
            outputs.append(lambda snapshot: drawn.update(live_view(snapshot), refresh=True))

        def each(snapshot: Snapshot) -> None:
            for output in outputs:
                output(snapshot)

        yield each


def _report(watched: Watch, png: Path | None, as_json: bool, to_stderr: bool) -> None:
    snapshots = watched.snapshots
    if png is not None:
        plot(snapshots, png)
    summary = summarize(snapshots)
    click.echo(json.dumps(summary, indent=2) if as_json else describe(summary), err=to_stderr)
