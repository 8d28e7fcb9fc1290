"""Samples as columns: what travels to a store that is no ``.mmds`` file, one `Column` per field and batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmds.fields import Array, Buffer, Fixed, Kind, Label, Misfit

NdArray = np.ndarray[Any, Any]
Encoded = Buffer | None  # None is a null value
Encodings = NdArray | list[Encoded]  # many values: one array where all have a fixed shape and none is null, else each


@dataclass(frozen=True)
class Column:
    """The values of one field for B samples, in stored form.

    `values` is an array (B, *shape) where the shape is fixed (zeros for nulls), else a list: of arrays for ragged
    arrays, of bytes for everything else (None for nulls). `valid` is a bool array (B,), or None if nothing can be null.
    """

    values: NdArray | list[Any]
    valid: NdArray | None = None

    def __len__(self) -> int:
        return len(self.values)


class BadValue(Misfit):
    """A value in a batch that does not fit; `number` counts from the start of the batch."""

    def __init__(self, misfit: Misfit, number: int) -> None:
        super().__init__(misfit.expected, misfit.got)
        self.number = number


def encode(kind: Kind, value: Any) -> Encoded:
    """Return the bytes of one value, None for a null; `Misfit` where it does not fit."""
    return None if value is None and kind.nullable else kind.encode(value)


def encode_all(kind: Kind, values: Sequence[Any] | NdArray) -> Encodings:
    """Return many values, an array or a sequence, encoded; `BadValue` where one does not fit.

    An array whose dtype and shape fit is taken as it is, without a look at single values.
    """
    if isinstance(kind, Fixed) and not kind.unknown and not kind.nullable and hasattr(values, "__array__"):
        array = _whole(kind, values)
        if array is not None:
            return array
    encoded: list[Encoded] = []
    for number, value in enumerate(values):
        try:
            encoded.append(encode(kind, value))
        except Misfit as misfit:
            raise BadValue(misfit, number) from None
    return encoded


def as_column(kind: Kind, encoded: Encodings) -> Column:
    """Return encoded values as a column."""
    if isinstance(encoded, np.ndarray):
        return Column(encoded)
    valid = np.array([data is not None for data in encoded], bool) if kind.nullable else None
    if not isinstance(kind, Fixed) or kind.unknown:
        return Column(encoded, valid)
    zeros = bytes(kind.nbytes or 0)
    joined = b"".join(zeros if data is None else _bytes(data) for data in encoded)
    return Column(np.frombuffer(joined, kind.stored).reshape(len(encoded), *_shape(kind)), valid)


def _whole(kind: Fixed, values: Any) -> NdArray | None:
    """Return `values` as an array of `kind` with an extra first axis, or None if single values have to be looked at."""
    shape = _shape(kind)
    try:
        array = Array(kind.dtype if isinstance(kind, Array) else kind.stored.name, shape).as_stored(values)
    except Misfit:
        return None  # another dtype: let each value say whether it fits
    if array.ndim == 0 or array.shape[1:] != shape:
        return None
    if isinstance(kind, Label) and array.size and not (array.min() >= 0 and array.max() < len(kind.names)):
        return None
    return np.ascontiguousarray(array)


def _bytes(data: Buffer) -> bytes:
    return data.tobytes() if isinstance(data, np.ndarray) else bytes(data)  # bytes(array) may be that many zeros


def _shape(kind: Fixed) -> tuple[int, ...]:
    return tuple(size for size in kind.dimensions if size is not None)
