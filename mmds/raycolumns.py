"""Fields as columns of Ray Data, which are Arrow's with Ray's tensors, and back.

A column is named as its field is ("label", "target.boxes", "0" in a tuple, "value" alone).

=========================  =============================================================================================
kind                       column in Ray Data
=========================  =============================================================================================
Scalar, Label              a number or bool; a label is its class index
Array                      a tensor of fixed shape; of unknown dimensions, a tensor of variable shape; a number for ``()``
Array, nullable            lists, nested as deep as the array has dimensions
Bytes, Image, ...          large_binary
Text, Json                 large_string; JSON as its text
=========================  =============================================================================================

bfloat16 and the float8 types are their bits, uint16 and uint8. Nulls are Arrow's. There is no Arrow type for complex numbers.
Of an empty array that may be null, with several unknown dimensions, lists keep no more than that it is empty.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from ray.data.extensions import ArrowTensorArray, ArrowVariableShapedTensorArray, ArrowVariableShapedTensorType

from mmds.converters.arrowtypes import ELEMENTS, arrow_type, is_binary, is_list, is_text
from mmds.errors import SampleError, SchemaError, printable
from mmds.fields import Array, Bytes, Fixed, Json, Kind, Label, Scalar, Text
from mmds.items import FixedItems
from mmds.reader import Reader
from mmds.schema import Field, Schema

NdArray = np.ndarray[Any, Any]
Columns = Any  # pyarrow.Table or RecordBatch


# Read


def ray_schema(schema: Schema, where: str) -> pa.Schema:
    """Return the columns for samples of `schema`; `SchemaError` for a kind that Ray Data cannot hold."""
    return pa.schema([pa.field(field.name, _ray_type(field, where)) for field in schema.fields])


def _ray_type(field: Field, where: str) -> pa.DataType:
    kind = field.kind
    if not isinstance(kind, Fixed):
        return arrow_type(kind)
    if kind.stored.kind == "c":
        raise SchemaError(
            f"{where}: field '{printable(field.name)}' has complex numbers, which Ray Data cannot hold; leave it out with "
            "fields=[...]"
        )
    element = ELEMENTS[kind.stored]
    if kind.nullable:
        for _ in kind.dimensions:
            element = pa.large_list(element)
        return element
    if kind.unknown:
        return ArrowVariableShapedTensorType(element, len(kind.dimensions))
    if not kind.dimensions:
        return element
    return ArrowTensorArray.from_numpy(np.empty((0, *(size or 0 for size in kind.dimensions)), kind.stored)).type


def to_block(reader: Reader, schema: pa.Schema) -> pa.Table:
    """Return the samples of a reader of one file, or of another store, as a block whose columns are `schema`."""
    if not len(reader):
        return schema.empty_table()
    columns = [_column(reader, position, column.type) for position, column in enumerate(schema)]
    return pa.Table.from_arrays(columns, schema=schema)


def _column(reader: Reader, position: int, type: pa.DataType) -> pa.Array | pa.ChunkedArray:
    kind, items, rows = reader.fields[position].kind, reader.items[position], reader._rows
    if isinstance(kind, Array):
        # From the file to the column without a copy where values of a file have one distance.
        values = (
            items.array[rows.start : rows.stop] if isinstance(items, FixedItems) else items.gather(np.asarray(rows))
        )
        if kind.nullable:
            return pa.array([None if value is None else value.tolist() for value in values], type)
        if kind.unknown:
            return ArrowVariableShapedTensorArray.from_numpy(values)
        return ArrowTensorArray.from_numpy(np.asarray(values))
    column = reader.to_arrow([reader.fields[position].name]).column(0)
    if isinstance(kind, Label):
        return pa.chunked_array([chunk.indices for chunk in column.chunks], type)
    return column


# Written


def infer(schema: pa.Schema) -> Schema:
    """Return the fields for columns that somebody has made with Ray Data; `SchemaError` names one that has no kind."""
    return Schema({column.name: _kind_of(column.name, column.type) for column in schema})


def _kind_of(name: str, type: pa.DataType) -> Any:
    """Return the kind for a type; for a struct, a dict of them."""
    if isinstance(type, ArrowVariableShapedTensorType):
        return Array(_dtype(name, type.value_type), (None,) * type.ndim)
    if _is_tensor(type):
        return Array(_dtype(name, type.value_type), tuple(type.shape))
    if pa.types.is_struct(type) and type.num_fields:
        return {child.name: _kind_of(f"{name}.{child.name}", child.type) for child in type}
    if pa.types.is_dictionary(type):
        type = type.value_type
    if is_text(type):
        return Text()
    if is_binary(type):
        return Bytes()
    if is_list(type) or pa.types.is_fixed_size_list(type):
        if type.value_type in _DTYPES:
            size = type.list_size if pa.types.is_fixed_size_list(type) else None
            return Array(_DTYPES[type.value_type], (size,))
        return Json()
    return Scalar(_dtype(name, type))


_DTYPES = {type: dtype.name for dtype, type in ELEMENTS.items() if dtype.kind != "c"}


def _dtype(name: str, type: pa.DataType) -> str:
    try:
        return _DTYPES[type]
    except KeyError:
        raise SchemaError(
            f"column '{printable(name)}' is {printable(type)} in Ray Data, for which mmds has no kind; convert it to numbers, "
            "text, bytes or arrays with map_batches, or say which with fields="
        ) from None


def _is_tensor(type: pa.DataType) -> bool:
    return isinstance(type, pa.BaseExtensionType) and hasattr(type, "shape") and hasattr(type, "value_type")


def check_columns(columns: Columns, schema: Schema) -> None:
    """Check that there is a column for each field, and a field for each column, or raise `SchemaError`."""
    wanted = {field.name if field.name in columns.column_names else str(field.path[0]) for field in schema.fields}
    found = set(columns.column_names)
    if wanted != found:
        raise SchemaError(
            f"the dataset has the columns {printable(sorted(found))}, and the fields need {printable(sorted(wanted))}; "
            "use select_columns, drop_columns or rename_columns, or change fields="
        )


def to_leaf(columns: Columns, field: Field) -> Any:
    """Return the values of a field as `Writer.write_batch` takes them: an array of shape (B, ...), or a list.

    `SampleError` if there are lists that are no arrays: with nulls in them, or of different lengths below the first.
    """
    if field.name in columns.column_names:
        column = columns.column(field.name)
    else:
        column = pc.struct_field(columns.column(str(field.path[0])), [str(key) for key in field.path[1:]])
    try:
        return _values(column, field.kind)
    except (ValueError, TypeError) as error:  # of numpy, and ours
        raise SampleError(
            f"field '{printable(field.name)}': lists that are no {printable(repr(field.kind), 200)}: {printable(error, 300)}"
        ) from None


def _values(column: pa.Array, kind: Kind) -> Any:
    type = column.type
    if isinstance(type, pa.BaseExtensionType):
        return column.to_pylist() if column.null_count else column.to_numpy(zero_copy_only=False)
    if isinstance(kind, Array):
        dtype = _innermost(type)
        if dtype is None:
            return column.to_pylist()
        if type not in _DTYPES and pc.list_flatten(column, recursive=True).null_count:
            raise ValueError("there are nulls among the numbers")
        if not is_list(type) and not column.null_count:
            return column.to_numpy(zero_copy_only=False)
        if is_list(type) and type.value_type in _DTYPES and len(kind.dimensions) == 1:
            return list(column.to_numpy(zero_copy_only=False))  # an array for each
        return [None if value is None else _as_array(value, kind, dtype) for value in column.to_pylist()]
    if isinstance(kind, Json) and is_text(type):
        return [None if text is None else json.loads(text) for text in column.to_pylist()]
    return column.to_numpy(zero_copy_only=False) if type in _DTYPES and not column.null_count else column.to_pylist()


def _as_array(value: Any, kind: Array, dtype: str) -> NdArray:
    array = np.array(value, dtype)
    if array.size:
        return array
    # An empty list does not say of which shape the empty lists in it would be.
    return array.reshape([array.shape[k] if k < array.ndim else size or 0 for k, size in enumerate(kind.dimensions)])


def _innermost(type: pa.DataType) -> str | None:
    while is_list(type) or pa.types.is_fixed_size_list(type):
        type = type.value_type
    return _DTYPES.get(type)
