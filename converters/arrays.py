"""Samples as named arrays with the sample axis first: how HDF5, Zarr, TileDB and folders of ``.npy`` files hold them.

A field at path ("target", "boxes") is the array ``target/boxes``:

* fixed shape: ``target/boxes`` (N, *shape);
* anything else: ``target/boxes/values`` (total elements or bytes,) and ``target/boxes/offsets`` <u8 (N + 1,): sample i is
  ``values[offsets[i]:offsets[i + 1]]``; with two or more unknown dimensions also ``target/boxes/shape`` <u4 (N, unknown);
* nullable: also ``__valid__/target/boxes`` bool (N,).

Keys are percent-encoded where they hold anything but letters, digits, ``_``, ``-`` and ``.``. The schema stands under the
attribute "mmds" of the group. Without it, the arrays of a foreign group are fields as they are.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import quote

import numpy as np

from mmds import canonical
from mmds.columns import Column
from mmds.dtypes import dtype_name
from mmds.errors import FormatError, SchemaError, printable
from mmds.fields import Array, Fixed, Kind, Scalar
from mmds.schema import Field, Schema
from mmds.store import Items, MaskedItems, RaggedItems, RunItems
from mmds.storewriter import StoreWriter

NdArray = np.ndarray[Any, Any]

CHUNK_BYTES = (
    2**16
)  # of an array: a random sample then costs one read of about what a disk delivers in the time of a seek
VALID = "__valid__"


class Rows(Protocol):
    """An array of a library, as far as reading goes."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> Any: ...
    def __getitem__(self, rows: slice) -> Any: ...


def array_name(field: Field) -> str:
    """Return the name of a field's array, or of the group of its arrays.

    >>> array_name(Field(("a/b", 0), Scalar("int8")))
    'a%2Fb/0'
    """
    keys = [quote(str(key), safe="") for key in field.path] or ["value"]
    return "/".join("%2E" * len(key) if set(key) == {"."} else key or "%" for key in keys)


def specifications(field: Field) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """Return name -> (dtype, shape of one row) of the arrays that hold a field."""
    kind, name = field.kind, array_name(field)
    found: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
    if isinstance(kind, Fixed) and not kind.unknown:
        found[name] = (kind.stored, tuple(size for size in kind.dimensions if size is not None))
    else:
        found[f"{name}/values"] = (kind.stored if isinstance(kind, Fixed) else np.dtype("u1"), ())
        found[f"{name}/offsets"] = (np.dtype("<u8"), ())
        if isinstance(kind, Fixed) and kind.unknown > 1:
            found[f"{name}/shape"] = (np.dtype("<u4"), (kind.unknown,))
    if kind.nullable:
        found[f"{VALID}/{name}"] = (np.dtype(bool), ())
    return found


def chunk_rows(dtype: np.dtype[Any], row: tuple[int, ...]) -> int:
    """Return how many rows one chunk of an array should have."""
    return max(1, CHUNK_BYTES // max(1, math.prod(row) * dtype.itemsize))


class ArrayWriter(StoreWriter):
    """Base of the writers of named arrays. A subclass implements the four methods at the end."""

    def create(self, schema: Schema) -> None:
        self._fields = schema.fields
        names = Counter(name for field in schema for name in specifications(field))
        if max(names.values()) > 1 or any(field.path[:1] == (VALID,) for field in schema):
            raise SchemaError(f"{self._shown}: fields would share the array {printable(names.most_common(1)[0][0])}")
        self.create_group()
        self._totals = dict.fromkeys(range(len(schema)), 0)
        self._arrays: dict[str, Any] = {}
        for field in schema:
            for name, (dtype, row) in specifications(field).items():
                self._arrays[name] = self.create_array(name, dtype, row)
                if name.endswith("/offsets") and name == f"{array_name(field)}/offsets":
                    self.append_rows(self._arrays[name], np.zeros(1, dtype))

    def append(self, columns: list[Column], size: int) -> None:
        for position, (field, column) in enumerate(zip(self._fields, columns, strict=True)):
            name, kind = array_name(field), field.kind
            if isinstance(column.values, np.ndarray):
                self.append_rows(self._arrays[name], column.values)
            else:
                self._append_ragged(position, name, kind, column.values)
            if column.valid is not None:
                self.append_rows(self._arrays[f"{VALID}/{name}"], column.valid)

    def _append_ragged(self, position: int, name: str, kind: Kind, values: list[Any]) -> None:
        if isinstance(kind, Array):
            parts = [np.empty(0, kind.stored) if value is None else value.reshape(-1) for value in values]
            joined = np.concatenate(parts)
            sizes = [part.size for part in parts]
            if kind.unknown > 1:
                self.append_rows(self._arrays[f"{name}/shape"], _unknown_sizes(kind, values))
        else:
            data = [b"" if value is None else bytes(value) for value in values]
            joined = np.frombuffer(b"".join(data), np.uint8)
            sizes = [len(part) for part in data]
        ends = self._totals[position] + np.cumsum(sizes, dtype=np.int64)
        self._totals[position] = int(ends[-1])
        if joined.size:
            self.append_rows(self._arrays[f"{name}/values"], joined)
        self.append_rows(self._arrays[f"{name}/offsets"], ends.astype("<u8"))

    def finish(self, schema: Schema) -> None:
        self.describe_group(self.description(schema))

    def create_group(self) -> None:
        """Create the empty group at `self.staging.content`."""
        raise NotImplementedError

    def create_array(self, name: str, dtype: np.dtype[Any], row: tuple[int, ...]) -> Any:
        """Return a new array of shape (0, *row), whose name may lead through groups."""
        raise NotImplementedError

    def append_rows(self, array: Any, rows: NdArray) -> None:
        """Append `rows` to an array that `create_array` has returned."""
        raise NotImplementedError

    def describe_group(self, description: str) -> None:
        """Write the attribute "mmds"; all arrays are complete."""
        raise NotImplementedError


def _unknown_sizes(kind: Array, values: list[Any]) -> NdArray:
    axes = [axis for axis, size in enumerate(kind.shape) if size is None]
    return np.array([[0 if value is None else value.shape[axis] for axis in axes] for value in values], "<u4")


class ArrayStore:
    """A group of named arrays as a `Store`; keeps `library` (an open file) alive."""

    def __init__(
        self,
        path: str,
        arrays: Mapping[str, Rows],
        description: str | bytes | None,
        content_id: str,
        library: Any = None,
    ) -> None:
        self.path, self.content_id, self._library = path, content_id, library
        self.left_out: dict[str, str] = {}
        self.metadata: Mapping[str, Any] = {}
        if description is None:
            self.schema, self.n = self._foreign(arrays)
        else:
            try:
                said = canonical.load(description.encode() if isinstance(description, str) else bytes(description))
                self.schema, self.n, self.metadata = Schema.from_json(said["fields"]), said["n"], said["metadata"]
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise FormatError(f'{printable(path)}: the attribute "mmds" is malformed: {printable(error)}') from None
            if type(self.n) is not int or self.n < 0 or not isinstance(self.metadata, dict):
                raise FormatError(f'{printable(path)}: the attribute "mmds" is malformed')
            for field in self.schema:
                self._check(arrays, field)
        self.items: list[Items] = [self._items(arrays, field) for field in self.schema]

    def _foreign(self, arrays: Mapping[str, Rows]) -> tuple[Schema, int]:
        """Return the schema of all arrays that share the first dimension which most of them have."""
        kinds: dict[str, Kind] = {}
        for name, array in arrays.items():
            try:
                if not array.shape:
                    raise SchemaError("it has no sample axis")
                kinds[name] = self.kind_of(array)
            except SchemaError as error:
                self.left_out[name] = str(error)
        lengths = Counter(arrays[name].shape[0] for name in kinds).most_common()
        if not lengths:
            reasons = "; ".join(f"{printable(name)}: {reason}" for name, reason in self.left_out.items())
            raise FormatError(f"{printable(self.path)}: no arrays that could be samples{reasons and f' ({reasons})'}")
        n = max((length for length, count in lengths if count == lengths[0][1]), default=0)
        for name in list(kinds):
            if arrays[name].shape[0] != n:
                self.left_out[name] = f"its first dimension is {arrays[name].shape[0]}, not {n}"
                del kinds[name]
        structure: dict[str, Any] = {}
        for name, kind in kinds.items():
            *groups, last = name.split("/")
            node = structure
            for group in groups:
                node = node.setdefault(group, {})
            node[last] = kind
        return Schema(structure), n

    def kind_of(self, array: Rows) -> Kind:
        """Return the kind of field that a foreign array is; `SchemaError` with the reason where it is none."""
        name = dtype_name(array.dtype)
        return Array(name, array.shape[1:]) if len(array.shape) > 1 else Scalar(name)

    def _check(self, arrays: Mapping[str, Rows], field: Field) -> None:
        """Check that every array of a field is there, with its dtype and shape."""
        for name, (dtype, row) in specifications(field).items():
            if name not in arrays:
                raise FormatError(f"{printable(self.path)}: the array {printable(name)} is missing")
            array = arrays[name]
            rows = None if name.endswith("/values") else self.n + name.endswith("/offsets")
            if np.dtype(array.dtype) != dtype or array.shape[1:] != row or rows not in (None, array.shape[0]):
                raise FormatError(
                    f"{printable(self.path)}: the array {printable(name)} is {array.dtype} {array.shape}, expected {dtype} "
                    f"{('any' if rows is None else rows, *row)}"
                )

    def _items(self, arrays: Mapping[str, Rows], field: Field) -> Items:
        kind, name = field.kind, array_name(field)
        items: Items
        foreign = "/".join(map(str, field.path))
        if name in arrays or foreign in arrays:
            array = arrays[name if name in arrays else foreign]
            if not isinstance(kind, Fixed) or kind.unknown:
                return self.other_items(array)
            return self._masked(RunItems(rows_of(array), kind), arrays, field)
        shape = f"{name}/shape"
        items = RaggedItems(
            rows_of(arrays[f"{name}/values"]),
            rows_of(arrays[f"{name}/offsets"]),
            field,
            self.path,
            rows_of(arrays[shape]) if isinstance(kind, Array) and kind.unknown > 1 else None,
        )
        return self._masked(items, arrays, field)

    def other_items(self, array: Any) -> Items:
        """Return the values of a foreign array whose kind is not one of fixed shape."""
        raise NotImplementedError

    def _masked(self, items: Items, arrays: Mapping[str, Rows], field: Field) -> Items:
        return MaskedItems(items, rows_of(arrays[f"{VALID}/{array_name(field)}"])) if field.kind.nullable else items


def rows_of(array: Rows) -> Any:
    """Return the function (start, stop) -> rows of an array."""
    return lambda start, stop: array[start:stop]
