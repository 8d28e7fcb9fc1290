"""Parsing and checking what `format.py` specifies, in O(1) however many samples a file has.

Every bound is checked before it is used, and every rule that is found broken is one `FormatError` of its own.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mmds import canonical
from mmds.errors import FormatError, VersionError, printable
from mmds.fields import Fixed
from mmds.format import (
    BLOCK,
    DATA_START,
    HEADER,
    HEADER_MAGIC,
    KEY_ROLES,
    KNOWN_INCOMPATIBLE,
    MAJOR,
    MAX_DICTIONARY,
    MAX_RATIO,
    MIN_FILE,
    SECTION_ALIGN,
    TRAILER,
    TRAILER_CRC,
    TRAILER_MAGIC,
    Section,
    align_up,
    constant_layout,
    incompatible_features,
    layout,
    schema_id,
)
from mmds.schema import Schema


@dataclass(frozen=True)
class Footer:
    """What a file says of itself, checked."""

    schema: Schema
    n: int
    data_end: int
    sections: tuple[Section, ...]
    root: str
    metadata: Mapping[str, Any]
    content_id: str
    file_length: int

    def section(self, role: str, field: int | None = None) -> Section:
        """Return the section with this role and field."""
        return self._by_field[role, field]

    @cached_property
    def _by_field(self) -> dict[tuple[str, int | None], Section]:
        return {(section.role, section.field): section for section in self.sections}

    @cached_property
    def constant(self) -> tuple[int, list[int], int] | None:
        """What `constant_layout` says of the fields."""
        return constant_layout(self.schema)


def parse(view: memoryview) -> Footer:
    """Check header, footer, trailer and section headers of a whole file and return what it says of itself.

    Reads O(1) bytes however many samples there are, and allocates nothing that the file declares before it has checked
    it against the file's length. Raises `FormatError` or `VersionError`.
    """
    if len(view) < MIN_FILE:
        if len(view) >= 8 and view[:8] != HEADER_MAGIC:
            raise FormatError(f"not an mmds file: it begins with {bytes(view[:8]).hex(' ')}")
        raise FormatError(f"{len(view)} bytes are too few for an mmds file (at least {MIN_FILE}); is it unfinished?")
    trailer = _parse_trailer(view)
    header = _parse_header(view)
    start, length = int(trailer["footer_offset"]), int(trailer["footer_length"])
    if length > canonical.MAX_BYTES or start < DATA_START or start + length + TRAILER.itemsize != len(view):
        raise FormatError(f"trailer: a footer of {length} bytes at {start} does not fit a file of {len(view)} bytes")
    text = bytes(view[start : start + length])
    digest = hashlib.sha256(text).digest()[:16]
    if digest != trailer["content_id"].tobytes():
        raise FormatError("footer: its sha256 differs from the content id in the trailer; the file is damaged")
    footer = parse_footer(text, digest.hex(), len(view))
    if footer.n != int(trailer["n"]):
        raise FormatError(f"footer: {footer.n} samples, but the trailer says {int(trailer['n'])}")
    if schema_id(footer.schema) != header["schema_id"].tobytes():
        raise FormatError("footer: its fields do not match the schema id in the header")
    features, needed = int(header["incompatible"]), incompatible_features(footer.schema)
    if features != needed:
        raise FormatError(f"header: feature bits {features:#x}, but its fields need {needed:#x}")
    if align_up(footer.sections[-1].end, SECTION_ALIGN) != start:
        raise FormatError(f"footer: begins at {start}, expected {align_up(footer.sections[-1].end, SECTION_ALIGN)}")
    _check_sections(view, footer, start)
    return footer


def _parse_trailer(view: memoryview) -> Any:
    raw = view[len(view) - TRAILER.itemsize :]
    trailer = np.frombuffer(raw, TRAILER)[0]
    if trailer["magic"].tobytes() != TRAILER_MAGIC:
        if view[:8] != HEADER_MAGIC:
            raise FormatError(f"not an mmds file: it begins with {bytes(view[:8]).hex(' ')}")
        raise FormatError("no trailer at the end: the file is unfinished or was cut short")
    if int(trailer["crc"]) != zlib.crc32(raw[:TRAILER_CRC]):
        raise FormatError("trailer: wrong CRC-32; the file is damaged")
    if int(trailer["major"]) != MAJOR:
        raise VersionError(f"format version {int(trailer['major'])}; this mmds reads version {MAJOR}. Upgrade mmds")
    if int(trailer["file_length"]) != len(view):
        raise FormatError(f"trailer: a file of {int(trailer['file_length'])} bytes, but this one has {len(view)}")
    return trailer


def _parse_header(view: memoryview) -> Any:
    header = np.frombuffer(view[: HEADER.itemsize], HEADER)[0]
    if header["magic"].tobytes() != HEADER_MAGIC:
        raise FormatError(f"header: wrong magic {header['magic'].tobytes().hex(' ')}")
    if int(header["crc"]) != zlib.crc32(view[:60]):
        raise FormatError("header: wrong CRC-32; the file is damaged")
    if int(header["major"]) != MAJOR:
        raise VersionError(f"format version {int(header['major'])}; this mmds reads version {MAJOR}. Upgrade mmds")
    unknown = int(header["incompatible"]) & ~KNOWN_INCOMPATIBLE
    if unknown:
        raise VersionError(f"the file needs features that this mmds does not have (bits {unknown:#x}). Upgrade mmds")
    if int(header["data_start"]) != DATA_START:
        raise FormatError(f"header: data start {int(header['data_start'])}, expected {DATA_START}")
    if header["reserved"].tobytes() != bytes(20) or view[HEADER.itemsize : DATA_START] != bytes(4032):
        raise FormatError("header: reserved bytes are not zero")
    return header


def parse_footer(text: bytes, content_id: str, file_length: int) -> Footer:
    """Return what the text of a footer says, checked but for what the rest of the file says; `FormatError`."""
    try:
        footer = canonical.load(text)
        if set(footer) != {"fields", "n", "data", "sections", "blocks", "metadata"}:
            raise FormatError(f"keys {printable(sorted(footer))}")
        n, data, blocks, metadata = footer["n"], footer["data"], footer["blocks"], footer["metadata"]
        if type(n) is not int or n < 0:
            raise FormatError(f"n must be a whole number, got {printable(n)}")
        if not isinstance(metadata, dict):
            raise FormatError(f"metadata must be an object, got {printable(metadata)}")
        if (
            canonical.dump(data) != canonical.dump([DATA_START, int(data[1])])
            or not DATA_START <= data[1] < file_length
        ):
            raise FormatError(f"data is {printable(data)}, expected [{DATA_START}, an offset in the file]")
        schema = Schema.from_json(footer["fields"])
        totals = {s["field"]: s["shape"][0] for s in footer["sections"] if s["role"] in ("values", "dictionary")}
        if any(type(total) is not int or not 0 <= total < file_length for total in totals.values()):
            raise FormatError("a values section is larger than the file")
        if any(totals[position] > MAX_DICTIONARY for position in schema.compressed):
            raise FormatError(f"a dictionary of more than {MAX_DICTIONARY} bytes")
        sections = layout(schema, n, data[1], totals)
        listed = canonical.dump(footer["sections"])
        if sections[-1].end > file_length or listed != canonical.dump([section.to_json() for section in sections]):
            raise FormatError(f"sections differ from the layout of {n} samples of these fields")
        if canonical.dump(blocks) != canonical.dump(
            {"size": BLOCK, "covers": sections[-1].offset, "root": _hex(blocks["root"])}
        ):
            raise FormatError(f"blocks are {printable(blocks)}")
    except ValueError as error:
        raise FormatError(f"footer: {printable(error, 1000)}") from None
    except (LookupError, TypeError, AttributeError) as error:
        raise FormatError(f"footer: malformed ({type(error).__name__}: {printable(error)})") from None
    return Footer(schema, n, data[1], sections, blocks["root"], metadata, content_id, file_length)


def _hex(root: Any) -> str:
    if len(root) != 64 or bytes.fromhex(root).hex() != root:
        raise FormatError("root is not a sha256 in hex")
    return str(root)


def _check_sections(view: memoryview, footer: Footer, footer_start: int) -> None:
    """Check each .npy header, the padding before it, and the first and last entry of every array of ends."""
    end = footer.data_end
    for section in footer.sections:
        where = (
            section.role if section.field is None else f"{section.role} of {footer.schema.fields[section.field].name}"
        )
        if any(view[end : section.offset]):
            raise FormatError(f"{printable(where)}: the padding before this section is not zero")
        if view[section.offset : section.data] != section.npy_header():
            raise FormatError(
                f"{printable(where)}: the .npy header differs from the one for {section.dtype} {section.shape}"
            )
        if section.role in ("ends", "value_ends"):
            first, last = DATA_START, footer.data_end
            if section.role == "value_ends":
                first, last = 0, footer.section("values", section.field).shape[0]
            found = _ends_of(view, section)
            if found != [first, last]:
                raise FormatError(f"{printable(where)}: runs from {found[0]} to {found[1]}, expected {first} to {last}")
        if section.role in KEY_ROLES and footer.n:
            _check_keys(view, section, footer.n, printable(where))
        end = section.end
    if any(view[end:footer_start]):
        raise FormatError("the padding before the footer is not zero")
    constant = footer.constant
    if constant and footer.data_end != (
        DATA_START + (footer.n - 1) * constant[0] + constant[2] if footer.n else DATA_START
    ):
        raise FormatError(f"the data ends at {footer.data_end}, which is not where {footer.n} samples of this size end")
    _check_room(footer)


def _check_room(footer: Footer) -> None:
    """Check that arrays of known shape find room in the data, so that nobody allocates a batch of what is not there."""
    room = footer.data_end - DATA_START
    for position in footer.schema.payload:
        field = footer.schema.fields[position]
        if not isinstance(field.kind, Fixed) or field.kind.nullable or not field.kind.nbytes:
            continue
        needed = -(-field.kind.nbytes // MAX_RATIO) if field.is_compressed else field.kind.nbytes
        if footer.n * needed > room:
            raise FormatError(
                f"{printable(field.name)}: {footer.n} times {field.kind.nbytes} bytes, but the data has {room}"
            )


def _ends_of(view: memoryview, section: Section) -> list[int]:
    """Return the first and the last number of an array of <u8, which is not empty."""
    return [int.from_bytes(view[at : at + 8], "little") for at in (section.data, section.end - 8)]


def _check_keys(view: memoryview, section: Section, n: int, where: str) -> None:
    """Check the first and last entry of the hashes or the rows of a key."""
    first, last = _ends_of(view, section)
    if section.role == "key_hashes" and first > last:
        raise FormatError(f"{where}: runs from {first} to {last}, expected ascending hashes")
    if section.role == "key_rows" and max(first, last) >= n:
        raise FormatError(f"{where}: sample {max(first, last)} of {n}")
