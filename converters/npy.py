"""Folders of ``.npy`` files, and ``.npz`` archives of them: what numpy alone reads, without a copy.

One file per array, as `arrays.py` describes, in folders for groups, and ``mmds.json`` with the schema. From elsewhere, a
folder of ``.npy`` files that share their first dimension is read too, and a single ``.npy`` file. Files are mapped, as are
members of an archive that are not compressed; compressed ones are unpacked into the memory of each process that reads them,
up to 2 GiB. Refused are object arrays, which hold pickles, and symbolic links.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mmds import canonical
from mmds.converters.arrays import ArrayWriter
from mmds.converters.arraystore import ArrayStore
from mmds.converters.npz import DESCRIPTION, map_block, read_archive, write_archive
from mmds.errors import FormatError, SchemaError, printable
from mmds.fields import Fixed
from mmds.items import FixedItems
from mmds.store import Items, file_identity

NdArray = np.ndarray[Any, Any]


class Writer(ArrayWriter):
    """Writes a folder of ``.npy`` files, and an archive of it if the path ends with ``.npz``."""

    block_bytes: ClassVar[int] = 2**20
    _files: list[_NpyFile] | None = None

    def create_group(self) -> None:
        if self.path.suffix.lower() == ".npy":
            raise SchemaError(
                f"{self._shown}: an .npy file has no room for fields; write an .npyd folder or an .npz file"
            )
        self._archived = self.path.suffix.lower() == ".npz"
        self._folder = self.staging.content.with_name("parts") if self._archived else self.staging.content
        self._folder.mkdir()
        self._files = []

    def create_array(
        self, name: str, dtype: np.dtype[Any], row: tuple[int, ...], chunk: int, block: int
    ) -> Callable[[NdArray], None]:
        path = self._folder / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        assert self._files is not None
        self._files.append(_NpyFile(path, dtype, row))
        return self._files[-1].append

    def describe(self, description: str) -> None:
        (self._folder / DESCRIPTION).write_bytes(description.encode())
        self.close_library()
        if self._archived:
            write_archive(self._folder, self.staging.content)

    def close_library(self) -> None:
        for file in self._files or ():
            file.close()


class _NpyFile:
    """An ``.npy`` file that grows. Its header is written again at the end: numpy leaves room for any number of rows."""

    def __init__(self, path: Path, dtype: np.dtype[Any], row: tuple[int, ...]) -> None:
        self._dtype, self._row, self._rows = dtype, row, 0
        self._file = path.open("wb")
        self._write_header()

    def _write_header(self) -> None:
        said = {"descr": self._dtype.str, "fortran_order": False, "shape": (self._rows, *self._row)}
        np.lib.format.write_array_header_1_0(self._file, said)

    def append(self, rows: NdArray) -> None:
        """Append rows."""
        self._file.write(np.ascontiguousarray(rows).data.cast("B"))
        self._rows += len(rows)

    def close(self) -> None:
        """Complete the file."""
        if not self._file.closed:
            self._file.seek(0)
            self._write_header()
            self._file.close()


class NpyStore(ArrayStore):
    """Mapped arrays."""

    def fixed_items(self, array: Any, name: str, kind: Fixed) -> Items:
        # One copy straight from the map, unless values have to be converted or become a list with nulls.
        if isinstance(array, np.ndarray) and array.dtype == kind.stored and not kind.nullable:
            return FixedItems(array, kind)
        return super().fixed_items(array, name, kind)


def open_store(path: str) -> NpyStore:
    """Open a folder of ``.npy`` files, an ``.npz`` archive or an ``.npy`` file; `FormatError` where it is none."""
    identity = file_identity(path)
    if Path(path).is_dir():
        return NpyStore(path, *_read_folder(path), identity)
    with open(path, "rb") as file:
        magic = file.read(len(np.lib.format.MAGIC_PREFIX))
    if magic == np.lib.format.MAGIC_PREFIX:
        return NpyStore(path, {"": map_block(Path(path), printable(path))}, None, identity)
    return NpyStore(path, *read_archive(path), identity)


def _read_folder(path: str) -> tuple[dict[str, Any], bytes | None]:
    root = Path(path)
    arrays: dict[str, Any] = {}
    for file in sorted(root.rglob("*.npy")):
        where = f"{printable(path)}: {printable(file.relative_to(root))}"
        if file.is_symlink() or not file.is_file():
            raise FormatError(f"{where}: not a plain file: refused, data must be in the folder itself")
        arrays[file.relative_to(root).as_posix().removesuffix(".npy")] = map_block(file, where)
    if not (root / DESCRIPTION).is_file():
        return arrays, None
    with (root / DESCRIPTION).open("rb") as described:
        return arrays, described.read(canonical.MAX_BYTES + 1)
