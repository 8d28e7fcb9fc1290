"""Columns of samples as Arrow record batches, and the part that the writers of Arrow and Parquet files share."""

from __future__ import annotations

import abc
import itertools
from typing import Any

import numpy as np
import pyarrow as pa

from mmds import canonical
from mmds.columns import Column
from mmds.converters import arrowtypes
from mmds.fields import Fixed, Kind, Label
from mmds.schema import Schema
from mmds.storewriter import StoreWriter

NdArray = np.ndarray[Any, Any]


class ArrowWriter(StoreWriter):
    """Collect samples to record batches of about `TARGET` bytes. A subclass opens a file and writes them."""

    TARGET: int

    def refuse(self, schema: Schema) -> str:
        """Return why these fields cannot be Arrow columns."""
        return arrowtypes.refuse(schema)

    def create(self, schema: Schema) -> None:
        """Open the file."""
        self._kinds_written = [field.kind for field in schema.fields]
        self._columns = arrowtypes.arrow_schema(schema)
        self._names = [
            pa.array(kind.names, pa.large_utf8()) if isinstance(kind, Label) else None for kind in self._kinds_written
        ]
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_bytes = 0
        self.open_file(schema)

    def append(self, columns: list[Column], size: int) -> None:
        """Write samples, or keep them until there are enough of them."""
        arrays = []
        for kind, names, column in zip(self._kinds_written, self._names, columns, strict=True):
            arrays += to_arrays(kind, column, names)
        self._waiting.append(pa.RecordBatch.from_arrays(arrays, schema=self._columns))
        self._waiting_bytes += self._waiting[-1].nbytes
        if self._waiting_bytes >= self.TARGET:
            self._write_waiting()

    def finish(self, schema: Schema) -> None:
        """Write what is left, and close the file."""
        self._write_waiting()
        self.close_file(schema)

    def _write_waiting(self) -> None:
        if self._waiting:
            table = pa.Table.from_batches(self._waiting)
            if len(self._waiting) > 1:
                table = table.combine_chunks()
            rows = max(1, self.TARGET * len(table) // max(self._waiting_bytes, 1))
            self._waiting, self._waiting_bytes = [], 0
            self.write_table(table, max(rows, 1))

    def early_description(self, schema: Schema) -> bytes:
        """Return the description as far as it is known before the samples are: without their number."""
        return canonical.dump({"fields": schema.to_json(), "metadata": self.metadata})

    @abc.abstractmethod
    def open_file(self, schema: Schema) -> None:
        """Open the file at `self.staging.content`."""

    @abc.abstractmethod
    def write_table(self, table: pa.Table, rows: int) -> None:
        """Write `table` in pieces of about `rows` rows."""

    @abc.abstractmethod
    def close_file(self, schema: Schema) -> None:
        """Write the description, and close the file."""


def bitmap(valid: NdArray | None) -> pa.Buffer | None:
    """Return a bool array as Arrow's validity bits, None for None."""
    return None if valid is None else pa.py_buffer(np.packbits(valid, bitorder="little"))


def primitive(values: NdArray, valid: pa.Buffer | None = None) -> pa.Array:
    """Return an array of any shape as a flat Arrow array, without a copy but for bools."""
    flat = np.ascontiguousarray(values).reshape(-1)
    if flat.dtype.kind == "c":
        child = primitive(flat.view(f"<f{flat.itemsize // 2}"))
        return pa.Array.from_buffers(arrowtypes.ELEMENTS[flat.dtype], len(flat), [valid], children=[child])
    data = pa.py_buffer(np.packbits(flat, bitorder="little") if flat.dtype == bool else flat)
    return pa.Array.from_buffers(arrowtypes.ELEMENTS[flat.dtype], len(flat), [valid, data])


def nested(flat: pa.Array, sizes: tuple[int, ...], length: int, valid: pa.Buffer | None = None) -> pa.Array:
    """Return the elements `flat` as a fixed-size list for each of `sizes`, `length` of the outermost, without a copy."""
    for level, size in reversed(list(enumerate(sizes))):
        count = len(flat) // size
        flat = pa.Array.from_buffers(pa.list_(flat.type, size), count, [valid if level == 0 else None], children=[flat])
    assert len(flat) == length
    return flat


def to_arrays(kind: Kind, column: Column, names: pa.Array | None) -> list[pa.Array]:
    """Return a column as the Arrow arrays that hold it: one, or two where shapes have their own."""
    valid = bitmap(column.valid)
    type = arrowtypes.arrow_type(kind)
    if isinstance(kind, Label):
        indices = primitive(np.asarray(column.values), valid)
        return [pa.DictionaryArray.from_arrays(indices, names, safe=False)]
    if not isinstance(kind, Fixed):
        parts = [b"" if data is None else bytes(data) for data in column.values]
        buffers = [valid, _offsets([len(part) for part in parts]), pa.py_buffer(b"".join(parts))]
        return [pa.Array.from_buffers(type, len(parts), buffers)]
    if kind.unknown:
        return _ragged(kind, column.values, type, valid)
    values = np.asarray(column.values)
    dimensions = tuple(size for size in kind.dimensions if size is not None)
    if 0 in dimensions:
        offsets = _offsets([0] * len(values))
        empty = primitive(np.empty(0, kind.stored))
        return [pa.Array.from_buffers(type, len(values), [valid, offsets], children=[empty])]
    if not dimensions:
        return [primitive(values, valid)]
    return [nested(primitive(values), dimensions, len(values), valid)]


def _ragged(kind: Fixed, values: Any, type: pa.DataType, valid: pa.Buffer | None) -> list[pa.Array]:
    arrays = [None if value is None else np.asarray(value) for value in values]
    flat = [value.reshape(-1) for value in arrays if value is not None]
    child = primitive(np.concatenate(flat) if flat else np.empty(0, kind.stored))
    row = 1
    if arrowtypes.is_leading(kind):
        sizes = tuple(size for size in kind.dimensions if size is not None)
        row = arrowtypes.elements(kind)
        child = nested(child, sizes, len(child) // row)
    offsets = _offsets([0 if value is None else value.size // row for value in arrays])
    made = [pa.Array.from_buffers(type, len(arrays), [valid, offsets], children=[child])]
    if kind.unknown > 1:
        unknown = [axis for axis, size in enumerate(kind.dimensions) if size is None]
        shapes = [[0 if value is None else value.shape[axis] for axis in unknown] for value in arrays]
        made.append(nested(primitive(np.array(shapes, "<u4")), (len(unknown),), len(arrays)))
    return made


def _offsets(sizes: list[int]) -> pa.Buffer:
    return pa.py_buffer(np.array(list(itertools.accumulate(sizes, initial=0)), "<i8"))
