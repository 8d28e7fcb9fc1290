"""LMDB databases that others wrote: keys and values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lmdb
import numpy as np

from mmds.converters.lmdbenvironment import Environment, LmdbStore
from mmds.errors import FormatError, printable
from mmds.fields import Bytes, Text
from mmds.schema import Schema

NdArray = np.ndarray[Any, Any]


def open_foreign(path: str, identity: str, environment: Environment) -> LmdbStore:
    """Return the store of the keys and values of a database that has no description of ours."""
    main = environment.lmdb.open_db(None)
    with environment.lmdb.begin() as transaction:
        if main.flags(transaction)["dupsort"]:  # type: ignore[call-arg]  # which lmdb 1 needs and lmdb 3 takes
            raise FormatError(f"{printable(path)}: its keys have several values each (dupsort), which samples cannot")
        cursor = transaction.cursor()
        first = cursor.key() if cursor.first() else b""
        n = transaction.stat()["entries"]
    if n > environment.size:
        raise FormatError(f"{printable(path)}: {n} entries in {environment.size} bytes")
    entries = Entries(path, environment, n)
    keys: Text | Bytes = Text(key=True) if _is_readable(first) else Bytes(key=True)
    schema = Schema({"key": keys, "value": Bytes()})
    return LmdbStore(path, schema, n, {}, identity, [EntryItems(entries.key, keys), EntryItems(entries.value, Bytes())])


@contextmanager
def _blaming(path: str) -> Iterator[None]:
    """Turn what LMDB finds wrong with its pages into a `FormatError`."""
    try:
        yield
    except lmdb.Error as error:
        raise FormatError(f"{printable(path)}: {printable(error)}") from None


def _is_readable(key: bytes) -> bool:
    try:
        return key.decode().isprintable()
    except UnicodeDecodeError:
        return False


class Entries:
    """All keys of a database in their order, as two arrays, which are read when the first one is needed."""

    def __init__(self, path: str, environment: Environment, n: int) -> None:
        self._path, self._environment, self._n = path, environment, n
        self._index: tuple[bytes, NdArray] | None = None

    def key(self, position: int) -> memoryview:
        """Return a key."""
        if self._index is None:
            self._index = self._read()
        keys, ends = self._index
        return memoryview(keys)[ends.item(position) : ends.item(position + 1)]

    def value(self, position: int) -> memoryview:
        """Return a value, as a view of the mapped file."""
        key = self.key(position)
        with _blaming(self._path), self._environment.lmdb.begin(buffers=True) as transaction:
            value = transaction.get(key)
        if value is None:
            raise FormatError(f"{printable(self._path)}: the key of entry {position} is gone")
        return memoryview(value)

    def _read(self) -> tuple[bytes, NdArray]:
        keys = bytearray()
        ends = np.zeros(self._n + 1, np.int64)
        number = 0
        with _blaming(self._path), self._environment.lmdb.begin(buffers=True) as transaction:
            for key in transaction.cursor().iternext(keys=True, values=False):
                number += 1
                if number <= self._n:
                    keys += key
                    ends[number] = len(keys)
        if number != self._n:
            raise FormatError(f"{printable(self._path)}: {number} keys, but it says {self._n}")
        return bytes(keys), ends


class EntryItems:
    """The keys or the values of a database, through a function from position to bytes."""

    def __init__(self, read: Callable[[int], memoryview], kind: Text | Bytes) -> None:
        self._read, self._decode = read, kind.decode

    def get(self, index: int) -> Any:
        """Return the key or the value of entry `index`."""
        try:
            return self._decode(self._read(index))
        except UnicodeDecodeError as error:
            raise FormatError(f"entry {index}: its key is no text: {error}") from None

    def gather(self, indices: NdArray) -> list[Any]:
        """Return those of entries `indices` as a list."""
        return [self.get(index) for index in indices.tolist()]
