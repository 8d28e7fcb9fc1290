"""The records of our LMDB databases: decoding them, once for all fields, and their values. `lmdb` says what they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import lmdb
import msgspec
import numpy as np

from mmds.converters.lmdbenvironment import Environment, number_key
from mmds.errors import FormatError, printable
from mmds.fields import Array, Fixed, Json, Kind, Label, Scalar, Text, Variable
from mmds.gather import empty
from mmds.schema import Schema
from mmds.store import RunItems

NdArray = np.ndarray[Any, Any]
UINT8 = np.dtype(np.uint8)


class Records:
    """The records of our database, decoded once for all fields of a sample or a batch."""

    def __init__(self, path: str, environment: Environment, schema: Schema) -> None:
        self.path, self._environment = path, environment
        types = [_record_type(field.kind) for field in schema.fields]
        # a NamedTuple, since tuple[()] and a tuple of one type would need care of their own
        record = NamedTuple("record", [(f"f{number}", type) for number, type in enumerate(types)])  # type: ignore[misc]
        self._decode = msgspec.msgpack.Decoder(record).decode
        self._last: tuple[NdArray | int, list[Any]] = (-1, [])

    def get(self, index: int) -> Any:
        """Return the record of one sample. What is in it are views of the mapped file."""
        last, records = self._last
        if isinstance(last, int) and last == index:
            return records[0]
        with self._environment.lmdb.begin(buffers=True) as transaction:
            record = self._record(transaction, index)
        self._last = index, [record]
        return record

    def get_many(self, indices: NdArray) -> list[Any]:
        """Return the records of many samples."""
        last, records = self._last
        if isinstance(last, np.ndarray) and np.array_equal(last, indices):
            return records
        with self._environment.lmdb.begin(buffers=True) as transaction:
            found = {index: self._record(transaction, index) for index in np.unique(indices).tolist()}
        records = [found[index] for index in indices.tolist()]
        self._last = indices.copy(), records
        return records

    def _record(self, transaction: Any, index: int) -> Any:
        try:
            data = transaction.get(number_key(index))
            if data is None:
                raise ValueError("there is no such key")
            record = _Record(len(data), UINT8, data)
            record.environment = self._environment
            return self._decode(record.data)
        except (ValueError, lmdb.Error) as error:
            raise FormatError(f"{printable(self.path)}: sample {index}: {printable(error)}") from None


class _Record(np.ndarray[Any, Any]):
    """The bytes of a record. All that is decoded from them are views of them, and so keep the environment open."""

    __slots__ = ("environment",)
    environment: Environment


def _record_type(kind: Kind) -> Any:
    type: Any = memoryview
    if isinstance(kind, (Scalar, Label)):
        type = {"b": bool, "i": int, "u": int, "f": float, "c": memoryview}[kind.stored.kind]
    elif isinstance(kind, Array) and kind.unknown > 1:
        type = tuple[list[int], memoryview]
    elif isinstance(kind, Variable) and is_text(kind):
        type = str
    return type | None if kind.nullable else type


class RecordItems:
    """The values of one field."""

    def __init__(self, records: Records, position: int, kind: Kind, name: str) -> None:
        self._records, self._position, self._name = records, position, name
        self._finish = _finisher(kind)

    def get(self, index: int) -> Any:
        """Return the value of sample `index`."""
        return self._value(self._records.get(index), index)

    def gather(self, indices: NdArray) -> list[Any]:
        """Return the values of samples `indices` as a list."""
        records = self._records.get_many(indices)
        return [self._value(record, index) for record, index in zip(records, indices.tolist(), strict=True)]

    def _value(self, record: Any, index: int) -> Any:
        value = record[self._position]
        if value is None:
            return None
        try:
            return self._finish(value)
        except ValueError as error:
            where = f"{printable(self._records.path)}: sample {index}, field '{printable(self._name)}'"
            raise FormatError(f"{where}: {printable(error)}") from None


class FixedRecordItems(RunItems):
    """The values of one field of fixed shape, which a batch has as one array."""

    def __init__(self, records: Records, position: int, kind: Fixed, name: str) -> None:
        self._values = RecordItems(records, position, kind, name)
        super().__init__(lambda start, stop: self.gather(np.arange(start, stop)), kind)

    def get(self, index: int) -> Any:
        """Return the value of sample `index`."""
        return self._values.get(index)

    def gather(self, indices: NdArray, out: NdArray | None = None) -> NdArray:
        """Return the values of samples `indices` as one array, in `out` if given: one copy from the mapped file."""
        if out is None:
            out = empty((len(indices), *self.shape), self.dtype)
        for row, value in enumerate(self._values.gather(indices)):
            out[row] = value
        return out


def _finisher(kind: Kind) -> Callable[[Any], Any]:
    """Return the function from what is in a record to the value."""
    if isinstance(kind, Scalar):
        return (
            (lambda data: np.frombuffer(data, kind.stored, 1).item())
            if kind.stored.kind == "c"
            else lambda value: value
        )
    if isinstance(kind, Array):
        dtype = kind.stored
        if kind.unknown > 1:

            def shaped(value: tuple[list[int], memoryview]) -> NdArray:
                sizes = iter(value[0])
                shape = tuple(next(sizes, 0) if size is None else size for size in kind.shape)
                return np.frombuffer(value[1], dtype).reshape(shape)

            return shaped
        shape = tuple(-1 if size is None else size for size in kind.shape)
        return lambda data: np.frombuffer(data, dtype).reshape(shape)
    if isinstance(kind, Variable):
        return (lambda text: kind.decode(memoryview(text.encode()))) if is_text(kind) else kind.decode
    return lambda value: value


def is_text(kind: Kind) -> bool:
    """Return whether a record has a string where the other variable kinds have bytes."""
    return isinstance(kind, (Text, Json))
