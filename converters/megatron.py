"""Megatron-LM's indexed datasets: token sequences in a ``.bin`` file, and where each of them is in an ``.idx`` file.

A sample is a sequence, in file order: ``{"tokens": Array(dtype, (None,)), "document": int64}``, and "mode" (int8) where the
index has one for each. Sequences with the same number in "document" are of one document.

The index, as `megatron.core.datasets.indexed_dataset` writes it (little-endian)::

    9  magic "MMIDIDX\\0\\0"     8  version 1     1  code of the dtype     8  sequences S     8  document bounds D
    4 S  lengths in elements     8 S  offsets in the .bin file     8 D  document bounds, as numbers of sequences, from 0 to S
    S  modes, if there are any
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import mmds
from mmds.converters import Source
from mmds.converters.rawfile import RawFile, whole_source
from mmds.converters.records import Records
from mmds.errors import SourceError, printable

MAGIC = b"MMIDIDX\x00\x00"
HEADER = np.dtype([("magic", "V9"), ("version", "<u8"), ("code", "u1"), ("sequences", "<u8"), ("bounds", "<u8")])
DTYPES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float64", 7: "float32", 8: "uint16"}
BLOCK = 2**16  # sequences of the index in Python's hands at once

Item = tuple[str, int, int, int, int | None]  # name, offset and length in bytes, document, mode


def recognise(path: Path) -> bool:
    """Return whether `path` is an ``.idx`` file with the magic, or a ``.bin`` file beside one."""
    index = path.with_suffix(".idx")
    if path.suffix not in (".idx", ".bin") or not index.is_file():
        return False
    with index.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def sources(path: Path) -> list[Source]:
    """Return the source at `path`, of which the ``.idx`` or the ``.bin`` file may be named."""
    shown = printable(path)
    if path.suffix not in (".idx", ".bin"):
        raise SourceError(f"{shown}: expected a file that ends in .idx or .bin")
    index = whole_source(path.with_suffix(".idx"))
    tokens = whole_source(path.with_suffix(".bin"), str(Path(index.path).parent))  # no link leads to files elsewhere
    try:
        found = Index.parse(index)
    except SourceError as error:
        raise SourceError(f"{printable(path.with_suffix('.idx'))}: {error}") from None
    fields: dict[str, Any] = {
        # Aligned to its elements, so that the payload is one gap-free stream of tokens.
        "tokens": mmds.Array(found.dtype.name, (None,), align=found.dtype.itemsize),
        "document": mmds.Scalar("int64"),
    }
    if found.modes is not None:
        fields["mode"] = mmds.Scalar("int8")
    load = LoadSequence(tokens, found.dtype.name)
    return [Records(load, fields, {"source": "megatron"}, len(found.lengths), found.items)]


@dataclass(frozen=True)
class Index:
    """What an ``.idx`` file says: 12 bytes of memory per sequence and 8 per document."""

    dtype: np.dtype[Any]
    lengths: np.ndarray[Any, Any]
    offsets: np.ndarray[Any, Any]
    bounds: np.ndarray[Any, Any]
    modes: np.ndarray[Any, Any] | None

    @classmethod
    def parse(cls, file: RawFile) -> Index:
        """Read and check the index. Whether the sequences are in the .bin file is checked as each is read."""
        if file.size < HEADER.itemsize:
            raise SourceError(f"{file.size} bytes, fewer than the {HEADER.itemsize} of a header")
        header = np.frombuffer(file.read(0, HEADER.itemsize), HEADER)[0]
        if header["magic"].tobytes() != MAGIC:
            raise SourceError("not an index of Megatron-LM: it does not begin with MMIDIDX")
        if header["version"] != 1:
            raise SourceError(f"version {header['version']} of the index; 1 is known")
        if int(header["code"]) not in DTYPES:
            raise SourceError(f"unknown dtype code {header['code']}; known are {DTYPES}")
        sequences, bounds = int(header["sequences"]), int(header["bounds"])
        size = HEADER.itemsize + 12 * sequences + 8 * bounds
        if file.size not in (size, size + sequences):
            raise SourceError(
                f"{file.size} bytes; {sequences} sequences and {bounds} document bounds "
                f"take {size}, with modes {size + sequences}"
            )
        with_modes = file.size > size
        content = file.read(HEADER.itemsize)
        parts, start = [], 0
        for dtype, count in (("<i4", sequences), ("<i8", sequences), ("<i8", bounds), ("|i1", sequences * with_modes)):
            parts.append(np.frombuffer(content, dtype, count, start) if count else np.empty(0, dtype))
            start += parts[-1].nbytes
        lengths, offsets, ends, modes = parts
        if not bounds or ends[0] != 0 or ends[-1] != sequences or (np.diff(ends) < 0).any():
            raise SourceError(
                f"document bounds that do not go from 0 to {sequences}, the number of sequences, in order"
            )
        return cls(np.dtype(DTYPES[int(header["code"])]), lengths, offsets, ends, modes if with_modes else None)

    def items(self) -> Iterator[Item]:
        """Yield the items in file order."""
        size = self.dtype.itemsize
        for start in range(0, len(self.lengths), BLOCK):
            rows = slice(start, start + BLOCK)
            offsets = self.offsets[rows].tolist()
            numbers = range(start, start + len(offsets))
            documents = (np.searchsorted(self.bounds, np.arange(start, numbers.stop), "right") - 1).tolist()
            modes = [None] * len(offsets) if self.modes is None else self.modes[rows].tolist()
            for number, offset, length, document, mode in zip(
                numbers, offsets, self.lengths[rows].tolist(), documents, modes, strict=True
            ):
                yield f"sequence {number}", offset, length * size, document, mode


@dataclass(frozen=True)
class LoadSequence:
    """The function from item to sample."""

    file: RawFile
    dtype: str

    def __call__(self, item: Item) -> dict[str, Any]:
        """Return the sample of an item; `SourceError` where the .bin file does not have it."""
        _, offset, size, document, mode = item
        tokens = np.frombuffer(self.file.read(offset, size), np.dtype(self.dtype).newbyteorder("<"))
        sample = {"tokens": tokens, "document": document}
        return sample if mode is None else {**sample, "mode": mode}
