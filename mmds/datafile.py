"""One open ``.mmds`` file: what its footer says, and its fields' values, however its bytes are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from mmds.errors import FormatError, printable
from mmds.format import KEY_ROLES, Section
from mmds.items import Access, MappedItems, VariableItems, open_items
from mmds.keys import KeyIndex
from mmds.parse import parse
from mmds.readahead import DiskReads

NdArray = np.ndarray[Any, Any]


class DataFile:
    """Base of the ways to read a file. Immutable, shared by readers of slices; a `MappedStore`.

    `view` has the file's bytes: ``view[start:stop]``, and `access` makes arrays and values of them.
    """

    def __init__(self, path: str, view: Any, access: Access) -> None:
        self.path, self.view, self._access = path, view, access
        self._disk_reads = DiskReads()
        try:
            self.footer = parse(view)
        except FormatError as error:
            raise type(error)(f"{printable(path)}: {error}") from None
        self.schema, self.n = self.footer.schema, self.footer.n
        self.metadata, self.content_id = self.footer.metadata, self.footer.content_id

    def _open_items(self) -> None:
        self.items: list[MappedItems] = [
            open_items(self.view, self.footer, position, self.path, self._access)
            for position in range(len(self.footer.schema))
        ]

    def array(self, section: Section) -> Any:
        """Return the array of a section: an ndarray, or what can be indexed like one."""
        return self._access.section(self.view, section)

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
                hashes, rows = (self.array(self.footer.section(role, position)) for role in KEY_ROLES)
                found[position] = KeyIndex(hashes, rows, items)
        return found

    def wanted(self, samples: int) -> bool:
        """Return whether a batch of so many samples should be asked for: whether recent ones came from a disk."""
        return self._disk_reads.wanted(samples)

    def ask(self, positions: Sequence[int], rows: NdArray) -> None:
        """Ask the kernel to read `rows` of the fields at `positions`, if this way to read can. Does not wait for it."""

    def release(self, positions: Sequence[int], rows: NdArray) -> None:
        """Take `rows` of the fields at `positions` out of this process, if they are; they stay in the page cache."""
