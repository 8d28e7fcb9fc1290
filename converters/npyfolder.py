"""A folder of arrays as a dataset: ``root/class/**/x.npy``, one array per sample, with the rules of `classfolder`.

The headers of all files are read first: arrays have one dtype and one number of dimensions, and a dimension that differs
becomes an unknown one. Fortran order and big-endian numbers are converted. Object arrays, which hold pickles, are refused.
A sample is ``{"array": ..., "label": ..., "path": ...}``.

A flat folder of ``.npy`` files is taken for the store of that kind, whose arrays are columns, unless this format is named.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

import mmds
from mmds.converters import Source
from mmds.converters.classfolder import Branch, Content, branches, folder_sources
from mmds.converters.extensions import ARRAYS
from mmds.converters.tree import opened
from mmds.dtypes import STORED, dtype_name
from mmds.errors import SchemaError, SourceError, printable

MAGIC = np.lib.format.MAGIC_PREFIX
HEADER_BYTES = 10_012  # numpy reads no header of more than 10,000 bytes, after 12 of magic, version and length

NdArray = np.ndarray[Any, Any]


def sources(path: Path, *, splits: bool | None = None) -> list[Source]:
    """Return the sources in the folder `path`: one, or one per split.

    `splits` says whether the root's folders are splits; None decides by their names. Raises `SourceError` where arrays
    differ in dtype or in their number of dimensions.
    """
    found = branches(path, ARRAYS, splits)
    return folder_sources(found, Content("array", _kind(found), read_array, {"source": "npyfolder"}))


@dataclass(frozen=True)
class Header:
    """What an ``.npy`` file says of its array, and where the elements begin."""

    dtype: np.dtype[Any]
    fortran: bool
    shape: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        """The size of the elements."""
        return math.prod(self.shape) * self.dtype.itemsize


def _kind(found: Sequence[Branch]) -> mmds.Array:
    """Return the kind that all arrays have. A file that has no usable header is left for `load` to fail on."""
    first: tuple[str, str, tuple[int, ...]] | None = None
    shape: list[int | None] = []
    failure = "no samples found"
    for branch in found:
        for name, _ in branch.items():
            path = f"{branch.split}/{name}" if branch.split else name
            try:
                with opened(f"{branch.tree.root}/{name}", branch.tree.boundary) as (fd, _):
                    header = read_header(os.read(fd, HEADER_BYTES))
            except SourceError as error:
                failure = f"{printable(path)}: {error}"
                continue
            dtype = dtype_name(header.dtype)
            if first is None:
                first, shape = (path, dtype, header.shape), list(header.shape)
            elif dtype != first[1] or len(shape) != len(header.shape):
                raise SourceError(
                    f"arrays of one dtype and number of dimensions are expected, got {first[1]} {first[2]} in "
                    f"{printable(first[0])} and {dtype} {header.shape} in {printable(path)}"
                )
            else:
                shape = [a if a == b else None for a, b in zip(shape, header.shape, strict=True)]
    if first is None:
        raise SourceError(f"{printable(found[0].tree.boundary)}: no array can be used; {failure}")
    if None in shape:  # a known 0 would leave the unknown dimensions undetermined
        shape = [size or None for size in shape]
    return mmds.Array(first[1], tuple(shape))


def read_array(data: bytes) -> NdArray:
    """Return the array in the bytes of an ``.npy`` file, in C order and little-endian."""
    header = read_header(data)
    if header.start + header.nbytes != len(data):
        raise SourceError(
            f"declares {header.dtype} {header.shape}, {header.nbytes} bytes, but has {len(data) - header.start}"
        )
    flat = np.frombuffer(data, header.dtype, offset=header.start)
    array = flat.reshape(header.shape, order="F" if header.fortran else "C")
    return np.ascontiguousarray(array, STORED[dtype_name(header.dtype)]).reshape(header.shape)


def read_header(data: bytes) -> Header:
    """Return the header with which `data` begins, or raise `SourceError` if it is none that can be used."""
    size_bytes = 2 if data[6:7] == b"\x01" else 4
    start = 8 + size_bytes
    end = start + int.from_bytes(data[8:start], "little")
    if (
        not data.startswith(MAGIC)
        or data[6:7] not in (b"\x01", b"\x02")
        or not start < end <= min(len(data), HEADER_BYTES)
    ):
        raise SourceError("not an .npy file" if data else "an empty file")
    return _parse(data[:end])


@lru_cache(256)  # a folder has few different headers, and numpy takes 30 µs for one
def _parse(head: bytes) -> Header:
    read = np.lib.format.read_array_header_1_0 if head[6] == 1 else np.lib.format.read_array_header_2_0
    try:
        shape, fortran, dtype = read(io.BytesIO(head[len(MAGIC) + 2 :]))
    except Exception as error:  # noqa: BLE001 (numpy evaluates a literal, which can fail in many ways)
        raise SourceError(f"not an .npy file ({printable(str(error).partition(chr(10))[0])})") from None
    if dtype.hasobject:
        raise SourceError("an object array refused: nothing is ever unpickled")
    if min(shape, default=0) < 0:
        raise SourceError(f"declares the shape {shape}")
    try:
        dtype_name(dtype)
        mmds.Array(dtype_name(dtype), shape)
    except SchemaError as error:
        raise SourceError(str(error)) from None
    return Header(dtype, fortran, shape, len(head))
