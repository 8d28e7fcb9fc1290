"""Splitting a dataset into several files, by size or number or at random, without decoding what is copied."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from mmds.conversion import Output, Report
from mmds.copying import Copier
from mmds.errors import SchemaError, printable
from mmds.expressions import is_usable
from mmds.opening import Source
from mmds.opening import open as open_dataset
from mmds.permutation import Permutation
from mmds.publish import exists_error, link_into_place, storage_errors, sync_folder
from mmds.reader import Reader
from mmds.selecting import Progress
from mmds.staging import Staging
from mmds.stored import StoredDataset

NdArray = np.ndarray[Any, Any]
Rows = Iterable[NdArray]  # ascending, in pieces of at most `rows_at_once`

MAX_PARTS = 2**16
CLOSE_TO_1 = Fraction(1, 10**6)  # what fractions such as three times 0.333333 may lack


def split(
    source: Source,
    destination: str | os.PathLike[str],
    *,
    size: int | None = None,
    count: int | None = None,
    fractions: Mapping[str, float] | Sequence[float] | None = None,
    seed: int = 0,
    stratify: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> list[Output]:
    """Write the samples of a dataset to several new ``.mmds`` files, and return which, with how many samples.

    Exactly one of these says how:

    * `count`: the number of samples in each part but the last. Parts are ``out-00000.mmds``, ... for ``out.mmds``.
    * `size`: how many bytes the samples of a part, with their index, take at most; a larger sample is a part of its own.
    * `fractions`: of a random split, which add up to 1, such as ``{"train": 0.9, "val": 0.1}`` for ``out-train.mmds`` and
      ``out-val.mmds``, or a list for numbered parts. Which sample goes where depends on `seed` and the number of samples only.
      Samples keep their order. Sizes are exact, what is left by rounding goes to the largest remainders. With `stratify`,
      the name of a column of labels, integers, bools or text, fractions hold of the samples of each value. Takes two bytes of
      memory per sample.

    All parts appear when all of them are complete. Metadata is kept. Nothing is decoded. `progress` is called as by `select`.
    """
    if sum(option is not None for option in (size, count, fractions)) != 1:
        raise ValueError("expected one of size=, count= and fractions=")
    if stratify is not None and fractions is None:
        raise ValueError("stratify= is for random splits, by fractions=")
    for name, value in (("size", size), ("count", count)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value}: expected at least 1")
    reader = open_dataset(source)
    dataset = StoredDataset(reader)
    if fractions is not None:
        names, shares = _shares(fractions)
        parts = _random_parts(dataset, shares, seed, stratify)
        chosen: list[Rows] = [_rows_of(parts, number, dataset.rows_at_once) for number in range(len(shares))]
    else:
        cuts = range(0, len(reader), count) if count is not None else _cuts_by_size(dataset, size or 0)
        cuts = list(cuts) or [0]
        names = [f"{number:05}" for number in range(len(cuts))]
        ends = [*cuts[1:], len(reader)]
        chosen = [_neighbours(start, end, dataset.rows_at_once) for start, end in zip(cuts, ends, strict=True)]
    if len(names) > MAX_PARTS:
        raise ValueError(f"{len(names)} parts; at most {MAX_PARTS} are allowed")
    path = Path(destination).absolute()
    paths = [path.with_name(f"{path.stem}-{name}{path.suffix}") for name in names]
    return _write(reader, dataset, path, dict(zip(paths, chosen, strict=True)), overwrite, progress)


def _write(
    reader: Reader,
    dataset: StoredDataset,
    destination: Path,
    parts: Mapping[Path, Rows],
    overwrite: bool,
    progress: Progress | None,
) -> list[Output]:
    """Write the parts one after the other into a temporary folder, and move them to their places when all are there."""
    for path in parts:
        if not overwrite and os.path.lexists(path):
            raise exists_error(path)
    report = Report(progress, len(reader))
    written: list[Output] = []
    staging = Staging(destination, overwrite=True)  # only for its temporary folder: nothing appears at `destination`
    try:
        with storage_errors(destination):
            staging.content.mkdir()
        for path, rows in parts.items():
            with Copier(staging.content / path.name, reader.fields, metadata=reader.metadata) as writer:
                for chunk in rows:
                    writer.copy(dataset, chunk)
                    report.add(len(chunk))
            written.append(Output(path, len(writer)))
        _publish(staging.content, list(parts), overwrite)
    finally:
        staging.discard()
    report.end()
    return written


def _publish(folder: Path, paths: list[Path], overwrite: bool) -> None:
    """Move complete files to their places; without `overwrite`, none if one is taken."""
    moved: list[Path] = []
    try:
        for path in paths:
            with storage_errors(path):
                if overwrite:
                    (folder / path.name).replace(path)
                else:
                    link_into_place(folder / path.name, path)
            moved.append(path)
    except BaseException:
        for path in () if overwrite else moved:
            path.unlink()
        raise
    with storage_errors(paths[0].parent):
        sync_folder(paths[0].parent)


def _neighbours(start: int, end: int, step: int) -> Iterator[NdArray]:
    for first in range(start, end, step):
        yield np.arange(first, min(first + step, end))


def _rows_of(parts: NdArray, number: int, step: int) -> Iterator[NdArray]:
    for first in range(0, len(parts), step):
        yield first + np.flatnonzero(parts[first : first + step] == number)


def _cuts_by_size(dataset: StoredDataset, size: int) -> list[int]:
    """Return where parts begin, none of which has more than `size` bytes or more than one sample."""
    cuts: list[int] = []
    left = 0
    for rows in _neighbours(0, dataset.n, dataset.rows_at_once):
        sizes = dataset.at(rows).sizes()
        ends = np.cumsum(sizes)
        first, before = 0, 0  # the first sample that is in no part yet, and the bytes before it
        if not cuts:
            cuts, left = [0], size
        while first < len(rows):
            fit = int(np.searchsorted(ends, before + left, "right"))
            if fit == len(rows):
                left -= int(ends[-1]) - before
                break
            if fit == first and left == size:  # larger than a part
                fit += 1
                if fit == len(rows):
                    left = 0
                    break
            cuts.append(int(rows[fit]))
            first, before, left = fit, int(ends[fit - 1]) if fit else 0, size
    return cuts


def _shares(fractions: Mapping[str, float] | Sequence[float]) -> tuple[list[str], list[Fraction]]:
    """Return the names and the exact shares of the parts."""
    named = isinstance(fractions, Mapping)
    names = list(fractions) if isinstance(fractions, Mapping) else [f"{number:05}" for number in range(len(fractions))]
    values = list(fractions.values() if isinstance(fractions, Mapping) else fractions)
    for name in names if named else ():
        if not isinstance(name, str) or not name or "/" in name or "\0" in name:
            raise ValueError(f"fractions: {name!r} cannot be a part of a file's name")
    try:
        shares = [Fraction(str(value)) for value in values]  # 0.1 is meant as one tenth
    except ValueError:
        raise ValueError(f"fractions={fractions!r}: expected numbers") from None
    total = sum(shares, Fraction(0))
    if not shares or min(shares) < 0 or abs(total - 1) > CLOSE_TO_1:
        raise ValueError(
            f"fractions={fractions!r}: expected numbers from 0 to 1 that add up to 1, not to {float(total)}"
        )
    return names, [share / total for share in shares]


def _random_parts(dataset: StoredDataset, shares: list[Fraction], seed: int, stratify: str | None) -> NdArray:
    """Return the number of the part of each sample."""
    parts = np.empty(dataset.n, np.uint16)
    cuts: dict[Any, NdArray] = {}
    carry = [Fraction(0)] * len(shares)
    counts = Counter({None: dataset.n}) if stratify is None else _counts(dataset, stratify)
    values = list(counts)
    seeds = {value: (seed, number) for number, value in enumerate(values)}
    for number in Permutation(
        len(values), (seed, len(values))
    ):  # what rounding does must not follow the order of values
        sizes, carry = _sizes(counts[values[number]], shares, carry)
        cuts[values[number]] = np.cumsum(sizes)
    seen: Counter[Any] = Counter()
    for rows in _neighbours(0, dataset.n, dataset.rows_at_once):
        for value, members in [(None, rows)] if stratify is None else _by_value(dataset, stratify, rows):
            ranks = Permutation(counts[value], seeds[value])[seen[value] : seen[value] + len(members)]
            parts[members] = np.searchsorted(cuts[value], ranks, "right")
            seen[value] += len(members)
    return parts


def _sizes(count: int, shares: list[Fraction], carry: list[Fraction]) -> tuple[list[int], list[Fraction]]:
    """Return how many of `count` samples go to each part, and what parts have then got too little in all.

    What is left by rounding down goes to those with the largest remainder, added to what they have got too little before.

    >>> _sizes(10, [Fraction(5, 6), Fraction(1, 6)], [Fraction(0)] * 2)[0]
    [8, 2]
    """
    exact = [count * share for share in shares]
    sizes = [math.floor(size) for size in exact]
    broken = [number for number, size in enumerate(exact) if size != sizes[number]]
    broken.sort(key=lambda number: sizes[number] - exact[number] - carry[number])
    for number in broken[: count - sum(sizes)]:
        sizes[number] += 1
    return sizes, [old + want - got for old, want, got in zip(carry, exact, sizes, strict=True)]


def _counts(dataset: StoredDataset, name: str) -> Counter[Any]:
    """Return how many samples have each value of a column, by ascending value; None for nulls, at the end."""
    position = dataset.schema.index(name)
    field = dataset.schema.fields[position]
    if field.is_payload or not is_usable(field.kind) or getattr(field.kind, "stored", np.dtype(int)).kind == "f":
        raise SchemaError(f"stratify='{printable(name)}': expected a column of labels, integers, bools or text")
    counts: Counter[Any] = Counter()
    for rows in _neighbours(0, dataset.n, dataset.rows_at_once):
        for value, members in _by_value(dataset, name, rows):
            counts[value] += len(members)
    return Counter({value: counts[value] for value in sorted(counts, key=lambda value: (value is None, value or 0))})


def _by_value(dataset: StoredDataset, name: str, rows: NdArray) -> Iterator[tuple[Any, NdArray]]:
    """Yield each value of a column and those of `rows` that have it."""
    stored, position = dataset.at(rows), dataset.schema.index(name)
    column, valid = stored.column(position), stored.valid(position)
    if valid is not None:
        if not valid.all():
            yield None, rows[~valid]
        rows, column = rows[valid], column[valid]
    values, inverse = np.unique(column, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    for value, at in zip(values.tolist(), np.split(order, np.cumsum(np.bincount(inverse))[:-1]), strict=False):
        yield value, rows[at]
