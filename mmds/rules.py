"""The rules of the format that need a look at every sample: checked by `verify`, not at open."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmds.datafile import DataFile
from mmds.errors import FormatError
from mmds.fields import Array, Fixed, Json, Kind, Label, Text

NdArray = np.ndarray[Any, Any]

CHUNK = 2**18  # samples that are looked at together
MAX_SIZE = 2**63  # of an array, with 0 counting as 1: no library can say more
DECODED = 2**8  # samples that are decoded together


@dataclass(frozen=True)
class BrokenRule:
    """A rule that a sample's field breaks."""

    reason: str
    sample: int
    field: str


def broken_rules(file: DataFile, *, keys: bool = True) -> Iterator[BrokenRule]:
    """Yield every broken rule of a file that `parse` accepts, field by field; with or without those of the index of keys."""
    for position, field in enumerate(file.footer.schema.fields):
        for start in range(0, file.footer.n, CHUNK):
            rows = slice(start, min(start + CHUNK, file.footer.n))
            for bad, reason in _check_field(file, position, rows):
                for row in np.flatnonzero(bad).tolist():
                    yield BrokenRule(reason, start + row, field.name)
        if isinstance(field.kind, (Text, Json)) or field.is_compressed:
            yield from _undecodable(file, position, field.name)
        if keys and getattr(field.kind, "key", False):
            for reason, row in file.keys[position].broken():
                yield BrokenRule(reason, row, field.name)


def _undecodable(file: DataFile, position: int, name: str) -> Iterator[BrokenRule]:
    items = file.items[position]
    for start in range(0, file.footer.n, DECODED):
        rows = np.arange(start, min(start + DECODED, file.footer.n))
        try:
            items.gather(rows)
        except FormatError:
            for row in rows.tolist():
                try:
                    items.get(row)
                except FormatError:
                    yield BrokenRule(f"not valid {file.footer.schema.fields[position].kind.name}", row, name)


def _check_field(file: DataFile, position: int, rows: slice) -> Iterator[tuple[NdArray, str]]:
    """Yield, for some rows, a mask of those that break a rule, and the rule."""
    footer = file.footer
    field = footer.schema.fields[position]
    kind = field.kind
    valid = np.ones(rows.stop - rows.start, bool)
    if kind.nullable:
        marks = file.array(footer.section("valid", position))[rows]
        yield marks > 1, "the validity byte is neither 0 nor 1"
        valid = marks == 1
    if isinstance(kind, Fixed) and kind.is_column:
        yield from _check_column(kind, file.array(footer.section("column", position))[rows], valid)
        return
    if field.is_payload:
        ends = file.array(footer.section("ends"))
        first, step = footer.schema.payload.index(position), len(footer.schema.payload)
        base, align, limit = 0, field.align, footer.data_end
    else:
        ends = file.array(footer.section("value_ends", position))
        values = footer.section("values", position)
        first, step, base, align, limit = 0, 1, values.data, 1, values.shape[0]
    items = slice(rows.start * step + first, (rows.stop - 1) * step + first + 1, step)
    before, after = ends[items], ends[items.start + 1 : items.stop + 1 : step]
    starts = -(-before.astype(np.int64) // align) * align
    lengths = after.astype(np.int64) - starts
    disordered = (before > after) | (after > limit) | (lengths < 0)
    yield disordered, "the ends in the index decrease"
    yield ~valid & (lengths != 0), "a null value has bytes"
    if isinstance(kind, Array) and not field.is_compressed:
        yield (
            valid & ~disordered & ~_lengths_fit(file, position, kind, lengths, rows),
            "the size does not fit the shape",
        )
    padded = (starts > before) & ~disordered
    for row in np.flatnonzero(padded).tolist():
        padded[row] = any(file.view[base + int(before[row]) : base + int(starts[row])])
    yield padded, "the padding before the value is not zero"


def _check_column(kind: Kind, column: NdArray, valid: NdArray) -> Iterator[tuple[NdArray, str]]:
    flat = column.reshape(len(column), -1)
    yield ~valid & flat.view(np.uint8).any(axis=1), "a null value is not zero"
    if isinstance(kind, Label):
        yield valid & ((column < 0) | (column >= len(kind.names))), f"the label is not one of {len(kind.names)} classes"
    if column.dtype == bool:
        yield np.asarray((flat.view(np.uint8) > 1).any(axis=1)), "a bool is neither 0 nor 1"


def _lengths_fit(file: DataFile, position: int, kind: Array, lengths: NdArray, rows: slice) -> NdArray:
    known = math.prod(size for size in kind.shape if size is not None) * kind.stored.itemsize
    if kind.unknown < 2:
        return np.asarray(lengths % known == 0 if kind.unknown else lengths == known)
    shapes = file.array(file.footer.section("shape", position))[rows]
    # float64 is exact up to 2**53, which no length exceeds; larger products differ from every length anyway
    sizes = np.maximum(shapes, 1).astype(np.float64).prod(axis=1) * known
    return np.asarray((np.where((shapes == 0).any(axis=1), 0.0, sizes) == lengths) & (sizes < MAX_SIZE))
