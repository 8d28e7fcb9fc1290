"""Reading one ``.mmds`` file through the page cache: nothing is copied before it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self, overload

import numpy as np

from mmds.errors import FormatError, SchemaError, missing, printable
from mmds.items import FixedItems, NullableItems, VariableItems
from mmds.keys import KeyLookup
from mmds.parse import Footer
from mmds.ragged import Ragged, check_ragged, flat, gather_ragged, is_ragged
from mmds.remote import is_url
from mmds.shards import Shards
from mmds.store import ArrayItems, Items, MappedStore, MaskedItems, Store

NdArray = np.ndarray[Any, Any]


class Strings(Sequence[Any]):
    """The values of a bytes or text column, decoded one at a time from the mapped index."""

    def __init__(self, items: Items, rows: range) -> None:
        self._items, self._rows = items, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Strings(self._items, self._rows[index])
        return self._items.get(self._rows[index])

    def __repr__(self) -> str:
        return f"<{len(self)} strings>"


class Reader(Sequence[Any]):
    """A dataset as a sequence of samples: ``reader[i]``, ``reader[2:9]`` (a reader again), ``reader[[5, 1]]`` (a batch).

    Arrays in samples are read-only: views of the page cache, of compressed fields in memory of their own. Bytes and text are
    copies; images, audio and video are their encoded bytes; arrays of bfloat16 and 8-bit floats are their bits. In a batch,
    scalars and arrays of fixed shape are stacked to one array with a first axis more, everything else is a list.

    A reader may be used by many threads. It follows a fork, but cannot be pickled; `MemoryMappedDataset` can.
    """

    def __init__(self, store: Store, rows: range, fields: Any = None) -> None:
        self._rows = rows
        self._lookup: KeyLookup | None
        schema = store.schema
        self.fields, self._positions = (schema, list(range(len(schema)))) if fields is None else schema.select(fields)
        # In the file, whatever `fields` made of them:
        self.stored_names = [schema.names[position] for position in self._positions]
        self._read_from(store)

    @property
    def path(self) -> Path | str:
        """The file or folder that is read, or its URL; of several files, the first one."""
        path = getattr(self.store, "source", self.store.path)
        return str(path) if is_url(path) else Path(path)

    @property
    def footer(self) -> Footer:
        """What an ``.mmds`` file says of itself: sizes, sections, hashes. Other stores have none (AttributeError)."""
        footer: Footer = self.store.footer  # type: ignore[attr-defined]
        return footer

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What the writer was given as `metadata`."""
        return self.store.metadata

    @property
    def content_id(self) -> str:
        """A text that changes when the dataset does: of an ``.mmds`` file, 32 hex digits that name its whole content."""
        return self.store.content_id

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    @overload
    def __getitem__(self, index: Sequence[int] | NdArray) -> Any: ...

    def __getitem__(self, index: Any) -> Any:
        if type(index) is not int:
            if isinstance(index, slice):
                return self.rows(self._rows[index])
            if is_many(index):
                return self.gather(index)
        try:
            row = self._rows[index]
        except IndexError:
            raise self.out_of_range(index, self._rows) from None
        return self._get(row)

    def get(self, key: str | bytes) -> Any:
        """Return the sample with this key, the first one if there are several; `KeyError` if there is none.

        The dataset needs one field ``Text(key=True)`` or ``Bytes(key=True)`` (`SchemaError`), whether it is read or not.
        """
        return self._get(self.find_row(key, self._rows))

    def row_of(self, key: str | bytes) -> int:
        """Return the number of the sample with this key, so that ``reader[reader.row_of(key)]`` is `get`."""
        return self._rows.index(self.find_row(key, self._rows))

    def find_row(self, key: str | bytes, rows: range) -> int:
        """Return the first of `rows` of the file that has this key."""
        if self._lookup is None:
            self._lookup = KeyLookup(self.store)
        return self._lookup.row(key, rows)

    def rows(self, rows: range) -> Self:
        """Return a reader of `rows` of the whole dataset."""
        view = object.__new__(type(self))
        view.__dict__.update(self.__dict__)
        view._rows = rows
        return view

    def select(self, fields: Any) -> Reader:
        """Return a reader of the same samples with other fields, which are selected from all as by `mmds.open`."""
        return Reader(self.store, self._rows, fields)

    def parts(self) -> Iterator[Self]:
        """Yield a reader of each file that the samples are in, with the samples that are in it. Needs a step of 1."""
        if self._rows.step != 1:
            raise ValueError(f"samples at a distance of {self._rows.step}: expected neighbours")
        if not isinstance(self.store, Shards):
            yield self
            return
        for file, rows in self.store.cut(self._rows):
            view = self.rows(rows)
            view._read_from(file)
            yield view

    def _read_from(self, store: Store) -> None:
        self.store = store
        self._lookup = None
        self.items = [store.items[position] for position in self._positions]
        self._get: Callable[[int], Any] = self.fields.assembler([items.get for items in self.items])
        self._gather: Callable[[NdArray], Any] = self.fields.assembler([items.gather for items in self.items])
        self._mapped: MappedStore | None = store if isinstance(store, MappedStore) else None

    def __iter__(self) -> Iterator[Any]:
        return map(self._get, self._rows)

    def __repr__(self) -> str:
        return (
            f"<Reader {printable(self.store.path)}: {len(self)} samples of {printable(', '.join(self.fields.names))}>"
        )

    def __reduce__(self) -> Any:
        raise TypeError(
            "a Reader belongs to one process; pass on its path, or a MemoryMappedDataset, which can be pickled"
        )

    def column(self, name: str) -> Any:
        """Return all values of one field: an ndarray with samples as its first axis, or `Strings`.

        From an ``.mmds`` file that is a view, without a copy; from several, and other stores, the whole column is read.

        Works for scalars, labels, bytes and text columns, and arrays of fixed shape where all payload fields are such.
        Nulls are zeros or empty there; `valid` tells them apart.
        """
        items = self.items[self.fields.index(name)]
        if isinstance(items, (NullableItems, MaskedItems)):
            items = items.items
        if isinstance(items, FixedItems):
            return _rows(items.array, self._rows)
        if isinstance(items, ArrayItems) and not isinstance(items, VariableItems):
            return items.gather(np.asarray(self._rows, np.int64))
        if self.fields[self.fields.index(name)].is_payload:
            raise SchemaError(
                f"{printable(self.store.path)}: '{printable(name)}' is no column; its values differ in size. Use reader[i]"
            )
        return Strings(items, self._rows)

    def flat(self, name: str) -> NdArray:
        """Return the values of one field, one sample's after the other's, as one array of shape (total, ...): a view, no copy.

        For values of which `gather` makes a `Jagged`: arrays whose first dimension alone differs, bytes, and encoded files
        (uint8). Opening costs the same for any number of samples: no sample is looked at. Nulls are empty.

        The values have to be neighbours in one file (`SchemaError`): a slice with a step of 1, no other field in the payload,
        no padding, no compression. ``{"tokens": Array("uint16", (None,), align=2)}`` and columns beside it are such.
        """
        position = self.fields.index(name)
        kind, where = self.fields[position].kind, f"{printable(self.store.path)}: field '{printable(name)}'"
        try:
            values = flat(self.items[position], kind, self._rows) if is_ragged(kind, "jagged") else None
        except FormatError as error:
            raise FormatError(f"{where}: {error}") from None
        if values is None:
            raise SchemaError(
                f"{where} is not one array of values in one file; expected a ragged array whose align is its item size, or "
                "bytes, not compressed, and no other field in the payload. Of several files, each of reader.parts() is one"
            )
        return values

    def to_arrow(self, fields: Any = None) -> Any:
        """Return fields as a `pyarrow.Table`, for DuckDB, Polars and pandas.

        Columns of the index, and payload without padding, are views of the mapped file. A field that would have to be
        copied is refused by name (`SchemaError`), unless it is named in `fields`. Labels become dictionaries.
        """
        try:
            view = importlib.import_module("mmds.converters.arrowview")  # by name: it stands above this layer
        except ModuleNotFoundError as error:
            if not str(error.name).startswith("pyarrow"):
                raise
            raise missing("pyarrow", "arrow", "to_arrow") from None
        return view.to_arrow(self, fields)

    def valid(self, name: str) -> NdArray:
        """Return for each sample whether the field has a value (bool, shape (n,)); all True where it cannot be null."""
        items = self.items[self.fields.index(name)]
        if isinstance(items, NullableItems):
            return np.asarray(_rows(items.valid, self._rows), bool)
        if isinstance(items, MaskedItems):
            return items.valid(np.asarray(self._rows, np.int64))
        return np.broadcast_to(np.True_, len(self))  # one byte, however many samples a file declares

    def gather(self, index: Sequence[int] | NdArray, ragged: Ragged = "list") -> Any:
        """Return a batch like ``reader[index]``, with bytes and arrays of different length as `ragged` says.

        "list": a list of values, as in ``reader[index]``.
        "jagged": a `Jagged` of all values in one buffer, copied once. Bytes and encoded files are uint8, nulls are empty.
        Arrays with unknown dimensions other than the first, text and JSON stay lists.
        "padded": one array (B, longest, ...), filled up with zeros. Text and JSON stay lists.
        """
        check_ragged(ragged)
        rows = self.resolve(index, self._rows)
        self.expect(rows)
        if ragged == "list":
            return self._gather(rows)
        functions = [
            partial(gather_ragged, items, field.kind, how=ragged) if is_ragged(field.kind, ragged) else items.gather
            for items, field in zip(self.items, self.fields, strict=True)
        ]
        return self.fields.assembler(functions)(rows)

    def prefetch(self, index: Sequence[int] | NdArray) -> None:
        """Ask the kernel to read the samples of a list or array of indices, without waiting for it.

        A batch asks for its own samples already where that helps; this is for what will be wanted later. Does nothing
        for stores other than ``.mmds`` files.
        """
        if self._mapped is not None:
            self._mapped.ask(self._positions, self.resolve(index, self._rows))

    def expect(self, rows: NdArray) -> None:
        """Ask the kernel for all rows of a batch that is about to be read, if the disk has been read from recently."""
        if self._mapped is not None and self._mapped.wanted(len(rows)):
            self._mapped.ask(self._positions, rows)

    def release(self, rows: NdArray) -> None:
        """Take the pages of rows that have been read out of this process; they stay in the page cache."""
        if self._mapped is not None:
            self._mapped.release(self._positions, rows)

    def resolve(self, index: Any, rows: range) -> NdArray:
        """Return the rows of the file that an index array or list into `rows` means, as int64, all in range.

        Negative indices count from the end; a bool array of shape (len(rows),) selects. Raises IndexError, TypeError.
        """
        if isinstance(index, str):
            raise TypeError(f"samples are numbered; for all values of one field use column('{printable(index)}')")
        indices = np.asarray(index)
        if indices.dtype == bool and indices.shape == (len(rows),):
            indices = np.flatnonzero(indices)
        if indices.ndim != 1 or (indices.dtype.kind not in "iu" and indices.size):
            raise TypeError(f"an index array must be one-dimensional integers, or bools of shape ({len(rows)},)")
        if indices.size:
            low, high = int(indices.min()), int(indices.max())
            if low < -len(rows) or high >= len(rows):
                raise self.out_of_range(low if low < -len(rows) else high, rows)
        indices = indices.astype(np.int64, copy=False)  # only now: 2**64 - 1 would have become -1
        if indices.size and low < 0:
            indices = np.where(indices < 0, indices + len(rows), indices)
        if rows.start or rows.step != 1:
            indices = indices * rows.step + rows.start
        return indices

    def out_of_range(self, index: Any, rows: range) -> IndexError:
        """Return the error for an index that is not one of `rows`."""
        return IndexError(f"{printable(self.store.path)}: index {index} is out of range for {len(rows)} samples")


def is_many(index: Any) -> bool:
    """Return whether `index` is a list or array of indices; arrays and tensors of rank 0 are single ones."""
    return hasattr(index, "__len__") and getattr(index, "shape", None) != ()


def _rows(array: NdArray, rows: range) -> NdArray:
    if not rows:
        return array[:0]
    return array[rows.start : None if rows.stop < 0 else rows.stop : rows.step]
