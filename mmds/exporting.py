"""Exporting: a dataset back to the files that it was made of, to tar shards, or to any store."""

from __future__ import annotations

import errno
import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmds.converters.stores import all_stores, find_store
from mmds.errors import ExistsError, OptionError, SourceError, printable
from mmds.opening import Source
from mmds.opening import open as open_reader
from mmds.pipeline import convert

Progress = Callable[[int, int | None, int], None]

EXPORTS = ("folder", "tar")


def export(
    source: Source,
    destination: str | os.PathLike[str],
    *,
    format: str | None = None,
    fields: Any = None,
    shard_size: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> list[Path]:
    """Write the dataset at `source` to `destination`, and return the paths that were written.

    `format` is "folder" (a file per sample, with the name that it had), "tar" (WebDataset shards; `shard_size` in bytes), or
    a store; by default what the suffix of the destination says, and otherwise a folder. `fields` selects, as in `mmds.open`.
    Raises `ExistsError` if the destination exists, unless `overwrite`; a folder with files in it is never replaced by one.
    """
    destination = Path(destination)
    if format is None:
        store = find_store(destination) if destination.suffix else None
        suffix = destination.suffix.lower()
        format = (
            "tar" if suffix == ".tar" else "mmds" if suffix == ".mmds" else "folder" if store is None else store.name
        )
    if format not in (*EXPORTS, "mmds", *all_stores()):
        names = ", ".join((*EXPORTS, "mmds", *all_stores()))
        raise SourceError(f"no format '{printable(format)}' to export to; there are: {names}")
    if shard_size is not None and format not in ("tar", "mmds"):
        raise OptionError(f"shard_size= is for tar and mmds, and this is {format}")
    reader = open_reader(source, fields=fields)
    if format == "folder":
        if destination.is_dir() and any(destination.iterdir()):  # of whatever: its owner should remove it
            raise ExistsError(
                errno.EEXIST,
                f"{printable(destination)} is a folder with things in it, which is never replaced; remove it first",
            )
        folders = importlib.import_module("mmds.converters.folderexport")
        folders.export_folder(reader, destination, overwrite=overwrite, progress=progress)
        return [destination]
    if format == "tar":
        shards = importlib.import_module("mmds.converters.tarshards")
        written: list[Path] = shards.export_tar(
            reader, destination, shard_size=shard_size, overwrite=overwrite, progress=progress
        )
        return written
    convert(
        reader,
        destination,
        destination_format=format,
        shard_size=shard_size,
        overwrite=overwrite,
        progress=progress,
    )
    return [destination]
