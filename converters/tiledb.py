"""TileDB: one dense array per field with the sample axis first, as `arrays.py` describes.

The domain of the sample axis is as good as endless, so that nothing has to be known in advance; how far an array is filled
is its non-empty domain. Each block of rows is a fragment. Their metadata are consolidated at the end, so that opening reads
one file; consolidating the data as well would take tens of times as long as writing it, and gain nothing.

A forked process reads with threads of its own. It has to end by `os._exit`, as those of `multiprocessing` do: the end of the
library waits for its parent's.

Groups and single arrays from elsewhere are read too; of an array with several attributes each becomes a field. Refused are
members outside the folder, and arrays that declare much more than it holds.
"""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tiledb

from mmds.columns import Column
from mmds.converters.arrays import CHUNK_BYTES, ArrayWriter
from mmds.converters.arraystore import (
    MAX_RATIO,
    ArrayStore,
    Rowed,
    blaming,
    refuse_chunk,
    refuse_inflation,
    stored_bytes,
)
from mmds.converters.inside import refuse_links
from mmds.errors import FormatError, SchemaError, StorageError, printable
from mmds.fields import Fixed, Kind
from mmds.schema import Schema
from mmds.store import Items, RunItems, file_identity

NdArray = np.ndarray[Any, Any]

MAX_ROWS = 2**53
MAX_DEPTH = 32
THREADS = 2  # per process: there are as many readers as cores already
BITS = {"float16": "<u2"}  # what TileDB has no type for is held as its bits, with the name of the type beside
READING = {
    # Tiles this close are read together. By default up to 500 KB apart, or 20 MB in all: a batch reads most of an array.
    "vfs.min_batch_gap": CHUNK_BYTES,
    "vfs.min_batch_size": CHUNK_BYTES,
    "sm.mem.malloc_trim": "false",  # after each query: what it frees, the next one has the kernel find and clear again
}

_contexts: dict[int, Any] = {}


def context() -> Any:
    """Return this process's context. It has threads, which do not survive a fork, so it is never freed either.

    Everything is called with it: what is left without takes TileDB's default context, one per thread of Python's, each
    with two threads per core, which a fork copies without them.
    """
    pid = os.getpid()
    if pid not in _contexts:
        _contexts[pid] = _context(**READING)
    return _contexts[pid]


def _context(**options: Any) -> Any:
    threads = {f"sm.{what}_concurrency_level": THREADS for what in ("compute", "io")}
    fork = os.fork
    try:
        return tiledb.Ctx({**threads, **options})
    finally:
        # TileDB wraps os.fork to warn that a context does not survive it. Here none is meant to: see `context`.
        os.fork = fork


REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)  # which TileDB has in words alone


@contextmanager
def _refusing(shown: str) -> Iterator[None]:
    try:
        yield
    except tiledb.TileDBError as error:
        number = next((each for each in REFUSALS if os.strerror(each) in str(error)), errno.EIO)
        raise StorageError(number, f"cannot write {shown}: {printable(error)}") from error


class Writer(ArrayWriter):
    """Writes a TileDB group."""

    def create(self, schema: Schema) -> None:
        with _refusing(self._shown):
            super().create(schema)

    def append(self, columns: list[Column], size: int) -> None:
        with _refusing(self._shown):
            super().append(columns, size)

    def finish(self, schema: Schema) -> None:
        with _refusing(self._shown):
            super().finish(schema)

    def create_group(self) -> None:
        self._root = str(self.staging.content)
        tiledb.Group.create(self._root, ctx=context())
        self._members: dict[str, list[str]] = {"": []}  # of each group
        self._arrays: list[Any] = []

    def create_array(
        self, name: str, dtype: np.dtype[Any], row: tuple[int, ...], chunk: int, block: int
    ) -> Callable[[NdArray], None]:
        ctx = context()
        self._add_member(name)
        held = np.dtype(BITS.get(dtype.name, dtype))
        axes = [("sample", MAX_ROWS, chunk), *((f"axis{k}", size, size) for k, size in enumerate(row))]
        dims = [
            tiledb.Dim(axis, domain=(0, size - 1), tile=tile, dtype=np.uint64, ctx=ctx) for axis, size, tile in axes
        ]
        attribute = tiledb.Attr(dtype=held, filters=tiledb.FilterList(ctx=ctx), ctx=ctx)
        schema = tiledb.ArraySchema(tiledb.Domain(*dims, ctx=ctx), [attribute], ctx=ctx)
        uri = f"{self._root}/{name}"
        tiledb.Array.create(uri, schema, ctx=ctx)
        array = tiledb.open(uri, "w", ctx=ctx)
        self._arrays.append(array)
        if held != dtype:
            array.meta["dtype"] = dtype.name
        start = 0

        def append(rows: NdArray) -> None:
            nonlocal start
            array[start : start + len(rows)] = np.ascontiguousarray(rows).view(held)
            start += len(rows)

        return append

    def _add_member(self, name: str) -> None:
        parent, _, last = name.rpartition("/")
        if parent not in self._members:
            self._add_member(parent)
            tiledb.Group.create(f"{self._root}/{parent}", ctx=context())
            self._members[parent] = []
        self._members[parent].append(last)

    def describe(self, description: str) -> None:
        consolidating = _context(**{"sm.consolidation.mode": "fragment_meta"})
        for array in self._arrays:
            array.close()
            tiledb.consolidate(array.uri, ctx=consolidating)
        for name, members in self._members.items():
            with tiledb.Group(f"{self._root}/{name}".rstrip("/"), "w", ctx=context()) as group:
                for member in members:
                    group.add(member, member, relative=True)
                if not name:
                    group.meta["mmds"] = description

    def close_library(self) -> None:
        for array in getattr(self, "_arrays", ()):
            with _refusing(self._shown):
                array.close()


class TileRows:
    """One attribute of a dense array, from its first filled sample on."""

    def __init__(self, array: Any, attribute: str) -> None:
        self._uri, self._view = array.uri, array.view_attr
        self._arrays = {os.getpid(): array}  # a parent's array waits for threads that its child does not have
        schema = array.schema
        held = schema.attr(attribute)
        filled = array.nonempty_domain() if not schema.sparse else None
        first, last = (0, -1) if filled is None else map(int, filled[0])
        self._first = first
        self.shape = (last - first + 1, *map(int, schema.shape[1:]))
        self.dtype = np.dtype(array.meta.get("dtype", held.dtype))
        self.refusal = _refusal(schema, held, first)
        self.tile_bytes = self.nbytes = 0
        if not self.refusal:
            tile = [int(schema.domain.dim(axis).tile or 1) for axis in range(schema.domain.ndim)]
            self.tile_bytes = math.prod(tile) * int(self.dtype.itemsize)  # what has to be read for one cell
            self.nbytes = math.prod(self.shape) * int(self.dtype.itemsize)  # of all rows

    def __getitem__(self, rows: slice) -> Any:
        return self._read([(rows.start, rows.stop - 1)])

    def scattered(self, rows: NdArray) -> NdArray:
        """Return different rows, ascending, by one query."""
        return self._read([(row, row) for row in rows.tolist()])

    def _read(self, spans: list[tuple[int, int]]) -> NdArray:
        """Return the rows of all spans, each from its first to its last row."""
        array = self._array()
        subarray = tiledb.Subarray(array, context())
        whole: list[tuple[int, int]] = []  # all of an axis
        samples = [(first + self._first, last + self._first) for first, last in spans]
        subarray.add_ranges([samples, *[whole] * (len(self.shape) - 1)])
        (found,) = array.read_subarray(subarray).values()
        rows: NdArray = found.view(self.dtype)
        return rows

    def _array(self) -> Any:
        """Return the array, opened by this process."""
        pid = os.getpid()
        if pid not in self._arrays:
            self._arrays[pid] = tiledb.open(self._uri, attr=self._view, ctx=context())
        return self._arrays[pid]


def _refusal(schema: Any, attribute: Any, first: int) -> str:
    """Return why an attribute cannot be a field, or an empty text."""
    if schema.sparse:
        return "a sparse array"
    if attribute.isvar or attribute.isnullable:
        return "an attribute of variable length, or nullable"
    if any(schema.domain.dim(axis).dtype.kind not in "iu" for axis in range(schema.domain.ndim)):
        return "a dimension that does not count"
    if first < 0:
        return "its first dimension starts below 0"
    return ""


class TileStore(ArrayStore):
    """Open TileDB arrays."""

    def kind_of(self, array: Rowed) -> Kind:
        assert isinstance(array, TileRows)
        if array.refusal:
            raise SchemaError(array.refusal)
        return super().kind_of(array)

    def fixed_items(self, array: Any, name: str, kind: Fixed) -> Items:
        path = printable(self.path)

        def scattered(rows: NdArray) -> NdArray:
            with blaming(f"{path}: rows of the array {printable(name)}"):
                found: NdArray = array.scattered(rows)
                return found

        return RunItems(self.rows_of(array, name), kind, scattered)


def open_store(path: str) -> TileStore:
    """Open a TileDB group or array in a folder; `FormatError` where it is none or would not be safe to read."""
    identity = file_identity(path)
    arrays: dict[str, TileRows] = {}
    with blaming(f"{printable(path)}: not a readable TileDB group"):
        if not Path(path).is_dir():
            raise FormatError(f"{printable(path)}: not a TileDB group or array")
        refuse_links(path)
        if tiledb.object_type(path, ctx=context()) is None:
            raise FormatError(f"{printable(path)}: not a TileDB group or array")
        description = _collect(path, path, "", arrays, 0)
        for name, array in arrays.items():
            refuse_chunk(path, name, array.tile_bytes)
        declared = sum(array.nbytes for array in arrays.values())
        refuse_inflation(path, declared, stored_bytes(path, declared // MAX_RATIO + 1))
        return TileStore(path, arrays, description, identity)


def _collect(root: str, path: str, name: str, arrays: dict[str, TileRows], depth: int) -> Any:
    """Add what is at `path` to `arrays`; return a group's description."""
    if tiledb.object_type(path, ctx=context()) == "array":
        array = tiledb.open(path, ctx=context())
        attributes = [array.attr(position).name for position in range(array.nattr)]
        if len(attributes) == 1:
            arrays[name] = TileRows(array, attributes[0])
        else:  # each through an array that shows it alone
            for attribute in attributes:
                alone = tiledb.open(path, attr=attribute, ctx=context())
                arrays["/".join(filter(None, (name, attribute)))] = TileRows(alone, attribute)
        return None
    if depth > MAX_DEPTH:
        raise FormatError(f"{printable(root)}: groups are nested deeper than {MAX_DEPTH}")
    with tiledb.Group(path, ctx=context()) as group:
        members = sorted((member.name or member.uri.rsplit("/", 1)[-1], member.uri) for member in group)
        description = group.meta.get("mmds", None)
    for key, uri in members:
        inner = f"{name}/{key}" if name else key
        place = uri.removeprefix("file://")  # TileDB escapes nothing in it
        if "://" in place or not Path(place).resolve().is_relative_to(Path(root).resolve()):
            raise FormatError(
                f"{printable(root)}: {printable(inner)} is at {printable(uri)}: refused, data must be inside"
            )
        _collect(root, place, inner, arrays, depth + 1)
    return description
