"""An ``.mmds`` file in parts, and put together again: what guards it made right, or left as it was."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xxhash

from mmds.errors import MmdsError
from mmds.format import BLOCK, DATA_START, HEADER, TRAILER, TRAILER_CRC, constant_layout, layout
from mmds.schema import Schema
from tests.resealing import dumped, golden, little

REPAIRS = ("layout", "ends", "npy", "blocks", "schema", "features", "n", "content", "trailer", "crcs", "patches")
LARGEST = 2**16  # bytes of index that are made up for other fields
HEADER_FIELDS = {name: (offset, dtype.itemsize) for name, (dtype, offset) in (HEADER.fields or {}).items()}  # type: ignore[misc]
TRAILER_FIELDS = {name: (offset - 64, dtype.itemsize) for name, (dtype, offset) in (TRAILER.fields or {}).items()}  # type: ignore[misc]


@dataclass
class Parts:
    """A file in parts that can be changed one by one. `assembled` makes a file of them."""

    header: bytes
    data: bytearray
    arrays: list[bytearray]  # of each section, in the order of the file; the last one is `blocks`
    itemsizes: list[int]
    footer: Any
    n: int
    trailer: bytes
    patches: dict[int, bytes] = field(
        default_factory=dict
    )  # of header (offset from 0) and trailer (from the end, negative)
    text_edit: tuple[int, int, bytes] | None = None  # of the footer's text: where, how many bytes go, what comes

    def items(self) -> list[tuple[int, int]]:
        """Return where in the data the items of the first samples are, as far as `ends` says something sensible."""
        first = self.arrays[0][:512] if self.arrays else b""
        ends = [int.from_bytes(first[at : at + 8], "little") - DATA_START for at in range(0, len(first) // 8 * 8, 8)]
        return [(start, stop) for start, stop in itertools.pairwise(ends) if 0 <= start <= stop <= len(self.data)]

    def replace(self, start: int, stop: int, new: bytes, *, moving: bool) -> None:
        """Put `new` in the place of some data; with `moving`, the ends behind it go where it goes."""
        self.data[start:stop] = new
        if moving and self.arrays:
            whole = len(self.arrays[0]) // 8 * 8
            ends = np.frombuffer(self.arrays[0], "<u8", whole // 8).copy()
            ends[ends >= stop + DATA_START] += np.uint64((len(new) - (stop - start)) % 2**64)
            self.arrays[0][:whole] = ends.tobytes()

    def assembled(self, repairs: set[str]) -> bytes:
        """Return the file, with everything made to agree that `repairs` names."""
        listed: Any = self.footer.get("sections") if isinstance(self.footer, dict) else None
        sound = (
            isinstance(listed, list) and len(listed) == len(self.arrays) and all(isinstance(s, dict) for s in listed)
        )
        if sound and "layout" in repairs:
            self._list_sections(listed)
        if "ends" in repairs and self.arrays and len(self.arrays[0]) >= 8:
            self.arrays[0][:8], self.arrays[0][-8:] = little(DATA_START), little(DATA_START + len(self.data))
        out = bytearray(self.header) + self.data
        for number, array in enumerate(self.arrays):
            out += bytes(-len(out) % 64)
            if number == len(self.arrays) - 1 and "blocks" in repairs:
                array[:] = b"".join(
                    little(xxhash.xxh3_64_intdigest(out[at : at + BLOCK])) for at in range(0, len(out), BLOCK)
                )
                self._set_root(hashlib.sha256(array).hexdigest(), len(out))
            section = listed[number] if sound else {}
            out += _npy_header(section.get("dtype"), section.get("shape")) + array
        out += bytes(-len(out) % 64)
        return self._sealed(out, repairs)

    def _list_sections(self, listed: list[Any]) -> None:
        """Make the footer's list of sections say where they are, and as far as lengths tell how many rows they have."""
        at = DATA_START + len(self.data)
        for section, array, itemsize in zip(listed, self.arrays, self.itemsizes, strict=True):
            section["offset"] = at = at + -at % 64
            shape = section.get("shape")
            if isinstance(shape, list) and len(shape) == 1:
                shape[0] = len(array) // itemsize
            at += 128 + len(array)
        if self.footer.get("data") and isinstance(self.footer["data"], list):
            self.footer["data"][-1] = DATA_START + len(self.data)

    def _set_root(self, root: str, covers: int) -> None:
        blocks = self.footer.get("blocks") if isinstance(self.footer, dict) else None
        if isinstance(blocks, dict) and "root" in blocks and "covers" in blocks:
            blocks["root"], blocks["covers"] = root, covers

    def _sealed(self, out: bytearray, repairs: set[str]) -> bytes:
        """Return front, footer and trailer with lengths and checksums made right."""
        text, at = dumped(self.footer), len(out)
        if self.text_edit is not None:
            where, gone, new = self.text_edit
            where %= len(text) + 1
            text = text[:where] + new + text[where + gone :]
        if "schema" in repairs and isinstance(self.footer, dict) and "fields" in self.footer:
            out[24:40] = hashlib.sha256(dumped(fields := self.footer["fields"])).digest()[:16]
            if "features" in repairs and isinstance(fields, list):
                zstd = any(isinstance(each, dict) and each.get("compression") == "zstd" for each in fields)
                out[12:16] = little(int(zstd), 4)
        trailer = bytearray(self.trailer)
        if "trailer" in repairs:
            trailer[:24] = little(at) + little(len(text)) + little(at + len(text) + 64)
        if "n" in repairs:
            trailer[24:32] = little(self.n)
        if "content" in repairs:
            trailer[32:48] = hashlib.sha256(text).digest()[:16]
        crcs = "crcs" in repairs
        for order in (0, 1):  # the patches last, and then checksums that make them right, or fail to
            if crcs and (order == 0 or "patches" in repairs):
                out[60:64] = little(zlib.crc32(out[:60]), 4)
                trailer[TRAILER_CRC : TRAILER_CRC + 4] = little(zlib.crc32(trailer[:TRAILER_CRC]), 4)
            for offset, new in self.patches.items() if order == 0 else ():
                target, where = (out, offset) if offset >= 0 else (trailer, offset + 64)
                target[where : where + len(new)] = new
        return bytes(out + text + trailer)


def parts_of(name: str) -> Parts:
    """Return the parts of a golden file, to be changed."""
    header, data, arrays, itemsizes, text, n, trailer = _taken_apart(name)
    return Parts(header, bytearray(data), list(map(bytearray, arrays)), list(itemsizes), json.loads(text), n, trailer)


@functools.cache
def _taken_apart(name: str) -> tuple[bytes, bytes, list[bytes], list[int], bytes, int, bytes]:
    file = golden(name)
    text = file[int.from_bytes(file[-64:-56], "little") : -64]
    footer = json.loads(text)
    arrays, itemsizes = [], []
    for section in footer["sections"]:
        itemsizes.append(int(section["dtype"][2:]))
        size = itemsizes[-1]
        for length in section["shape"]:
            size *= length
        arrays.append(file[section["offset"] + 128 : section["offset"] + 128 + size])
    return file[:DATA_START], file[DATA_START : footer["data"][1]], arrays, itemsizes, text, footer["n"], file[-64:]


def refit(parts: Parts) -> None:
    """Give a file the sections that its fields ask for, filled with what its sections held before; not if they are large."""
    try:
        schema = Schema.from_json(parts.footer["fields"])
        constant = constant_layout(schema)
        length = len(parts.data) if parts.n and schema.payload else 0
        if constant and parts.n:
            length = (parts.n - 1) * constant[0] + constant[2]
        totals = dict.fromkeys(range(len(schema)), min(len(parts.data), 100))
        totals |= dict.fromkeys(schema.compressed, 0)
        sections = layout(schema, parts.n, DATA_START + length, totals)
        if sections[-1].end > LARGEST:
            return
        known = [(section["role"], section["field"]) for section in parts.footer["sections"]]
        kept = dict(zip(known, parts.arrays, strict=False))
    except (MmdsError, LookupError, TypeError):
        return
    material = bytes(parts.data[:1000]) + b"".join(parts.arrays) + bytes(8)
    parts.data = _filled(parts.data, length, material)
    parts.arrays = [_filled(kept.get((each.role, each.field), b""), each.nbytes, material) for each in sections]
    for section, array in zip(sections, parts.arrays, strict=True):
        if section.role in ("ends", "value_ends"):
            first, total = (DATA_START, length) if section.role == "ends" else (0, totals[section.field or 0])
            array[:] = np.linspace(first, first + total, section.shape[0]).astype("<u8").tobytes()
        elif section.role == "key_rows":
            array[:] = np.arange(parts.n, dtype="<u8").tobytes()
        elif section.role == "key_hashes":
            array[:] = np.sort(np.frombuffer(array, "<u8")).tobytes()
    parts.itemsizes = [np.dtype(section.dtype).itemsize for section in sections]
    parts.footer["sections"] = [section.to_json() for section in sections]


def _filled(old: bytes | bytearray, size: int, material: bytes) -> bytearray:
    """Return the first `size` bytes of `old`, or all of them and as much as is missing of `material` over and over."""
    missing = max(0, size - len(old))
    return bytearray(old[:size]) + (material * (missing // len(material) + 1))[:missing]


def _npy_header(dtype: Any, shape: Any) -> bytes:
    try:
        text = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {tuple(shape)!r}, }}"
    except TypeError:
        return bytes(128)
    return (b"\x93NUMPY\x01\0v\0" + text.encode("utf-8", "replace")).ljust(127)[:127] + b"\n"
