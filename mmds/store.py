"""What a store is: samples behind one interface, whatever library keeps them.

`Reader` and `MemoryMappedDataset` read any `Store`. An ``.mmds`` file is one; the others are in ``converters/``. A store
opens in the process that reads, and offers one `Items` per field. The two classes here make `Items` of anything that can
read a run of consecutive rows, which is all that HDF5, Zarr or TileDB do well: indices are sorted, duplicates read once,
neighbours read together, and the order restored.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from mmds.errors import FormatError, printable
from mmds.fields import Array, Fixed, Variable
from mmds.gather import empty
from mmds.schema import Field, Schema

NdArray = np.ndarray[Any, Any]
Rows = Callable[[int, int], Any]  # (start, stop) -> the rows from start to stop, as an array

GAP = 8  # rows between two wanted ones that are read rather than skipped: a call costs more than a few rows


class Items(Protocol):
    """All values of one field."""

    @property
    def get(self) -> Callable[[int], Any]:
        """The function from a sample's number to its value."""

    def gather(self, indices: NdArray) -> Any:
        """Return the values of samples `indices`: an ndarray with a first axis more, or a list."""


class Store(Protocol):
    """An open dataset, in one process."""

    path: str
    schema: Schema
    n: int
    metadata: Mapping[str, Any]
    content_id: str  # changes when the dataset is replaced
    items: list[Items]


def file_identity(path: str | os.PathLike[str]) -> str:
    """Return a text that changes when the file (or the folder's own entry) is replaced or written to."""
    status = os.stat(path)  # noqa: PTH116 (takes both kinds of path)
    return f"{status.st_dev:x}-{status.st_ino:x}-{status.st_size:x}-{status.st_mtime_ns:x}"


def runs(indices: NdArray, gap: int = GAP) -> Iterator[tuple[int, int, NdArray]]:
    """Yield (start, stop, positions) for runs of rows that cover `indices`, ascending; `positions` index `indices`.

    >>> [(start, stop, at.tolist()) for start, stop, at in runs(np.array([9, 2, 3, 2]), gap=1)]
    [(2, 4, [1, 3, 2]), (9, 10, [0])]
    """
    order = np.argsort(indices, kind="stable")
    ordered = indices[order]
    cuts = np.flatnonzero(np.diff(ordered) > gap) + 1
    for part in np.split(order, cuts) if len(order) else ():
        yield int(indices[part[0]]), int(indices[part[-1]]) + 1, part


class RunItems:
    """Values of one dtype and shape, read by runs of rows."""

    def __init__(self, rows: Rows, kind: Fixed) -> None:
        self._rows = rows
        self.shape = tuple(size for size in kind.dimensions if size is not None)
        self.dtype = kind.stored
        self.is_array = isinstance(kind, Array)

    def get(self, index: int) -> Any:
        """Return the value of sample `index`."""
        row = np.asarray(self._rows(index, index + 1))
        return row[0, ...].astype(self.dtype, copy=False) if self.is_array else row.item()

    def gather(self, indices: NdArray, out: NdArray | None = None) -> NdArray:
        """Return the values of samples `indices` as one array, in `out` if given."""
        if out is None:
            out = empty((len(indices), *self.shape), self.dtype)
        for start, stop, positions in runs(indices):
            out[positions] = self._rows(start, stop)[indices[positions] - start]
        return out


class RaggedItems:
    """Values of differing length: `values(start, stop)` reads elements, `ends(start, stop)` where samples end.

    ``ends(i, i + 2)`` are the first element of sample i and the first one behind it.
    """

    def __init__(self, values: Rows, ends: Rows, field: Field, path: str, shapes: Rows | None = None) -> None:
        self._values, self._ends, self._shapes = values, ends, shapes
        self._field, self._path = field, path

    def get(self, index: int) -> Any:
        """Return the value of sample `index`."""
        return self.gather(np.array([index]))[0]

    def gather(self, indices: NdArray) -> list[Any]:
        """Return the values of samples `indices` as a list."""
        found: list[Any] = [None] * len(indices)
        for start, stop, positions in runs(indices):
            ends = np.asarray(self._ends(start, stop + 1)).astype(np.int64)
            if (np.diff(ends) < 0).any() or ends[0] < 0:
                raise FormatError(f"{self._where(start)}: the offsets decrease")
            values = np.asarray(self._values(int(ends[0]), int(ends[-1])))
            if len(values) != ends[-1] - ends[0]:
                raise FormatError(f"{self._where(start)}: values end before their offsets")
            shapes = None if self._shapes is None else np.asarray(self._shapes(start, stop))
            for position in positions.tolist():
                row = int(indices[position]) - start
                part = values[ends[row] - ends[0] : ends[row + 1] - ends[0]]
                found[position] = self._value(part, None if shapes is None else shapes[row], start + row)
        return found

    def _value(self, part: NdArray, shape: NdArray | None, index: int) -> Any:
        kind = self._field.kind
        try:
            if isinstance(kind, Variable):
                return kind.decode(memoryview(part.tobytes()))
            assert isinstance(kind, Array)
            sizes = iter([-1] if shape is None else shape.tolist())
            wanted = tuple(next(sizes) if size is None else size for size in kind.shape)
            if -1 not in wanted and math.prod(wanted) != part.size:
                raise ValueError(f"{part.size} elements for shape {wanted}")
            return part.astype(kind.stored, copy=False).reshape(wanted)
        except ValueError as error:
            raise FormatError(f"{self._where(index)}: {printable(error)}") from None

    def _where(self, index: int) -> str:
        return f"{printable(self._path)}: sample {index}, field '{printable(self._field.name)}'"


class MaskedItems:
    """Values of which some are null: `valid(start, stop)` reads one bool per sample."""

    def __init__(self, items: Items, valid: Rows) -> None:
        self.items, self._valid = items, valid

    def get(self, index: int) -> Any:
        """Return the value of sample `index`, or None."""
        return self.items.get(index) if np.asarray(self._valid(index, index + 1)).item() else None

    def gather(self, indices: NdArray) -> list[Any]:
        """Return the values of samples `indices` as a list with None for nulls."""
        values: list[Any] = [None] * len(indices)
        kept = np.flatnonzero(self.valid(indices))
        found = self.items.gather(indices[kept])
        if isinstance(self.items, RunItems) and not self.items.is_array:
            found = found.tolist()  # Python numbers, as `get` returns them
        for position, value in zip(kept.tolist(), found, strict=True):
            values[position] = value
        return values

    def valid(self, indices: NdArray) -> NdArray:
        """Return whether each of samples `indices` has a value: bool of shape (B,)."""
        valid = np.empty(len(indices), bool)
        for start, stop, positions in runs(indices):
            valid[positions] = np.asarray(self._valid(start, stop))[indices[positions] - start] != 0
        return valid


class ListItems:
    """Values that a library already delivers one by one: ``rows(start, stop)`` gives a sequence of them."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def get(self, index: int) -> Any:
        """Return the value of sample `index`."""
        return self._rows(index, index + 1)[0]

    def gather(self, indices: NdArray) -> list[Any]:
        """Return the values of samples `indices` as a list."""
        found: list[Any] = [None] * len(indices)
        for start, stop, positions in runs(indices):
            values = self._rows(start, stop)
            for position in positions.tolist():
                found[position] = values[int(indices[position]) - start]
        return found
