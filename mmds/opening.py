"""Opening a dataset for reading, whatever store it is in."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmds.converters.stores import find_store
from mmds.errors import FormatError, SourceError, printable
from mmds.openfile import Reading, open_file, reading_of
from mmds.reader import Reader
from mmds.shards import Shards
from mmds.sidecar import open_folder
from mmds.store import Store

Source = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]  # a path, a pattern, or paths of ``.mmds`` files


def located(source: Source) -> Path | list[Path]:
    """Return `source` with absolute paths; `FileNotFoundError` where there is nothing."""
    if isinstance(source, (str, os.PathLike)):
        path = Path(source).absolute()
        if not path.exists() and not matches(path):
            raise FileNotFoundError(f"no dataset at {printable(path)}")
        return path
    paths = [Path(each).absolute() for each in source]
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"no dataset at {printable(path)}")
    return paths


def matches(pattern: str | os.PathLike[str]) -> list[str]:
    """Return the paths that match a pattern, by name; none if it is no pattern."""
    return sorted(glob.glob(os.fspath(pattern))) if glob.has_magic(os.fspath(pattern)) else []  # noqa: PTH207 (absolute patterns)


def open_store(path: Source, format: str | None = None, reading: Reading = "mapped") -> Store:
    """Return the open store at `path`: the one called `format`, or the one that its suffix or content shows.

    What no other store claims is taken for an ``.mmds`` file, or a folder of them, whose errors say what it is not. A
    pattern such as ``train-*.mmds``, unless there is a file of that name, means all files that match, by name.
    """
    paths: Sequence[str | os.PathLike[str]] = []
    if not isinstance(path, (str, os.PathLike)):
        paths = path
        if not paths:
            raise ValueError("an empty list of files: expected at least one")
    elif not os.path.lexists(path):
        paths = matches(path)
    if paths:
        if format not in (None, "mmds"):
            raise SourceError(f"format='{printable(format)}': several files can be read as one if they are .mmds files")
        try:
            return Shards(paths, reading=reading)
        except FormatError:
            for each in paths:
                if os.path.isdir(each):  # noqa: PTH112 (takes both kinds of path)
                    what = "a folder cannot be one of several files; open it alone, or give its files"
                    raise SourceError(f"{printable(each)}: {what}") from None
            raise
    assert isinstance(path, (str, os.PathLike))
    found = None if format == "mmds" else find_store(path, format)
    if found is None:
        return (open_folder if os.path.isdir(path) else open_file)(path, reading)  # noqa: PTH112
    if reading != "mapped":
        option = "in_memory=True" if reading == "in memory" else "verify='read'"
        raise SourceError(f"{printable(path)}: {option} is for .mmds files, and this is {found.name}; convert it")
    return found.open(os.fspath(path))


def open(
    path: Source, *, fields: Any = None, format: str | None = None, in_memory: bool = False, verify: str = "off"
) -> Reader:
    """Open a dataset for reading: an ``.mmds`` file, which costs the same for ten samples as for a billion, or a store.

    Several ``.mmds`` files with the same fields, given as a list or as a pattern, are read as one dataset, one after the
    other; its metadata is that of the first. So is a folder of shards with a manifest (``dataset.json``), for which only
    the first is opened at once. Files stay open up to a quarter of what the process may have open.

    `fields` selects: a list of names, or a structure of names that samples shall have (a tuple gives tuples). `format`
    names the store ("hdf5", "lmdb", "zarr", ...) where its suffix or content does not show it. `in_memory` reads an ``.mmds``
    file into private memory instead of mapping it.

    ``verify="read"`` compares every block of 1 MiB to its hash when this process first reads from it, and reads by position
    instead of through a map: damage is a `FormatError` that names block, samples and fields, a failing disk a `StorageError`,
    a file that was cut short a `ChangedError`, and none of them a signal. Arrays are copies then, and `flat` is not there.

    Raises `FormatError` if the file is not a whole dataset, `VersionError` if it needs a newer mmds,
    `MissingDependencyError` with the install command if its library is not installed, `FileNotFoundError`.
    """
    store = open_store(path, format, reading_of(in_memory, verify))
    return Reader(store, range(store.n), fields)
