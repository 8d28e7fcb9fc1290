"""Changing a file in one place and making everything that guards it agree again, so that only one rule is broken."""

from __future__ import annotations

import hashlib
import itertools
import json
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from mmds.datafile import DataFile
from mmds.errors import FormatError
from mmds.items import MAPPED
from tests import independent_reader
from tests.make_golden import FOLDER

HUGE = (2**31, 2**32, 2**53 - 1, 2**53, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 1)
Edit = Callable[[Any], Any]


def text_of(data: bytes) -> bytes:
    """Return the footer of a file as it stands there."""
    return data[int.from_bytes(data[-64:-56], "little") : -64]


def dumped(value: Any) -> bytes:
    """Return `value` as canonical JSON, without refusing anything."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass")


def resealed(
    data: bytes,
    edit: Edit | None = None,
    *,
    text: bytes | None = None,
    patch: Mapping[int, bytes] | None = None,
) -> bytes:
    """Return a file with another footer (edited, or given as `text`) and other bytes at the offsets in `patch`.

    The schema id, the content id, lengths, n and both CRCs are made to agree, and then the negative offsets of `patch`
    are put into the trailer, and its CRC is made to agree once more.
    """
    at = int.from_bytes(data[-64:-56], "little")
    n = int.from_bytes(data[-40:-32], "little")
    front, trailer = bytearray(data[:at]), bytearray(data[-64:])
    if edit is not None:
        footer = json.loads(text_of(data))
        text = dumped(edit(footer) or footer)
    text = text_of(data) if text is None else text
    try:
        footer = json.loads(text)
        front[24:40] = hashlib.sha256(dumped(footer["fields"])).digest()[:16]
        n = footer["n"] if type(footer["n"]) is int and 0 <= footer["n"] < 2**64 else n
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    for offset, new in (patch or {}).items():
        if offset >= 0:
            front[offset : offset + len(new)] = new
    front[60:64] = zlib.crc32(front[:60]).to_bytes(4, "little")
    numbers = (at, len(text), at + len(text) + 64, n)
    trailer[:32] = b"".join(number.to_bytes(8, "little") for number in numbers)
    trailer[32:48] = hashlib.sha256(text).digest()[:16]
    for offset, new in (patch or {}).items():
        if offset < 0:
            trailer[64 + offset : 64 + offset + len(new)] = new
    trailer[52:56] = zlib.crc32(trailer[:52]).to_bytes(4, "little")
    return bytes(front) + text + bytes(trailer)


class MemoryFile(DataFile):
    """A file that is nowhere but in these bytes, read as a mapped one is."""

    def __init__(self, data: bytes) -> None:
        super().__init__("file", memoryview(data).toreadonly(), MAPPED)
        self._open_items()

    def wanted(self, samples: int) -> bool:
        """Return False: there is nothing to ask for."""
        return False


def read_all(data: bytes, limit: int = 1000) -> list[Any]:
    """Return the samples of a file in memory as mmds reads them, the first `limit` of them and the last."""
    file = MemoryFile(data)
    get = file.schema.assembler([item.get for item in file.items])
    wanted = range(file.n)
    return [get(row) for row in itertools.chain(wanted[:limit], wanted[max(limit, file.n - 1) :])]


def golden(name: str) -> bytes:
    """Return the bytes of a golden file."""
    return (FOLDER / f"{name}.mmds").read_bytes()


def put(*path: Any) -> Edit:
    """Return the edit that sets the footer's item at path[:-1] to path[-1]."""

    def edit(footer: Any) -> None:
        *way, key, value = path
        for step in way:
            footer = footer[step]
        footer[key] = value

    return edit


def drop(*path: Any) -> Edit:
    """Return the edit that removes the footer's item at `path`."""

    def edit(footer: Any) -> None:
        *way, key = path
        for step in way:
            footer = footer[step]
        del footer[key]

    return edit


def assert_refused(data: bytes, message: str, also: bool = True) -> None:
    """Check that mmds refuses with `message`, and the independent reader (unless it leaves that rule out) as well."""
    with pytest.raises(FormatError) as caught:
        read_all(data)
    assert message in str(caught.value)
    if also:
        with pytest.raises(independent_reader.Bad):
            independent_reader.read(data)


def little(number: int, size: int = 8) -> bytes:
    """Return a little-endian integer."""
    return number.to_bytes(size, "little")
