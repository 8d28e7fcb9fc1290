"""LMDB environments for reading, and what our databases and those of others have in common."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import lmdb

from mmds.errors import FormatError, printable
from mmds.schema import Schema
from mmds.store import Items, file_identity

KEY = b"mmds"
number_key = struct.Struct(">Q").pack


class Environment:
    """An open environment. LMDB allows one per file and process, so all stores of a process share it, over a fork too."""

    def __init__(self, file: str) -> None:
        try:
            self.lmdb = lmdb.open(file, subdir=False, readonly=True, lock=False, readahead=False, max_dbs=0)
        except lmdb.Error as error:
            raise FormatError(f"{printable(file)}: not an LMDB database: {printable(error)}") from None
        pages, size = self.lmdb.info()["last_pgno"] + 1, self.lmdb.stat()["psize"]
        self.size = os.stat(file).st_size  # noqa: PTH116
        if self.size < pages * size:
            self.lmdb.close()
            raise FormatError(f"{printable(file)}: truncated: {self.size} bytes for {pages} pages of {size}")


_open_environments: WeakValueDictionary[str, Environment] = WeakValueDictionary()
_opening = threading.RLock()
os.register_at_fork(after_in_child=_opening._at_fork_reinit)  # type: ignore[attr-defined]


def shared_environment(file: str) -> Environment:
    identity = file_identity(file)
    with _opening:
        found = _open_environments.get(identity)
        if found is None:
            found = _open_environments[identity] = Environment(file)
        return found


@dataclass
class LmdbStore:
    """A database as `mmds.store.Store` wants it."""

    path: str
    schema: Schema
    n: int
    metadata: Mapping[str, Any]
    content_id: str
    items: list[Items]
