"""The values of one field in one chunk of an Arrow table: a record batch or a row group.

Arrow does not check offsets when it opens a file; here every offset is checked before it is used, and an array is taken
from Arrow's buffers through numpy, whose bounds are those of the buffer.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mmds.converters import arrowtypes
from mmds.converters.arrowtypes import Leaf
from mmds.converters.batches import Chunks, follow
from mmds.errors import printable
from mmds.fields import Array, Fixed, Kind, Label, Text, Variable

NdArray = np.ndarray[Any, Any]
OTHER_STRINGS = (pa.types.is_fixed_size_binary, pa.types.is_string_view, pa.types.is_binary_view)  # cast before use


class Piece:
    """The values of one field in one chunk."""

    def __init__(self, chunks: Chunks, chunk: int, leaf: Leaf, read_outside: bool) -> None:
        column = chunks.column(chunk, leaf.column)
        self.kind: Kind = leaf.kind
        self.array = follow(column, leaf.steps)
        self._outside = follow(column, leaf.outside) if leaf.outside else None
        self._read_outside = read_outside
        self._shapes = chunks.column(chunk, leaf.shapes) if leaf.shapes else None
        self._ranks: NdArray | None = None
        if isinstance(self.kind, Label) and not pa.types.is_integer(self.array.type):
            self._find_names(self.kind.names)
        elif pa.types.is_dictionary(self.array.type):
            self.array = self.array.dictionary_decode()
        if any(check(self.array.type) for check in OTHER_STRINGS):
            self.array = self.array.cast(pa.large_utf8() if isinstance(self.kind, Text) else pa.large_binary())
        if isinstance(self.kind, Variable) and self._has_offsets:
            self._offsets, self._data = offsets(self.array), memoryview(self.array.buffers()[2] or b"")

        self._whole: NdArray | None = None  # all values as one view of Arrow's memory, where there is one
        lists_with_nulls = self.kind.nullable and not pa.types.is_primitive(self.array.type)  # with nulls inside
        if (
            isinstance(self.kind, Fixed)
            and not self.kind.unknown
            and _is_view(self.array.type)
            and not lists_with_nulls
        ):
            found, shape = dense(self.array)
            self._whole = found.reshape(shape)

    @property
    def _has_offsets(self) -> bool:
        type = self.array.type
        return arrowtypes.is_text(type) or arrowtypes.is_binary(type)

    def _find_names(self, names: tuple[str, ...]) -> None:
        """Prepare for a dictionary that has the names in another order: other writers do that."""
        if not pa.types.is_dictionary(self.array.type):
            self.array = self.array.dictionary_encode()
        rank = {name: number for number, name in enumerate(names)}
        self.array.dictionary.validate(full=True)
        try:
            ranks = [rank[name] for name in self.array.dictionary.to_pylist()]
        except KeyError as error:
            raise ValueError(f"a label {printable(error)} that is not among the names") from None
        self._ranks = np.array(ranks, np.int64)
        self.array = self.array.indices

    def valid(self, begin: int, end: int) -> NdArray:
        """Return which rows are not null."""
        valid: NdArray = self.array.slice(begin, end - begin).is_valid().to_numpy(zero_copy_only=False)
        if self._outside is not None:
            valid = valid | self._outside.slice(begin, end - begin).is_valid().to_numpy(zero_copy_only=False)
        return valid

    def rows(self, begin: int, end: int) -> NdArray:
        """Return rows as one array."""
        assert isinstance(self.kind, Fixed)
        if self._whole is None:
            found, shape = dense(self.array.slice(begin, end - begin))
        else:
            found, shape = self._whole[begin:end].reshape(-1), (end - begin, *self._whole.shape[1:])
        if self._ranks is not None:
            if self.kind.nullable:
                found = np.where(self.valid(begin, end), found, 0)
            if not len(self._ranks):
                return np.zeros(end - begin, np.int64)
            if found.min() < 0 or found.max() >= len(self._ranks):
                raise ValueError("a label outside its dictionary")
            found = self._ranks[found]
        return self._shaped(found, shape, (end - begin, *self.kind.dimensions))

    def value(self, row: int) -> Any:
        """Return the value of one row that is not null."""
        if isinstance(self.kind, Array):
            found, shape = dense(self.array.slice(row, 1))
            if (
                not arrowtypes.is_leading(self.kind)
                and self._shapes is None
                and self.kind.unknown == 1
                and len(shape) == 2
            ):
                shape = (1, *self._derived(found.size))
            elif self._shapes is not None:
                unknown = iter(dense(self._shapes.slice(row, 1))[0].tolist())
                shape = (1, *(next(unknown) if size is None else size for size in self.kind.shape))
            return self._shaped(found, shape, (1, *self.kind.shape))[0, ...]
        if not isinstance(self.kind, Variable):
            return self.rows(row, row + 1).item()
        if not self._has_offsets:
            return self._plain(row)
        if self._outside is not None and not self.array.slice(row, 1).is_valid()[0].as_py():
            return self._from_outside(row)
        start, end = self._offsets.item(row), self._offsets.item(row + 1)
        if not 0 <= start <= end <= len(self._data):
            raise ValueError(f"bytes {start} to {end} of {len(self._data)}")
        return self.kind.decode(self._data[start:end])

    def _derived(self, size: int) -> tuple[int, ...]:
        assert isinstance(self.kind, Array)
        size = self._complex(size)
        return tuple(size // arrowtypes.elements(self.kind) if known is None else known for known in self.kind.shape)

    def _complex(self, size: int) -> int:
        return size // 2 if isinstance(self.kind, Array) and self.kind.stored.kind == "c" else size

    def _shaped(self, found: NdArray, shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> NdArray:
        """Return flat elements in `shape`, checked against what is `wanted`."""
        assert isinstance(self.kind, Fixed)
        if self.kind.stored.kind == "c" and found.dtype.kind == "f":
            found = found.view(self.kind.stored)
            shape = shape[:-1] if len(shape) > len(wanted) else shape
        if not found.size:  # lists that are empty hide the sizes of the lists in them
            shape = tuple(
                (shape[axis] if axis < len(shape) else 0) if size is None else size for axis, size in enumerate(wanted)
            )
        fits = len(shape) == len(wanted) and all(
            want is None or want == have for want, have in zip(wanted, shape, strict=True)
        )
        if not fits or math.prod(shape) != found.size:
            raise ValueError(f"{found.size} elements in lists of {shape[1:]} for an array of {wanted[1:]}")
        return found.astype(self.kind.stored, copy=False).reshape(shape)

    def _plain(self, row: int) -> Any:
        value = self.array.slice(row, 1)
        value.validate(full=True)
        found = value.to_pylist()[0]
        return str(found) if isinstance(self.kind, Text) else found

    def _from_outside(self, row: int) -> bytes:
        assert self._outside is not None
        path = self._outside.slice(row, 1).to_pylist()[0]
        if not self._read_outside:
            raise ValueError(
                f"not in the dataset but in the file '{printable(path)}'; embed it first (datasets does so)"
            )
        return Path(path).read_bytes()


def _is_view(type: pa.DataType) -> bool:
    """Return whether values of `type` lie in memory as in a numpy array: no bools, no lists of differing length."""
    while pa.types.is_fixed_size_list(type):
        type = type.value_type
    return bool(pa.types.is_primitive(type)) and not pa.types.is_boolean(type)


def offsets(array: pa.Array) -> NdArray:
    """Return where the values of a binary, string or list array begin and end (len + 1 numbers)."""
    wide = any(
        check(array.type) for check in (pa.types.is_large_binary, pa.types.is_large_string, pa.types.is_large_list)
    )
    buffer = array.buffers()[1]
    if not len(array):
        return np.zeros(1, np.int64)
    size = 8 if wide else 4
    return np.frombuffer(buffer, f"<i{size}", len(array) + 1, array.offset * size)


def dense(array: pa.Array) -> tuple[NdArray, tuple[int, ...]]:
    """Return the numbers in (lists of lists of) numbers, flat, and their shape; ValueError where they have none."""
    shape = [len(array)]
    while not pa.types.is_primitive(array.type):
        if pa.types.is_fixed_size_list(array.type):
            size = array.type.list_size
            shape.append(size)
            array = array.values.slice(array.offset * size, len(array) * size)
        else:
            ends = offsets(array)
            lengths = np.diff(ends)
            size = int(lengths[0]) if len(lengths) else 0
            if (lengths != size).any():
                raise ValueError("lists of differing length where an array is a rectangle")
            if not 0 <= ends[0] <= ends[-1] <= len(array.values):
                raise ValueError(f"elements {ends[0]} to {ends[-1]} of {len(array.values)}")
            shape.append(size)
            array = array.values.slice(int(ends[0]), int(ends[-1] - ends[0]))
        if array.null_count:
            raise ValueError("a null inside a list")
    return flat(array), tuple(shape)


def flat(array: pa.Array) -> NdArray:
    """Return an array of numbers as a numpy view (bools: a copy), whatever is null."""
    if not len(array):
        dtype = arrowtypes.element_dtype(array.type)
        return np.empty(0, dtype)
    data = array.buffers()[1]
    if pa.types.is_boolean(array.type):
        bits = pa.Array.from_buffers(array.type, len(array), [None, data], offset=array.offset)
        unpacked: NdArray = bits.to_numpy(zero_copy_only=False)
        return unpacked
    dtype = arrowtypes.element_dtype(array.type)
    assert dtype is not None
    data = memoryview(data).toreadonly()  # what Arrow has unpacked could be written to
    return np.frombuffer(data, dtype, len(array), array.offset * dtype.itemsize)
