"""What a store is: samples behind one interface, whatever library keeps them.

`Reader` and `MemoryMappedDataset` read any `Store`. An ``.mmds`` file is one; the others are in ``converters/``. A store
opens in the process that reads, and offers one `Items` per field. The two classes here make `Items` of anything that can
read a run of consecutive rows, which is all that HDF5, Zarr or TileDB do well: indices are sorted, duplicates read once,
neighbours read together, and the order restored.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from mmds.errors import FormatError, printable
from mmds.fields import Array, Fixed, Variable
from mmds.gather import empty, take_rows
from mmds.schema import Field, Schema

NdArray = np.ndarray[Any, Any]
Rows = Callable[[int, int], Any]  # (start, stop) -> the rows from start to stop, as an array

GAP_BYTES = (
    2**15
)  # between two wanted rows that are read rather than skipped: what a library moves in the time of a call
GAP_ROWS = 8  # the same where nobody knows how large rows are


class Items(Protocol):
    """All values of one field."""

    @property
    def get(self) -> Callable[[int], Any]:
        """The function from a sample's number to its value."""

    def gather(self, indices: NdArray) -> Any:
        """Return the values of samples `indices`: an ndarray with a first axis more, or a list."""


class ArrayItems(ABC):
    """All values of a field of one dtype and shape."""

    shape: tuple[int, ...]  # of one value
    dtype: np.dtype[Any]
    is_array: bool  # or Python numbers, one by one
    get: Any  # the function from a sample's number to its value

    @abstractmethod
    def gather(self, indices: NdArray, out: NdArray | None = None) -> NdArray:
        """Return the values of samples `indices` as one array, in `out` if given."""


class Store(Protocol):
    """An open dataset, in one process."""

    path: str
    schema: Schema
    n: int
    metadata: Mapping[str, Any]
    content_id: str  # changes when the dataset is replaced

    @property
    def items(self) -> Sequence[Items]:
        """The values of each field."""


@runtime_checkable
class MappedStore(Store, Protocol):
    """A store whose values are read from mapped files, so that the kernel can be told what comes next."""

    def wanted(self, samples: int) -> bool:
        """Return whether a batch of so many samples should be asked for."""

    def ask(self, positions: Sequence[int], rows: NdArray) -> None:
        """Ask the kernel to read `rows` of the fields at `positions`. Does not wait for it."""

    def release(self, positions: Sequence[int], rows: NdArray) -> None:
        """Take `rows` of the fields at `positions` out of this process; they stay in the page cache."""


def file_identity(path: str | os.PathLike[str]) -> str:
    """Return a text that changes when the file (or the folder's own entry) is replaced or written to."""
    status = os.stat(path)  # noqa: PTH116 (takes both kinds of path)
    return f"{status.st_dev:x}-{status.st_ino:x}-{status.st_size:x}-{status.st_mtime_ns:x}"


def runs(indices: NdArray, gap: int) -> Iterator[tuple[int, int, NdArray]]:
    """Yield (start, stop, positions) for runs of rows that cover `indices`, ascending; `positions` index `indices`.

    Up to `gap` rows between two wanted ones belong to a run.

    >>> [(start, stop, at.tolist()) for start, stop, at in runs(np.array([9, 2, 3, 2]), gap=1)]
    [(2, 4, [1, 3, 2]), (9, 10, [0])]
    """
    if len(indices) and _consecutive(indices):
        yield int(indices[0]), int(indices[-1]) + 1, np.arange(len(indices))
        return
    order = np.argsort(indices, kind="stable")
    ordered = indices[order]
    cuts = np.flatnonzero(np.diff(ordered) > gap + 1) + 1
    for part in np.split(order, cuts) if len(order) else ():
        yield int(indices[part[0]]), int(indices[part[-1]]) + 1, part


class RunItems(ArrayItems):
    """Values of one dtype and shape, read by runs of rows.

    `scattered` is for libraries that read different rows, ascending, faster by one call than by many.
    """

    def __init__(self, rows: Rows, kind: Fixed, scattered: Callable[[NdArray], NdArray] | None = None) -> None:
        self._rows, self._scattered = rows, scattered
        self.shape = tuple(size for size in kind.dimensions if size is not None)
        self.dtype = kind.stored
        self.is_array = isinstance(kind, Array)
        self._gap = GAP_BYTES // max(1, math.prod(self.shape) * self.dtype.itemsize)

    def get(self, index: int) -> Any:
        """Return the value of sample `index`."""
        row = self._rows(index, index + 1)
        return row[0, ...].astype(self.dtype, copy=False) if self.is_array else row.item()

    def gather(self, indices: NdArray, out: NdArray | None = None) -> NdArray:
        """Return the values of samples `indices` as one array, in `out` if given.

        A batch of consecutive samples is what the library returns, without a copy.
        """
        if self._scattered is not None and len(indices) > 1 and not _consecutive(indices):
            wanted, positions = np.unique(indices, return_inverse=True)
            return take_rows(self._scattered(wanted).astype(self.dtype, copy=False), positions, out)
        for start, stop, positions in runs(indices, self._gap):
            rows: NdArray = self._rows(start, stop)
            if out is None and len(rows) == len(indices) and _consecutive(indices):
                return rows.astype(self.dtype, copy=not rows.flags.writeable)  # a batch is the caller's own
            if out is None:
                out = empty((len(indices), *self.shape), self.dtype)
            if len(positions) == 1:
                out[positions[0]] = rows[-1]
            else:
                out[positions] = rows[indices[positions] - start]
        return empty((0, *self.shape), self.dtype) if out is None else out


class RaggedItems:
    """Values of differing length: `values(start, stop)` reads elements, `ends(start, stop)` where samples end.

    ``ends(i, i + 2)`` are the first element of sample i and the first one behind it.
    """

    def __init__(self, values: Rows, ends: Rows, field: Field, path: str, shapes: Rows | None = None) -> None:
        self._values, self._ends, self._shapes = values, ends, shapes
        self._field, self._path = field, path
        self._element = field.kind.stored.itemsize if isinstance(field.kind, Array) else 1

    def get(self, index: int) -> Any:
        """Return the value of sample `index`."""
        return self.gather(np.array([index]))[0]

    def gather(self, indices: NdArray) -> list[Any]:
        """Return the values of samples `indices` as a list."""
        spans = np.empty((len(indices), 2), np.int64)
        shapes: NdArray | None = None
        for start, stop, positions in runs(indices, GAP_BYTES // 8):
            ends = self._ends(start, stop + 1).astype(np.int64)
            if ends[0] < 0 or (np.diff(ends) < 0).any():
                raise FormatError(f"{self._where(start)}: the offsets decrease")
            rows = indices[positions] - start
            spans[positions, 0], spans[positions, 1] = ends[rows], ends[rows + 1]
            if self._shapes is not None:
                found = self._shapes(start, stop)
                shapes = np.empty((len(indices), found.shape[1]), np.int64) if shapes is None else shapes
                shapes[positions] = found[rows]
        values: list[Any] = [None] * len(indices)
        for begin, end, positions in _merged(spans, GAP_BYTES // self._element):
            elements = self._values(begin, end)
            for position in positions.tolist():
                low, high = spans[position].tolist()
                shape = None if shapes is None else shapes[position].tolist()
                values[position] = self._value(elements[low - begin : high - begin], shape, int(indices[position]))
        return values

    def _value(self, part: NdArray, shape: list[int] | None, index: int) -> Any:
        kind = self._field.kind
        try:
            if isinstance(kind, Variable):
                return kind.decode(memoryview(part.tobytes()))
            assert isinstance(kind, Array)
            sizes = iter([-1] if shape is None else shape)
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
        return self.items.get(index) if self._valid(index, index + 1).item() else None

    def gather(self, indices: NdArray) -> list[Any]:
        """Return the values of samples `indices` as a list with None for nulls."""
        values: list[Any] = [None] * len(indices)
        kept = np.flatnonzero(self.valid(indices))
        found = self.items.gather(indices[kept])
        if isinstance(found, np.ndarray):  # found[k] alone would be a numpy scalar where arrays have rank 0
            found = [found[k, ...] for k in range(len(found))] if self._arrays else found.tolist()
        for position, value in zip(kept.tolist(), found, strict=True):
            values[position] = value
        return values

    def valid(self, indices: NdArray) -> NdArray:
        """Return whether each of samples `indices` has a value: bool of shape (B,)."""
        valid = np.empty(len(indices), bool)
        for start, stop, positions in runs(indices, GAP_BYTES):
            valid[positions] = self._valid(start, stop)[indices[positions] - start] != 0
        return valid

    @property
    def _arrays(self) -> bool:
        return not isinstance(self.items, ArrayItems) or self.items.is_array


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
        for start, stop, positions in runs(indices, GAP_ROWS):
            values = self._rows(start, stop)
            for position in positions.tolist():
                found[position] = values[int(indices[position]) - start]
        return found


def _consecutive(indices: NdArray) -> bool:
    return bool(indices[-1] - indices[0] == len(indices) - 1 and (np.diff(indices) == 1).all())


def _merged(spans: NdArray, gap: int) -> Iterator[tuple[int, int, NdArray]]:
    """Yield (begin, end, positions) for stretches that cover `spans`, with up to `gap` elements between two of them."""
    order = np.argsort(spans[:, 0], kind="stable")
    ends = np.maximum.accumulate(spans[order, 1])
    cuts = np.flatnonzero(spans[order[1:], 0] - ends[:-1] > gap) + 1
    for part in np.split(order, cuts) if len(order) else ():
        yield int(spans[part[0], 0]), int(spans[part, 1].max()), part
