"""The layout of a file, number by number, where the golden files do not reach."""

from __future__ import annotations

import dataclasses

import pytest

from mmds import Array, Bytes, Schema, Text
from mmds.format import BLOCK, DATA_START, NPY_HEADER, Section, align_up, constant_layout, hexdump, layout


@pytest.mark.parametrize(
    ("offset", "alignment", "want"),
    [(0, 64, 0), (1, 64, 64), (63, 64, 64), (64, 64, 64), (65, 64, 128), (7, 1, 7), (2**53 - 1, 4096, 2**53)],
)
def test_align_up(offset: int, alignment: int, want: int) -> None:
    assert align_up(offset, alignment) == want


@pytest.mark.parametrize("missing", [64, 0, -64])
@pytest.mark.parametrize("blocks", [1, 2, 1000])
def test_a_hash_for_each_block_also_the_last_part_of_one(blocks: int, missing: int) -> None:
    end = blocks * BLOCK - missing
    ends, last = layout(Schema(Bytes()), 0, end - 64 - NPY_HEADER, {})
    assert (ends.offset, ends.end, last.offset) == (end - 192, end - 56, end)
    assert (last.role, last.shape) == ("blocks", (blocks + (missing < 0),))


def test_the_sections_of_a_field_stand_together() -> None:
    fields = {
        "a": Array("uint8", (None, None), nullable=True),
        "b": Text(column=True, key=True),
        "c": Bytes(compression="zstd", nullable=True),
        "d": Bytes(column=True, nullable=True),
    }
    found = layout(Schema(fields), 3, 5000, {1: 7, 2: 9, 3: 0})
    assert [(section.role, section.field, section.dtype, section.shape) for section in found] == [
        ("ends", None, "<u8", (7,)),
        ("shape", 0, "<u4", (3, 2)),
        ("valid", 0, "|u1", (3,)),
        ("values", 1, "|u1", (7,)),
        ("value_ends", 1, "<u8", (4,)),
        ("key_hashes", 1, "<u8", (3,)),
        ("key_rows", 1, "<u8", (3,)),
        ("dictionary", 2, "|u1", (9,)),
        ("valid", 2, "|u1", (3,)),
        ("values", 3, "|u1", (0,)),
        ("value_ends", 3, "<u8", (4,)),
        ("valid", 3, "|u1", (3,)),
        ("blocks", None, "<u8", (1,)),
    ]
    offset = 5000
    for section in found:
        assert section.offset == align_up(offset, 64)
        offset = section.end


@pytest.mark.parametrize(
    ("arrays", "want"),
    [
        ([], None),
        ([Array("uint8", (300,), align=1)], (300, [0], 300)),
        ([Array("uint8", (300,), align=64)], (320, [0], 300)),
        ([Array("uint8", (300,), align=64), Array("uint8", (257,), align=1)], (576, [0, 300], 557)),
        ([Array("uint8", (300,), align=64), Array("uint8", (257,), align=64)], (640, [0, 320], 577)),
        ([Array("uint8", (300,), align=4096), Array("uint8", (257,), align=4096)], (8192, [0, 4096], 4353)),
        ([Array("uint8", (300,), align=1), Array("uint8", (257,), align=64)], None),  # the first is not the largest
        ([Array("uint8", (300,), nullable=True)], None),
        ([Array("uint8", (0, 300), align=1)], None),
        ([Array("uint8", (None,))], None),
        ([Array("uint8", (300,), compression="zstd")], None),
        ([Array("uint8", (300,)), Bytes()], None),
    ],
)
def test_constant_layout(arrays: list[object], want: object) -> None:
    assert constant_layout(Schema({str(k): kind for k, kind in enumerate(arrays)} or Text(column=True))) == want


def test_hexdump() -> None:
    rows = hexdump(bytes(range(256))).splitlines()
    assert rows[1] == "000010  10 11 12 13 14 15 16 17 18 19 1a 1b 1c 1d 1e 1f  ................"
    assert rows[2] == "000020  20 21 22 23 24 25 26 27 28 29 2a 2b 2c 2d 2e 2f  .!\"#$%&'()*+,-./"
    assert rows[7] == "000070  70 71 72 73 74 75 76 77 78 79 7a 7b 7c 7d 7e 7f  pqrstuvwxyz{|}~."
    assert rows[8] == "000080  80 81 82 83 84 85 86 87 88 89 8a 8b 8c 8d 8e 8f  ................"
    assert hexdump(b"") == ""
    assert hexdump(b"ab") == f"000000  {'61 62':47}  ab"
    zeros = "000000  " + " ".join(["00"] * 16) + "  " + "." * 16
    assert hexdump(bytes(32)) == f"{zeros}\n*"
    assert hexdump(bytes(65) + b"\1").splitlines() == [zeros, "*", f"000040  {'00 01':47}  .."]


def test_a_section_does_not_change() -> None:
    section = Section("ends", None, "<u8", (3,), DATA_START)
    with pytest.raises(dataclasses.FrozenInstanceError):
        section.offset = 0  # type: ignore[misc]
