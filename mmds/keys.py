"""Finding samples by a key: the hashes of all keys in ascending order, and which samples have them.

`KeySpool` makes that index while a file is being written, in constant memory: pairs of hash and row go into 256 buckets by
the hash's first byte, and each bucket is sorted when the file is published. `KeyIndex` looks into the mapped index: a binary
search touches a few pages of it, and nothing is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mmds.errors import FormatError, SchemaError, printable
from mmds.fields import Buffer, Misfit
from mmds.items import VariableItems
from mmds.spool import Spool
from mmds.store import Store

NdArray = np.ndarray[Any, Any]

BUCKETS = 256
PENDING = 2**16  # hashes that go to their buckets together


def key_hash(data: Buffer) -> int:
    """Return the XXH3-64 of a key's bytes."""
    import xxhash  # reading has no other use for it

    return xxhash.xxh3_64_intdigest(data)  # type: ignore[arg-type] # an ndarray is a buffer, too


class KeySpool:
    """The hashes and rows of one key field, while its file is being written."""

    def __init__(self, folder: Path) -> None:
        self._spool = Spool(folder, BUCKETS)
        self._pending: list[int] = []
        self._rows = 0  # that are in the spool

    def append(self, data: Buffer) -> None:
        """Append the key of the next sample."""
        self._pending.append(key_hash(data))
        if len(self._pending) >= PENDING:
            self._spill()

    def _spill(self) -> None:
        pairs = np.empty((len(self._pending), 2), "<u8")
        pairs[:, 0] = self._pending
        pairs[:, 1] = np.arange(self._rows, self._rows + len(pairs))
        buckets = (pairs[:, 0] >> np.uint64(56)).astype(np.uint8)
        pairs = pairs[np.argsort(buckets, kind="stable")]
        ends = np.bincount(buckets, minlength=BUCKETS).cumsum().tolist()
        for bucket, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
            if start < end:
                self._spool.append(bucket, pairs[start:end])
        self._rows += len(pairs)
        self._pending = []

    def _buckets(self) -> Iterator[NdArray]:
        self._spill()
        for bucket in range(BUCKETS):
            yield np.frombuffer(b"".join(self._spool.read(bucket)), "<u8").reshape(-1, 2)

    def hashes(self) -> Iterator[NdArray]:
        """Yield the `key_hashes` section piece by piece."""
        for pairs in self._buckets():
            yield np.sort(pairs[:, 0])

    def rows(self) -> Iterator[NdArray]:
        """Yield the `key_rows` section piece by piece."""
        for pairs in self._buckets():
            yield pairs[np.argsort(pairs[:, 0], kind="stable"), 1]

    def close(self) -> None:
        """Free the memory and the temporary file."""
        self._pending = []
        self._spool.close()


class KeyIndex:
    """The samples of one file by the values of one key field."""

    def __init__(self, hashes: NdArray, rows: NdArray, items: VariableItems) -> None:
        self._hashes, self._rows, self._items = hashes, rows, items

    def find(self, data: bytes) -> Iterator[int]:
        """Yield the samples whose key is `data`, in order; `FormatError` where the index does not match the keys."""
        hashed = np.uint64(key_hash(data))
        for entry in range(int(self._hashes.searchsorted(hashed)), len(self._hashes)):
            if self._hashes[entry] != hashed:
                return
            row = self._rows.item(entry)
            if row >= len(self._rows):
                raise FormatError(f"{self._items.describe(entry)}: the index of keys leads to sample {row}")
            found = self._items.raw(row)
            if found == data:
                yield row
            elif key_hash(found) != hashed:
                raise FormatError(f"{self._items.describe(row)}: the index of keys has another hash; run mmds verify")

    def broken(self) -> Iterator[tuple[str, int]]:
        """Yield what is wrong with the index, and a sample that this is about.

        Entries that are in order differ, and each has the hash of its own sample's key: so every sample is there once.
        """
        n, last = len(self._rows), (-1, -1)
        for start in range(0, n, PENDING):
            part = slice(start, start + PENDING)
            for hashed, row in zip(self._hashes[part].tolist(), self._rows[part].tolist(), strict=True):
                if (hashed, row) <= last:
                    yield "the index of keys is not in order", min(row, n - 1)
                last = (hashed, row)
                if row >= n:
                    yield f"the index of keys leads to sample {row}", n - 1
                elif not self._has_hash(row, hashed):
                    yield "the index of keys has another hash", row

    def _has_hash(self, row: int, hashed: int) -> bool:
        try:
            return key_hash(self._items.raw(row)) == hashed
        except FormatError:  # its bytes are outside of the file
            return False


class KeyLookup:
    """The key field of a dataset: `SchemaError` if there is not exactly one."""

    def __init__(self, store: Store) -> None:
        self._where = printable(store.path)
        find = getattr(store, "find_key", None)
        if find is None:
            raise SchemaError(f"{self._where}: only .mmds files have an index of keys; run mmds convert to make one")
        keys = [position for position, field in enumerate(store.schema) if getattr(field.kind, "key", False)]
        if len(keys) != 1:
            names = printable(", ".join(store.schema[position].name for position in keys))
            found = f"{len(keys)} key fields ({names})" if keys else "no key field"
            raise SchemaError(f"{self._where}: {found}, expected one: Text(key=True) or Bytes(key=True)")
        self._position, self._field = keys[0], store.schema[keys[0]]
        self._find: Callable[[int, bytes], Iterator[int]] = find

    def row(self, key: Any, rows: range) -> int:
        """Return the first of samples `rows` that has this key; `KeyError` if there is none."""
        try:
            data = bytes(self._field.kind.encode(key))
        except Misfit as misfit:
            found = f"expected {misfit.expected} as key, got {misfit.got}"
        else:
            for row in self._find(self._position, data):
                if row in rows:
                    return row
            found = f"no sample has the key {printable(repr(key))}"
        raise KeyError(f"{self._where}: field '{printable(self._field.name)}': {found}")
