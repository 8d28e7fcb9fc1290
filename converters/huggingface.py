"""`datasets.Dataset` objects of Hugging Face as a store: their Arrow table, with the features that they declare.

What `save_to_disk` has written is read by `arrow`, without the package. A picture (`Image`, also `Audio`, `Video`) is its
encoded bytes; the name of the file that it came from is left out. A picture that is only a path is read from there, since
whoever built the object in this process meant that file. `with_format` and `set_transform` do not apply.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mmds.converters.arrowitems import ArrowStore, open_chunks
from mmds.converters.batches import Batches
from mmds.errors import SourceError, printable
from mmds.store import Items, RunItems

NdArray = np.ndarray[Any, Any]


def as_store(dataset: Any) -> ArrowStore:
    """Return the samples of a `datasets.Dataset`, without a copy of its table."""
    if isinstance(dataset, dict):
        splits = ", ".join(printable(name) for name in dataset)
        raise SourceError(f"a DatasetDict is several datasets; convert one of its splits: {splits}")
    if not hasattr(dataset, "data") or not hasattr(dataset, "features"):
        raise SourceError(
            f"{type(dataset).__name__}: expected a datasets.Dataset; of a stream, make one with Dataset.from_generator"
        )
    table = dataset.data.table.replace_schema_metadata(dataset.features.arrow_schema.metadata)
    batches = table.to_batches()
    chunks = Batches(table.schema, batches, [len(batch) for batch in batches])
    store = open_chunks(chunks, f"<{type(dataset).__name__}>", dataset._fingerprint, read_outside=True)
    if dataset._indices is not None:  # after select, shuffle or filter
        rows = dataset._indices.table.column(0).to_numpy().astype(np.int64)
        store.items = [
            _Selected(items, rows) if isinstance(items, RunItems) else _Chosen(items, rows) for items in store.items
        ]
        store.n = len(rows)
    return store


class _Chosen:
    """The values of some rows of a table."""

    def __init__(self, items: Items, rows: NdArray) -> None:
        self._items, self._rows = items, rows

    def get(self, index: int) -> Any:
        """Return the value of sample `index`."""
        return self._items.get(self._rows.item(index))

    def gather(self, indices: NdArray) -> Any:
        """Return the values of samples `indices`."""
        return self._items.gather(self._rows[indices])


class _Selected(RunItems):
    """The same for values of fixed shape, which a batch has as one array."""

    def __init__(self, items: RunItems, rows: NdArray) -> None:
        self.__dict__.update(items.__dict__)
        self._items, self._chosen = items, rows

    def get(self, index: int) -> Any:
        """Return the value of sample `index`."""
        return self._items.get(self._chosen.item(index))

    def gather(self, indices: NdArray, out: NdArray | None = None) -> NdArray:
        """Return the values of samples `indices`, in `out` if given."""
        return self._items.gather(self._chosen[indices], out)
