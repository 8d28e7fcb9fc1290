"""What a conversion did, and what it does at the moment: samples done, what went wrong, who is told."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mmds.converters import Ignored
from mmds.errors import SourceError, printable
from mmds.publish import Draft

Progress = Callable[[int, int | None, int], None]

PROGRESS_SECONDS = 0.1


@dataclass(frozen=True)
class Output:
    """One dataset that a conversion has written."""

    path: Path
    samples: int


@dataclass(frozen=True)
class Conversion:
    """What a conversion did. Names and reasons in `errors` are safe to print; those in `ignored` are not."""

    outputs: tuple[Output, ...]
    errors: tuple[tuple[str, str], ...] = ()
    ignored: Mapping[str, Ignored] = field(default_factory=dict)
    quarantine: Path | None = None

    @property
    def samples(self) -> int:
        """The number of samples in all outputs."""
        return sum(output.samples for output in self.outputs)


class Run:
    """The state of one conversion: what is done, what went wrong, and when that was last reported."""

    def __init__(self, source: str, on_error: str, progress: Progress | None, total: int | None, kept: str) -> None:
        self.shown = printable(source)
        self.total = total
        self.bad: list[tuple[str, str]] = []  # names as they are
        self._on_error = on_error
        self._kept = kept  # what of the output is there after an error, in words
        self._progress = progress
        self._done = 0
        self._reported = time.monotonic()

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

    def count(self, samples: int) -> None:
        """Note that more samples of the source are done, and report that from time to time."""
        self._done += samples
        if self._progress is not None and time.monotonic() - self._reported >= PROGRESS_SECONDS:
            self.report()

    def report(self) -> None:
        """Tell the caller how far the conversion is."""
        self._reported = time.monotonic()
        if self._progress is not None:
            self._progress(self._done, self.total, len(self.bad))

    def end(self, destination: Path, written: int) -> Path | None:
        """Check that something was written if there was anything, write the quarantine report, and tell the caller."""
        if self._done and self.bad and not written:
            raise SourceError(f"{self.shown}: none of the {self._done} samples can be used{self.first_failure}")
        report = _quarantine(destination, self.bad) if self._on_error == "quarantine" else None
        self.report()
        return report


def _shown(name: str) -> str:
    return printable(name, limit=4096)


def _quarantine(destination: Path, bad: list[tuple[str, str]]) -> Path | None:
    """Publish the list of bad samples beside the destination, in place of one from an earlier run."""
    path = destination.with_name(destination.name + ".quarantine.jsonl")
    if not bad:
        path.unlink(missing_ok=True)
        return None
    draft = Draft(path, overwrite=True)
    try:
        for name, reason in bad:  # ASCII only: a name that is not UTF-8 comes back as Python's str of it
            draft.write(memoryview(json.dumps({"name": name, "reason": reason}).encode() + b"\n"))
        draft.publish()
    finally:
        draft.discard()
    return path
