"""Batches of values that differ in length, as one array instead of a list: padded, or jagged."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from mmds.errors import FormatError
from mmds.fields import Array, Kind, Variable
from mmds.gather import Allocate, empty
from mmds.items import NullableItems, VariableItems
from mmds.jagged import Jagged, join, pad
from mmds.shards import ShardedValues
from mmds.store import Items, MaskedItems

NdArray = np.ndarray[Any, Any]

Ragged = Literal["list", "padded", "jagged"]
RAGGED: tuple[Ragged, ...] = ("list", "padded", "jagged")


def check_ragged(how: str) -> None:
    """Raise ValueError if `how` is not one of `RAGGED`."""
    if how not in RAGGED:
        raise ValueError(f"ragged={how!r}: expected one of {', '.join(RAGGED)}")


def is_ragged(kind: Kind, how: Ragged) -> bool:
    """Return whether `how` makes one array of the values of `kind`: never of text and JSON, nor of a known shape.

    Only padding can help arrays whose unknown dimension is not the first one, or not the only one.
    """
    if isinstance(kind, Array):
        return (how == "padded" and kind.unknown > 0) or (how == "jagged" and _grows(kind))
    return how != "list" and isinstance(kind, Variable) and type(kind).decode is Variable.decode


def gather_ragged(items: Items, kind: Kind, rows: NdArray, how: Ragged, allocate: Allocate = empty) -> Jagged | NdArray:
    """Return the values of `rows`, of a kind for which `is_ragged`; encoded files and bytes as uint8, null as empty."""
    if isinstance(kind, Array) and not _grows(kind):
        values = items.gather(rows)
        none = np.empty([size or 0 for size in kind.shape], kind.stored)
        return pad([none if value is None else value for value in values] or [none])[: len(rows)]
    jagged = _jagged(items, kind, rows, allocate if how == "jagged" else empty)
    return jagged.padded() if how == "padded" else jagged


def _jagged(items: Items, kind: Kind, rows: NdArray, allocate: Allocate) -> Jagged:
    dtype, inner = _row(kind)
    if not len(rows):
        return Jagged(np.empty((0, *inner), dtype), np.zeros(1, np.int64))
    inside = items.items if isinstance(items, (NullableItems, MaskedItems)) else items
    jagged = inside.jagged(rows, dtype, inner, allocate) if isinstance(inside, (VariableItems, ShardedValues)) else None
    if jagged is not None:
        return jagged
    values = (b"" if value is None else value for value in items.gather(rows))
    arrays = [np.frombuffer(value, dtype) if isinstance(value, bytes) else value for value in values]
    return join([array.reshape(-1, *inner) for array in arrays])


def flat(items: Items, kind: Kind, rows: range) -> NdArray | None:
    """Return the values of `rows`, of a kind of which `is_ragged` makes jagged batches, as one array: a view.

    None if they do not lie in one file one after the other. Two ends are read, whatever the number of rows.
    """
    inside = items.items if isinstance(items, NullableItems) else items
    dtype, inner = _row(kind)
    found = inside.contiguous(dtype.itemsize) if isinstance(inside, VariableItems) else None
    if found is None or rows.step != 1:
        return None
    view, ends = found
    start, stop = (ends.item(rows.start), ends.item(rows.stop)) if rows else (0, 0)
    row = math.prod(inner) * dtype.itemsize
    if not start <= stop <= len(view) or (stop - start) % row:
        raise FormatError(f"bytes {start} to {stop} of {len(view)} for rows of {row} bytes; run mmds verify")
    return np.ndarray(((stop - start) // row, *inner), dtype, view, start)


def _row(kind: Kind) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Return dtype and shape of what a value of ragged `kind` is a number of: bytes, or parts of an array."""
    if isinstance(kind, Array):
        return kind.stored, kind.shape[1:]  # type: ignore[return-value]
    return np.dtype(np.uint8), ()


def _grows(kind: Array) -> bool:
    return kind.unknown == 1 and kind.shape[0] is None
