"""The fields of samples that are groups of files: which kind each extension has, and a file's content as its value."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import mmds
from mmds.converters.npz import read_header
from mmds.converters.pictures import check as check_picture
from mmds.converters.suffixes import family_of
from mmds.dtypes import dtype_name
from mmds.errors import FormatError, SchemaError, SourceError, printable
from mmds.fields import Array, Image, Json, Kind, Scalar, Text

HEADER = 512  # bytes of an .npy file that hold the header of any plain array
MAX_EXTENSIONS = 64  # per dataset; more are names with dots in them

KINDS: dict[str, Kind] = {
    "image": mmds.Image(),
    "audio": mmds.Audio(),
    "video": mmds.Video(),
    "int": mmds.Scalar("int64"),
    "text": mmds.Text(),
    "json": mmds.Json(),
    "bytes": mmds.Bytes(),
}

Form = tuple[str, tuple[int, ...]]  # dtype and shape of an array


def array_form(head: bytes, size: int) -> Form | None:
    """Return dtype and shape of an ``.npy`` file of `size` bytes that starts with `head`; None if no field can hold it."""
    try:
        shape, _, dtype = read_header(io.BytesIO(head), "", size)
        return dtype_name(dtype), shape
    except (FormatError, SchemaError):
        return None


@dataclass
class _Seen:
    """What was seen of one extension."""

    samples: int = 0
    dtype: str | None = None
    shape: tuple[int | None, ...] = ()
    is_mixed: bool = False

    def add(self, form: Form | None) -> None:
        self.samples += 1
        if form is None:
            return
        dtype, shape = form
        if self.dtype is None:
            self.dtype, self.shape = dtype, shape
        elif self.dtype != dtype or len(self.shape) != len(shape):
            self.is_mixed = True
        else:
            self.shape = tuple(a if a == b else None for a, b in zip(self.shape, shape, strict=True))

    def array(self) -> Kind:
        """Return the kind that holds all arrays seen: the files themselves if none does."""
        if self.dtype is None or self.is_mixed:
            return mmds.Bytes()
        shape = self.shape
        if None in shape:  # 0 elements would leave it open how many the others are
            shape = tuple(size or None for size in shape)
        try:
            return mmds.Array(self.dtype, shape)
        except SchemaError:
            return mmds.Bytes()


class Fields:
    """The fields of a dataset, found out sample by sample. `families` says what extensions mean beside the default."""

    def __init__(self, families: Mapping[str, str]) -> None:
        self._families = families
        self._samples = 0
        self._seen: dict[str, _Seen] = {}

    def family(self, extension: str) -> str:
        """Return what files with an extension hold, by all of it or by its last part."""
        return self._families.get(extension) or self._families.get(extension.rpartition(".")[2]) or family_of(extension)

    def add(self, members: Iterable[tuple[str, Form | None]]) -> None:
        """Take note of one sample: its extensions, of arrays with dtype and shape."""
        self._samples += 1
        for extension, form in members:
            self._seen.setdefault(extension, _Seen()).add(form)
        if len(self._seen) > MAX_EXTENSIONS:
            some = ", ".join(printable(extension, 40) for extension in list(self._seen)[-3:])
            raise SourceError(
                f"more than {MAX_EXTENSIONS} different extensions, such as {some}: all that follows the first dot of a "
                "file's name is its extension, and a key can hold none. Write the archive again without dots in keys"
            )

    def kinds(self) -> dict[str, Kind]:
        """Return the kind of each extension, nullable where a sample lacks it."""
        found = {}
        for extension, seen in self._seen.items():
            family = self.family(extension)
            kind = seen.array() if family == "npy" else KINDS[family]
            found[extension] = replace(kind, nullable=seen.samples < self._samples)
        return found


def value_of(content: bytes, kind: Kind, check: str) -> Any:
    """Return a file's content as a value of `kind`, or raise `SourceError` with the reason why it is none.

    `check` is how pictures are looked at: "quick", "decode" or "off".
    """
    try:
        if isinstance(kind, Image) and check != "off":
            check_picture(content, decode=check == "decode")
        elif isinstance(kind, Scalar):
            return _whole(content)
        elif isinstance(kind, (Text, Json)):
            return kind.decode(memoryview(content))
        elif isinstance(kind, Array):
            return _array(content)
    except (FormatError, ValueError) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(printable(error)) from None
    return content


def _whole(content: bytes) -> int:
    try:
        value = int(content[:64])
    except ValueError:
        value = 2**63
    if len(content) > 64 or not -(2**63) <= value < 2**63:
        raise SourceError(f"expected a whole number of 64 bits, got {printable(content[:40])}")
    return value


def _array(content: bytes) -> np.ndarray[Any, Any]:
    file = io.BytesIO(content)
    shape, fortran, dtype = read_header(file, "the file", len(content))
    order: Any = "F" if fortran else "C"
    return np.ndarray(shape, dtype, content, file.tell(), order=order)
