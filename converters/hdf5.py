"""HDF5 through h5py: one dataset per field with the sample axis first, as `arrays.py` describes.

A file from elsewhere is read too: all datasets that share their first dimension are fields, in any group. What an HDF5
file can do beyond holding data is refused: external and virtual storage, links to other files, soft links, and datasets
that declare much more than the file holds.
"""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np

from mmds.converters.arrays import ArrayStore, ArrayWriter, Rows, chunk_rows
from mmds.errors import FormatError, SchemaError, printable
from mmds.fields import Array, Kind, Text
from mmds.store import Items, ListItems, file_identity

NdArray = np.ndarray[Any, Any]

MAX_RATIO = 1100  # of declared to stored bytes: deflate, the filter with the highest ratio in use, reaches 1032
CACHE_BYTES = 2**20  # of chunks per dataset: random access seldom comes back, so more would be wasted private memory
MAX_DEPTH = 32


class Writer(ArrayWriter):
    """Writes an HDF5 file. Chunks hold whole samples, about 64 KiB of them, for random access."""

    _file: Any = None

    def create_group(self) -> None:
        self._file = h5py.File(self.staging.content, "w", libver=("v110", "v110"))

    def create_array(self, name: str, dtype: np.dtype[Any], row: tuple[int, ...]) -> Any:
        empty = 0 in row
        return (
            self._file.create_dataset(
                name, (0, *row), dtype, maxshape=(None, *row), chunks=None if empty else (chunk_rows(dtype, row), *row)
            )
            if not empty
            else self._file.create_dataset(
                name, (0, *row), dtype, maxshape=(None, *row), chunks=(1, *(size or 1 for size in row))
            )
        )

    def append_rows(self, array: Any, rows: NdArray) -> None:
        start = array.shape[0]
        array.resize(start + len(rows), axis=0)
        if rows.size:
            array[start:] = rows

    def describe_group(self, description: str) -> None:
        # As a dataset: an attribute must fit into an object header of 64 KiB, and a schema may be larger.
        self._file.attrs["mmds"] = 1
        self._file.create_dataset("__mmds__", data=np.frombuffer(description.encode(), np.uint8))

    def close_library(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class HDF5Store(ArrayStore):
    """An open HDF5 file."""

    def kind_of(self, array: Rows) -> Kind:
        if h5py.check_string_dtype(array.dtype) is not None:
            if len(array.shape) > 1:
                raise SchemaError("an array of strings per sample")
            return Text()
        element = h5py.check_vlen_dtype(array.dtype)
        if element is not None and len(array.shape) == 1:
            return Array(element, (None,))
        return super().kind_of(array)

    def other_items(self, array: Any) -> Items:
        if h5py.check_string_dtype(array.dtype) is not None:
            return ListItems(lambda start, stop: array.asstr()[start:stop].tolist())
        return ListItems(lambda start, stop: list(array[start:stop]))


def open_store(path: str) -> HDF5Store:
    """Open an HDF5 file; `FormatError` where it is none or asks for more than its own bytes."""
    identity = file_identity(path)
    try:
        file = h5py.File(path, "r", rdcc_nbytes=CACHE_BYTES, locking=False)
    except OSError as error:
        raise FormatError(f"{printable(path)}: not a readable HDF5 file: {printable(error)}") from None
    arrays: dict[str, Any] = {}
    try:
        _collect(path, file, "", arrays, 0)
        description = None
        if "mmds" in file.attrs:
            if "__mmds__" not in arrays:
                raise FormatError(f"{printable(path)}: the dataset __mmds__ with the schema is missing")
            description = bytes(arrays.pop("__mmds__")[:].tobytes())
        return HDF5Store(path, arrays, description, identity, file)
    except (OSError, RuntimeError, KeyError) as error:  # how h5py reports damaged structures
        raise FormatError(f"{printable(path)}: damaged: {printable(error)}") from None


def _collect(path: str, group: Any, prefix: str, arrays: dict[str, Any], depth: int) -> None:
    """Add all datasets below `group` by their names; refuse what is not plain data in this file."""
    if depth > MAX_DEPTH:
        raise FormatError(f"{printable(path)}: groups are nested deeper than {MAX_DEPTH}")
    for key in group:
        name = prefix + key
        where = f"{printable(path)}: {printable(name)}"
        link = group.get(key, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise FormatError(f"{where}: {type(link).__name__} refused: data must be in the file itself")
        found = group[key]
        if isinstance(found, h5py.Group):
            _collect(path, found, name + "/", arrays, depth + 1)
        elif isinstance(found, h5py.Dataset):
            _refuse_tricks(where, found)
            arrays[name] = found


def _refuse_tricks(where: str, dataset: Any) -> None:
    if dataset.is_virtual or dataset.external:
        raise FormatError(f"{where}: virtual or external storage refused: data must be in the file itself")
    stored = dataset.id.get_storage_size()
    if dataset.shape is not None and dataset.nbytes > max(stored * MAX_RATIO, 2**20):
        raise FormatError(f"{where}: declares {dataset.nbytes} bytes, but the file holds {stored} of them")
