"""Arrow tables in pieces, as the stores read them: any kind of them, and record batches in memory or in a mapped file."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from mmds.converters.arrowtypes import Leaf

NdArray = np.ndarray[Any, Any]
MAX_NAMES = 2**16  # a dictionary column with more different strings is text, not labels


class Chunks(Protocol):
    """A table in pieces."""

    columns: pa.Schema
    kept: int  # pieces whose arrays may be kept for each field; 1 where they are unpacked into memory
    bounds: NdArray  # int64 (pieces + 1,): the first row of each piece, and the row behind the last one

    def column(self, chunk: int, name: str) -> pa.Array:
        """Return a column of one piece."""

    def has_nulls(self, leaf: Leaf) -> bool:
        """Return whether any value of a field may be null."""

    def names(self, leaf: Leaf) -> tuple[str, ...] | None:
        """Return the strings of a dictionary column, or None if they are not known without reading it."""


class Batches:
    """A list of record batches. A subclass may unpack them only when they are needed."""

    def __init__(self, columns: pa.Schema, batches: list[pa.RecordBatch], sizes: list[int]) -> None:
        self.columns = columns
        self.kept = 1024
        self._batches = batches
        self._positions = {name: position for position, name in enumerate(columns.names)}
        self.bounds = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)

    def batch(self, chunk: int) -> pa.RecordBatch:
        """Return one record batch."""
        return self._batches[chunk]

    def column(self, chunk: int, name: str) -> pa.Array:
        """Return a column of one batch."""
        return self.batch(chunk).column(self._positions[name])

    def has_nulls(self, leaf: Leaf) -> bool:
        """Return whether any value of a field is null."""
        return any(self._array(chunk, leaf).null_count for chunk in range(len(self.bounds) - 1))

    def names(self, leaf: Leaf) -> tuple[str, ...] | None:
        """Return the strings of a dictionary column, in the order in which batches bring them."""
        found: dict[str, None] = {}
        last = None
        for chunk in range(len(self.bounds) - 1):
            dictionary = self._array(chunk, leaf).dictionary
            if last is not None and dictionary.equals(last):
                continue
            last = dictionary
            dictionary.validate(full=True)
            if dictionary.null_count or len(dictionary) + len(found) > MAX_NAMES:
                return None
            found.update(dict.fromkeys(dictionary.to_pylist()))
        return tuple(found)

    def _array(self, chunk: int, leaf: Leaf) -> pa.Array:
        return follow(self.column(chunk, leaf.column), leaf.steps)


def follow(array: pa.Array, steps: tuple[int, ...]) -> pa.Array:
    """Return the array that `steps` through structs lead to; a null struct has null children."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    for step in steps:
        array = array.flatten()[step]
        if isinstance(array, pa.ExtensionArray):
            array = array.storage
    return array
