"""Writing LMDB databases. `lmdb` says what is in them."""

from __future__ import annotations

import errno
from typing import Any

import lmdb
import msgspec
import numpy as np

from mmds.columns import Column
from mmds.converters.lmdbenvironment import KEY, number_key
from mmds.converters.lmdbrecords import is_text
from mmds.errors import StorageError, printable
from mmds.fields import Array, Kind
from mmds.schema import Schema
from mmds.storewriter import StoreWriter

NdArray = np.ndarray[Any, Any]
FIRST_MAP = 64 * 2**20  # address space, not disk; it doubles whenever it is full


class Writer(StoreWriter):
    """Write samples to a folder with an LMDB database. Its map size grows by itself."""

    _environment: Any = None

    def create(self, schema: Schema) -> None:
        """Create the database."""
        self._fields = [field.kind for field in schema.fields]
        self._written = 0
        self.staging.content.mkdir()
        path = str(self.staging.content)
        try:
            self._environment = lmdb.open(path, map_size=FIRST_MAP, lock=False, sync=False, metasync=False, max_dbs=0)
        except lmdb.Error as error:
            raise StorageError(errno.EIO, f"cannot write {self._shown}: {printable(error)}") from error

    def append(self, columns: list[Column], size: int) -> None:
        """Write samples in one transaction."""
        encode = msgspec.msgpack.Encoder().encode
        values = [_record_values(kind, column) for kind, column in zip(self._fields, columns, strict=True)]
        try:
            records = [encode(record) for record in zip(*values, strict=True)]
        except OverflowError as error:
            raise StorageError(errno.EFBIG, f"{self._shown}: a record of 4 GiB or more: {error}") from None
        first = self._written
        self._commit([(number_key(first + number), record) for number, record in enumerate(records)])
        self._written += size

    def _commit(self, entries: list[tuple[bytes, bytes]]) -> None:
        while True:
            try:
                with self._environment.begin(write=True) as transaction:
                    for key, record in entries:
                        transaction.put(key, record, append=True)
                return
            except lmdb.MapFullError:
                self._environment.set_mapsize(self._environment.info()["map_size"] * 2)
            except lmdb.Error as error:
                raise StorageError(errno.EIO, f"cannot write {self._shown}: {printable(error)}") from error

    def finish(self, schema: Schema) -> None:
        """Write the description, which sorts behind all samples."""
        self._commit([(KEY, self.description(schema).encode())])

    def close_library(self) -> None:
        """Close the database."""
        environment, self._environment = self._environment, None
        if environment is not None:
            environment.close()


def _record_values(kind: Kind, column: Column) -> list[Any]:
    """Return the values of a field as they are in records."""
    values = column.values
    if isinstance(values, np.ndarray):
        if isinstance(kind, Array) or values.dtype.kind == "c":
            found: list[Any] = [value.tobytes() for value in values]
        else:
            found = values.tolist()
        if column.valid is not None:
            found = [value if valid else None for value, valid in zip(found, column.valid.tolist(), strict=True)]
        return found
    if isinstance(kind, Array):
        return [None if value is None else _ragged(kind, np.asarray(value)) for value in values]
    if is_text(kind):
        return [None if data is None else str(data, "utf-8") for data in values]
    return list(values)


def _ragged(kind: Array, value: NdArray) -> Any:
    if kind.unknown == 1:
        return value.tobytes()
    sizes = [size for size, known in zip(value.shape, kind.shape, strict=True) if known is None]
    return [sizes, value.tobytes()]
