"""Opening a dataset for reading, whatever store it is in."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmds.cachedshards import NO_CACHE, CacheOptions
from mmds.converters.stores import find_store
from mmds.errors import FormatError, SourceError, StorageError, printable
from mmds.manifest import NAME
from mmds.openfile import Reading, open_file, reading_of
from mmds.reader import Reader
from mmds.remote import Remote, is_url
from mmds.shards import Shards
from mmds.sidecar import open_folder
from mmds.store import Store

Source = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]  # a path, URL, pattern, or paths of ``.mmds`` files

_was_url = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/[^/]").match  # before a Path made one slash of two


def located(source: Source) -> str | Path | list[Path]:
    """Return `source` with absolute paths; `FileNotFoundError` where there is nothing. A URL is not asked for yet."""
    if isinstance(source, str) and is_url(source):
        Remote(source)  # refuses credentials, before anything shows it
        return source
    if isinstance(source, (str, os.PathLike)):
        path = Path(source).absolute()
        if not path.exists() and not matches(path):
            raise FileNotFoundError(f"no dataset at {printable(path)}{_hint(source)}")
        return path
    refuse_urls(source)
    paths = [Path(each).absolute() for each in source]
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"no dataset at {printable(path)}")
    return paths


def _hint(path: str | os.PathLike[str]) -> str:
    return "; a URL is given as a str, since a Path has single slashes" if _was_url(os.fspath(path)) else ""


def refuse_urls(paths: Sequence[object]) -> None:
    """Raise `SourceError` where one of several paths is a URL."""
    for path in paths:
        if is_url(path):
            raise SourceError(
                f"{printable(Remote(str(path)).url)}: a URL cannot be one of several files; upload them as a folder with "
                f"{NAME} (mmds merge makes one), and give its URL"
            )


def matches(pattern: str | os.PathLike[str]) -> list[str]:
    """Return the paths that match a pattern, by name; none if it is no pattern."""
    return sorted(glob.glob(os.fspath(pattern))) if glob.has_magic(os.fspath(pattern)) else []  # noqa: PTH207 (absolute patterns)


def open_store(
    path: Source, format: str | None = None, reading: Reading = "mapped", cache: CacheOptions = NO_CACHE
) -> Store:
    """Return the open store at `path`: the one called `format`, or the one that its suffix or content shows.

    What no other store claims is taken for an ``.mmds`` file, or a folder of them, whose errors say what it is not. A
    pattern such as ``train-*.mmds``, unless there is a file of that name, means all files that match, by name.
    """
    cache.check(path)
    paths: Sequence[str | os.PathLike[str]] = []
    if not isinstance(path, (str, os.PathLike)):
        paths = path
        if not paths:
            raise ValueError("an empty list of files: expected at least one")
        refuse_urls(paths)
    elif is_url(path):
        url = Remote(os.fspath(path)).url  # which refuses credentials
        if format not in (None, "mmds"):
            raise SourceError(f"{printable(url)}: format='{printable(format)}': only .mmds files are read from URLs")
        return open_url(os.fspath(path), reading, cache)
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


def open_url(url: str, reading: Reading, cache: CacheOptions = NO_CACHE) -> Store:
    """Return the open dataset at a URL: one object, or what has a ``dataset.json`` below it.

    An object is looked for first: that request is needed to read it, too. Where it cannot be got, whatever the reason, there
    may still be a folder: stores that do not let everybody list them answer "forbidden" for what is not there, and web
    servers anything.
    """
    downloads = cache.downloads(url, reading)

    def folder() -> Store:
        if downloads is None:
            return open_folder(url, reading)
        store = open_folder(url, reading, downloads.open)
        downloads.watch(store)
        return store

    if url.endswith("/"):
        return folder()
    try:
        return open_file(url, reading) if downloads is None else downloads.open_object()
    except (FileNotFoundError, StorageError) as error:
        try:
            return folder()
        except (FileNotFoundError, StorageError) as other:
            if isinstance(error, StorageError):
                raise error from None
            if isinstance(other, StorageError):
                raise
            hint = "; patterns of URLs are not looked for" if glob.has_magic(url) else ""
            raise FileNotFoundError(
                f"no dataset at {printable(url, 1000)}: neither an object nor a folder with {NAME}{hint}"
            ) from None


def open(
    path: Source,
    *,
    fields: Any = None,
    format: str | None = None,
    in_memory: bool = False,
    verify: str = "off",
    cache_dir: str | os.PathLike[str] | None = None,
    cache_size: int | str | None = None,
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

    What is at a URL (``s3://``, ``gs://``, ``az://``, ``https://``, ``file://``), a file or a folder of shards, is read by
    ranges, each when it is needed: docs/object-storage.md. With `cache_dir`, a folder on a local disk that is made if it is
    not there, files are downloaded into it when they are first needed, and mapped; all processes of the computer share it.
    `cache_size`, a number of bytes or text such as "200GB", bounds it.

    Raises `FormatError` if the file is not a whole dataset, `VersionError` if it needs a newer mmds,
    `MissingDependencyError` with the install command if its library is not installed, `FileNotFoundError`.
    """
    cache = CacheOptions(cache_dir, cache_size)
    store = open_store(path, format, reading_of(in_memory, verify), cache)
    return Reader(store, range(store.n), fields)
