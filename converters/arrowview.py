"""A dataset as a pyarrow Table over the mapped file, for DuckDB, Polars and pandas.

Not copied are: scalars but bools, labels (the indices of a dictionary array), arrays of fixed shape without padding between
them (fixed-size lists), bytes and text in the index, bytes and text in the payload where they are the only payload field, and
arrays whose first dimension alone differs, aligned to their item size and alone in the payload (large lists; their
offsets are computed). Computed are validity and bools, a bit per sample. Offsets and labels are checked first, because
what reads the table trusts them; that reads the index, not the payload. The table keeps the map alive.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from mmds import canonical
from mmds.columns import as_column, encode_all
from mmds.converters import arrowtypes
from mmds.converters.arrowwriter import bitmap, nested, primitive, to_arrays
from mmds.errors import FormatError, SchemaError, printable
from mmds.fields import Fixed, Kind, Label, Variable
from mmds.items import FixedItems, NullableItems, VariableItems
from mmds.schema import Schema
from mmds.shards import Shards
from mmds.sidecar import Joined
from mmds.store import Items

NdArray = np.ndarray[Any, Any]
PIECE = 2**16  # offsets that are checked at a time


def to_arrow(reader: Any, fields: Any = None) -> pa.Table:
    """Return the samples of a `Reader` as a Table, one column per field, without a copy of their values.

    `fields` selects as `mmds.open` does. Fields that cannot be had without a copy are copied into memory if `fields`
    names them, else refused by a `SchemaError` that names them.
    """
    if isinstance(reader.store, Joined):
        return _joined(reader, reader.store, fields)
    if isinstance(reader.store, Shards):
        return pa.concat_tables([to_arrow(part, fields) for part in reader.parts()])
    selected, positions = (
        (reader.fields, range(len(reader.fields))) if fields is None else reader.fields.select(_listed(fields))
    )
    reason = arrowtypes.refuse(selected)
    if reason:
        raise SchemaError(f"{printable(reader.path)}: {reason}")
    arrays: list[pa.Array] = []
    for field, position in zip(selected.fields, positions, strict=True):
        items, where = reader.items[position], f"{printable(reader.path)}: field '{printable(field.name)}'"
        found = _in_place(field.kind, items, reader._rows, where)
        if found is None and fields is None:
            raise SchemaError(
                f"{where} is not contiguous in the file; fields=[...] with its name copies it into memory"
            )
        arrays += [found] if found is not None else _copied(field.kind, items, reader._rows)
    return pa.Table.from_arrays(arrays, schema=_schema(reader, selected))


def _schema(reader: Any, selected: Schema) -> pa.Schema:
    said = canonical.dump({"fields": selected.to_json(), "metadata": dict(reader.metadata)})
    return arrowtypes.arrow_schema(selected).with_metadata({arrowtypes.KEY: said})


def _joined(reader: Any, store: Joined, fields: Any) -> pa.Table:
    """Return the table of shards and sidecars: each column from the store that has it."""
    selected, positions = (
        (reader.fields, range(len(reader.fields))) if fields is None else reader.fields.select(_listed(fields))
    )
    columns: list[pa.ChunkedArray] = []
    for position in positions:
        home, inside = store.homes[store.schema.index(reader.stored_names[position])]
        alone = type(reader)(home, reader._rows, home.schema[inside].name)
        columns += to_arrow(alone, None if fields is None else alone.fields.names[0]).columns
    return pa.Table.from_arrays(columns, schema=_schema(reader, selected))


def _listed(fields: Any) -> Any:
    return [fields] if isinstance(fields, str) else fields


def _copied(kind: Kind, items: Items, rows: range) -> list[pa.Array]:
    column = as_column(kind, encode_all(kind, items.gather(np.arange(rows.start, rows.stop, rows.step))))
    return to_arrays(kind, column, pa.array(kind.names, pa.large_utf8()) if isinstance(kind, Label) else None)


def _in_place(kind: Kind, items: Items, rows: range, where: str) -> pa.Array | None:
    """Return the values as an array over the mapped file, or None."""
    valid = None
    if isinstance(items, NullableItems):
        valid = bitmap(_take(items.valid, rows) != 0)
        items = items.items
    if isinstance(items, FixedItems):
        return _fixed(kind, items.array, rows, valid, where)
    if isinstance(items, VariableItems) and rows.step == 1:
        return _variable(kind, items, rows, valid, where)
    return None


def _take(array: NdArray, rows: range) -> NdArray:
    return array[rows.start : rows.stop : rows.step] if rows.step > 0 else array[rows]


def _fixed(kind: Kind, array: NdArray, rows: range, valid: pa.Buffer | None, where: str) -> pa.Array | None:
    assert isinstance(kind, Fixed)
    array = _take(array, rows)
    if 0 in array.shape[1:] or not (array.flags.c_contiguous or kind.is_column):
        return None
    if not isinstance(kind, Label):
        if not array.ndim > 1:
            return primitive(array, valid)
        return nested(primitive(array), array.shape[1:], len(array), valid)
    if len(array) and not (array.min() >= 0 and array.max() < len(kind.names)):
        raise FormatError(f"{where}: a label that is none of the {len(kind.names)} names; run mmds verify")
    names = pa.array(kind.names, pa.large_utf8())
    return pa.DictionaryArray.from_arrays(primitive(array, valid), names, safe=False)


def _variable(kind: Kind, items: VariableItems, rows: range, valid: pa.Buffer | None, where: str) -> pa.Array | None:
    found = items.contiguous(kind.stored.itemsize if isinstance(kind, Fixed) else 1)
    if found is None:
        return None
    view, ends = found
    ends = ends[rows.start : rows.stop + 1]
    _check(ends, len(view), where)
    if isinstance(kind, Variable):
        buffers = [valid, pa.py_buffer(ends.view("<i8")), pa.py_buffer(view)]
        return pa.Array.from_buffers(arrowtypes.arrow_type(kind), len(rows), buffers)
    assert isinstance(kind, Fixed)
    if not arrowtypes.is_leading(kind):
        return None
    row = arrowtypes.elements(kind) * kind.stored.itemsize
    start, end = ends.item(0), ends.item(-1)
    offsets = (ends - np.uint64(start)) // np.uint64(row)
    sizes = tuple(size for size in kind.dimensions if size is not None)
    if (end - start) % row or (offsets * np.uint64(row) != ends - np.uint64(start)).any():
        raise FormatError(f"{where}: an array of a fraction of a row; run mmds verify")
    flat = primitive(np.frombuffer(view[start:end], kind.stored))
    child = nested(flat, sizes, (end - start) // row)
    buffers = [valid, pa.py_buffer(offsets.view("<i8"))]
    return pa.Array.from_buffers(arrowtypes.arrow_type(kind), len(rows), buffers, children=[child])


def _check(ends: NdArray, size: int, where: str) -> None:
    """Check that offsets do not decrease and lie in the file, in constant memory."""
    for start in range(0, len(ends), PIECE):
        piece = ends[start : start + PIECE + 1]
        if (piece[1:] < piece[:-1]).any() or piece.item(-1) > size:
            raise FormatError(f"{where}: offsets that decrease, or lie outside the file; run mmds verify")
