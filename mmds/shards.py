"""Several ``.mmds`` files of one schema as one dataset.

Files are opened when a sample of theirs is read, and only so many stay open: each takes a file descriptor. What is known of
all of them is a path, a content id and the number of samples.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import resource
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np

from mmds.errors import ChangedError, SchemaError, printable
from mmds.fields import Array, Fixed
from mmds.gather import Allocate, empty
from mmds.items import NullableItems, VariableItems, join_parts
from mmds.jagged import Jagged
from mmds.mapped import MappedFile
from mmds.readahead import DiskReads
from mmds.store import ArrayItems, Items, MaskedItems

NdArray = np.ndarray[Any, Any]
Of = Callable[[MappedFile], Any]  # the items of a field in one file

LEAST, MOST = 16, 4096  # files that stay open, whatever the process may open
SMALL = 2**12  # bytes of a value below which copying it twice is faster than a loop over single ones


class Shards:
    """The samples of several files, one file after the other. A `MappedStore`."""

    def __init__(self, paths: Sequence[str | os.PathLike[str]], *, in_memory: bool = False) -> None:
        self._in_memory = in_memory
        self.paths = [os.fspath(path) for path in paths]
        if not self.paths:
            raise ValueError("no files: expected at least one")
        self.path = self.paths[0] + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self.file = lru_cache(None if in_memory else min(max(limit // 4, LEAST), MOST))(self._open)
        self._ids: list[str] = []
        self._ends: list[int] = []
        first = self.file(0)
        self.schema, self.metadata = first.schema, first.metadata
        for number in range(len(paths)):
            file = self.file(number)
            if file.schema.to_json() != self.schema.to_json():
                raise SchemaError(
                    f"{printable(file.path)}: has other fields than {printable(first.path)}: {_fields(file)}; "
                    f"expected {_fields(first)}. Files of one dataset have the same fields"
                )
            self._ids.append(file.content_id)
            self._ends.append((self._ends[-1] if self._ends else 0) + file.n)
        self.n = self._ends[-1]
        self.content_id = hashlib.sha256("".join(self._ids).encode()).hexdigest()[:32]
        self._starts = np.array([0, *self._ends], np.int64)
        self.items: list[Items] = [self._items(position) for position in range(len(self.schema))]
        self.wanted = DiskReads().wanted

    def find(self, index: int) -> tuple[MappedFile, int]:
        """Return the file of sample `index`, and its number there."""
        number = bisect_right(self._ends, index)
        return self.file(number), index - self._starts.item(number)

    def split(self, indices: NdArray) -> Iterator[tuple[MappedFile, NdArray, NdArray]]:
        """Yield for each file that holds some of samples `indices` (file, positions in `indices`, numbers in the file)."""
        numbers = np.searchsorted(self._starts, indices, "right") - 1
        order = np.argsort(numbers, kind="stable")
        for part in np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1) if len(order) else ():
            number = numbers.item(part[0])
            yield self.file(number), part, indices[part] - self._starts[number]

    def cut(self, rows: range) -> Iterator[tuple[MappedFile, range]]:
        """Yield (file, rows in it) for each file that holds some of `rows`, which are neighbours; at least one."""
        for number, (start, end) in enumerate(zip(self._starts.tolist(), self._ends, strict=False)):
            inside = range(max(rows.start, start) - start, min(rows.stop, end) - start)
            if inside or (not rows and not number):
                yield self.file(number), inside

    def ask(self, positions: Sequence[int], rows: NdArray) -> None:
        """Ask the kernel to read `rows` of the fields at `positions`. Does not wait for it."""
        for file, _, inside in self.split(rows):
            file.ask(positions, inside)

    def release(self, positions: Sequence[int], rows: NdArray) -> None:
        """Take `rows` of the fields at `positions` out of this process; they stay in the page cache."""
        for file, _, inside in self.split(rows):
            file.release(positions, inside)

    def _open(self, number: int) -> MappedFile:
        file = MappedFile(self.paths[number], in_memory=self._in_memory)
        if number < len(self._ids) and file.content_id != self._ids[number]:
            raise ChangedError(
                f"{printable(file.path)} was replaced since this dataset was opened: content id {file.content_id}, "
                f"expected {self._ids[number]}. Open the dataset again to read the new file"
            )
        return file

    def _items(self, position: int) -> Items:
        kind = self.schema[position].kind

        def of(file: MappedFile) -> Any:
            items = file.items[position]
            return items.items if isinstance(items, NullableItems) else items

        fixed = isinstance(kind, Fixed) and not kind.unknown
        items = ShardedArrays(self, of, kind) if fixed else ShardedValues(self, of)
        return MaskedItems(items, partial(self._valid, position)) if kind.nullable else items

    def _valid(self, position: int, start: int, stop: int) -> NdArray:
        parts = [file.items[position].valid[rows] for file, _, rows in self.split(np.arange(start, stop))]  # type: ignore[attr-defined]
        return np.concatenate(parts)


class ShardedArrays(ArrayItems):
    """Values of one dtype and shape in several files."""

    def __init__(self, shards: Shards, of: Of, kind: Fixed) -> None:
        self._shards, self._of = shards, of
        self.shape = tuple(size for size in kind.dimensions if size is not None)
        self.dtype, self.is_array = kind.stored, isinstance(kind, Array)
        self._small = math.prod(self.shape) * self.dtype.itemsize < SMALL

    def get(self, index: int) -> Any:
        """Return the value of sample `index`."""
        file, row = self._shards.find(index)
        return self._of(file).get(row)

    def gather(self, indices: NdArray, out: NdArray | None = None) -> NdArray:
        """Return the values of samples `indices` as one array, in `out` if given: one copy from the mapped files."""
        if out is None:
            out = empty((len(indices), *self.shape), self.dtype)
        for file, positions, rows in self._shards.split(indices):
            items = self._of(file)
            if len(rows) == len(indices):  # all of them
                items.gather(rows, out)
            elif self._small:
                out[positions] = items.gather(rows)
            else:
                for position, row in zip(positions.tolist(), rows.tolist(), strict=True):
                    out[position] = items.get(row)
        return out


class ShardedValues:
    """Values whose lengths differ in several files."""

    def __init__(self, shards: Shards, of: Of) -> None:
        self._shards, self._of = shards, of

    def get(self, index: int) -> Any:
        """Return the value of sample `index`."""
        file, row = self._shards.find(index)
        return self._of(file).get(row)

    def gather(self, indices: NdArray) -> list[Any]:
        """Return the values of samples `indices` as a list."""
        values: list[Any] = [None] * len(indices)
        for file, positions, rows in self._shards.split(indices):
            for position, value in zip(positions.tolist(), self._of(file).gather(rows), strict=True):
                values[position] = value
        return values

    def jagged(
        self, indices: NdArray, dtype: np.dtype[Any], inner: tuple[int, ...], allocate: Allocate = empty
    ) -> Jagged | None:
        """Return the values of samples `indices` one after the other, as `VariableItems.jagged` does."""
        parts: list[Any] = [None] * len(indices)
        size = math.prod(inner) * dtype.itemsize
        for file, positions, rows in self._shards.split(indices):
            items: VariableItems = self._of(file)
            spans = items.spans(rows, size)
            if spans is None:
                return None
            for position, part in zip(positions.tolist(), items.parts(spans), strict=True):
                parts[position] = part
        places = [0, *itertools.accumulate(map(len, parts))]
        joined = join_parts(parts, places, allocate)
        return Jagged(joined.view(dtype).reshape(-1, *inner), np.array(places, np.int64) // size)


def _fields(file: MappedFile) -> str:
    return printable(", ".join(f"{field.name}: {field.kind!r}" for field in file.schema))
