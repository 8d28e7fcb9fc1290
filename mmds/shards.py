"""Several ``.mmds`` files of one schema as one dataset.

Files are opened when a sample of theirs is read, and only so many stay open: each takes a file descriptor. What is known of
all of them is a path, a content id and the number of samples: from a folder's manifest, which costs one look at the first
file, or from a look at each.
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

from mmds.datafile import DataFile
from mmds.errors import ChangedError, FormatError, SchemaError, printable
from mmds.fields import Array, Fixed
from mmds.format import schema_id
from mmds.gather import Allocate, empty
from mmds.items import NullableItems, VariableItems, join_parts
from mmds.jagged import Jagged
from mmds.manifest import NAME, Manifest, open_listed
from mmds.openfile import Reading, open_file
from mmds.readahead import DiskReads
from mmds.store import ArrayItems, Items, MaskedItems

NdArray = np.ndarray[Any, Any]
Of = Callable[[DataFile], Any]  # the items of a field in one file

LEAST, MOST = 16, 4096  # files that stay open, whatever the process may open
SMALL = 2**12  # bytes of a value below which copying it twice is faster than a loop over single ones


class Shards:
    """The samples of several files, one file after the other. A `MappedStore`."""

    def __init__(
        self, paths: Sequence[str | os.PathLike[str]], manifest: Manifest | None = None, reading: Reading = "mapped"
    ) -> None:
        """Open the files at `paths`; with a `manifest`, the shards that it lists, of the folder that is the only path."""
        self._paths = [os.fspath(path) for path in paths]
        self.manifest, self._reading = manifest, reading
        if not self._paths:
            raise ValueError("no files: expected at least one")
        self.source = self._paths[0]
        self.path = self.source + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self.file = lru_cache(None if reading == "in memory" else min(max(limit // 4, LEAST), MOST))(self._open)
        self._ids: list[str] = []
        first = self._first = self.file(0)
        self.schema, self.metadata, self._fields = first.schema, first.metadata, first.schema.to_json()
        if manifest is None:
            counts = [self._learn(number) for number in range(len(paths))]
            self.content_id = hashlib.sha256("".join(self._ids).encode()).hexdigest()[:32]
        else:
            if schema_id(self.schema).hex() != manifest.schema_id:
                raise FormatError(f"{printable(first.path)}: has other fields than {NAME} says")
            counts = [shard.n for shard in manifest.shards]
            self.content_id = manifest.content_id
        self._ends = list(itertools.accumulate(counts))
        self._starts = np.array([0, *self._ends], np.int64)
        self.n = self._ends[-1]
        self.items: list[Items] = [self._items(position) for position in range(len(self.schema))]
        self.wanted = DiskReads().wanted

    def find(self, index: int) -> tuple[DataFile, int]:
        """Return the file of sample `index`, and its number there."""
        number = bisect_right(self._ends, index)
        return self.file(number), index - self._starts.item(number)

    def split(self, indices: NdArray) -> Iterator[tuple[DataFile, NdArray, NdArray]]:
        """Yield for each file that holds some of samples `indices` (file, positions in `indices`, numbers in the file)."""
        numbers = np.searchsorted(self._starts, indices, "right") - 1
        order = np.argsort(numbers, kind="stable")
        for part in np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1) if len(order) else ():
            number = numbers.item(part[0])
            yield self.file(number), part, indices[part] - self._starts[number]

    def cut(self, rows: range) -> Iterator[tuple[DataFile, range]]:
        """Yield (file, rows in it) for each file that holds some of `rows`, which are neighbours; at least one."""
        for number, (start, end) in enumerate(zip(self._starts.tolist(), self._ends, strict=False)):
            inside = range(max(rows.start, start) - start, min(rows.stop, end) - start)
            if inside or (not rows and not number):
                yield self.file(number), inside

    def files(self) -> Iterator[DataFile]:
        """Yield each file, empty ones too."""
        return map(self.file, range(len(self._ends)))

    def find_key(self, position: int, data: bytes) -> Iterator[int]:
        """Yield the samples whose value of the key field at `position` has the bytes `data`, file by file."""
        for number, start in enumerate(self._starts[:-1].tolist()):
            for row in self.file(number).find_key(position, data):
                yield start + row

    def ask(self, positions: Sequence[int], rows: NdArray) -> None:
        """Ask the kernel to read `rows` of the fields at `positions`. Does not wait for it."""
        for file, _, inside in self.split(rows):
            file.ask(positions, inside)

    def release(self, positions: Sequence[int], rows: NdArray) -> None:
        """Take `rows` of the fields at `positions` out of this process; they stay in the page cache."""
        for file, _, inside in self.split(rows):
            file.release(positions, inside)

    def _open(self, number: int) -> DataFile:
        if self.manifest is not None:
            file = open_listed(self.source, self.manifest.shards[number], self._reading)
            if number:
                self._check_fields(file)
            return file
        file = open_file(self._paths[number], self._reading)
        if number < len(self._ids) and file.content_id != self._ids[number]:
            raise ChangedError(
                f"{printable(file.path)} was replaced since this dataset was opened: content id {file.content_id}, "
                f"expected {self._ids[number]}. Open the dataset again to read the new file"
            )
        return file

    def _learn(self, number: int) -> int:
        """Look at a file that nothing is known of yet, and return the number of its samples."""
        file = self.file(number)
        self._check_fields(file)
        self._ids.append(file.content_id)
        return file.n

    def _check_fields(self, file: DataFile) -> None:
        if file.schema.to_json() != self._fields:
            raise SchemaError(
                f"{printable(file.path)}: has other fields than {printable(self._first.path)}: {_fields(file)}; "
                f"expected {_fields(self._first)}. Files of one dataset have the same fields"
            )

    def _items(self, position: int) -> Items:
        kind = self.schema[position].kind
        if len(self._ends) == 1:  # nothing to put together
            return self._first.items[position]

        def of(file: DataFile) -> Any:
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
            spans = items.value_spans(rows, size)
            if spans is None:
                return None
            for position, part in zip(positions.tolist(), items.parts(spans), strict=True):
                parts[position] = part
        places = [0, *itertools.accumulate(map(len, parts))]
        joined = join_parts(parts, places, allocate)
        return Jagged(joined.view(dtype).reshape(-1, *inner), np.array(places, np.int64) // size)


def _fields(file: DataFile) -> str:
    return printable(", ".join(f"{field.name}: {field.kind!r}" for field in file.schema))
