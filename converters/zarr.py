"""Zarr through zarr-python: one sharded array per field with the sample axis first, as `arrays.py` describes.

A shard is one file of about 64 MiB over all fields, an inner chunk whole samples of about 64 KiB. Groups and single arrays
from elsewhere are read too, format 2 and 3, in a local folder. Refused are codecs that unpickle, and arrays that declare
much more than the folder holds: chunks that are not there would be read as fill values for ever.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.storage import LocalStore

from mmds.converters.arrays import BLOCK_BYTES, ArrayWriter
from mmds.converters.arraystore import MAX_RATIO, ArrayStore, blaming, refuse_chunk, refuse_inflation, stored_bytes
from mmds.converters.inside import plain_file
from mmds.errors import FormatError, printable
from mmds.store import file_identity

NdArray = np.ndarray[Any, Any]


class Writer(ArrayWriter):
    """Writes a folder in Zarr format 3. Shards are written once and whole."""

    def create_group(self) -> None:
        self._group = zarr.create_group(LocalStore(self.staging.content), zarr_format=3)

    def create_array(
        self, name: str, dtype: np.dtype[Any], row: tuple[int, ...], chunk: int, block: int
    ) -> Callable[[NdArray], None]:
        *groups, last = name.split("/")
        group = self._group.require_group("/".join(groups)) if groups else self._group
        array = group.create_array(
            last,
            shape=(0, *row),
            chunks=(chunk, *row),
            shards=(block, *row),
            dtype=dtype,
            compressors=None,
            # Chunks equal to the fill value would be left out, and -0.0 equals 0.0.
            config={"write_empty_chunks": True},
        )
        start = 0

        def append(rows: NdArray) -> None:
            nonlocal start
            array.resize((start + len(rows), *row))
            array[start : start + len(rows)] = rows
            start += len(rows)

        return append

    def describe(self, description: str) -> None:
        self._group.attrs["mmds"] = description


class ConfinedStore(LocalStore):
    """A folder of which only plain files are read: no link out of it, no FIFO, which would be waited for."""

    async def get(self, key: str, prototype: Any = None, byte_range: Any = None) -> Any:
        """Return the content of a file, None where there is none."""
        return await super().get(key, prototype, byte_range) if self._is_plain(key) else None

    def get_sync(self, key: str, **options: Any) -> Any:
        """Return the content of a file, None where there is none; only newer versions of zarr ask for it so."""
        return super().get_sync(key, **options) if self._is_plain(key) else None

    async def get_partial_values(self, prototype: Any, key_ranges: Any) -> Any:
        """Return parts of files."""
        ranges = list(key_ranges)
        for key, _ in ranges:
            self._is_plain(key)
        return await super().get_partial_values(prototype, ranges)

    def _is_plain(self, key: str) -> bool:
        try:
            plain_file(self.root / key, self.root)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True


class Ahead:
    """A Zarr array that keeps the shard (or chunk) it is in while it is read from front to back.

    A part of a shard takes a call of the file system and a task per chunk; a whole shard one, and half the time.
    """

    def __init__(self, array: Any) -> None:
        self.shape, self.dtype, self._array = array.shape, array.dtype, array
        self._size = int((array.shards or array.chunks)[0])
        if self._size * math.prod(self.shape[1:]) * self.dtype.itemsize > BLOCK_BYTES:
            self._size = 0
        self._next = -1
        self._held: tuple[int, Any] = (-1, None)

    def __getitem__(self, rows: slice) -> Any:
        start, stop = rows.start, rows.stop
        ahead, self._next = start == self._next and stop - start < self._size, stop
        if not ahead:
            return self._array[start:stop]
        parts = []
        while start < stop:
            number, first = start // self._size, start % self._size
            held, shard = self._held
            if held != number:
                shard = self._array[number * self._size : (number + 1) * self._size]
                self._held = number, shard
            parts.append(shard[first : first + stop - start])
            start += len(parts[-1])
        return np.concatenate(parts)


def open_store(path: str) -> ArrayStore:
    """Open a Zarr group or array in a folder; `FormatError` where it is none or would not be safe to read."""
    identity = file_identity(path)
    if not Path(path).is_dir():
        raise FormatError(f"{printable(path)}: not a folder, so not a Zarr group")
    with blaming(f"{printable(path)}: not a readable Zarr group"), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # of files that are no part of the hierarchy, of types not yet in the specification
        root = zarr.open(ConfinedStore(path, read_only=True), mode="r")
        arrays: dict[str, Any] = {}
        if isinstance(root, zarr.Array):
            arrays[""] = root
        else:
            arrays.update((name, node) for name, node in sorted(root.members(None)) if isinstance(node, zarr.Array))
        for name, array in arrays.items():
            _refuse_pickles(f"{printable(path)}: {printable(name)}", array)
            refuse_chunk(path, name, math.prod(array.chunks) * array.dtype.itemsize)
        declared = sum(array.nbytes for array in arrays.values())
        arrays = {name: Ahead(array) if array.ndim else array for name, array in arrays.items()}
        refuse_inflation(path, declared, stored_bytes(path, declared // MAX_RATIO + 1))
        description: Any = root.attrs.get("mmds") if isinstance(root, zarr.Group) else None
        return ArrayStore(path, arrays, description, identity)


def _refuse_pickles(where: str, array: Any) -> None:
    for codec in _codecs(array.metadata.to_dict()):
        if "pickle" in codec:
            raise FormatError(f"{where}: the codec {printable(codec)} refused: nothing is ever unpickled")


def _codecs(node: Any) -> Iterator[str]:
    """Yield the names of all codecs anywhere in an array's metadata."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("id", "name") and isinstance(value, str):
                yield value
            else:
                yield from _codecs(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _codecs(value)
