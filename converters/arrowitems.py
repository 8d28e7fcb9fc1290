"""A store of Arrow columns that come in chunks: its fields, and their values found by row."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from mmds.converters import arrowtypes
from mmds.converters.arrowtypes import Foreign, Leaf
from mmds.converters.arrowvalues import Piece
from mmds.converters.batches import Chunks
from mmds.errors import FormatError, SchemaError, printable
from mmds.fields import Array, Fixed
from mmds.gather import empty
from mmds.schema import Schema
from mmds.store import Items, MaskedItems, RunItems

NdArray = np.ndarray[Any, Any]


@dataclass
class ArrowStore:
    """A dataset in Arrow columns, as `mmds.store.Store` wants it."""

    path: str
    schema: Schema
    n: int
    metadata: Mapping[str, Any]
    content_id: str
    items: list[Items]


def open_chunks(chunks: Chunks, path: str, content_id: str, *, read_outside: bool = False) -> ArrowStore:
    """Return the store of what is in `chunks`: with our fields where we wrote it, else with fields for its columns."""
    metadata: dict[str, Any] = {}
    keys = chunks.columns.metadata or {}
    schema, leaves = None, None
    if arrowtypes.KEY in keys:
        schema, metadata = arrowtypes.described(keys[arrowtypes.KEY], path)
        leaves = arrowtypes.described_leaves(schema, chunks.columns)
    if schema is None or leaves is None:
        try:
            structure, found = Foreign(path, _features(keys), chunks.names).leaves(chunks.columns)
            leaves = [arrowtypes.with_nulls(leaf) if chunks.has_nulls(leaf) else leaf for leaf in found]
            schema = Schema(_with_kinds(structure, leaves))
        except (SchemaError, pa.ArrowException, UnicodeDecodeError) as error:
            raise FormatError(f"{printable(path)}: {printable(error)}") from None
        metadata = {}
    items = [
        open_items(chunks, leaf, name, path, read_outside) for leaf, name in zip(leaves, schema.names, strict=True)
    ]
    return ArrowStore(path, schema, int(chunks.bounds[-1]), metadata, content_id, items)


def _with_kinds(node: Any, leaves: list[Leaf]) -> Any:
    if isinstance(node, int):
        return leaves[node].kind
    return {key: _with_kinds(child, leaves) for key, child in node.items()}


def _features(keys: Mapping[bytes, bytes]) -> Any:
    """Return what Hugging Face `datasets` has written about the columns."""
    try:
        return json.loads(keys[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None


def open_items(chunks: Chunks, leaf: Leaf, name: str, path: str, read_outside: bool) -> Items:
    """Return the values of one field."""
    column = ChunkedColumn(chunks, leaf, name, path, read_outside)
    kind = leaf.kind
    items: Items
    one_by_one = (
        kind.nullable and (isinstance(kind, Array) or kind.stored.kind == "c") if isinstance(kind, Fixed) else True
    )
    if isinstance(kind, Fixed) and not kind.unknown and not one_by_one:  # null lists may hold anything, even nulls
        items = CopiedItems(column.rows, kind)
    else:
        items = ValueItems(column)
    return MaskedItems(items, column.valid) if kind.nullable else items


class ChunkedColumn:
    """The values of one field, found by row."""

    def __init__(self, chunks: Chunks, leaf: Leaf, name: str, path: str, read_outside: bool) -> None:
        self._chunks, self._leaf, self._name, self._path = chunks, leaf, name, path
        self._read_outside = read_outside
        self._pieces: dict[int, Piece] = {}

    def piece(self, chunk: int) -> Piece:
        """Return the values in one chunk. As many as `Chunks.kept` says are kept."""
        piece = self._pieces.get(chunk)
        if piece is None:
            try:
                piece = Piece(self._chunks, chunk, self._leaf, self._read_outside)
            except (ValueError, MemoryError, pa.ArrowException) as error:
                raise self._error(self._chunks.bounds.item(chunk), error) from None
            if len(self._pieces) >= self._chunks.kept:
                self._pieces = {}
            self._pieces[chunk] = piece
        return piece

    def spans(self, start: int, stop: int) -> Iterator[tuple[Piece, int, int, int]]:
        """Yield (piece, first row of it, from, to) for the rows from `start` to `stop`; from and to count in the piece."""
        bounds = self._chunks.bounds
        chunk = int(bounds.searchsorted(start, "right")) - 1
        while start < stop:
            first, end = bounds.item(chunk), min(stop, bounds.item(chunk + 1))
            if end > start:
                yield self.piece(chunk), first, start - first, end - first
            start, chunk = end, chunk + 1

    def rows(self, start: int, stop: int) -> NdArray:
        """Return the values of samples `start` to `stop` as one array."""
        parts = []
        for piece, first, begin, end in self.spans(start, stop):
            try:
                parts.append(piece.rows(begin, end))
            except (ValueError, MemoryError, pa.ArrowException) as error:
                raise self._error(first + begin, error) from None
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def valid(self, start: int, stop: int) -> NdArray:
        """Return which of samples `start` to `stop` are not null."""
        parts = [piece.valid(begin, end) for piece, _, begin, end in self.spans(start, stop)]
        return np.concatenate(parts)

    def value(self, index: int) -> Any:
        """Return the value of sample `index`."""
        piece, _, row, _ = next(self.spans(index, index + 1))
        try:
            return piece.value(row)
        except (ValueError, OSError, MemoryError, pa.ArrowException) as error:
            raise self._error(index, error) from None

    def _error(self, index: int, error: Exception) -> FormatError:
        where = f"{printable(self._path)}: sample {index}, field '{printable(self._name)}'"
        return FormatError(f"{where}: {printable(error) or 'it takes more memory than there is'}")


class CopiedItems(RunItems):
    """Values of one dtype and shape; a batch is always a copy, since the rows are read-only views of the file."""

    def gather(self, indices: NdArray, out: NdArray | None = None) -> NdArray:
        """Return the values of samples `indices` as one array, in `out` if given."""
        return super().gather(indices, empty((len(indices), *self.shape), self.dtype) if out is None else out)


class ValueItems:
    """Values that are taken one by one."""

    def __init__(self, column: ChunkedColumn) -> None:
        self.get = column.value

    def gather(self, indices: NdArray) -> list[Any]:
        """Return the values of samples `indices` as a list, read in the order of the file."""
        values: list[Any] = [None] * len(indices)
        for position in np.argsort(indices, kind="stable").tolist():
            values[position] = self.get(indices.item(position))
        return values
