"""The edges of the rules: what is just refused and just allowed, and by which rule.

`test_hostile_rules.py` has a file for each rule; these are the ones without which a rule could be another one, a little
weaker or a little wrong, and no test would notice (`make mutants`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmds
from mmds.canonical import MAX_BYTES
from mmds.errors import FormatError
from mmds.format import (
    DATA_START,
    HEADER_MAGIC,
    MAX_DICTIONARY,
    MIN_FILE,
    SECTION_ALIGN,
    align_up,
    layout,
    pack_end,
    pack_header,
)
from mmds.parse import Footer, parse
from tests.resealing import assert_refused, golden, little, put, resealed, text_of

STRINGS = golden("strings")
FOOTER, LENGTH = (int.from_bytes(STRINGS[at : at + 8], "little") for at in (-64 + len(STRINGS), -56 + len(STRINGS)))


def parsed(data: bytes) -> Footer:
    return parse(memoryview(data).toreadonly())


def refusal(data: bytes) -> str:
    with pytest.raises(FormatError) as caught:
        parsed(data)
    return str(caught.value)


# The front and the end of the file


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"PK\x03\x04ab\r", "7 bytes are too few"),  # too few to say what it is
        (b"PK\x03\x04ab\r\n", "not an mmds file: it begins with 50 4b 03 04 61 62 0d 0a"),
        (HEADER_MAGIC, "8 bytes are too few"),
        (HEADER_MAGIC + bytes(MIN_FILE - 9), "4159 bytes are too few for an mmds file (at least 4160)"),
        (HEADER_MAGIC + bytes(MIN_FILE - 8), "no trailer at the end"),
    ],
)
def test_short_files(data: bytes, message: str) -> None:
    assert_refused(data, message)


def test_another_format_is_shown_by_its_first_bytes() -> None:
    for size in (11, MIN_FILE, MIN_FILE + 1):
        assert refusal(b"0123456789A".ljust(size, b"A")) == "not an mmds file: it begins with 30 31 32 33 34 35 36 37"


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        ({0: b"\x00"}, "header: wrong magic"),
        ({0: b"\xff"}, "header: wrong magic"),
        ({20: little(64, 4)}, "header: data start 64, expected 4096"),
        ({20: little(4097, 4)}, "header: data start 4097, expected 4096"),
        ({24: bytes(16)}, "do not match the schema id"),
        ({24: b"\xff" * 16}, "do not match the schema id"),
        ({-32: bytes(16)}, "sha256 differs from the content id"),
        ({-32: b"\xff" * 16}, "sha256 differs from the content id"),
        ({-40: little(2)}, "3 samples, but the trailer says 2"),
        ({-40: little(4)}, "3 samples, but the trailer says 4"),
        ({-16: b"\0"}, "format version 0; this mmds reads version 1"),
        ({-48: little(len(STRINGS) - 1)}, "but this one has"),
        ({-64: little(FOOTER + 1)}, "does not fit a file of"),
        ({-64: little(FOOTER - 1)}, "does not fit a file of"),
        ({-64: little(FOOTER - 1), -56: little(LENGTH + 1)}, "sha256 differs"),
        ({-64: little(DATA_START - 1), -56: little(FOOTER + LENGTH - DATA_START + 1)}, "does not fit a file of"),
        ({-64: little(DATA_START), -56: little(FOOTER + LENGTH - DATA_START)}, "sha256 differs"),
    ],
)
def test_numbers_that_are_too_small_or_too_large(patch: dict[int, bytes], message: str) -> None:
    assert message in refusal(resealed(STRINGS, patch=patch))


@pytest.mark.parametrize("crc", [bytes(4), b"\xff" * 4])
def test_checksums_that_are_too_small_or_too_large(crc: bytes) -> None:
    assert refusal(STRINGS[:60] + crc + STRINGS[64:]) == "header: wrong CRC-32; the file is damaged"
    assert refusal(STRINGS[:-12] + crc + STRINGS[-8:]) == "trailer: wrong CRC-32; the file is damaged"


def moved(gap: int) -> bytes:
    """Return a file whose footer stands `gap` zero bytes later."""
    return resealed(STRINGS[:FOOTER] + bytes(gap) + STRINGS[FOOTER:-64] + little(FOOTER + gap) + STRINGS[-56:])


@pytest.mark.parametrize("gap", [1, 63, 64, 2**20])
def test_the_footer_stands_at_the_first_multiple_of_64_behind_the_index(gap: int) -> None:
    assert moved(0) == STRINGS
    assert_refused(moved(gap), f"footer: begins at {FOOTER + gap}, expected {FOOTER}")


# The footer


def sections_of(data: bytes, role: str) -> int:
    """Return the number of the first section with a role."""
    return [section.role for section in parsed(data).sections].index(role)


def edited(edit: Callable[[int], Callable[[Any], Any]]) -> tuple[bytes, int]:
    """Return a file whose footer was edited, by a function of the length that the file then has, and that length."""
    size = len(resealed(STRINGS, edit(len(STRINGS))))
    data = resealed(STRINGS, edit(size))
    assert len(data) == size
    return data, size


VALUES = sections_of(STRINGS, "values")


def test_the_data_ends_in_the_file() -> None:
    data, size = edited(lambda size: put("data", 1, size))
    assert f"data is [4096, {size}], expected [4096, an offset in the file]" in refusal(data)
    data, size = edited(lambda size: put("data", 1, size + 1))
    assert f"data is [4096, {size + 1}], expected" in refusal(data)
    assert "data is [4096, 4095], expected" in refusal(resealed(STRINGS, put("data", 1, DATA_START - 1)))
    data, _ = edited(lambda size: put("data", 1, size - 1))
    assert "sections differ from the layout" in refusal(data)


def test_values_are_smaller_than_the_file() -> None:
    def values(*shape: Any) -> Callable[[Any], Any]:
        return put("sections", VALUES, "shape", list(shape))

    data, _ = edited(lambda size: values(size))
    assert "a values section is larger than the file" in refusal(data)
    for total in (-1, True, 2**50, "1", 1.5):
        assert "a values section is larger than the file" in refusal(resealed(STRINGS, values(total)))
    data, _ = edited(lambda size: values(size - 1))
    assert "sections differ from the layout" in refusal(data)
    assert "sections differ from the layout" in refusal(resealed(STRINGS, values(0, 2**50)))


def test_a_footer_has_at_most_16_mebibytes() -> None:
    def footer(size: int) -> bytes:
        return text_of(STRINGS).replace(b'"metadata":{}', b'"metadata":{"":"' + b"x" * size + b'"}')

    most = MAX_BYTES - len(footer(0))
    assert parsed(resealed(STRINGS, text=footer(most))).n == 3
    assert f"a footer of {MAX_BYTES + 1} bytes" in refusal(resealed(STRINGS, text=footer(most + 1)))


def built(schema: mmds.Schema, n: int, data_end: int, sizes: dict[int, int]) -> bytes:
    """Return a file of zeros as far as `parse` does not look: no O(1) check can tell it from a whole one."""
    sections = layout(schema, n, data_end, sizes)
    parts = [(0, pack_header(schema))]
    for section in sections:
        parts.append((section.offset, section.npy_header()))
        if section.role == "ends":
            parts += [(section.data, little(DATA_START)), (section.end - 8, little(data_end))]
    front = bytearray(align_up(sections[-1].end, SECTION_ALIGN))
    for offset, part in parts:
        front[offset : offset + len(part)] = part
    return bytes(front) + pack_end(schema, n, data_end, sections, "0" * 64, {})


def with_sections_of(n: int, metadata: dict[str, str] | None = None) -> bytes:
    """Return a small file whose footer lists the sections of `n` numbers."""
    schema = mmds.Schema(mmds.Scalar("uint64"))
    sections = layout(schema, n, DATA_START, {})
    return resealed(STRINGS, text=pack_end(schema, n, DATA_START, sections, "0" * 64, metadata or {})[:-64])


@pytest.mark.parametrize("n", [10**3, 2**32, 2**48])
def test_sections_past_the_end_of_the_file(n: int) -> None:
    assert f"sections differ from the layout of {n} samples of these fields" in refusal(with_sections_of(n))


def test_the_last_section_just_in_the_file_and_just_not() -> None:
    said: list[bool | None] = []
    for n in range(1, 300):
        data = with_sections_of(n)
        *_, column, last = layout(mmds.Schema(mmds.Scalar("uint64")), n, DATA_START, {})
        if last.end <= len(data):
            want = align_up(last.end, SECTION_ALIGN)
            if want != FOOTER:
                assert refusal(data) == f"footer: begins at {FOOTER}, expected {want}"
                said.append(want > FOOTER)
        elif column.end <= len(data):
            assert refusal(data).startswith("footer: sections differ from the layout")
            said.append(None)
            if (
                more := last.end - len(data) - len('"":""')
            ) >= 0:  # a footer as long as that: it ends where the file ends
                longer = with_sections_of(n, {"": "x" * more})
                assert len(longer) == last.end
                assert refusal(longer).startswith("footer: begins at")
    assert min(map(said.count, (True, False, None))) >= 10


@pytest.mark.parametrize(
    "root", ["0" * 63, "0" * 62, "0" * 66, "0" * 62 + "  ", "A" * 64, " " + "0" * 63, 64 * [0], 64]
)
def test_the_root_is_64_digits(root: Any) -> None:
    assert "footer: " in refusal(resealed(STRINGS, put("blocks", "root", root)))


def test_a_dictionary_has_at_most_a_mebibyte() -> None:
    schema = mmds.Schema({"a": mmds.Bytes(compression="zstd"), "b": mmds.Text(compression="zstd")})
    sizes = {0: MAX_DICTIONARY, 1: MAX_DICTIONARY}
    found = parsed(built(schema, 0, DATA_START, sizes))
    assert [section.shape for section in found.sections if section.role == "dictionary"] == [(2**20,)] * 2
    for position in sizes:
        data = built(schema, 0, DATA_START, {**sizes, position: 2**20 + 1})
        assert "a dictionary of more than 1048576 bytes" in refusal(data)


@pytest.mark.parametrize(
    ("kind", "n", "needed"),
    [
        (mmds.Array("uint8", (300,), align=1), 20, 6000),
        (mmds.Array("uint16", (150,), align=2), 20, 6000),
        (mmds.Array("uint8", (300,), compression="zstd"), 5000, 5000),  # a frame has a byte at least
        (mmds.Array("uint8", (2**15,), compression="zstd"), 5000, 5000),
        (mmds.Array("uint8", (2**15 + 1,), compression="zstd"), 5000, 10_000),
        (mmds.Array("uint8", (300,), align=1, nullable=True), 20, 0),
        (mmds.Array("uint8", (300, None), align=1), 20, 0),
        (mmds.Array("uint8", (300, 0), align=1), 20, 0),
    ],
)
def test_there_is_room_for_arrays_of_known_shape(kind: mmds.Array, n: int, needed: int) -> None:
    schema = mmds.Schema({"b": mmds.Bytes(), "a": kind})  # the first has no size
    sizes = {1: 0} if kind.compression else {}
    assert parsed(built(schema, n, DATA_START + needed, sizes)).n == n
    if needed:
        want = f"a: {n} times {kind.nbytes} bytes, but the data has {needed - 1}"
        assert refusal(built(schema, n, DATA_START + needed - 1, sizes)) == want


@pytest.mark.parametrize("keys", [[], ["a"], ["a", "a"], ["a", "b", "a"]])
def test_keys_of_few_samples_or_none(keys: list[str], tmp_path: Path) -> None:
    path = tmp_path / "a.mmds"
    with mmds.Writer(path, mmds.Text(column=True, key=True)) as writer:
        writer.extend(keys)
    assert parsed(path.read_bytes()).n == len(keys)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 5])
@pytest.mark.parametrize(("size", "stride"), [(257, 320), (300, 320), (320, 320), (1000, 1024)])
def test_the_data_ends_where_samples_of_one_size_end(size: int, stride: int, n: int, tmp_path: Path) -> None:
    path = tmp_path / "a.mmds"
    with mmds.Writer(path, mmds.Array("uint8", (size,))) as writer:
        writer.extend([np.zeros(size, "uint8")] * n)
    footer = parsed(path.read_bytes())
    assert footer.constant == (stride, [0], size)
    assert footer.data_end == DATA_START + (n - 1) * stride + size if n else DATA_START


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("more", [-1, 1])
def test_the_data_ends_nowhere_else(n: int, more: int) -> None:
    schema = mmds.Schema(mmds.Array("uint8", (300,)))
    end = DATA_START + 320 * n - 20
    assert parsed(built(schema, n, end, {})).data_end == end
    want = f"the data ends at {end + more}, which is not where {n} samples of this size end"
    assert refusal(built(schema, n, end + more, {})) == want


def test_what_a_file_says_does_not_change() -> None:
    footer = parsed(STRINGS)
    for thing in (footer, footer.sections[0]):
        with pytest.raises(dataclasses.FrozenInstanceError):
            thing.role = thing.n = None  # type: ignore[misc, union-attr]
