"""The values of one field in an open file: one of them by sample number, or many of them at once.

`FixedItems` is an ndarray over the mapped file: a column of the index, or payload at a constant stride. `VariableItems`
finds each value through the mapped array of ends, `ScatteredItems` does so for arrays of one shape that lie between values
of other sizes. None holds anything per sample.

All offer `get(i)` for ``0 <= i < n`` (not checked again here) and `gather(indices)` for an integer ndarray, and
`locate(indices, tell)`, which calls `tell` with the addresses where those values are.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np

from mmds.errors import FormatError, printable
from mmds.fields import Array, Fixed
from mmds.format import DATA_START, Section
from mmds.gather import RECYCLED, Allocate, address, empty, take_rows
from mmds.itemdecoders import Decode, Describe, array_decoder_of, decoder_of, decompressing
from mmds.jagged import Jagged
from mmds.parse import Footer
from mmds.store import ArrayItems, Items

NdArray = np.ndarray[Any, Any]
Tell = Callable[[NdArray, NdArray], None]  # something about the memory from these addresses to those

_two_ends = struct.Struct("<QQ").unpack_from


class MappedItems(Items, Protocol):
    """Values in a mapped file."""

    def locate(self, indices: NdArray, tell: Tell) -> None:
        """Tell where the values of samples `indices` are."""


def section_array(view: memoryview, section: Section) -> NdArray:
    """Return a section's array as a read-only view of the mapped file."""
    return np.frombuffer(view, section.dtype, math.prod(section.shape), section.data).reshape(section.shape)


class FixedItems(ArrayItems):
    """Values of one dtype and shape: `array` has the samples as its first axis."""

    def __init__(self, array: NdArray, kind: Fixed) -> None:
        self.array = array
        self.shape, self.dtype, self.is_array = array.shape[1:], array.dtype, isinstance(kind, Array)
        if not self.is_array:
            self.get: Callable[[int], Any] = array.item
        elif array.ndim == 1:  # array[i] would be a numpy scalar, not an array of rank 0
            self.get = lambda i: array[i, ...]
        else:
            self.get = array.__getitem__

    def gather(self, indices: NdArray, out: NdArray | None = None) -> NdArray:
        """Return rows `indices`, in `out` if given: one copy from the mapped file."""
        return take_rows(self.array, indices, out)

    def locate(self, indices: NdArray, tell: Tell) -> None:
        """Tell where rows `indices` are."""
        starts = address(self.array) + indices * self.array.strides[0]
        tell(starts, starts + math.prod(self.shape) * self.dtype.itemsize)


class VariableItems:
    """Values whose lengths differ: in the payload, or in the `values` of a bytes or text column."""

    def __init__(
        self,
        view: memoryview,
        ends: NdArray,
        decode: Decode,
        *,
        describe: Callable[[int], str],
        first: int = 0,
        step: int = 1,
        align: int = 1,
        is_compressed: bool = False,
    ) -> None:
        self._view, self._ends, self._decode = view, ends, decode
        if isinstance(ends, np.ndarray):
            self._pairs = ends.view(np.uint8).data  # for struct, which reads two numbers faster than numpy reads one
        self.describe, self._is_compressed = describe, is_compressed
        self._first, self._step, self._align = first, step, align
        self._size, self._pad, self._mask = len(view), align - 1, -align

    def contiguous(self, size: int) -> tuple[memoryview, NdArray] | None:
        """Return the bytes and where in them values end (n + 1 numbers), if each begins where the one before it ends.

        Values are whole multiples of `size` bytes. None if there is something else between them, or if they are compressed.
        """
        if self._is_compressed or self._step > 1 or self._align > size:
            return None
        return self._view, self._ends

    def span(self, index: int) -> tuple[int, int]:
        """Return where the value of a sample begins and ends in the view; `FormatError` if that is outside."""
        start, stop = _two_ends(self._pairs, 8 * (index * self._step + self._first))
        return self._checked(index, (start + self._pad) & self._mask, stop)

    def _checked(self, index: int, start: int, stop: int) -> tuple[int, int]:
        if not start <= stop <= self._size:
            raise FormatError(f"{self.describe(index)}: bytes {start} to {stop} of {self._size}; run mmds verify")
        return start, stop

    def _undecodable(self, index: int, error: Exception) -> FormatError:
        return FormatError(f"{self.describe(index)}: {printable(error)}; run mmds verify")

    def raw(self, index: int) -> memoryview:
        """Return the bytes of the value of a sample as they are in the file; `FormatError` if they are outside."""
        start, stop = self.span(index)
        return self._view[start:stop]

    def get(self, index: int) -> Any:
        """Return the value of sample `index`."""
        start, stop = _two_ends(self._pairs, 8 * (index * self._step + self._first))
        start = (start + self._pad) & self._mask
        if not start <= stop <= self._size:
            self.span(index)  # says what is wrong
        try:
            return self._decode(self._view, start, stop, index)
        except (ValueError, struct.error) as error:
            raise self._undecodable(index, error) from None

    def value_spans(self, indices: NdArray, size: int = 1) -> tuple[NdArray, NdArray] | None:
        """Return where the bytes of the values of samples `indices` begin and end in the view.

        None if any of that is outside, one of them is no multiple of `size` bytes, or they are compressed.
        """
        return None if self._is_compressed else self.spans(indices, size)

    def spans(self, indices: NdArray, size: int = 1) -> tuple[NdArray, NdArray] | None:
        """Return where samples `indices` begin and end in the view, as they are stored.

        None if any of that is outside, or one of them is no multiple of `size` bytes.
        """
        k = indices * self._step + self._first
        return self._checked_spans(self._ends[k], self._ends[k + 1], size)

    def _checked_spans(self, starts: NdArray, stops: NdArray, size: int) -> tuple[NdArray, NdArray] | None:
        outside = (starts > stops) | (stops > self._size)
        if self._align > 1:
            starts = (starts + np.uint64(self._pad)) & ~np.uint64(self._pad)
            outside |= starts > stops
        if outside.any() or (size > 1 and ((stops - starts) % np.uint64(size)).any()):
            return None
        return starts.astype(np.int64), stops.astype(np.int64)

    def gather(self, indices: NdArray) -> list[Any]:
        """Return the values of samples `indices` as a list."""
        spans = self.spans(indices)
        if spans is None:  # one of them says why
            return [self.get(index) for index in indices.tolist()]
        view, decode, values = self._view, self._decode, []
        for index, start, stop in zip(indices.tolist(), spans[0].tolist(), spans[1].tolist(), strict=True):
            try:
                values.append(decode(view, start, stop, index))
            except (ValueError, struct.error) as error:
                raise self._undecodable(index, error) from None
        return values

    def jagged(
        self, indices: NdArray, dtype: np.dtype[Any], inner: tuple[int, ...], allocate: Allocate = empty
    ) -> Jagged | None:
        """Return the values of samples `indices` one after the other, as arrays (length, *inner): one copy.

        None if they are compressed, or the bytes of one of them cannot be such an array, or are outside the file; `gather`
        says which.
        """
        row = math.prod(inner) * dtype.itemsize
        spans = self.value_spans(indices, row)
        if spans is None:
            return None
        offsets = np.zeros(len(indices) + 1, np.int64)
        np.cumsum(spans[1] - spans[0], out=offsets[1:])
        places = offsets.tolist()
        if (spans[0][1:] == spans[1][:-1]).all():  # neighbours are one
            parts, places = [self._view[spans[0][0] : spans[1][-1]]], [0, places[-1]]
        else:
            parts = self.parts(spans)
        return Jagged(join_parts(parts, places, allocate).view(dtype).reshape(-1, *inner), offsets // row)

    def parts(self, spans: tuple[NdArray, NdArray]) -> list[memoryview]:
        """Return the bytes from where values begin to where they end."""
        view = self._view
        return [view[start:stop] for start, stop in zip(spans[0].tolist(), spans[1].tolist(), strict=True)]

    def locate(self, indices: NdArray, tell: Tell) -> None:
        """Tell where the ends are, then, reading those, where the values are."""
        ends = address(self._ends) + (indices * self._step + self._first) * 8
        tell(ends, ends + 16)
        spans = self.spans(indices)
        if spans is not None:
            base = address(np.frombuffer(self._view, np.uint8))
            tell(base + spans[0], base + spans[1])


def join_parts(parts: list[memoryview], places: list[int], allocate: Allocate = empty) -> NdArray:
    """Return the bytes of parts as one uint8 array; part i goes from ``places[i]`` to ``places[i + 1]``."""
    if places[-1] < RECYCLED:
        joined: NdArray = np.frombuffer(bytearray().join(parts), np.uint8)
        if allocate is empty:
            return joined
        parts, places = [joined.data], [0, places[-1]]
    batch = allocate((places[-1],), np.dtype(np.uint8))
    target = batch.data
    for part, start, stop in zip(parts, places, places[1:], strict=False):
        target[start:stop] = part
    return batch


class ScatteredItems(VariableItems, ArrayItems):
    """Arrays of one dtype and shape at varying distances."""

    def __init__(self, kind: Array, view: memoryview, ends: NdArray, decode: Decode, **where: Any) -> None:
        super().__init__(view, ends, decode, **where)
        self.shape, self.dtype = tuple(size for size in kind.shape if size is not None), kind.stored
        self.is_array = True

    def gather(self, indices: NdArray, out: NdArray | None = None) -> Any:
        """Return the arrays of samples `indices` as one, in `out` if given: one copy from the mapped file."""
        if out is None:
            out = empty((len(indices), *self.shape), self.dtype)
        for row, index in enumerate(indices.tolist()):
            out[row] = self.get(index)
        return out


class NullableItems:
    """Values of which some are null."""

    def __init__(self, items: MappedItems, valid: NdArray) -> None:
        self.items, self.valid = items, valid

    def get(self, index: int) -> Any:
        """Return the value of sample `index`, or None."""
        return self.items.get(index) if self.valid.item(index) else None

    def gather(self, indices: NdArray) -> list[Any]:
        """Return the values of samples `indices` as a list with None for nulls."""
        valid = np.asarray(self.valid[indices], bool)
        filled = indices[valid]
        at_once = isinstance(self.items, VariableItems)  # which makes the same of them as `get`
        values = iter(self.items.gather(filled)) if at_once else map(self.items.get, filled.tolist())
        return [next(values) if is_valid else None for is_valid in valid.tolist()]

    def locate(self, indices: NdArray, tell: Tell) -> None:
        """Tell where the values are; those of nulls are empty."""
        self.items.locate(indices, tell)


def _strided(view: memoryview, footer: Footer, kind: Array, offset: int, stride: int) -> NdArray:
    shape = tuple(size for size in kind.shape if size is not None)
    if not footer.n:  # the first item would begin behind the file
        return np.frombuffer(view[:0], kind.stored).reshape(0, *shape)
    inner = [kind.stored.itemsize]
    for size in reversed(shape[1:]):
        inner.insert(0, inner[0] * size)
    return np.ndarray((footer.n, *shape), kind.stored, view, DATA_START + offset, (stride, *inner[: len(shape)]))


@dataclass(frozen=True)
class Access:
    """How the values of a file are read: by these functions of its bytes, and these classes."""

    part: Callable[[Any, int, int], Any]
    section: Callable[[Any, Section], Any]
    strided: Callable[[Any, Footer, Array, int, int], Any]
    fixed: Callable[[Any, Fixed], MappedItems]
    variable: Callable[..., MappedItems]
    scattered: Callable[..., MappedItems]


MAPPED = Access(
    lambda view, start, stop: view[start:stop], section_array, _strided, FixedItems, VariableItems, ScatteredItems
)


def open_items(view: Any, footer: Footer, position: int, path: str, access: Access = MAPPED) -> MappedItems:
    """Return the values of field `position` of a file whose bytes are `view`: a memoryview, or what `access` is for."""
    field = footer.schema.fields[position]
    kind = field.kind
    describe = Describe(path, field.name)
    section = partial(access.section, view)
    items: MappedItems
    if isinstance(kind, Fixed) and kind.is_column:
        items = access.fixed(section(footer.section("column", position)), kind)
    elif not field.is_payload:
        values = footer.section("values", position)
        ends = section(footer.section("value_ends", position))
        items = access.variable(access.part(view, values.data, values.end), ends, decoder_of(kind), describe=describe)
    elif (constant := footer.constant) is not None:
        assert isinstance(kind, Array)
        offset = constant[1][footer.schema.payload_numbers[position]]
        items = access.fixed(access.strided(view, footer, kind, offset, constant[0]), kind)
    else:
        where: dict[str, Any] = {
            "describe": describe,
            "first": footer.schema.payload_numbers[position],
            "step": len(footer.schema.payload),
            "align": field.align,
        }
        data, ends = access.part(view, 0, footer.data_end), section(footer.section("ends"))
        if isinstance(kind, Array):
            shapes = section(footer.section("shape", position)) if kind.unknown > 1 else None
            decode = array_decoder_of(kind, shapes)
        else:
            shapes, mapped = None, isinstance(view, memoryview) and not field.is_compressed
            decode = decoder_of(kind, view.obj if mapped else None)
        if field.is_compressed:
            where["is_compressed"] = True
            decode = decompressing(decode, view, footer, position, shapes)
        if not isinstance(kind, Array) or kind.unknown or kind.nullable:
            items = access.variable(data, ends, decode, **where)
        else:
            items = access.scattered(kind, data, ends, decode, **where)
    if kind.nullable:
        return NullableItems(items, section(footer.section("valid", position)))
    return items
