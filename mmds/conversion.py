"""What a conversion did, and what it does at the moment: samples done, what went wrong, who is told."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmds.converters import Ignored
from mmds.errors import SourceError, printable
from mmds.publish import as_lines, publish_lines
from mmds.remote import Remote

Progress = Callable[[int, int | None, int], None]

PROGRESS_SECONDS = 0.1


@dataclass(frozen=True)
class Output:
    """One dataset that a conversion has written."""

    path: Path
    samples: int


@dataclass(frozen=True)
class RemoteOutput:
    """One dataset that a conversion has written to object storage."""

    path: str  # its URL
    samples: int


@dataclass(frozen=True)
class Conversion:
    """What a conversion did. Names and reasons in `errors` are safe to print; those in `ignored` are not."""

    outputs: tuple[Output | RemoteOutput, ...]
    errors: tuple[tuple[str, str], ...] = ()
    ignored: Mapping[str, Ignored] = field(default_factory=dict)
    quarantine: Path | str | None = None

    @property
    def samples(self) -> int:
        """The number of samples in all outputs."""
        return sum(output.samples for output in self.outputs)


class Report:
    """How many samples are done, and when that was last said."""

    def __init__(self, tell: Callable[[int, int | None], None] | None, total: int | None) -> None:
        self.done, self.total = 0, total
        self._tell = tell
        self._told = time.monotonic()

    def add(self, samples: int) -> None:
        """Note that more samples are done, and say so from time to time."""
        self.done += samples
        if self._tell is not None and time.monotonic() - self._told >= PROGRESS_SECONDS:
            self.end()

    def end(self) -> None:
        """Say how many are done."""
        self._told = time.monotonic()
        if self._tell is not None:
            self._tell(self.done, self.total)


class Run:
    """The state of one conversion: what is done, and what went wrong."""

    def __init__(self, source: str, on_error: str, progress: Progress | None, total: int | None, kept: str) -> None:
        self.shown = printable(source)
        self.bad: list[tuple[str, str]] = []  # names as they are
        self._on_error = on_error
        self._kept = kept  # what of the output is there after an error, in words
        tell = None if progress is None else lambda done, total: progress(done, total, len(self.bad))
        self._report = Report(tell, total)
        self.count = self._report.add  # more samples of the source are done
        self.tell = self._report.end  # how many there are by now

    def fail(self, name: str, reason: str, trace: str = "") -> None:
        """Note that `name` cannot be used, or end the conversion."""
        if self._on_error == "raise":
            error = SourceError(
                f"{self.shown}: {_shown(name)}: {reason}. {self._kept}; on_error='skip' or 'quarantine' goes on"
            )
            if trace:
                error.add_note(trace)
            raise error
        self.bad.append((name, reason))

    @property
    def first_failure(self) -> str:
        """The first failure in words, as the end of a message."""
        return "".join(f"; {_shown(name)}: {reason}" for name, reason in self.bad[:1])

    @property
    def shown_errors(self) -> tuple[tuple[str, str], ...]:
        """All failures, safe to print."""
        return tuple((_shown(name), reason) for name, reason in self.bad)

    def end(self, destination: Path | str, written: int) -> Path | str | None:
        """Check that something was written if there was anything, write the quarantine report, and tell the caller."""
        done = self._report.done
        if done and self.bad and not written:
            raise SourceError(f"{self.shown}: none of the {done} samples can be used{self.first_failure}")
        report = quarantine(destination, self.bad) if self._on_error == "quarantine" else None
        self._report.end()
        return report


def _shown(name: str) -> str:
    return printable(name, limit=4096)


def quarantine(destination: Path | str, bad: Sequence[tuple[str, str]]) -> Path | str | None:
    """Publish the list of bad samples beside a dataset, in place of one from an earlier run; return where it is."""
    lines = [{"name": name, "reason": reason} for name, reason in bad]
    if isinstance(destination, Path):
        return publish_lines(destination.with_name(destination.name + ".quarantine.jsonl"), lines)
    report = Remote(f"{destination.rstrip('/')}.quarantine.jsonl")
    if not lines:
        with contextlib.suppress(FileNotFoundError):
            report.delete()
        return None
    report.replace(as_lines(lines))
    return report.url
