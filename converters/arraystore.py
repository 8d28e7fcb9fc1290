"""Reading named arrays as samples: those that `ArrayWriter` wrote, and groups of arrays from elsewhere.

In a group without the attribute "mmds", all arrays that share the first dimension which most of them have are fields, under
the names that they have; `left_out` says why others are not.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mmds import canonical
from mmds.converters.arrays import VALID, array_name, row_shape, specifications
from mmds.dtypes import dtype_name
from mmds.errors import FormatError, MmdsError, SchemaError, printable
from mmds.fields import Array, Bytes, Fixed, Kind, Scalar, Text
from mmds.schema import Field, Schema
from mmds.store import Items, ListItems, MaskedItems, RaggedItems, Rows, RunItems

NdArray = np.ndarray[Any, Any]

MAX_RATIO = 1100  # of declared to stored bytes: deflate, the filter with the highest ratio in wide use, reaches 1032
FREE_BYTES = 2**26  # that may be declared in any case
SYSTEM_ERRORS = {
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.EMFILE,
    errno.ENFILE,
    errno.EAGAIN,
    errno.EIO,
}  # not of data
MAX_CHUNK_BYTES = 2**31  # of a foreign array: a library reads chunks whole


class Rowed(Protocol):
    """An array of a library, as far as reading goes."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> Any: ...
    def __getitem__(self, rows: slice) -> Any: ...


@contextmanager
def blaming(where: str) -> Iterator[None]:
    """Turn what a library raises over damaged data, which may be anything, into a `FormatError`."""
    try:
        yield
    except (MmdsError, NameError, AssertionError):  # mistakes in the code are not damage either
        raise
    except MemoryError as error:
        raise FormatError(f"{where}: it takes more memory than there is ({printable(error)})") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno in SYSTEM_ERRORS:
            raise
        raise FormatError(f"{where}: {printable(error) or type(error).__name__}") from error


def refuse_inflation(path: str, declared: int, stored: int) -> None:
    """Raise `FormatError` if arrays declare many more bytes than there are: reading them would never end."""
    if declared > max(FREE_BYTES, stored * MAX_RATIO):
        raise FormatError(
            f"{printable(path)}: its arrays declare {declared} bytes, but {stored} are stored: refused, more than {MAX_RATIO} "
            "times as many"
        )


def refuse_chunk(path: str, name: str, size: int) -> None:
    """Raise `FormatError` if the chunks of an array are so large that reading one would exhaust memory."""
    if size > MAX_CHUNK_BYTES:
        raise FormatError(
            f"{printable(path)}: {printable(name)}: chunks of {size} bytes refused, as each is read whole; at most "
            f"{MAX_CHUNK_BYTES}"
        )


def stored_bytes(path: str, enough: int) -> int:
    """Return the bytes of all files in a folder, or of as many as are `enough`: there may be millions."""
    total = 0
    for folder, _, files in os.walk(path):
        for name in files:
            total += (Path(folder) / name).lstat().st_size
            if total >= enough:
                return total
    return total


class ArrayStore:
    """A group of named arrays as a `Store`. `library` is whatever has to stay alive (an open file)."""

    def __init__(
        self,
        path: str,
        arrays: Mapping[str, Rowed],
        description: str | bytes | None,
        identity: str,
        library: Any = None,
    ) -> None:
        self.path, self._library = path, library
        self.left_out: dict[str, str] = {}
        self.metadata: Mapping[str, Any] = {}
        if description is None:
            names = self._foreign(arrays)
            self.items: list[Items] = [
                self._foreign_items(arrays[name], name, field) for name, field in zip(names, self.schema, strict=True)
            ]
        else:
            self._described(description)
            for field in self.schema:
                self._check(arrays, field)
            self.items = [self._items(arrays, field) for field in self.schema]
        self.content_id = f"{identity}-{self.n:x}"

    # Ours

    def _described(self, description: str | bytes) -> None:
        try:
            said = canonical.load(description.encode() if isinstance(description, str) else description)
            self.schema, self.n, self.metadata = Schema.from_json(said["fields"]), said["n"], said["metadata"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._error(f'the attribute "mmds" is malformed: {printable(error)}') from None
        if type(self.n) is not int or self.n < 0 or not isinstance(self.metadata, dict):
            raise self._error('the attribute "mmds" is malformed')

    def _check(self, arrays: Mapping[str, Rowed], field: Field) -> None:
        """Check that every array of a field is there, with its dtype and shape."""
        for name, (dtype, row) in specifications(field).items():
            if name not in arrays:
                raise self._error(f"the array {printable(name)} is missing")
            array = arrays[name]
            rows = None if name == f"{array_name(field)}/values" else self.n + (name == f"{array_name(field)}/offsets")
            shape = tuple(array.shape)
            if array.dtype != dtype or not shape or shape[1:] != row or rows not in (None, shape[0]):
                expected = ("any", *row) if rows is None else (rows, *row)
                raise self._error(
                    f"the array {printable(name)} is {array.dtype} {array.shape}, expected {dtype} {expected}"
                )

    def _items(self, arrays: Mapping[str, Rowed], field: Field) -> Items:
        kind, name = field.kind, array_name(field)
        items: Items
        if isinstance(kind, Fixed) and not kind.unknown:
            items = self.fixed_items(arrays[name], name, kind) if name in arrays else RunItems(_no_elements(kind), kind)
        else:
            parts = [self.rows_of(arrays[part], part) for part in specifications(field) if not part.startswith(VALID)]
            items = RaggedItems(parts[0], parts[1], field, self.path, *parts[2:])
        if not kind.nullable:
            return items
        return MaskedItems(items, self.rows_of(arrays[f"{VALID}/{name}"], f"{VALID}/{name}"))

    # From elsewhere

    def _foreign(self, arrays: Mapping[str, Rowed]) -> list[str]:
        """Set schema and n to those of all arrays that belong together; return their names in the order of fields."""
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
            raise self._error(f"no arrays that could be samples{reasons and f' ({reasons})'}")
        self.n = max(length for length, count in lengths if count == lengths[0][1])
        for name in list(kinds):
            if arrays[name].shape[0] != self.n:
                self.left_out[name] = f"its first dimension is {arrays[name].shape[0]}, not {self.n}"
                del kinds[name]
        try:
            self.schema = Schema(_nest(kinds))
        except (SchemaError, RecursionError) as error:
            raise self._error(printable(error)) from None
        paths = {tuple(name.split("/")) if name else (): name for name in kinds}
        return [paths[tuple(map(str, field.path))] for field in self.schema]

    def kind_of(self, array: Rowed) -> Kind:
        """Return the kind of field that a foreign array is; `SchemaError` with the reason where it is none."""
        dtype = array.dtype
        if getattr(dtype, "kind", None) in ("U", "S", "T"):
            if len(array.shape) > 1:
                raise SchemaError("an array of strings per sample")
            return Bytes() if dtype.kind == "S" else Text()
        name = dtype_name(dtype)
        return Array(name, tuple(array.shape[1:])) if len(array.shape) > 1 else Scalar(name)

    def _foreign_items(self, array: Rowed, name: str, field: Field) -> Items:
        if isinstance(field.kind, Fixed) and not field.kind.unknown:
            return self.fixed_items(array, name, field.kind)
        return ListItems(self.list_of(array, name))

    # How a library reads

    def fixed_items(self, array: Any, name: str, kind: Fixed) -> Items:
        """Return the values of an array whose rows are the samples."""
        return RunItems(self.rows_of(array, name), kind)

    def rows_of(self, array: Any, name: str) -> Rows:
        """Return the function (start, stop) -> rows of an array."""
        n, row, dtype, path = int(array.shape[0]), tuple(array.shape[1:]), array.dtype, printable(self.path)

        def read(start: int, stop: int) -> NdArray:  # without `self`: the files of a store close when it is dropped
            if not 0 <= start <= stop <= n:
                raise FormatError(
                    f"{path}: the array {printable(name)} has {n} rows, but {start} to {stop} are asked for"
                )
            if start == stop:
                return np.empty((0, *row), dtype)
            with blaming(f"{path}: rows {start} to {stop} of the array {printable(name)}"):
                return np.asarray(array[start:stop])

        return read

    def list_of(self, array: Any, name: str) -> Rows:
        """Return the function (start, stop) -> list of the values of a foreign array that has no fixed shape."""
        read = self.rows_of(array, name)
        return lambda start, stop: read(start, stop).tolist()

    def _error(self, text: str) -> FormatError:
        return FormatError(f"{printable(self.path)}: {text}")


def _nest(kinds: Mapping[str, Kind]) -> Any:
    """Return the structure of fields for arrays with these names; that of an array without a name is a single value."""
    if "" in kinds:
        return kinds[""]
    structure: dict[str, Any] = {}
    for name, kind in kinds.items():
        *groups, last = name.split("/")
        node = structure
        for group in groups:
            node = node.setdefault(group, {})
        node[last] = kind
    return structure


def _no_elements(kind: Fixed) -> Rows:
    return lambda start, stop: np.empty((stop - start, *row_shape(kind)), kind.stored)
