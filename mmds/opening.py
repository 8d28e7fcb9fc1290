"""Opening a dataset for reading, whatever store it is in."""

from __future__ import annotations

import os
from typing import Any

from mmds.converters.stores import find_store
from mmds.reader import MappedFile, Reader
from mmds.store import Store


def open_store(path: str | os.PathLike[str], format: str | None = None) -> Store:
    """Return the open store at `path`: the one called `format`, or the one that its suffix or content shows.

    What no other store claims is taken for an ``.mmds`` file, whose errors say what it is not.
    """
    found = None if format == "mmds" else find_store(path, format)
    return MappedFile(path) if found is None else found.open(os.fspath(path))


def open(path: str | os.PathLike[str], *, fields: Any = None, format: str | None = None) -> Reader:
    """Open a dataset for reading: an ``.mmds`` file, which costs the same for ten samples as for a billion, or a store.

    `fields` selects: a list of names, or a structure of names that samples shall have (a tuple gives tuples). `format`
    names the store ("hdf5", "lmdb", "zarr", ...) where its suffix or content does not show it. Raises `FormatError` if
    the file is not a whole dataset, `VersionError` if it needs a newer mmds, `MissingDependencyError` with the install
    command if its library is not installed, `FileNotFoundError`.
    """
    store = open_store(path, format)
    return Reader(store, range(store.n), fields)
