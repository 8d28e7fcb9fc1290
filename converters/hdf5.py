"""HDF5 through h5py: one dataset per field with the sample axis first, as `arrays.py` describes.

A file from elsewhere is read too: all datasets that share their first dimension are fields, in any group. What an HDF5
file can do beyond holding data is refused: external and virtual storage, links to other files, soft links, and datasets
that declare much more than the file holds.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np

from mmds.columns import Column
from mmds.converters.arrays import ArrayWriter
from mmds.converters.arraystore import ArrayStore, Rowed, blaming, refuse_chunk, refuse_inflation
from mmds.errors import FormatError, SchemaError, printable
from mmds.fields import Array, Kind, Text
from mmds.store import Rows, file_identity

NdArray = np.ndarray[Any, Any]

# Rows of a chunk without filters are read alone if it does not fit into the cache. Filtered ones have to be read whole, so
# that the last one is kept, unless it is so large that a cache per process would hurt more than unpacking it again.
MAX_CACHE_BYTES = 2**25
MAX_DEPTH = 32
DESCRIPTION = "__mmds__"  # no field's array is called so


class _Output(io.FileIO):
    """A file that takes everything and keeps its first error: HDF5 crashes the process, later, once it has seen one."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data)
        try:
            while view and self.error is None:
                view = view[super().write(view) or 0 :]
        except OSError as error:
            self.error = error
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0


class Writer(ArrayWriter):
    """Writes an HDF5 file. Chunks hold whole samples, about 64 KiB of them, for random access."""

    block_bytes: ClassVar[int] = 2**22
    _file: Any = None
    _output: _Output | None = None

    def create_group(self) -> None:
        self._output = _Output(self.staging.content, "x+")
        self._file = h5py.File(self._output, "w", libver=("v110", "v110"))

    def append(self, columns: list[Column], size: int) -> None:
        super().append(columns, size)
        self._check()

    def _check(self) -> None:
        if self._output is not None and self._output.error is not None:
            raise self._output.error

    def create_array(
        self, name: str, dtype: np.dtype[Any], row: tuple[int, ...], chunk: int, block: int
    ) -> Callable[[NdArray], None]:
        array = self._file.create_dataset(name, (0, *row), dtype, maxshape=(None, *row), chunks=(chunk, *row))
        start = 0

        def append(rows: NdArray) -> None:
            nonlocal start
            array.resize(start + len(rows), axis=0)
            array[start:] = rows
            start += len(rows)

        return append

    def describe(self, description: str) -> None:
        # As a dataset: an attribute must fit into an object header of 64 KiB, and a schema may be larger.
        self._file.attrs["mmds"] = 1
        self._file.create_dataset(DESCRIPTION, data=np.frombuffer(description.encode(), np.uint8))

    def close_library(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()
        output, self._output = self._output, None
        if output is not None:
            output.close()
            if output.error is not None:
                raise output.error


class HDF5Store(ArrayStore):
    """An open HDF5 file."""

    def kind_of(self, array: Rowed) -> Kind:
        if h5py.check_string_dtype(array.dtype) is not None:
            if len(array.shape) > 1:
                raise SchemaError("an array of strings per sample")
            return Text()
        element = h5py.check_vlen_dtype(array.dtype)
        if element is not None and len(array.shape) == 1:
            return Array(element, (None,))
        return super().kind_of(array)

    def list_of(self, array: Any, name: str) -> Rows:
        if h5py.check_string_dtype(array.dtype) is not None:
            array = _Strings(array)
        return super().list_of(array, name)


class _Strings:
    """A dataset of strings, read as str."""

    def __init__(self, array: Any) -> None:
        self.shape, self.dtype, self._array = array.shape, array.dtype, array

    def __getitem__(self, rows: slice) -> Any:
        return self._array.asstr("utf-8")[rows]  # what is declared ASCII too: numpy has no other


def open_store(path: str) -> HDF5Store:
    """Open an HDF5 file; `FormatError` where it is none or asks for more than its own bytes."""
    identity = file_identity(path)
    arrays: dict[str, Any] = {}
    with blaming(f"{printable(path)}: not a readable HDF5 file"):
        file = h5py.File(path, "r", rdcc_nbytes=0)
    with blaming(f"{printable(path)}: damaged"):
        _collect(path, file, "", arrays, {file})
        refuse_inflation(path, sum(array.nbytes for array in arrays.values() if array.shape), Path(path).stat().st_size)
        description = None
        if "mmds" in file.attrs:
            if DESCRIPTION not in arrays:
                raise FormatError(f"{printable(path)}: the dataset {DESCRIPTION} with the schema is missing")
            description = arrays.pop(DESCRIPTION)[:].tobytes()
        return HDF5Store(path, arrays, description, identity, file)


def _collect(path: str, group: Any, prefix: str, arrays: dict[str, Any], seen: set[Any]) -> None:
    """Add all datasets below `group` by their names; refuse what is not plain data in this file."""
    for key in group:
        name = prefix + key
        where = f"{printable(path)}: {printable(name)}"
        link = group.get(key, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise FormatError(f"{where}: {type(link).__name__} refused: data must be in the file itself")
        found = group[key]
        if isinstance(found, h5py.Group):
            if found in seen or prefix.count("/") >= MAX_DEPTH:
                raise FormatError(f"{where}: a group in two places, or deeper than {MAX_DEPTH}: refused")
            seen.add(found)
            _collect(path, found, name + "/", arrays, seen)
        elif isinstance(found, h5py.Dataset):
            if found.is_virtual or found.external:
                raise FormatError(f"{where}: virtual or external storage refused: data must be in the file itself")
            arrays[name] = found
            chunk = _filtered_chunk(found)
            refuse_chunk(path, name, chunk)
            if chunk:
                del found, arrays[name]  # a dataset that is open already would keep the cache that it has
                access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
                access.set_chunk_cache(1, min(chunk, MAX_CACHE_BYTES), 1.0)
                arrays[name] = h5py.Dataset(h5py.h5d.open(group.id, key.encode("utf-8", "surrogateescape"), access))


def _filtered_chunk(dataset: Any) -> int:
    """Return the bytes of a chunk of a dataset whose chunks are filtered, else 0."""
    if not dataset.chunks or not dataset.id.get_create_plist().get_nfilters():
        return 0
    return int(math.prod(dataset.chunks)) * int(dataset.dtype.itemsize)
