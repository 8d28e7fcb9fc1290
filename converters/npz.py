"""``.npy`` blocks where they lie: whole files, and members of ``.npz`` archives.

A block that is not compressed is mapped. A compressed one is unpacked by the process that first reads it. Nothing in either
is believed before it was checked: sizes against the file, and object arrays, which hold pickles, are refused.
"""

from __future__ import annotations

import io
import math
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any, cast

import numpy as np

from mmds import canonical
from mmds.converters.arraystore import blaming
from mmds.errors import FormatError, printable

NdArray = np.ndarray[Any, Any]

MAX_UNPACKED = 2**31  # bytes of compressed members: every process that reads them holds all of them
LOCAL_HEADER = np.dtype([("signature", "S4"), ("skipped", "V22"), ("name", "<u2"), ("extra", "<u2")])
ALIGNMENT = 64  # of members that we write: so that mapped arrays start as they do in .npy files
DESCRIPTION = "mmds.json"
MAX_HEADER = 10_012  # bytes: numpy parses no header of more than 10,000, after 12 of magic, version and length
MAX_RANK = 32  # of an array in every version of numpy
MAX_BYTES = 2**63 - 1


def map_block(path: Path, where: str, start: int = 0, size: int | None = None) -> NdArray:
    """Return the array of the ``.npy`` block in bytes [start, start + size) of a file, mapped."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size - start if size is None else size
        file.seek(start)
        shape, fortran, dtype = read_header(file, where, size)
        if 0 in shape:
            return np.empty(shape, dtype)
        order = cast("Any", "F" if fortran else "C")
        return np.asarray(np.memmap(file, dtype, "r", file.tell(), shape, order))


def read_header(file: Any, where: str, size: int) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read the header of a block of `size` bytes; `FormatError` unless the block is plain data and whole."""
    start = file.tell()
    head = io.BytesIO(file.read(min(size, MAX_HEADER)))  # numpy would read as much as the header says that it has
    with blaming(f"{where}: not an .npy block"):
        version = np.lib.format.read_magic(head)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(head)
    if dtype.hasobject:
        raise FormatError(f"{where}: an object array refused: nothing is ever unpickled")
    sizes = [length or 1 for length in shape]  # numpy multiplies those of an array without elements, too
    if not dtype.itemsize or any(type(length) is not int or length < 0 for length in shape) or len(shape) > MAX_RANK:
        raise FormatError(f"{where}: declares {dtype} {printable(shape)}, which is no array")
    if math.prod(sizes) * dtype.itemsize > MAX_BYTES or head.tell() + math.prod(shape) * dtype.itemsize > size:
        raise FormatError(f"{where}: declares {dtype} {shape}, but has {size} bytes with its header")
    file.seek(start + head.tell())
    return shape, fortran, dtype


class Unpacked:
    """A compressed member of an archive; the first rows that are asked for bring all of it into memory."""

    def __init__(self, path: str, where: str, member: zipfile.ZipInfo) -> None:
        self._path, self._where, self._member = path, where, member
        self._array: NdArray | None = None
        with zipfile.ZipFile(path) as archive, archive.open(member) as file:
            self.shape, _, self.dtype = read_header(file, where, member.file_size)

    def __getitem__(self, rows: slice) -> Any:
        if self._array is None:
            with zipfile.ZipFile(self._path) as archive, archive.open(self._member) as file:
                self._array = np.lib.format.read_array(file, allow_pickle=False)
        return self._array[rows].copy()


def read_archive(path: str) -> tuple[dict[str, Any], bytes | None]:
    """Return the arrays of an ``.npz`` archive by name, and its description if it is one of ours."""
    arrays: dict[str, Any] = {}
    description = None
    unpacked = 0
    with blaming(f"{printable(path)}: not a readable .npz archive"), zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            where = f"{printable(path)}: {printable(member.filename)}"
            if member.filename == DESCRIPTION:
                description = archive.open(member).read(canonical.MAX_BYTES + 1)
            if not member.filename.endswith(".npy"):
                continue
            name = member.filename.removesuffix(".npy")
            if member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & 1:
                arrays[name] = map_block(Path(path), where, _start(path, where, member), member.file_size)
                continue
            unpacked += member.file_size
            if unpacked > MAX_UNPACKED:
                raise FormatError(
                    f"{where}: compressed members of more than {MAX_UNPACKED} bytes refused, as each process would hold them "
                    "in memory; numpy.savez writes an archive that is mapped"
                )
            arrays[name] = Unpacked(path, where, member)
    return arrays, description


def _start(path: str, where: str, member: zipfile.ZipInfo) -> int:
    """Return where the bytes of a member begin in the archive."""
    with open(path, "rb") as file:
        file.seek(member.header_offset)
        header = np.frombuffer(file.read(LOCAL_HEADER.itemsize).ljust(LOCAL_HEADER.itemsize, b"\0"), LOCAL_HEADER)[0]
        start = member.header_offset + LOCAL_HEADER.itemsize + int(header["name"]) + int(header["extra"])
        if header["signature"] != b"PK\3\4" or start + member.file_size > os.fstat(file.fileno()).st_size:
            raise FormatError(f"{where}: no such member where the archive's directory says")
    return start


def write_archive(folder: Path, path: Path) -> None:
    """Write all files in a folder to an archive without compression, so that their arrays can be mapped."""
    with zipfile.ZipFile(path, "x", zipfile.ZIP_STORED) as archive:
        for file in sorted(file for file in folder.rglob("*") if file.is_file()):
            name = file.relative_to(folder).as_posix()
            member = zipfile.ZipInfo(name)  # of 1980: the same samples give the same bytes
            member.external_attr = 0o644 << 16
            assert archive.fp is not None
            # zipfile adds 20 bytes for large members; an extra field of its own needs a head of 4.
            start = archive.fp.tell() + LOCAL_HEADER.itemsize + len(name.encode()) + 20 + 4
            padding = -start % ALIGNMENT
            member.extra = b"\xff\xff" + padding.to_bytes(2, "little") + bytes(padding)
            with file.open("rb") as source, archive.open(member, "w", force_zip64=True) as target:
                shutil.copyfileobj(cast("io.BufferedIOBase", source), target, 2**20)
