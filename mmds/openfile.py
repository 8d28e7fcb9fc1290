"""The ways to read one ``.mmds`` file, and which of them is taken."""

from __future__ import annotations

import errno
import os
import warnings
from typing import Literal

from mmds.datafile import DataFile
from mmds.errors import SourceError, printable
from mmds.mapped import MappedFile
from mmds.positioned import PositionedFile
from mmds.remote import Remote, is_url
from mmds.remotefile import RemoteFile

Reading = Literal["mapped", "in memory", "positioned", "checked"]

_has_warned = False


def reading_of(in_memory: bool, verify: str) -> Reading:
    """Return the way that the options of `mmds.open` and `MemoryMappedDataset` ask for; ValueError if there is none."""
    if verify not in ("off", "read"):
        raise ValueError(f"verify={printable(repr(verify))}: expected 'off' or 'read'")
    if in_memory and verify == "read":
        raise ValueError(
            "in_memory=True, verify='read': expected one of them; mmds.verify checks a whole file beforehand"
        )
    return "in memory" if in_memory else "checked" if verify == "read" else "mapped"


def open_file(path: str | os.PathLike[str], reading: Reading = "mapped") -> DataFile:
    """Open a file, or what is at a URL, by ranges.

    A file for whose map there is no address space is read by position, and a warning says so once.
    """
    if is_url(path):
        if reading == "in memory":
            url = Remote(os.fspath(path)).url  # which refuses credentials
            raise SourceError(f"{printable(url)}: in_memory=True is for files; read a URL without, or with cache_dir=")
        return RemoteFile(os.fspath(path), checked=reading == "checked")
    if reading in ("positioned", "checked"):
        return PositionedFile(path, checked=reading == "checked")
    try:
        return MappedFile(path, in_memory=reading == "in memory")
    except OSError as error:
        if error.errno != errno.ENOMEM or reading == "in memory":
            raise
    global _has_warned
    if not _has_warned:
        _has_warned = True
        warnings.warn(
            f"{printable(path)}: no address space for its map (ulimit -v), or too many maps (vm.max_map_count); read by "
            "position instead, which takes a system call per value. Other files may be, too",
            RuntimeWarning,
            stacklevel=2,
        )
    return PositionedFile(path)
