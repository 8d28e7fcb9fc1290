"""One ``.mmds`` file in the page cache, mapped into this process; or a private copy of it in memory."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmds.datafile import DataFile
from mmds.filebytes import open_regular
from mmds.items import MAPPED
from mmds.readahead import Readahead, touching_little

NdArray = np.ndarray[Any, Any]


class MappedFile(DataFile):
    """The map lives as long as anything refers to it, arrays handed out included; there is nothing to close.

    With `in_memory` there is no map, but a private copy of the whole file.
    """

    def __init__(self, path: str | os.PathLike[str], *, in_memory: bool = False) -> None:
        path = os.fspath(path)
        mapped = map_file(path)
        self._readahead = None if in_memory else Readahead(mapped)
        with touching_little(mapped):
            super().__init__(path, memoryview(mapped).toreadonly(), MAPPED)  # nobody can make arrays over it writable
        if in_memory:  # only now: what is no dataset may have any size
            self.view = memoryview(bytes(mapped))
        self._open_items()

    def wanted(self, samples: int) -> bool:
        """Return whether a batch of so many samples should be asked for: whether recent ones came from a disk."""
        return self._readahead is not None and super().wanted(samples)

    def ask(self, positions: Sequence[int], rows: NdArray) -> None:
        """Ask the kernel to read `rows` of the fields at `positions`. Does not wait for it."""
        if self._readahead is not None:
            for position in positions:
                self.items[position].locate(rows, self._readahead.ask)

    def release(self, positions: Sequence[int], rows: NdArray) -> None:
        """Take `rows` of the fields at `positions` out of this process; they stay in the page cache."""
        if self._readahead is not None:
            for position in positions:
                self.items[position].locate(rows, self._readahead.release)


def map_file(path: str) -> mmap.mmap:
    """Return the map of a whole file; `FormatError` if there is nothing to map."""
    fd, size = open_regular(path)
    try:
        return mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ)
    finally:
        os.close(fd)
