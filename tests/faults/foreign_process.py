"""A process that reads damaged datasets one after the other, and the one that watches it, starts it again and counts.

A case has to end within `PATIENCE` seconds, in `MEMORY` bytes of address space beyond what the process has after reading the
undamaged dataset, with an error of mmds or none. Whatever else happens is a `Finding`, also the end of the process.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import selectors
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmds.errors import MmdsError
from tests.faults import foreign
from tests.faults.foreign_mutations import damaged, truncated

MEMORY = 2**29
PATIENCE = 20.0
STARTING = 90.0  # seconds that importing libraries may take on a busy machine
ALLOWED = (
    MmdsError,
    FileNotFoundError,
    PermissionError,
)  # FileNotFoundError: the dataset itself, or its main file, is gone
FOLDER = Path("/dev/shm") if Path("/dev/shm").is_dir() else None  # where synchronising costs nothing


@dataclass(frozen=True)
class Cases:
    """Cases of one subject: `way` is "damaged" or "truncated"."""

    subject: str
    way: str
    numbers: range


@dataclass(frozen=True)
class Finding:
    """A case that did not end as it should."""

    subject: str
    way: str
    number: int
    what: str
    ended: bool  # the process ended, or had to be ended


@dataclass
class Result:
    """What became of cases."""

    cases: int = 0
    refused: int = 0
    findings: list[Finding] = field(default_factory=list)

    def kinds(self) -> Counter[tuple[str, str]]:
        """Return how often each thing was found."""
        return Counter((finding.subject, finding.what) for finding in self.findings)


def lengths(name: str, step: int) -> Cases:
    """Return the cases in which the files of a subject end early: at every length, or at each `step`-th one."""
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        foreign.build(name, Path(folder))
        return Cases(name, "truncated", range(0, sum(map(len, foreign.read_tree(Path(folder)).values())), step))


def sweep(plan: Sequence[Cases]) -> Result:
    """Go through cases in processes of their own; a new one follows when one ends."""
    result = Result()
    flat = [(each.subject, each.way, number) for each in plan for number in each.numbers]
    first = 0
    while first < len(flat):
        with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
            said = json.dumps([[each.subject, each.way, *_arguments(each.numbers)] for each in plan])
            command = [sys.executable, "-m", __name__, said, str(first), folder]
            complaints = Path(folder) / "stderr"  # a file: a pipe that nobody reads would be full one day
            with (
                complaints.open("wb") as stderr,
                subprocess.Popen(
                    command,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    cwd=Path(__file__).parents[2],
                    env={**os.environ, "MALLOC_ARENA_MAX": "2"},
                ) as process,
            ):
                last, hung = _follow(process, result, flat)
            complaint = complaints.read_bytes()[-1500:].decode(errors="replace")
        if last is None and process.returncode == 0:
            break
        if last is None:
            raise RuntimeError(f"the process ended with {process.returncode} between two cases: {complaint}")
        what = "no end" if hung else f"exit code {process.returncode}"
        if not hung and process.returncode < 0:
            what = signal.Signals(-process.returncode).name
        result.cases += 1
        subject, way, number = flat[last]
        result.findings.append(Finding(subject, way, number, what, True))
        first = last + 1
    return result


def _arguments(numbers: range) -> tuple[int, int, int]:
    return numbers.start, numbers.stop, numbers.step


def _follow(
    process: subprocess.Popen[bytes], result: Result, flat: list[tuple[str, str, int]]
) -> tuple[int | None, bool]:
    """Read what the process says until its end; return the case that it did not come back from, and whether it hung."""
    assert process.stdout is not None
    running: int | None = None
    waiting = selectors.DefaultSelector()
    waiting.register(process.stdout, selectors.EVENT_READ)
    pending = b""
    while True:
        if not waiting.select(STARTING if running is None else PATIENCE):
            process.kill()
            process.wait()
            return running, True
        data = os.read(process.stdout.fileno(), 2**16)
        if not data:
            process.wait()
            return running, False
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            said = json.loads(line)
            running = said.get("begin")
            if "end" in said:
                result.cases += 1
                result.refused += said["refused"]
                if said["what"]:
                    subject, way, number = flat[said["end"]]
                    result.findings.append(Finding(subject, way, number, said["what"], False))


def _say(**what: object) -> None:
    os.write(1, json.dumps(what).encode() + b"\n")


def main(plan: Iterable[Cases], first: int, folder: Path) -> None:
    """Go through cases in this process, from the case with number `first` of all on."""
    warnings.simplefilter("ignore")  # that files have odd names is for people
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    total = 0
    for each in plan:
        start, total = total, total + len(each.numbers)
        if total > first:
            with tempfile.TemporaryDirectory(dir=folder) as own:
                _cases(each, start, max(first - start, 0), Path(own))
    os._exit(0)  # libraries with threads may take their time


def _cases(each: Cases, start: int, skipped: int, folder: Path) -> None:
    place, scratch = folder / "in", folder / "out"
    place.mkdir()
    scratch.mkdir()
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    path = foreign.build(each.subject, place)
    tree = foreign.read_tree(place)
    if not foreign.use(each.subject, path, scratch):  # which also imports what is needed, and starts threads
        raise RuntimeError(f"{each.subject}: not readable as it is")
    _limit_memory()
    for case, number in itertools.islice(enumerate(each.numbers, start), skipped, None):
        changed = damaged(each.subject, tree, number) if each.way == "damaged" else truncated(tree, number)
        for file, data in changed.items():
            (place / file).unlink(missing_ok=True)  # never written over: a reader may still map it
            if data is not None:
                (place / file).write_bytes(data)
        _say(begin=case)
        refused, what = _outcome(each.subject, path, scratch)
        _say(end=case, refused=refused, what=what)
        for file in changed:
            (place / file).unlink(missing_ok=True)
            (place / file).write_bytes(tree[file])


def _outcome(name: str, path: Path, scratch: Path) -> tuple[bool, str]:
    """Return whether a case was refused, and what went wrong: an empty text if nothing did."""
    try:
        refused = not foreign.use(name, path, scratch)
    except ALLOWED as error:
        return True, _about(error)
    except BaseException as error:  # noqa: BLE001 (a panic of a library in Rust is not an Exception)
        place = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in place if "/mmds/" in frame.filename or "/converters/" in frame.filename]
        where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "?"
        return True, f"{type(error).__name__} at {where}: {str(error)[:120]!r}"
    return refused, ""


def _about(error: BaseException) -> str:
    """Return what is wrong with an error that was to be expected: a message that would disturb a terminal, or fill it."""
    text = str(error)
    if any(character < " " and character != "\n" for character in text) or "\u202e" in text or "\x7f" in text:
        return f"a message with control characters: {text[:300]!r}"
    return f"a message of {len(text)} characters: {text[:300]!r}" if len(text) > 5000 else ""


def _limit_memory() -> None:
    """Let this process have `MEMORY` bytes of address space more than it has."""
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, resource.RLIM_INFINITY))


def _read_plan(said: str) -> Iterator[Cases]:
    for subject, way, *numbers in json.loads(said):
        yield Cases(subject, way, range(*numbers))


if __name__ == "__main__":
    main(_read_plan(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
