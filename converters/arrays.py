"""Samples as named arrays with the sample axis first: how HDF5, Zarr, TileDB and folders of ``.npy`` files hold them.

A field at path ("target", "boxes") is the array ``target/boxes``:

* fixed shape: ``target/boxes`` (N, *shape); no array at all where the shape leaves no elements;
* anything else: ``target/boxes/values`` (total elements or bytes,) and ``target/boxes/offsets`` <u8 (N + 1,): sample i is
  ``values[offsets[i]:offsets[i + 1]]``; with two or more unknown dimensions also ``target/boxes/shape`` <u4 (N, unknown);
* nullable: also ``_valid/target/boxes`` bool (N,).

A single value is ``value``. Keys are percent-encoded where they hold anything but letters, digits, ``_``, ``-``, ``.`` and
``~``, and where a library has a meaning of its own for them. The schema stands under "mmds" in the attributes of the group.

Nothing is compressed: what is large in a training set mostly is already, or is decoded anew in every epoch, and a row of an
uncompressed chunk costs no more than its own bytes.
"""

from __future__ import annotations

import abc
import hashlib
import math
from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar
from urllib.parse import quote

import numpy as np

from mmds.columns import Column
from mmds.errors import SchemaError, printable
from mmds.fields import Array, Fixed, Kind
from mmds.schema import Field, Schema
from mmds.storewriter import StoreWriter

NdArray = np.ndarray[Any, Any]

CHUNK_BYTES = 2**16  # of an array: what a disk delivers in the time of a seek, so a random sample costs one read of it
BLOCK_BYTES = 2**26  # at most so much waits in memory until an array gets it as one block, over all arrays
MAX_KEY = 200  # characters of an encoded key: file systems take 255 bytes for a name with its suffix
VALID = "_valid"
RESERVED = {VALID, "zarr.json", "mmds.json"}


def encoded_key(key: str | int) -> str:
    """Return the part of an array's name that stands for one key of a path. No two keys give the same.

    >>> [encoded_key(key) for key in ("boxes", 0, "a/b", "", "..", "__meta")]
    ['boxes', '0', 'a%2Fb', '%', '%2E.', '%5F_meta']
    """
    text = quote(str(key), safe="") or "%"
    if text.startswith(("__", ".")) or text in RESERVED:
        text = f"%{ord(text[0]):02X}{text[1:]}"
    if len(text) > MAX_KEY:
        text = f"{text[: MAX_KEY // 2]}%%{hashlib.sha256(text.encode()).hexdigest()[:32]}"
    return text


def array_name(field: Field) -> str:
    """Return the name of a field's array, or of the group of its arrays.

    >>> from mmds.fields import Scalar
    >>> array_name(Field(("a/b", 0), Scalar("int8")))
    'a%2Fb/0'
    """
    return "/".join(map(encoded_key, field.path)) or "value"


def specifications(field: Field) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """Return name -> (dtype, shape of one row) of the arrays that hold a field."""
    kind, name = field.kind, array_name(field)
    found: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
    if isinstance(kind, Fixed) and not kind.unknown:
        if kind.nbytes:
            found[name] = (kind.stored, row_shape(kind))
    else:
        found[f"{name}/values"] = (kind.stored if isinstance(kind, Fixed) else np.dtype("u1"), ())
        found[f"{name}/offsets"] = (np.dtype("<u8"), ())
        if isinstance(kind, Fixed) and kind.unknown > 1:
            found[f"{name}/shape"] = (np.dtype("<u4"), (kind.unknown,))
    if kind.nullable:
        found[f"{VALID}/{name}"] = (np.dtype(bool), ())
    return found


def row_shape(kind: Fixed) -> tuple[int, ...]:
    """Return the shape of one value of a kind without unknown dimensions."""
    return tuple(size for size in kind.dimensions if size is not None)


class Blocks:
    """Rows on their way to an array, which gets them in blocks of `size` rows and multiples of it; at the end the rest."""

    def __init__(self, write: Callable[[NdArray], None], dtype: np.dtype[Any], row: tuple[int, ...], size: int) -> None:
        self._write, self._size = write, size
        self._buffer = np.empty((size, *row), dtype)
        self._filled = 0

    def append(self, rows: NdArray) -> None:
        """Take over `rows`; nothing refers to them afterwards."""
        while len(rows):
            if not self._filled and len(rows) >= self._size:
                count = len(rows) - len(rows) % self._size
                self._write(rows[:count])
            else:
                count = min(len(rows), self._size - self._filled)
                self._buffer[self._filled : self._filled + count] = rows[:count]
                self._filled += count
                if self._filled == self._size:
                    self.flush()
            rows = rows[count:]

    def flush(self) -> None:
        """Hand on what is left."""
        if self._filled:
            self._write(self._buffer[: self._filled])
            self._filled = 0


class ArrayWriter(StoreWriter):
    """Base of the writers of named arrays. A subclass implements the three methods at the end."""

    block_bytes: ClassVar[int] = BLOCK_BYTES

    def create(self, schema: Schema) -> None:
        self._fields = schema.fields
        needed = [(name, *found) for field in schema for name, found in specifications(field).items()]
        shared = [name for name, count in Counter(name for name, _, _ in needed).items() if count > 1]
        if shared:
            raise SchemaError(f"{self._shown}: fields would share the array {printable(shared[0])}")
        self.create_group()
        self._totals = [0] * len(schema)
        self._blocks: dict[str, Blocks] = {}
        for name, dtype, row in needed:
            row_bytes = math.prod(row) * dtype.itemsize
            chunk = max(1, CHUNK_BYTES // row_bytes)
            block = chunk * max(1, self.block_bytes // len(needed) // (chunk * row_bytes))
            self._blocks[name] = Blocks(self.create_array(name, dtype, row, chunk, block), dtype, row, block)
        for field in schema:
            if f"{array_name(field)}/offsets" in specifications(field):
                self._blocks[f"{array_name(field)}/offsets"].append(np.zeros(1, "<u8"))

    def append(self, columns: list[Column], size: int) -> None:
        for position, (field, column) in enumerate(zip(self._fields, columns, strict=True)):
            name, kind = array_name(field), field.kind
            if not isinstance(column.values, np.ndarray):
                self._append_ragged(position, name, kind, column.values)
            elif name in self._blocks:
                self._blocks[name].append(column.values)
            if column.valid is not None:
                self._blocks[f"{VALID}/{name}"].append(column.valid)

    def _append_ragged(self, position: int, name: str, kind: Kind, values: list[Any]) -> None:
        if isinstance(kind, Array):
            parts = [np.empty(0, kind.stored) if value is None else value.reshape(-1) for value in values]
            if kind.unknown > 1:
                self._blocks[f"{name}/shape"].append(_unknown_sizes(kind, values))
        else:
            parts = [np.frombuffer(b"" if value is None else value, np.uint8) for value in values]
        ends = self._totals[position] + np.cumsum([part.size for part in parts], dtype=np.int64)
        self._totals[position] = int(ends[-1])
        self._blocks[f"{name}/values"].append(np.concatenate(parts))
        self._blocks[f"{name}/offsets"].append(ends.astype("<u8"))

    def finish(self, schema: Schema) -> None:
        for blocks in self._blocks.values():
            blocks.flush()
        self.describe(self.description(schema))

    @abc.abstractmethod
    def create_group(self) -> None:
        """Create the empty group at `self.staging.content`."""

    @abc.abstractmethod
    def create_array(
        self, name: str, dtype: np.dtype[Any], row: tuple[int, ...], chunk: int, block: int
    ) -> Callable[[NdArray], None]:
        """Create an array of shape (0, *row), whose name may lead through groups; return the function that appends rows.

        A chunk should have `chunk` rows, and rows will come in multiples of `block` rows, which is one of `chunk`.
        """

    @abc.abstractmethod
    def describe(self, description: str) -> None:
        """Write the group's attribute "mmds"; all arrays are complete."""


def _unknown_sizes(kind: Array, values: list[Any]) -> NdArray:
    axes = [axis for axis, size in enumerate(kind.shape) if size is None]
    return np.array([[0 if value is None else value.shape[axis] for axis in axes] for value in values], "<u4")
