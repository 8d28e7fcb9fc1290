"""Fields as Arrow columns: which type holds which kind, and what the columns of a foreign file are as fields.

Written, one Arrow column per field, named as the field is ("label", "target.boxes", "0" in a tuple, "value" alone):

=========================  =============================================================================================
kind                       Arrow type
=========================  =============================================================================================
Scalar                     bool, intN, uintN, halffloat, float, double; complex: fixed_size_list<float or double>[2]
Label                      dictionary<int64, large_string>
Array                      fixed_size_list per dimension; with a dimension of 0 a large_list that is empty
Array, first dim unknown   large_list of that for the other dimensions
Array, else ragged         large_list of all elements, and a column "<name>.shape" where 2 or more dims are unknown
Bytes, Image, ...          large_binary
Text, Json                 large_string
=========================  =============================================================================================

bfloat16 and the float8 types are their bits, uint16 and uint8. Nulls are Arrow's. Our schema lies under "mmds" in the
schema's metadata. `foreign` does the reverse for files that have no such key.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from mmds import canonical
from mmds.errors import FormatError, SchemaError, printable
from mmds.fields import Array, Audio, Bytes, Fixed, Image, Json, Kind, Label, Scalar, Text, Video
from mmds.schema import Field, Schema

KEY = b"mmds"
ELEMENTS = {
    np.dtype(dtype): getattr(pa, name)()
    for dtype, name in {
        "bool": "bool_", "int8": "int8", "int16": "int16", "int32": "int32", "int64": "int64",
        "uint8": "uint8", "uint16": "uint16", "uint32": "uint32", "uint64": "uint64",
        "float16": "float16", "float32": "float32", "float64": "float64",
    }.items()
}  # fmt: skip
ELEMENTS[np.dtype("complex64")] = pa.list_(pa.float32(), 2)
ELEMENTS[np.dtype("complex128")] = pa.list_(pa.float64(), 2)
PICTURES: dict[str, type[Kind]] = {"Image": Image, "Audio": Audio, "Video": Video}  # {bytes, path} in `datasets`


@dataclass(frozen=True)
class Leaf:
    """Where the values of one field are: a column, and the children of structs to follow in it."""

    kind: Kind
    column: str
    steps: tuple[int, ...] = ()
    shapes: str = ""  # the column with the shapes of ragged arrays
    outside: tuple[int, ...] = ()  # of pictures: the steps to the path of a file that is not in the dataset


def is_list(type: pa.DataType) -> bool:
    """Return whether values of `type` are lists of differing length."""
    return bool(pa.types.is_list(type) or pa.types.is_large_list(type))


# Written


def arrow_type(kind: Kind) -> pa.DataType:
    """Return the type of the column that holds values of `kind`."""
    if isinstance(kind, Label):
        return pa.dictionary(pa.int64(), pa.large_utf8())
    if isinstance(kind, Fixed):
        element = ELEMENTS[kind.stored]
        dimensions = kind.dimensions
        ragged = kind.unknown > 0
        if (ragged and not is_leading(kind)) or 0 in dimensions:
            return pa.large_list(element)
        for size in reversed(dimensions[ragged:]):
            element = pa.list_(element, size)
        return pa.large_list(element) if ragged else element
    return pa.large_utf8() if isinstance(kind, (Text, Json)) else pa.large_binary()


def is_leading(kind: Fixed) -> bool:
    """Return whether only the first dimension of `kind` is unknown."""
    return kind.unknown == 1 and kind.dimensions[0] is None


def unknown_sizes(field: Field) -> int:
    """Return how many sizes of a value's shape are not known."""
    return field.kind.unknown if isinstance(field.kind, Fixed) else 0


def shape_name(field: Field) -> str:
    """Return the name of the column with the shapes of a ragged array, empty if it needs none."""
    return f"{field.name}.shape" if unknown_sizes(field) > 1 else ""


def arrow_schema(schema: Schema) -> pa.Schema:
    """Return the columns that hold samples of `schema`."""
    columns = []
    for field in schema.fields:
        columns.append(pa.field(field.name, arrow_type(field.kind), field.kind.nullable))
        if shape_name(field):
            columns.append(pa.field(shape_name(field), pa.list_(pa.uint32(), unknown_sizes(field)), nullable=False))
    return pa.schema(columns)


def refuse(schema: Schema) -> str:
    """Return why `schema` cannot be Arrow columns, or an empty text."""
    for field in schema.fields:
        if shape_name(field) in schema.names:
            return f"field '{printable(shape_name(field))}' has the name of the column for the shapes of '{field.name}'"
    return ""


# Read


def described(text: bytes, path: str) -> tuple[Schema, dict[str, Any]]:
    """Return the fields and the metadata that we wrote under the key "mmds"."""
    try:
        description = canonical.load(text)
        schema, metadata = Schema.from_json(description["fields"]), description["metadata"]
        if not isinstance(metadata, dict):
            raise SchemaError("metadata is no object")
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{printable(path)}: its 'mmds' key cannot be read: {printable(error)}") from None
    return schema, metadata


def described_leaves(schema: Schema, columns: pa.Schema) -> list[Leaf] | None:
    """Return where the fields of our `schema` are, or None if these are not (any more) the columns that we wrote."""
    wanted = arrow_schema(schema)
    if wanted.names != columns.names:
        return None
    if not all(_alike(want.type, have.type) for want, have in zip(wanted, columns, strict=True)):
        return None
    return [Leaf(field.kind, field.name, shapes=shape_name(field)) for field in schema.fields]


def _alike(want: pa.DataType, have: pa.DataType) -> bool:
    """Return whether `have` can be what became of `want` in a Parquet file: names and widths of offsets may differ."""
    if pa.types.is_dictionary(want):
        return bool(pa.types.is_dictionary(have) or is_text(have))
    if pa.types.is_fixed_size_list(want):
        return bool(pa.types.is_fixed_size_list(have)) and (
            want.list_size == have.list_size and _alike(want.value_type, have.value_type)
        )
    if is_list(want):
        return is_list(have) and _alike(want.value_type, have.value_type)
    if is_text(want) or is_binary(want):
        return is_text(have) == is_text(want) and is_binary(have) == is_binary(want)
    return bool(want == have)


def is_text(type: pa.DataType) -> bool:
    """Return whether `type` is one of Arrow's three kinds of string."""
    return bool(pa.types.is_string(type) or pa.types.is_large_string(type) or pa.types.is_string_view(type))


def is_binary(type: pa.DataType) -> bool:
    """Return whether `type` is one of Arrow's four kinds of bytes."""
    t = pa.types
    return bool(t.is_binary(type) or t.is_large_binary(type) or t.is_binary_view(type) or t.is_fixed_size_binary(type))


class Foreign:
    """The fields of a file that we did not write. `names(column, steps)` gives the strings of a dictionary, or None.

    `features` is what Hugging Face `datasets` says of the columns, if it does.
    """

    def __init__(self, path: str, features: Any, names: Callable[[Leaf], tuple[str, ...] | None]) -> None:
        self._path, self._names = path, names
        self._features = features if isinstance(features, dict) else {}
        self._leaves: list[Leaf] = []

    def leaves(self, columns: pa.Schema) -> tuple[Any, list[Leaf]]:
        """Return the structure of a sample, with a leaf's position for its kind, and the leaves."""
        structure = {
            column.name: self._column(column.type, self._features.get(column.name), column.name, ())
            for column in columns
        }
        return structure, self._leaves

    def _leaf(self, kind: Kind, column: str, steps: tuple[int, ...], **more: Any) -> int:
        self._leaves.append(Leaf(kind, column, steps, **more))
        return len(self._leaves) - 1

    def _column(self, type: pa.DataType, feature: Any, column: str, steps: tuple[int, ...]) -> Any:
        if isinstance(type, pa.BaseExtensionType):
            type = type.storage_type
        feature = feature if isinstance(feature, dict) else {}
        what = feature.get("_type")
        if isinstance(what, str) and what in PICTURES:
            kind = PICTURES[what]()
            if is_binary(type):
                return self._leaf(kind, column, steps)
            if pa.types.is_struct(type) and {"bytes", "path"} <= {child.name for child in type}:
                inside, outside = type.get_field_index("bytes"), type.get_field_index("path")
                return self._leaf(kind, column, (*steps, inside), outside=(*steps, outside))
        if pa.types.is_struct(type) and type.num_fields:
            return {
                child.name: self._column(child.type, feature.get(child.name), column, (*steps, position))
                for position, child in enumerate(type)
            }
        if what == "ClassLabel" and pa.types.is_integer(type) and _are_names(feature.get("names")):
            return self._leaf(Label(tuple(feature["names"])), column, steps)
        if isinstance(what, str) and what.startswith("Array") and is_list(type):
            array = self._array(feature)
            if array is not None:
                return self._leaf(array, column, steps)
        return self._leaf(self._kind(type, column, steps), column, steps)

    def _kind(self, type: pa.DataType, column: str, steps: tuple[int, ...]) -> Kind:
        t = pa.types
        if t.is_dictionary(type) and is_text(type.value_type):
            names = self._names(Leaf(Text(), column, steps))
            return Text() if names is None else Label(names)
        if t.is_dictionary(type):
            return self._kind(type.value_type, column, steps)
        if is_text(type):
            return Text()
        if is_binary(type):
            return Bytes()
        element = element_dtype(type)
        if element is not None:
            return Scalar(element.name)
        shape: list[int | None] = []
        inner = type
        while is_list(inner) or t.is_fixed_size_list(inner):
            shape.append(inner.list_size if t.is_fixed_size_list(inner) else None)
            inner = inner.value_type
        element = element_dtype(inner)
        if shape and element is not None and not (0 in shape and None in shape):
            return Array(element.name, tuple(shape))
        if _is_plain(type):
            return Text() if t.is_decimal(type) else Json()
        raise FormatError(
            f"{printable(self._path)}: column '{printable(column)}' of type {printable(type)} has no field kind"
        )

    @staticmethod
    def _array(feature: dict[str, Any]) -> Array | None:
        try:
            return Array(feature["dtype"], tuple(feature["shape"]))
        except (KeyError, TypeError, SchemaError):
            return None


def element_dtype(type: pa.DataType) -> np.dtype[Any] | None:
    """Return the numpy dtype of a number type; of dates, times and durations the integer that counts their units."""
    for dtype, element in ELEMENTS.items():
        if element == type:
            return None if dtype.kind == "c" else dtype
    return (
        np.dtype(f"i{type.bit_width // 8}") if pa.types.is_temporal(type) and not pa.types.is_interval(type) else None
    )


def _is_plain(type: pa.DataType) -> bool:
    """Return whether values of `type` can be JSON."""
    if is_list(type) or pa.types.is_fixed_size_list(type):
        return _is_plain(type.value_type)
    if pa.types.is_struct(type):
        return all(_is_plain(child.type) for child in type)
    return bool(
        (element_dtype(type) is not None and not pa.types.is_temporal(type))
        or is_text(type) or pa.types.is_null(type) or pa.types.is_decimal(type)
    )  # fmt: skip


def _are_names(names: Any) -> bool:
    return isinstance(names, list) and all(isinstance(name, str) for name in names) and len(set(names)) == len(names)


def with_nulls(leaf: Leaf) -> Leaf:
    """Return `leaf` with a kind that has nulls."""
    return replace(leaf, kind=replace(leaf.kind, nullable=True))


def elements(kind: Fixed) -> int:
    """Return how many elements a value of known shape has."""
    return math.prod(size for size in kind.dimensions if size is not None)
