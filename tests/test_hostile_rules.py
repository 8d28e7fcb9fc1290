"""One file per rule of the format that breaks only that rule: both readers refuse it, and mmds says which rule it was."""

from __future__ import annotations

import json
from typing import NamedTuple

import pytest

from mmds.errors import VersionError
from tests import independent_reader
from tests.likeness import assert_alike
from tests.make_golden import GOLDEN
from tests.resealing import HUGE, assert_refused, drop, dumped, golden, little, put, read_all, resealed, text_of

# The front and the end of the file

STRINGS = golden("strings")  # "data", "text", "key" (bytes column), "caption" (text column); three samples

FRAME: dict[str, tuple[bytes, str]] = {
    "too short": (STRINGS[:100], "100 bytes are too few"),
    "nothing": (b"", "0 bytes are too few"),
    "other magic": (b"PK\x03\x04" + STRINGS[4:1000], "not an mmds file: it begins with 50 4b 03 04"),
    "other format": (b"\x93NUMPY" + bytes(9000), "not an mmds file: it begins with 93 4e"),
    "magic of the header": (resealed(STRINGS, patch={0: b"\x88"}), "header: wrong magic"),
    "unfinished": (STRINGS[:-64], "no trailer at the end"),
    "magic of the trailer": (resealed(STRINGS, patch={-1: b"E"}), "no trailer at the end"),
    "bytes behind the trailer": (STRINGS + b"\0", "no trailer at the end"),
    "compressed, it says, and is not": (
        resealed(STRINGS, patch={12: b"\1"}),
        "feature bits 0x1, but its fields need 0x0",
    ),
    "compressed, and does not say so": (
        resealed(golden("compressed"), patch={12: b"\0"}),
        "feature bits 0x0, but its fields need 0x1",
    ),
    "crc of the header": (STRINGS[:60] + b"\0" + STRINGS[61:], "header: wrong CRC-32"),
    "crc of the trailer": (STRINGS[:-12] + bytes(4) + STRINGS[-8:], "trailer: wrong CRC-32"),
    "data start": (resealed(STRINGS, patch={20: little(8192, 4)}), "header: data start 8192, expected 4096"),
    "reserved 40": (resealed(STRINGS, patch={40: b"\1"}), "reserved bytes are not zero"),
    "reserved 59": (resealed(STRINGS, patch={59: b"\1"}), "reserved bytes are not zero"),
    "reserved 64": (resealed(STRINGS, patch={64: b"\1"}), "reserved bytes are not zero"),
    "reserved 4095": (resealed(STRINGS, patch={4095: b"\1"}), "reserved bytes are not zero"),
    "schema id": (resealed(STRINGS, patch={24: bytes(16)}), "do not match the schema id"),
    "file length": (resealed(STRINGS, patch={-48: little(len(STRINGS) + 1)}), "but this one has"),
    "footer too early": (resealed(STRINGS, patch={-64: little(4095)}), "does not fit a file of"),
    "n of the trailer": (resealed(STRINGS, patch={-40: little(4)}), "3 samples, but the trailer says 4"),
    "content id": (resealed(STRINGS, patch={-32: bytes(16)}), "sha256 differs from the content id"),
}


@pytest.mark.parametrize("name", FRAME)
def test_frame(name: str) -> None:
    assert_refused(*FRAME[name])


@pytest.mark.fault(14)
@pytest.mark.parametrize("number", HUGE)
@pytest.mark.parametrize("offset", [-64, -56, -48, -40])
def test_numbers_of_the_trailer(offset: int, number: int) -> None:
    assert_refused(resealed(STRINGS, patch={offset: little(min(number, 2**64 - 1))}), "")


NEWER = {
    "major version 2": (resealed(STRINGS, patch={8: b"\2"}), "format version 2; this mmds reads version 1"),
    "major version 2 in the trailer": (
        resealed(STRINGS, patch={-16: b"\2"}),
        "format version 2; this mmds reads version 1",
    ),
    "major version 0": (resealed(STRINGS, patch={8: b"\0"}), "format version 0"),
    "feature bit 1": (resealed(STRINGS, patch={12: b"\2"}), "(bits 0x2)"),
    "feature bits 0 and 1": (resealed(STRINGS, patch={12: b"\3"}), "(bits 0x2)"),
    "feature bit 31": (resealed(STRINGS, patch={12: b"\0\0\0\x80"}), "(bits 0x80000000)"),
}


@pytest.mark.fault(16)
@pytest.mark.parametrize("name", NEWER)
def test_newer_files_are_refused_as_newer(name: str) -> None:
    data, message = NEWER[name]
    assert_refused(data, message)
    with pytest.raises(VersionError):
        read_all(data)


@pytest.mark.fault(16)
@pytest.mark.parametrize("patch", [{10: b"\x01"}, {-14: b"\xff\xff"}, {10: b"\x07", -14: b"\x07"}, {16: b"\xff" * 4}])
def test_minor_versions_and_compatible_bits_are_ignored(patch: dict[int, bytes]) -> None:
    data = resealed(STRINGS, patch=patch)
    assert_alike(read_all(data), GOLDEN["strings"].samples)
    assert_alike(independent_reader.read(data), GOLDEN["strings"].samples)


# The text of the footer

TEXT = text_of(golden("metadata"))  # one sample of Scalar("uint8") with metadata


def lists(count: int, inner: bytes = b"") -> bytes:
    return b"[" * count + inner + b"]" * count


class Case(NamedTuple):
    """A footer that must be refused."""

    text: bytes
    message: str
    also: bool = True  # whether the independent reader checks the rule


def metadata(text: bytes) -> bytes:
    start = TEXT.index(b'"metadata":') + len(b'"metadata":')
    return TEXT[:start] + text + TEXT[TEXT.index(b',"n":1') :]


TEXTS = {
    "duplicate keys": Case(TEXT.replace(b'"n":1', b'"n":1,"n":1'), "not in canonical form"),
    "unsorted keys": Case(metadata(b'{"b":1,"a":2}'), "not in canonical form"),
    "NaN": Case(metadata(b'{"a":NaN}'), "not JSON compliant"),
    "infinity": Case(metadata(b'{"a":-Infinity}'), "not JSON compliant"),
    "a float too large": Case(metadata(b'{"a":1e999}'), "not JSON compliant"),
    "another spelling": Case(metadata(b'{"a":1.50}'), "not in canonical form"),
    "needless escapes": Case(metadata(b'{"a":"\\u0041"}'), "not in canonical form"),
    "escaped slash": Case(metadata(b'{"a":"\\/"}'), "not in canonical form"),
    "lone surrogate": Case(metadata(b'{"a":"\\ud800"}'), "surrogates not allowed"),
    "encoded surrogate": Case(metadata(b'{"a":"\xed\xa0\x80"}'), "invalid continuation byte"),
    "invalid UTF-8": Case(metadata(b'{"a":"\xff"}'), "invalid start byte"),
    "control character": Case(metadata(b'{"a":"\n"}'), "Invalid control character"),
    "white space": Case(TEXT.replace(b'"n":1', b'"n": 1'), "not in canonical form"),
    "white space at the end": Case(TEXT + b"\n", "not in canonical form"),
    "byte order mark": Case(b"\xef\xbb\xbf" + TEXT, "BOM"),
    "minus zero": Case(metadata(b'{"a":-0}'), "not in canonical form"),
    "integer of 2**53": Case(metadata(b'{"a":%d}' % 2**53), "outside ±(2**53 - 1)", also=False),
    "integer of -2**53": Case(metadata(b'{"a":%d}' % -(2**53)), "outside ±(2**53 - 1)", also=False),
    "integer of 5000 digits": Case(metadata(b'{"a":' + b"9" * 5000 + b"}"), "digits"),
    "33 levels": Case(metadata(b'{"a":' + lists(31, b"1") + b"}"), "nested deeper than 32", also=False),
    "33 levels, nothing inside": Case(metadata(b'{"a":' + lists(31) + b"}"), "nested deeper than 32", also=False),
    "100,000 levels": Case(lists(100_000), "nested deeper than 32"),
    "cut off": Case(TEXT[:-1], "delimiter"),
    "nothing": Case(b"", "Expecting value"),
    "a list": Case(b"[]", "footer: "),
    "a number": Case(b"1", "footer: "),
    "null": Case(b"null", "footer: "),
    "metadata is no object": Case(metadata(b"[]"), "metadata must be an object, got []", also=False),
    "n is a float": Case(TEXT.replace(b'"n":1', b'"n":1.0'), "n must be a whole number"),
    "n is a bool": Case(TEXT.replace(b'"n":1', b'"n":true'), "n must be a whole number"),
    "n is text": Case(TEXT.replace(b'"n":1', b'"n":"1"'), "n must be a whole number"),
    "n is negative": Case(TEXT.replace(b'"n":1', b'"n":-1'), "n must be a whole number"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_text(name: str) -> None:
    case = TEXTS[name]
    assert_refused(resealed(golden("metadata"), text=case.text), case.message, case.also)


def test_a_text_at_the_limits_is_accepted() -> None:
    for text in (b'{"a":%d}' % (2**53 - 1), b'{"a":' + lists(30, b"1") + b"}", b'{"a":' + lists(30) + b"}"):
        data = resealed(golden("metadata"), text=metadata(text))
        assert read_all(data) == independent_reader.read(data) == [1]


def test_a_footer_of_more_than_16_MiB_is_refused() -> None:
    text = metadata(b'{"a":"' + b"x" * 2**24 + b'"}')
    assert_refused(resealed(golden("metadata"), text=text), "does not fit a file of")


# Numbers, sections and blocks in the footer


FOOTER = {
    "a key too many": (put("version", 1), "footer: keys"),
    "a key too few": (drop("metadata"), "footer: keys"),
    "n too small": (put("n", 2), "sections differ"),
    "n too large": (put("n", 4), "sections differ"),
    "data starts elsewhere": (put("data", 0, 4160), "data is"),
    "data ends elsewhere": (put("data", 1, 4097), "sections differ"),
    "data ends before it starts": (put("data", 1, 4095), "data is"),
    "data is a float": (put("data", 1, 4600.0), "data is"),
    "data is text": (put("data", 1, "4600"), "data is"),
    "data has three numbers": (put("data", [4096, 4600, 1]), "data is"),
    "data is a number": (put("data", 4096), "footer: "),
    "a section moved": (put("sections", 1, "offset", 4096), "sections differ"),
    "a section on top of the one before": (
        lambda f: put("sections", 1, "offset", f["sections"][0]["offset"])(f),
        "sections differ",
    ),
    "sections in another order": (lambda f: f["sections"].reverse(), "footer: "),
    "a section removed": (drop("sections", 2), "footer: "),
    "a section twice": (lambda f: f["sections"].append(f["sections"][-1]), "sections differ"),
    "another role": (put("sections", 0, "role", "end"), "sections differ"),
    "another dtype": (put("sections", 0, "dtype", ">u8"), "sections differ"),
    "another field": (put("sections", 1, "field", 3), "footer: "),
    "field is a list": (put("sections", 1, "field", []), "footer: "),
    "another shape": (put("sections", 0, "shape", [8]), "sections differ"),
    "a shape of a float": (put("sections", 0, "shape", [7.0]), "sections differ"),
    "values shorter": (put("sections", 1, "shape", [1]), "differs from the one for |u1 (1,)"),
    "values longer than the file": (put("sections", 1, "shape", [10**6]), "larger than the file"),
    "values of a negative length": (put("sections", 1, "shape", [-1]), "larger than the file"),
    "values of a bool": (put("sections", 1, "shape", [True]), "larger than the file"),
    "values of two dimensions": (put("sections", 1, "shape", [4, 1]), "sections differ"),
    "a key of a section too many": (put("sections", 0, "order", "C"), "sections differ"),
    "no sections": (put("sections", []), "footer: "),
    "sections are a number": (put("sections", 1), "footer: "),
    "another block size": (put("blocks", "size", 2**19), "blocks are"),
    "covers less": (put("blocks", "covers", 4096), "blocks are"),
    "root in capitals": (lambda f: put("blocks", "root", f["blocks"]["root"].upper())(f), "root is not a sha256"),
    "root too short": (put("blocks", "root", "00" * 31), "root is not a sha256"),
    "root is a list": (put("blocks", "root", [0] * 64), "footer: "),
    "a key of blocks too many": (put("blocks", "hash", "xxh3"), "blocks are"),
    "blocks are null": (put("blocks", None), "footer: "),
}


@pytest.mark.parametrize("name", FOOTER)
def test_footer(name: str) -> None:
    edit, message = FOOTER[name]
    assert_refused(resealed(STRINGS, edit), message)


def test_dumping_is_canonical() -> None:
    for golden_name in GOLDEN:
        assert dumped(json.loads(text_of(golden(golden_name)))) == text_of(golden(golden_name))
