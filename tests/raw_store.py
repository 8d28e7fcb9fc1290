"""A store of another package, whole: a folder with one file per array, the bare elements, and a table of them in JSON.

It is registered by the entry point ``raw = "tests.raw_store:FORMAT"`` in the group ``mmds.stores``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mmds.converters.arrays import ArrayWriter
from mmds.converters.arraystore import ArrayStore, blaming
from mmds.converters.stores import StoreFormat
from mmds.errors import printable
from mmds.store import file_identity

TABLE = "table.json"
FORMAT = StoreFormat("raw", "tests.raw_store", "numpy", "", (".raw",), lambda path: (path / TABLE).exists())


class Writer(ArrayWriter):
    """Writes the folder."""

    def create_group(self) -> None:
        self.staging.content.mkdir()
        self._table: dict[str, tuple[str, tuple[int, ...]]] = {}

    def create_array(
        self, name: str, dtype: np.dtype[Any], row: tuple[int, ...], chunk: int, block: int
    ) -> Callable[[np.ndarray[Any, Any]], None]:
        path = self.staging.content / str(len(self._table))
        path.touch()
        self._table[name] = (dtype.str, row)

        def append(rows: np.ndarray[Any, Any]) -> None:
            with path.open("ab") as file:
                file.write(rows.tobytes())

        return append

    def describe(self, description: str) -> None:
        (self.staging.content / TABLE).write_text(json.dumps({"mmds": description, "arrays": self._table}))


def open_store(path: str) -> ArrayStore:
    """Open the folder."""
    identity = file_identity(path)
    with blaming(f"{printable(path)}: not a readable raw store"):
        table = json.loads((Path(path) / TABLE).read_text())
        arrays = {
            name: np.fromfile(Path(path) / str(number), dtype).reshape(-1, *row)
            for number, (name, (dtype, row)) in enumerate(table["arrays"].items())
        }
    return ArrayStore(path, arrays, table["mmds"], identity)
