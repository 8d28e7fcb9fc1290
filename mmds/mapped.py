"""One ``.mmds`` file in the page cache: its map, what its footer says, and its fields' values."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from mmds.errors import FormatError, printable
from mmds.format import KEY_ROLES
from mmds.items import MappedItems, VariableItems, open_items, section_array
from mmds.keys import KeyIndex
from mmds.parse import parse
from mmds.readahead import DiskReads, Readahead, touching_little

NdArray = np.ndarray[Any, Any]


class MappedFile:
    """One open file: its map, what its footer says, and its fields' values. Immutable, shared by readers of slices.

    The map lives as long as anything refers to it, arrays handed out included; there is nothing to close. With `in_memory`
    there is no map, but a private copy of the whole file.
    """

    def __init__(self, path: str | os.PathLike[str], *, in_memory: bool = False) -> None:
        self.path = os.fspath(path)
        mapped = _map(self.path)
        content = bytes(mapped) if in_memory else mapped
        self.view = memoryview(content).toreadonly()  # arrays over it cannot be made writable again
        self._readahead = None if in_memory else Readahead(mapped)
        self._disk_reads = DiskReads()
        try:
            with touching_little(mapped):
                self.footer = parse(self.view)
        except FormatError as error:
            raise type(error)(f"{printable(self.path)}: {error}") from None
        self.schema, self.n = self.footer.schema, self.footer.n
        self.metadata, self.content_id = self.footer.metadata, self.footer.content_id
        self.items: list[MappedItems] = [
            open_items(self.view, self.footer, position, self.path) for position in range(len(self.footer.schema))
        ]

    def find_key(self, position: int, data: bytes) -> Iterator[int]:
        """Yield the samples whose value of the key field at `position` has the bytes `data`, in order."""
        return self.keys[position].find(data)

    @cached_property
    def keys(self) -> dict[int, KeyIndex]:
        """The index of each key field, by its position."""
        found = {}
        for position, items in enumerate(self.items):
            if getattr(self.schema[position].kind, "key", False):
                assert isinstance(items, VariableItems)
                hashes, rows = (section_array(self.view, self.footer.section(role, position)) for role in KEY_ROLES)
                found[position] = KeyIndex(hashes, rows, items)
        return found

    def wanted(self, samples: int) -> bool:
        """Return whether a batch of so many samples should be asked for: whether recent ones came from a disk."""
        return self._readahead is not None and self._disk_reads.wanted(samples)

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


def _map(path: str) -> mmap.mmap:
    # O_NONBLOCK: a FIFO would wait for a writer for ever. It does nothing to a regular file.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise FormatError(f"{printable(path)}: not a regular file, so not an mmds file")
        if not status.st_size:
            raise FormatError(f"{printable(path)}: an empty file, so not an mmds file")
        return mmap.mmap(fd, status.st_size, mmap.MAP_SHARED, mmap.PROT_READ)
    finally:
        os.close(fd)
