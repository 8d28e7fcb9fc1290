"""From the bytes of one item to its value: a function for each kind of field, compressed or not."""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import numpy as np

from mmds.compression import Decompressor
from mmds.errors import printable
from mmds.fields import Array, Kind, Variable
from mmds.parse import Footer

NdArray = np.ndarray[Any, Any]
Decode = Callable[[Any, int, int, int], Any]  # what holds the bytes, where the value starts and stops in it, the sample


def decoder_of(kind: Kind, mapped: mmap.mmap | None = None) -> Decode:
    assert isinstance(kind, Variable)
    if type(kind).decode is Variable.decode:
        if mapped is not None:  # a slice of an mmap is bytes at once
            return lambda view, start, stop, _: mapped[start:stop]
        return lambda view, start, stop, _: bytes(view[start:stop])
    decode = kind.decode
    return lambda view, start, stop, _: decode(view[start:stop])


def decompressing(decode: Decode, view: Any, footer: Footer, position: int, shapes: NdArray | None) -> Decode:
    """Return `decode` for values that are compressed: arrays lie in memory of their own then, read-only all the same."""
    kind = footer.schema.fields[position].kind
    dictionary = footer.section("dictionary", position)
    decompress = Decompressor(view[dictionary.data : dictionary.end])
    if isinstance(kind, Array) and shapes is not None:
        size_of: Callable[[int], int | None] = partial(_size_by_shape, kind, shapes)
    else:
        known = kind.nbytes if isinstance(kind, Array) else None
        size_of = lambda index: known  # noqa: E731

    def decode_frame(view: memoryview, start: int, stop: int, index: int) -> Any:
        if start == stop:
            return decode(view, start, stop, index)
        content = decompress(view[start:stop], size_of(index))
        return decode(content, 0, len(content), index)

    return decode_frame


def _size_by_shape(kind: Array, shapes: NdArray, index: int) -> int:
    known = math.prod(size for size in kind.shape if size is not None)
    sizes: list[int] = shapes[index].tolist()
    return math.prod(sizes) * known * kind.stored.itemsize


class Describe:
    def __init__(self, path: str, field: str) -> None:
        self._path, self._field = path, field

    def __call__(self, index: int) -> str:
        return f"{printable(self._path)}: sample {index}, field '{printable(self._field)}'"


def array_decoder_of(kind: Array, shapes: NdArray | None) -> Decode:
    """Return the function that turns an item's bytes into an array, after checking them against the shape."""
    dtype, size, shape = (
        kind.stored,
        kind.stored.itemsize,
        cast("tuple[int, ...]", kind.shape),
    )  # of which some are None
    row = math.prod(known for known in shape if known is not None) * size
    if shapes is not None:

        def decode(view: memoryview, start: int, stop: int, index: int) -> NdArray:
            sizes = iter(shapes[index].tolist())
            found = tuple(next(sizes) if known is None else known for known in shape)
            if math.prod(found) * size != stop - start:
                raise ValueError(f"{stop - start} bytes for an array of {kind.dtype} {found}")
            return np.ndarray(found, dtype, view, start)

    elif kind.unknown:
        axis = kind.shape.index(None)
        before, after = shape[:axis], shape[axis + 1 :]

        def decode(view: memoryview, start: int, stop: int, index: int) -> NdArray:
            length = stop - start
            if length % row:
                raise ValueError(f"{length} bytes for an array of {kind.dtype} {shape}")
            return np.ndarray((*before, length // row, *after), dtype, view, start)

    else:

        def decode(view: memoryview, start: int, stop: int, index: int) -> NdArray:
            if stop - start != row:
                raise ValueError(f"{stop - start} bytes for an array of {kind.dtype} {shape}")
            return np.ndarray(shape, dtype, view, start)

    return decode
