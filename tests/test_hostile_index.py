"""An index that contradicts itself: section headers, padding and ends at open, single items when they are read."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from mmds.errors import FormatError
from tests import independent_reader
from tests.conftest import Cases
from tests.resealing import HUGE, assert_refused, golden, little, put, read_all, resealed, text_of


def section(name: str, role: str, field: int | None = None) -> int:
    """Return the offset of a section's array in a golden file."""
    for found in json.loads(text_of(golden(name)))["sections"]:
        if (found["role"], found["field"]) == (role, field):
            return int(found["offset"]) + 128
    raise KeyError(role)


def at(name: str, role: str, field: int | None, new: bytes, shift: int = 0) -> bytes:
    """Return a golden file with other bytes in a section, `shift` bytes behind the beginning of its array."""
    return resealed(golden(name), patch={section(name, role, field) + shift: new})


AT_OPEN = {
    "version 2.0 of .npy": (at("strings", "ends", None, b"\2", -122), "ends: the .npy header differs"),
    "a longer .npy header": (at("strings", "ends", None, b"\xf6", -120), "ends: the .npy header differs"),
    "another descr": (at("strings", "ends", None, b">", -106), "ends: the .npy header differs"),
    "a space less": (at("label", "column", 0, b"\n ", -2), "column of value: the .npy header differs"),
    "no line end": (at("nullable", "valid", 0, b" ", -1), "valid of scalar: the .npy header differs"),
    "blocks header": (at("strings", "blocks", None, b"\0", -128), "blocks: the .npy header differs"),
    "padding behind the data": (at("strings", "ends", None, b"\1", -129), "padding before this section is not zero"),
    "padding between sections": (at("strings", "value_ends", 2, b"\1", -129), "padding before this section is not"),
    "padding before the footer": (at("strings", "blocks", None, b"\1", 8), "padding before the footer is not zero"),
    "ends begin early": (at("strings", "ends", None, little(4095)), "ends: runs from 4095"),
    "ends begin late": (at("strings", "ends", None, little(4097)), "ends: runs from 4097"),
    "ends end early": (at("strings", "ends", None, little(4096), 48), "to 4096, expected 4096 to"),
    "ends end beyond": (at("strings", "ends", None, little(2**63), 48), "to 9223372036854775808, expected"),
    "value_ends begin late": (at("strings", "value_ends", 2, little(1)), "value_ends of key: runs from 1"),
    "value_ends end early": (at("strings", "value_ends", 2, little(0), 24), "runs from 0 to 0, expected 0 to 4"),
    "hashes that do not ascend": (at("keys", "key_hashes", 0, b"\xff" * 8), "key_hashes of name: runs from 184467"),
    "a last hash of 0": (at("keys", "key_hashes", 0, bytes(8), 40), "key_hashes of name: runs from"),
    "a first row beyond": (at("keys", "key_rows", 0, little(6)), "key_rows of name: sample 6 of 6"),
    "a last row far beyond": (at("keys", "key_rows", 2, little(2**64 - 1), 40), "key_rows of hash: sample 18446744"),
    "value_ends end beyond": (at("strings", "value_ends", 3, little(2**64 - 1), 24), "expected 0 to"),
}


@pytest.mark.parametrize("name", AT_OPEN)
def test_at_open(name: str) -> None:
    assert_refused(*AT_OPEN[name])


def shapes(row: int, *sizes: int) -> bytes:
    """Return "ragged" with other sizes for field "two" of a sample; the true ones are (row, 2 * row)."""
    return at("ragged", "shape", 2, b"".join(little(size, 4) for size in sizes), 8 * row)


DATA_END = json.loads(text_of(golden("strings")))["data"][1]
WHEN_READ = {
    "an end beyond the data": (
        at("strings", "ends", None, little(DATA_END + 1), 8),
        "sample 0, field 'data': bytes 4096",
    ),
    "an end far beyond": (at("strings", "ends", None, little(2**64 - 1), 8), "sample 0, field 'data'"),
    "an end before its start": (at("strings", "ends", None, little(4095), 24), "sample 1, field 'data'"),
    "a value beyond the column": (at("strings", "value_ends", 2, little(5), 8), "sample 0, field 'key': bytes 0 to 5"),
    "a value that ends before": (at("strings", "value_ends", 2, little(9), 16), "sample 1, field 'key'"),
    "text that is not UTF-8": (resealed(golden("single"), patch={4096: b"\xff"}), "sample 0, field 'value': 'utf-8'"),
    "json that is none": (resealed(golden("json"), patch={4096: b"x"}), "sample 0, field 'value': not JSON"),
    "a length that is no multiple": (at("ragged", "ends", None, little(4097), 8), "bytes for an array of float32"),
    "a length that is not that of the shape": (
        at("mixed_alignment", "ends", None, little(4097), 8),
        "sample 0, field '0': 1 bytes for an array of uint8 (300,)",
    ),
    "sizes too small": (shapes(2, 2, 3), "sample 2, field 'two': 24 bytes for an array of uint8 (2, 3, 3)"),
    "sizes too large": (shapes(2, 2, 5), "sample 2, field 'two': 24 bytes for an array of uint8 (2, 5, 3)"),
    "a product of 2**64": (shapes(0, 2**31, 2**31), "sample 0, field 'two': 0 bytes for an array"),
    "sizes of 2**32 - 1": (shapes(1, 2**32 - 1, 2**32 - 1), "sample 1, field 'two': 6 bytes for an array"),
}


@pytest.mark.parametrize("name", WHEN_READ)
def test_when_read(name: str) -> None:
    assert_refused(*WHEN_READ[name])


def test_no_values_of_an_impossible_shape() -> None:
    assert read_all(shapes(0, 0, 2**32 - 1))[0]["two"].shape == (0, 2**32 - 1, 3)


def test_a_label_outside_of_its_names_is_left_to_verify() -> None:
    data = at("label", "column", 0, little(99))
    assert read_all(data) == independent_reader.read(data) == [99, 0, 1, 1]


def numbers(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return where the integers in a JSON value are."""
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return [found for key, child in items for found in numbers(child, (*path, key))]
    return [path] if type(value) is int else []


def declare_huge_numbers() -> int:
    """Put every huge number in every numeric place of three files; return how many files were refused."""
    count = 0
    for name in ("strings", "ragged", "constant_stride", "nullable"):
        places = numbers(json.loads(text_of(golden(name))))
        files = [resealed(golden(name), put(*place, number)) for place in places for number in HUGE]
        for role, field in {"strings": [("value_ends", 2)], "ragged": [("shape", 2)]}.get(name, []):
            files += [at(name, role, field, little(number), 8) for number in HUGE]
        for data in files:
            with pytest.raises(FormatError):
                read_all(data)
            count += 1
    return count


@pytest.mark.fault(14)
def test_14_huge_numbers_allocate_nothing(cases: Cases) -> None:
    script = """if True:
        import resource, numpy
        from tests.test_hostile_index import declare_huge_numbers
        pages = int(open("/proc/self/statm").read().split()[0])
        limit = pages * resource.getpagesize() + 64 * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        try:
            numpy.ones(2**27, "uint8")
        except MemoryError:
            print(declare_huge_numbers())
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 500
    cases(int(done.stdout))
