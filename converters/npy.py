"""Folders of ``.npy`` files, and ``.npz`` archives of them: what numpy alone reads, without a copy.

One file per array, as `arrays.py` describes, in folders for groups, and ``mmds.json`` with the schema. From elsewhere, a
folder of ``.npy`` files that share their first dimension is read too, and a single ``.npy`` file, whose rows are samples
without a name.

An ``.npy`` file can be written where it loses no value: of one field of numbers, or of arrays of one shape. It has no room
for the field's name and for metadata, which are not kept; labels, whose classes would be lost, are refused.

Files are mapped, as are members of an archive that are not compressed; compressed ones are unpacked into the memory of each
process that reads them, up to 2 GiB. Refused are object arrays, which hold pickles, and symbolic links.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mmds import canonical
from mmds.converters.arrays import ArrayWriter
from mmds.converters.arraystore import ArrayStore
from mmds.converters.inside import plain_file
from mmds.converters.npz import DESCRIPTION, map_block, read_archive, write_archive
from mmds.dtypes import LOGICAL
from mmds.errors import FormatError, printable
from mmds.fields import Array, Fixed, Kind, Scalar
from mmds.items import FixedItems
from mmds.schema import Schema
from mmds.store import Items, file_identity

NdArray = np.ndarray[Any, Any]


class Writer(ArrayWriter):
    """Writes a folder of ``.npy`` files, an archive of it if the path ends with ``.npz``, or one array if with ``.npy``."""

    block_bytes: ClassVar[int] = 2**20
    _files: list[_NpyFile] | None = None

    def refuse(self, schema: Schema) -> str:
        if self._suffix != ".npy" or (len(schema) == 1 and _is_plain(schema.fields[0].kind)):
            return ""
        found = f"{schema.names[0]} = {schema.fields[0].kind}" if len(schema) == 1 else ", ".join(schema.names)
        stem = printable(self.path.stem)
        return (
            "an .npy file holds one field, numbers or arrays of one shape, of a dtype that numpy has, without nulls; got "
            f"{printable(found)}. Select such a field, or write a folder, {stem}.npyd, or an archive, {stem}.npz"
        )

    def create_group(self) -> None:
        self._files = []
        self._folder = self.staging.content
        if self._suffix == ".npz":
            self._folder = self.staging.content.with_name("parts")
        if self._suffix != ".npy":
            self._folder.mkdir()

    def create_array(
        self, name: str, dtype: np.dtype[Any], row: tuple[int, ...], chunk: int, block: int
    ) -> Callable[[NdArray], None]:
        path = self._folder if self._suffix == ".npy" else self._folder / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        assert self._files is not None
        self._files.append(_NpyFile(path, dtype, row))
        return self._files[-1].append

    def describe(self, description: str) -> None:
        if self._suffix != ".npy":
            (self._folder / DESCRIPTION).write_bytes(description.encode())
        self.close_library()
        if self._suffix == ".npz":
            write_archive(self._folder, self.staging.content)

    def close_library(self) -> None:
        with contextlib.ExitStack() as stack:  # all of them, if one cannot be completed too
            for file in self._files or ():
                stack.callback(file.close)

    @property
    def _suffix(self) -> str:
        return self.path.suffix.lower()


def _is_plain(kind: Kind) -> bool:
    """Return whether an array alone says all about values of a kind."""
    return isinstance(kind, (Array, Scalar)) and kind.dtype not in LOGICAL and bool(kind.nbytes) and not kind.nullable


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
            with self._file:
                self._file.seek(0)
                self._write_header()


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
    if not (root / DESCRIPTION).exists():
        return arrays, None
    with open(plain_file(root / DESCRIPTION, root), "rb") as described:
        return arrays, described.read(canonical.MAX_BYTES + 1)
