"""The columns of a MosaicML MDS sample: which field each encoding gives, and the value of its bytes.

=====================================  ==================  ===============================================================
encoding                               field               bytes
=====================================  ==================  ===============================================================
``int``, ``uint8`` ... ``float64``     `Scalar`            the number, little-endian (``int`` is int64)
``str_int``, ``str_float``             `Scalar`            its digits (int64, float64)
``str``, ``str_decimal``               `Text`              UTF-8
``bytes``, ``json``                    `Bytes`, `Json`     as they are
``jpeg``, ``png``                      `Image`             the encoded picture, kept as it is
``pil``                                `Image`             ``<u4`` width, height, length of the mode; mode; pixels
``ndarray:DTYPE:SHAPE``                `Array`             the elements
``ndarray:DTYPE``, ``ndarray``         `Array`             [a byte for the dtype], ndim * 4 + width of sizes, sizes, elements
=====================================  ==================  ===============================================================

``pkl`` is refused, since reading it would run what it holds; lists of pictures are refused, since no field holds them.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

import mmds
from mmds.errors import SourceError, missing, printable
from mmds.fields import Kind

INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
NUMBERS = {"int": "int64", **{name: name for name in (*INTEGERS, "float16", "float32", "float64")}}
ARRAY_DTYPES = {
    8: "uint8",
    9: "int8",
    16: "uint16",
    17: "int16",
    18: "float16",
    32: "uint32",
    33: "int32",
    34: "float32",
    64: "uint64",
    65: "int64",
    66: "float64",
}
PIXEL_BYTES = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "I;16": 2}  # of the modes that PNG keeps and that need no palette


@dataclass(frozen=True)
class MdsColumn:
    """One column: its name and encoding, and for an ``ndarray`` what its encoding fixes."""

    name: str
    encoding: str
    dtype: str | None = None
    shape: tuple[int, ...] | None = None

    @classmethod
    def checked(cls, name: str, encoding: str, size: int | None) -> MdsColumn:
        """Return a column of an index, which declares `size`; `SourceError` where it cannot be read."""
        shown = f"column '{printable(name)}' of encoding '{printable(encoding)}'"
        base, _, options = encoding.partition(":")
        if base == "pkl":
            raise SourceError(
                f"{shown}: a pickle can do anything to who reads it, so none is; write it as something else"
            )
        try:
            column = cls(name, base, *_array_options(options)) if base == "ndarray" else cls(name, encoding)
            if base != "ndarray" and encoding not in NUMBERS and encoding not in VARIABLE:
                raise ValueError
        except ValueError:
            known = ", ".join([*NUMBERS, *VARIABLE, "ndarray[:DTYPE[:SHAPE]]"])
            raise SourceError(f"{shown}: nothing that a field holds; known are {known}") from None
        if size != column.size:
            raise SourceError(f"{shown}: values of {size} bytes; expected {column.size}")
        return column

    @property
    def size(self) -> int | None:
        """The size of every value in bytes; None where it differs."""
        if self.encoding == "ndarray":
            return None if self.shape is None else math.prod(self.shape) * np.dtype(self.dtype).itemsize
        return np.dtype(NUMBERS[self.encoding]).itemsize if self.encoding in NUMBERS else None

    @property
    def needs_value(self) -> bool:
        """Whether `kind` needs to see a value."""
        return self.encoding == "ndarray" and self.shape is None

    def kind(self, value: Any = None) -> Kind:
        """Return the kind of its field. `value` is one of them, which tells the rank, and the dtype if nothing else does."""
        if self.encoding == "ndarray":
            shape = (None,) * value.ndim if self.shape is None else self.shape
            return mmds.Array(self.dtype or value.dtype.name, shape)
        return mmds.Scalar(NUMBERS[self.encoding]) if self.encoding in NUMBERS else VARIABLE[self.encoding][0]

    def decode(self, data: bytes) -> Any:
        """Return the value whose bytes are `data`, or raise `SourceError`."""
        try:
            if self.encoding == "ndarray":
                return self._array(data)
            if self.encoding in NUMBERS:
                return np.frombuffer(data, np.dtype(NUMBERS[self.encoding]).newbyteorder("<"))[0].item()
            return VARIABLE[self.encoding][1](data)
        except (ValueError, IndexError, RecursionError, struct.error, msgspec.MsgspecError) as error:
            reason = printable(error)
        raise SourceError(f"column '{printable(self.name)}' is no {self.encoding} ({reason})")

    def _array(self, data: bytes) -> Any:
        dtype, shape, start = self.dtype, self.shape, 0
        if dtype is None:
            if data[0] not in ARRAY_DTYPES:
                raise ValueError(f"unknown dtype code {data[0]}")
            dtype, start = ARRAY_DTYPES[data[0]], 1
        if shape is None:
            ndim, width = data[start] >> 2, 1 << (data[start] & 3)
            sizes = data[start + 1 : start + 1 + ndim * width]
            if len(sizes) != ndim * width:
                raise ValueError(f"it ends within its {ndim} sizes")
            shape = tuple(int.from_bytes(sizes[k : k + width], "little") for k in range(0, len(sizes), width))
            start += 1 + len(sizes)
        need = math.prod(shape) * np.dtype(dtype).itemsize
        if len(data) - start != need:
            raise ValueError(f"{len(data) - start} bytes of elements; {dtype} {shape} takes {need}")
        return np.frombuffer(data, np.dtype(dtype).newbyteorder("<"), offset=start).reshape(shape)


def _array_options(text: str) -> tuple[str | None, tuple[int, ...] | None]:
    """Return dtype and shape of ``ndarray:text``, or raise ValueError."""
    if not text:
        return None, None
    dtype, _, sizes = text.partition(":")
    shape = tuple(map(int, sizes.split(","))) if sizes else None
    if dtype not in ARRAY_DTYPES.values():
        raise ValueError
    mmds.Array(dtype, shape or ())  # SchemaError, a ValueError, where a size is negative or too large
    return dtype, shape


def _picture(data: bytes) -> Any:
    """Return the picture whose pixels are `data`."""
    try:
        from PIL import Image
    except ImportError:
        raise missing("Pillow", "image", "reading MDS columns of encoding 'pil'") from None
    width, height, length = struct.unpack_from("<3I", data)
    mode = data[12 : 12 + length].decode()
    if mode not in PIXEL_BYTES:
        raise ValueError(f"mode '{mode}'; expected one of {', '.join(PIXEL_BYTES)}")
    pixels = data[12 + length :]
    if not pixels or len(pixels) != width * height * PIXEL_BYTES[mode]:
        raise ValueError(f"{len(pixels)} bytes of pixels for {width} x {height} of mode {mode}")
    return Image.frombytes(mode, (width, height), pixels)


VARIABLE: dict[str, tuple[Kind, Callable[[bytes], Any]]] = {
    "bytes": (mmds.Bytes(), bytes),
    "str": (mmds.Text(), bytes.decode),
    "str_int": (mmds.Scalar("int64"), int),
    "str_float": (mmds.Scalar("float64"), float),
    "str_decimal": (mmds.Text(), bytes.decode),
    "json": (mmds.Json(), msgspec.json.decode),
    "jpeg": (mmds.Image(), bytes),
    "png": (mmds.Image(), bytes),
    "pil": (mmds.Image(mode=None), _picture),
}
