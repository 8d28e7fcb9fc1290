"""Cutting samples out of datasets and joining datasets, without decoding what is copied."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from mmds.conversion import Output, Report
from mmds.copying import Copier
from mmds.errors import SchemaError, printable
from mmds.expressions import Column, Condition
from mmds.fields import Label
from mmds.opening import Source, matches
from mmds.opening import open as open_dataset
from mmds.reader import Reader
from mmds.stored import StoredDataset

NdArray = np.ndarray[Any, Any]
Progress = Callable[[int, int | None], None]


def select(
    source: Source,
    destination: str | os.PathLike[str],
    indices: Any = None,
    *,
    where: str | None = None,
    fields: Any = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Output:
    """Write some samples of a dataset to a new ``.mmds`` file.

    `source` is what `mmds.open` takes, as long as that is ``.mmds``. `indices` are a slice, a range, or a list or array of
    integers (negative ones count from the end; any order, repeated at will) or of one bool per sample. `where` keeps those of
    them that meet a condition on columns, see `mmds.expressions`. `fields` selects as in `mmds.open`. Metadata is kept.

    The file is the same, byte for byte, as if the samples had been given to a `Writer`, but nothing is decoded.

    `progress` is called with the samples done and the samples in all, at most ten times a second and at the end.

    >>> import mmds, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> with mmds.Writer(f"{folder.name}/all.mmds") as writer:
    ...     writer.extend({"x": x, "text": "abc"[:x]} for x in range(4))
    >>> mmds.select(f"{folder.name}/all.mmds", f"{folder.name}/some.mmds", [3, 0, 1], where="x != 0").samples
    2
    >>> list(mmds.open(f"{folder.name}/some.mmds"))
    [{'x': 3, 'text': 'abc'}, {'x': 1, 'text': 'a'}]
    >>> folder.cleanup()
    """
    reader = open_dataset(source, fields=fields)
    dataset = StoredDataset(reader)
    condition = None if where is None else Condition(where, reader.store.schema)
    asked = StoredDataset(Reader(reader.store, range(reader.store.n)))
    rows, total = _chunks(reader, indices, dataset.rows_at_once)
    report = Report(progress, total)
    with Copier(destination, reader.fields, metadata=reader.metadata, overwrite=overwrite) as writer:
        for chunk in rows:
            kept = chunk if condition is None else chunk[meets(condition, asked, chunk)]
            writer.copy(dataset, kept)
            report.add(len(chunk))
    report.end()
    return Output(writer.path, len(writer))


def merge(
    sources: Sequence[Source],
    destination: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Output:
    """Write the samples of several datasets to a new ``.mmds`` file, one dataset after the other.

    Each of `sources` is what `mmds.open` takes, as long as that is ``.mmds``. All have the same fields; metadata is that of
    the first. Nothing is decoded. `progress` is called as by `select`.
    """
    if isinstance(sources, (str, os.PathLike)):
        sources = matches(sources) or [sources]
    if not sources:
        raise ValueError("no datasets to merge: expected at least one")
    readers = [open_dataset(source) for source in sources]
    for reader in readers[1:]:
        check_same_fields(readers[0], reader)
    report = Report(progress, sum(map(len, readers)))
    first = readers[0]
    with Copier(destination, first.fields, metadata=first.metadata, overwrite=overwrite) as writer:
        for reader in readers:
            copy_range(StoredDataset(reader), range(len(reader)), writer, report)
    report.end()
    return Output(writer.path, len(writer))


def copy_range(dataset: StoredDataset, rows: range, writer: Copier, report: Report) -> None:
    """Append neighbours to a writer."""
    step = dataset.rows_at_once
    for start in range(rows.start, rows.stop, step):
        chunk = np.arange(start, min(start + step, rows.stop))
        writer.copy(dataset, chunk)
        report.add(len(chunk))


def check_same_fields(first: Reader, other: Reader) -> None:
    """Raise `SchemaError` where two datasets have different fields, with what differs."""
    if first.fields.to_json() == other.fields.to_json():
        return
    one, two = ({field.name: field.kind for field in reader.fields} for reader in (first, other))
    differences = []
    for name in [*one, *(name for name in two if name not in one)]:
        here, there = one.get(name), two.get(name)
        if here != there and isinstance(here, Label) and isinstance(there, Label) and here.nullable == there.nullable:
            differences.append(
                f"label '{name}' has the classes {', '.join(there.names)}, expected {', '.join(here.names)}"
            )
        elif here != there:
            differences.append(f"'{name}' is {there or 'missing'}, expected {here or 'no such field'}")
    shown = printable("; ".join(differences) or "their order or structure", 1000)
    raise SchemaError(
        f"{printable(other.path)}: has other fields than {printable(first.path)}: {shown}. "
        "Datasets that are merged have the same fields; mmds.select(fields=...) leaves some out"
    )


def meets(condition: Condition, dataset: StoredDataset, rows: NdArray) -> NdArray:
    """Return for each of `rows` whether it meets a condition on the columns of a dataset."""
    stored = dataset.at(rows)
    columns = {name: Column(stored.column(k), stored.valid(k)) for name, k in condition.columns.items()}
    return condition(columns, len(rows))


def _chunks(reader: Reader, indices: Any, size: int) -> tuple[Iterator[NdArray], int]:
    """Return the rows that `indices` mean, in pieces of at most `size`, and how many there are or, of bools, may be."""
    n = len(reader)
    if indices is None or isinstance(indices, (slice, range)):
        rows = range(n)[indices] if isinstance(indices, slice) else range(n) if indices is None else indices
        pieces = (rows[start : start + size] for start in range(0, len(rows), size))
        arrays = (np.arange(piece.start, piece.stop, piece.step) for piece in pieces)
        return (reader.resolve(array, range(n)) for array in arrays), len(rows)
    array = np.asarray(indices)
    if array.dtype == bool and array.shape == (n,):
        starts = range(0, n, size)
        return (start + np.flatnonzero(array[start : start + size]) for start in starts), n
    if array.ndim != 1:
        reader.resolve(array, range(n))  # says what is wrong
    return (reader.resolve(array[start : start + size], range(n)) for start in range(0, len(array), size)), len(array)
