"""Several ``.mmds`` files of one schema as one dataset.

Files are opened when a sample of theirs is read, and only so many stay open: each takes a file descriptor. What is known of
all of them is a path, a content id and the number of samples: from a folder's manifest, which costs one look at the first
file, or from a look at each.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import math
import os
import resource
import weakref
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np

from mmds.datafile import DataFile
from mmds.errors import ChangedError, FormatError, SchemaError, StorageError, printable
from mmds.fields import Array, Fixed, Kind
from mmds.format import schema_id
from mmds.gather import Allocate, empty
from mmds.items import NullableItems, VariableItems, join_parts
from mmds.jagged import Jagged
from mmds.manifest import NAME, Manifest, Shard, open_listed
from mmds.openfile import Reading, open_file
from mmds.readahead import DiskReads
from mmds.store import ArrayItems, Items, MaskedItems

NdArray = np.ndarray[Any, Any]
Of = Callable[[DataFile], Any]  # the items of a field in one file
Listed = Callable[[Shard], DataFile]  # opens what a manifest lists

TOO_MANY = (errno.EMFILE, errno.ENFILE)  # open files, in this process or in the whole system
LEAST, MOST = 16, 4096  # files that stay open, whatever the process may open
SMALL = 2**12  # bytes of a value below which copying it twice is faster than a loop over single ones


class _Opener:
    """Opens the files of a dataset, and checks that they are the ones that belong to it."""

    def __init__(self, paths: list[str], manifest: Manifest | None, reading: Reading, listed: Listed | None) -> None:
        self.paths, self.manifest, self._reading = paths, manifest, reading
        self._listed = listed or partial(open_listed, paths[0], reading=reading)
        self.ids: list[str] = []  # as far as files have been looked at, without a manifest
        self.first: DataFile | None = None

    def open(self, number: int) -> DataFile:
        """Return a file, open."""
        if self.manifest is not None:
            file = self._listed(self.manifest.shards[number])
            if number:
                self.check_fields(file)
            return file
        file = open_file(self.paths[number], self._reading)
        if number < len(self.ids) and file.content_id != self.ids[number]:
            raise ChangedError(
                f"{printable(file.path)} was replaced since this dataset was opened: content id {file.content_id}, "
                f"expected {self.ids[number]}. Open the dataset again to read the new file"
            )
        return file

    def check_fields(self, file: DataFile) -> None:
        """Raise `SchemaError` if a file has other fields than the first one."""
        assert self.first is not None
        if file.schema.to_json() != self.first.schema.to_json():
            raise SchemaError(
                f"{printable(file.path)}: has other fields than {printable(self.first.path)}: {_fields(file)}; "
                f"expected {_fields(self.first)}. Files of one dataset have the same fields"
            )


class Files:
    """The files of a dataset, of which only some are open, and the samples that each has.

    Nothing here refers to the dataset, so that its files are closed as soon as it is dropped.
    """

    def __init__(self, opener: _Opener, most: int | None) -> None:
        self.file = lru_cache(most)(partial(_open_within_limits, opener))
        _all_files.add(self)
        self.ends: list[int] = []
        self.starts: NdArray = np.zeros(1, np.int64)

    def count(self, counts: list[int]) -> None:
        """Take over how many samples each file has."""
        self.ends = list(itertools.accumulate(counts))
        self.starts = np.array([0, *self.ends], np.int64)

    def find(self, index: int) -> tuple[DataFile, int]:
        """Return the file of sample `index`, and its number there."""
        number = bisect_right(self.ends, index)
        return self.file(number), index - self.starts.item(number)

    def split(self, indices: NdArray) -> Iterator[tuple[DataFile, NdArray, NdArray]]:
        """Yield for each file that holds some of samples `indices` (file, positions in `indices`, numbers in the file)."""
        numbers = np.searchsorted(self.starts, indices, "right") - 1
        order = np.argsort(numbers, kind="stable")
        for part in np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1) if len(order) else ():
            number = numbers.item(part[0])
            yield self.file(number), part, indices[part] - self.starts[number]


_all_files: weakref.WeakSet[Files] = weakref.WeakSet()


def _open_within_limits(opener: _Opener, number: int) -> DataFile:
    """Open a file; where this process has too many open, let go of all that no dataset uses just now, and try again."""
    try:
        return opener.open(number)
    except OSError as error:
        if error.errno not in TOO_MANY:
            raise
    for files in list(_all_files):
        files.file.cache_clear()
    try:
        return opener.open(number)
    except OSError as error:
        if error.errno not in TOO_MANY:
            raise
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        raise StorageError(
            error.errno,
            f"{printable(opener.paths[0])}: file {number} cannot be opened: {os.strerror(error.errno or 0)}; this "
            f"process may have {limit} (ulimit -n). Arrays read without a copy keep their file open: copy those that are "
            "kept, open fewer datasets, or raise the limit",
        ) from None


class Shards:
    """The samples of several files, one file after the other. A `MappedStore`."""

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        manifest: Manifest | None = None,
        reading: Reading = "mapped",
        listed: Listed | None = None,
    ) -> None:
        """Open the files at `paths`; with a `manifest`, the shards that it lists, of the folder that is the only path.

        `listed` opens those, if they are somewhere else.
        """
        if not paths:
            raise ValueError("no files: expected at least one")
        opener = _Opener([os.fspath(path) for path in paths], manifest, reading, listed)
        self.manifest = manifest
        self.source = opener.paths[0]
        self.path = self.source + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._files = Files(opener, None if reading == "in memory" else min(max(limit // 4, LEAST), MOST))
        first = opener.first = self._files.file(0)
        self.schema, self.metadata = first.schema, first.metadata
        if manifest is None:
            counts = []
            for number in range(len(paths)):
                file = self._files.file(number)
                opener.check_fields(file)
                opener.ids.append(file.content_id)
                counts.append(file.n)
            self.content_id = hashlib.sha256("".join(opener.ids).encode()).hexdigest()[:32]
        else:
            if schema_id(self.schema).hex() != manifest.schema_id:
                raise FormatError(f"{printable(first.path)}: has other fields than {NAME} says")
            counts = [shard.n for shard in manifest.shards]
            self.content_id = manifest.content_id
        self._files.count(counts)
        self.n = sum(counts)
        self.items: list[Items] = [
            first.items[position] if len(counts) == 1 else _items(self._files, position, field.kind)
            for position, field in enumerate(self.schema)
        ]
        self.wanted = DiskReads().wanted
        self.split, self.find = self._files.split, self._files.find
        self.downloads: Any = None  # a `Downloads`, if files come from object storage through a cache

    def cut(self, rows: range) -> Iterator[tuple[DataFile, range]]:
        """Yield (file, rows in it) for each file that holds some of `rows`, which are neighbours; at least one."""
        starts, ends = self._files.starts, self._files.ends
        if not rows:
            yield self._files.file(0), range(0)
            return
        for number in range(bisect_right(ends, rows.start), bisect_left(ends, rows.stop) + 1):
            start = starts.item(number)
            inside = range(max(rows.start, start) - start, min(rows.stop, ends[number]) - start)
            if inside:
                yield self._files.file(number), inside

    def files(self) -> Iterator[DataFile]:
        """Yield each file, empty ones too."""
        return map(self._files.file, range(len(self._files.ends)))

    def numbers(self, rows: NdArray) -> list[int]:
        """Return which files hold samples `rows`: each once, in the order in which they come."""
        return list(dict.fromkeys((self._files.starts.searchsorted(rows, "right") - 1).tolist()))

    def forget(self) -> None:
        """Let go of all files that are not in use. They are opened again when they are."""
        self._files.file.cache_clear()

    def find_key(self, position: int, data: bytes) -> Iterator[int]:
        """Yield the samples whose value of the key field at `position` has the bytes `data`, file by file."""
        for start, file in zip(self._files.starts.tolist(), self.files(), strict=False):
            for row in file.find_key(position, data):
                yield start + row

    def ask(self, positions: Sequence[int], rows: NdArray) -> None:
        """Ask the kernel to read `rows` of the fields at `positions`. Does not wait for it, nor for a download."""
        if self.downloads is not None and self.manifest is not None:
            entries = self.manifest.shards
            if not all(self.downloads.has(entries[number]) for number in self.numbers(rows)):
                return  # what has just come is in memory
        for file, _, inside in self.split(rows):
            file.ask(positions, inside)

    def release(self, positions: Sequence[int], rows: NdArray) -> None:
        """Take `rows` of the fields at `positions` out of this process; they stay in the page cache."""
        for file, _, inside in self.split(rows):
            file.release(positions, inside)


def _items(files: Files, position: int, kind: Kind) -> Items:
    def of(file: DataFile) -> Any:
        items = file.items[position]
        return items.items if isinstance(items, NullableItems) else items

    def valid(start: int, stop: int) -> NdArray:
        parts = [file.items[position].valid[rows] for file, _, rows in files.split(np.arange(start, stop))]  # type: ignore[attr-defined]
        return np.concatenate(parts)

    items: Items = ShardedValues(files, of)
    if isinstance(kind, Fixed) and not kind.unknown:
        items = ShardedArrays(files, of, kind)
    return MaskedItems(items, valid) if kind.nullable else items


class ShardedArrays(ArrayItems):
    """Values of one dtype and shape in several files."""

    def __init__(self, files: Files, of: Of, kind: Fixed) -> None:
        self._files, self._of = files, of
        self.shape = tuple(size for size in kind.dimensions if size is not None)
        self.dtype, self.is_array = kind.stored, isinstance(kind, Array)
        self._small = math.prod(self.shape) * self.dtype.itemsize < SMALL

    def get(self, index: int) -> Any:
        """Return the value of sample `index`."""
        file, row = self._files.find(index)
        return self._of(file).get(row)

    def gather(self, indices: NdArray, out: NdArray | None = None) -> NdArray:
        """Return the values of samples `indices` as one array, in `out` if given: one copy from the mapped files."""
        if out is None:
            out = empty((len(indices), *self.shape), self.dtype)
        for file, positions, rows in self._files.split(indices):
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

    def __init__(self, files: Files, of: Of) -> None:
        self._files, self._of = files, of

    def get(self, index: int) -> Any:
        """Return the value of sample `index`."""
        file, row = self._files.find(index)
        return self._of(file).get(row)

    def gather(self, indices: NdArray) -> list[Any]:
        """Return the values of samples `indices` as a list."""
        values: list[Any] = [None] * len(indices)
        for file, positions, rows in self._files.split(indices):
            for position, value in zip(positions.tolist(), self._of(file).gather(rows), strict=True):
                values[position] = value
        return values

    def jagged(
        self, indices: NdArray, dtype: np.dtype[Any], inner: tuple[int, ...], allocate: Allocate = empty
    ) -> Jagged | None:
        """Return the values of samples `indices` one after the other, as `VariableItems.jagged` does."""
        parts: list[Any] = [None] * len(indices)
        size = math.prod(inner) * dtype.itemsize
        for file, positions, rows in self._files.split(indices):
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
