"""Converting: any source or store that mmds knows to any store, in parallel where samples have to be loaded.

The bytes of the output depend on the source and the options that change samples, and on nothing else: not on the number
of workers, the time, the host, or where the source lies.
"""

from __future__ import annotations

import importlib
import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mmds.converters import FORMATS, Ignored, Source, sources
from mmds.converters.stores import find_store
from mmds.errors import FormatError, OptionError, SampleError, SourceError, printable
from mmds.opening import matches, open_store
from mmds.ordered import Failure, load_in_order, nbytes
from mmds.publish import Draft
from mmds.reader import Reader
from mmds.samplewriter import SampleWriter
from mmds.store import Store
from mmds.writer import Writer

Progress = Callable[[int, int | None, int], None]

ON_ERROR = ("raise", "skip", "quarantine")
PROGRESS_SECONDS = 0.1
BATCH_BYTES = 8 * 2**20  # that travel from store to store at once
FIRST_BATCH, MAX_BATCH = 16, 2**16  # samples: a small batch tells how large they are


@dataclass(frozen=True)
class Output:
    """One file that a conversion has written."""

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


def convert(
    source: Any,
    destination: str | os.PathLike[str],
    *,
    source_format: str | None = None,
    destination_format: str | None = None,
    fields: Any = None,
    num_workers: int | None = None,
    limit: int | None = None,
    on_error: str = "raise",
    overwrite: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> Conversion:
    """Write the samples of `source` to `destination`, in the order of the source.

    The source is a folder of pictures, a dataset in any store, or a `datasets.Dataset`; the destination an ``.mmds`` file
    or any other store. Formats are recognised by suffix and content, or named. Between stores, samples travel as columns,
    and `fields` selects and shapes them as in `mmds.open`.

    A folder with splits gives one file each: ``out-train.mmds``, ``out-val.mmds`` for ``out.mmds``; they are published
    when all of them are complete. `limit` takes only the first samples of each. `num_workers` is the number of CPUs by
    default. `options` are those of the source's format: ``resize=``, ``crop=``, ``encode=``, ``check=``, ``splits=``
    for a folder of pictures.

    `on_error` says what happens to a sample that cannot be used: "raise" ends the conversion with `SourceError`, and
    nothing is published; "skip" goes on and lists it in `Conversion.errors`; "quarantine" also writes the list to
    ``DESTINATION.quarantine.jsonl``. The source is never changed.

    `progress` is called with (samples done, samples in all, errors), at most ten times a second and at the end.
    """
    if on_error not in ON_ERROR:
        raise ValueError(f"on_error={on_error!r}: expected one of {', '.join(map(repr, ON_ERROR))}")
    workers = len(os.sched_getaffinity(0)) if num_workers is None else num_workers
    if workers < 1 or (limit is not None and limit < 0):
        raise ValueError(f"num_workers={num_workers!r}, limit={limit!r}: expected at least 1 and at least 0")
    reader = _reader(source, source_format, fields, options)
    if reader is None and fields is not None:
        raise SourceError(f"fields={fields!r}: the samples of this source have the fields that they have")
    store = find_store(destination, destination_format) if destination_format != "mmds" else None
    make_writer: Callable[..., SampleWriter] = Writer if store is None else store.writer
    if reader is not None:
        return _copy(reader, make_writer, Path(destination), limit, on_error, overwrite, progress)
    found = sources(source, source_format, **options)
    paths = _outputs(Path(destination), found)
    run = _Run(source, on_error == "raise", progress, sum(_size(each, limit) for each in found))
    for each in found:
        for name, reason in each.problems:
            run.fail(name, reason)
    if not any(map(len, found)):
        raise SourceError(f"{run.shown}: no samples found{run.first_failure}{_shown_ignored(found)}")
    with ExitStack() as stack:  # every file is opened first and published last
        writers = [
            stack.enter_context(make_writer(path, each.fields, metadata=each.metadata, overwrite=overwrite))
            for path, each in zip(paths, found, strict=True)
        ]
        for each, writer in zip(found, writers, strict=True):
            run.write(each, writer, workers, limit)
        report = run.end(Path(destination), on_error, sum(map(len, writers)))
    outputs = tuple(Output(path, len(writer)) for path, writer in zip(paths, writers, strict=True))
    return Conversion(outputs, run.shown_errors, _ignored(found), report)


def _reader(source: Any, format: str | None, fields: Any, options: dict[str, Any]) -> Reader | None:
    """Return a reader of `source` if it is a dataset in a store; None if its format has to be looked for elsewhere."""
    if type(source).__module__.partition(".")[0] == "datasets":
        store: Store = importlib.import_module("mmds.converters.huggingface").as_store(source)
    elif not isinstance(source, (str, os.PathLike)):
        raise SourceError(f"cannot convert a {type(source).__name__}; give a path or a datasets.Dataset")
    elif format in FORMATS or (format is None and not _is_store(source)):
        return None
    else:
        store = open_store(source, format)
    if options:
        raise OptionError(f"a dataset in a store has no option {printable(', '.join(options))}")
    return Reader(store, range(store.n), fields)


def _is_store(path: str | os.PathLike[str]) -> bool:
    return Path(path).is_file() or bool(matches(path)) or find_store(path) is not None


def _copy(
    reader: Reader,
    make_writer: Callable[..., SampleWriter],
    destination: Path,
    limit: int | None,
    on_error: str,
    overwrite: bool,
    progress: Progress | None,
) -> Conversion:
    """Copy a dataset from one store to another, in columns of about `BATCH_BYTES`."""
    rows = range(len(reader))[:limit]
    run = _Run(reader.store.path, on_error == "raise", progress, len(rows))
    with make_writer(destination, reader.fields, metadata=reader.metadata, overwrite=overwrite) as writer:
        size = FIRST_BATCH
        while rows:
            batch, rows = rows[:size], rows[size:]
            copied = run.copy(reader, batch, writer)
            size = max(1, min(MAX_BATCH, int(len(batch) * BATCH_BYTES / max(copied, 1)), 4 * size))
        report = run.end(destination, on_error, len(writer))
    left_out: Mapping[str, str] = getattr(reader.store, "left_out", {})
    ignored: dict[str, Ignored] = {}
    for name, reason in left_out.items():
        ignored.setdefault(f"array that is no field ({reason})", Ignored()).add(name)
    return Conversion((Output(destination, len(writer)),), run.shown_errors, ignored, report)


class _Run:
    """The state of one conversion: what is done, what went wrong, and when that was last reported."""

    def __init__(self, source: str | os.PathLike[str], raises: bool, progress: Progress | None, total: int) -> None:
        self.shown = printable(os.fspath(source))
        self.total = total
        self.bad: list[tuple[str, str]] = []  # names as they are
        self._raises = raises
        self._progress = progress
        self._done = 0
        self._reported = time.monotonic()

    def fail(self, name: str, reason: str) -> None:
        """Note that `name` cannot be used, or end the conversion."""
        if self._raises:
            raise SourceError(
                f"{self.shown}: {_shown(name)}: {reason}. Nothing was written; on_error='skip' or 'quarantine' goes on"
            )
        self.bad.append((name, reason))

    @property
    def first_failure(self) -> str:
        """The first failure in words, as the end of a message."""
        return "".join(f"; {_shown(name)}: {reason}" for name, reason in self.bad[:1])

    @property
    def shown_errors(self) -> tuple[tuple[str, str], ...]:
        """All failures, safe to print."""
        return tuple((_shown(name), reason) for name, reason in self.bad)

    def copy(self, reader: Reader, rows: range, writer: SampleWriter) -> int:
        """Copy samples of a store and return about how many bytes they had; a batch that fails, one by one."""
        try:
            batch = reader[np.arange(rows.start, rows.stop)]
            writer.write_batch(batch)
        except (FormatError, SampleError):
            for row in rows:
                try:
                    writer.write(reader[row])
                except (FormatError, SampleError) as error:
                    self.fail(f"sample {row}", str(error))
            batch = ()
        self.count(len(rows))
        return nbytes(batch)

    def end(self, destination: Path, on_error: str, written: int) -> Path | None:
        """Check that anything was written, write the quarantine report, and tell the caller that this is all."""
        if self.total and not written:
            raise SourceError(f"{self.shown}: none of the {self.total} samples can be used{self.first_failure}")
        report = None
        if on_error == "quarantine":
            report = _quarantine(destination, self.bad)
        self.report()
        return report

    def write(self, source: Source, writer: SampleWriter, workers: int, limit: int | None) -> None:
        """Write all samples of `source`."""
        prefix = source.split and f"{source.split}/"
        items = islice(source.items(), limit)
        loaded = load_in_order(source.load, items, num_workers=workers, processes=source.cpu_bound)
        with closing(loaded):  # ends its workers at once if this loop ends early
            for item, sample in loaded:
                if isinstance(sample, Failure):
                    self.fail(prefix + item[0], sample.reason)
                else:
                    try:
                        writer.write(sample)
                    except SampleError as error:
                        self.fail(prefix + item[0], str(error))
                self.count(1)

    def count(self, samples: int) -> None:
        """Note that more samples are done, and report that from time to time."""
        self._done += samples
        if self._progress is not None and time.monotonic() - self._reported >= PROGRESS_SECONDS:
            self.report()

    def report(self) -> None:
        """Tell the caller how far the conversion is."""
        self._reported = time.monotonic()
        if self._progress is not None:
            self._progress(self._done, self.total, len(self.bad))


def _outputs(destination: Path, found: list[Source]) -> list[Path]:
    return [
        destination.with_name(f"{destination.stem}-{each.split}{destination.suffix}") if each.split else destination
        for each in found
    ]


def _size(source: Source, limit: int | None) -> int:
    return len(source) if limit is None else min(limit, len(source))


def _shown(name: str) -> str:
    return printable(name, limit=4096)


def _ignored(found: list[Source]) -> dict[str, Ignored]:
    """Return what the sources have ignored, added up."""
    total: dict[str, Ignored] = {}
    for source in found:
        for reason, ignored in source.ignored.items():
            total.setdefault(reason, Ignored()).merge(ignored)
    return total


def _shown_ignored(found: list[Source]) -> str:
    """Return in words what was ignored, as the end of a message."""
    return "".join(
        f"; {reason}: {ignored.count}, such as {', '.join(map(printable, ignored.examples))}"
        for reason, ignored in _ignored(found).items()
    )


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
