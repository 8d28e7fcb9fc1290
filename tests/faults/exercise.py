"""Reading a file that may be anything, in every way that users do: what it gives, or how it is refused, and nothing else."""

from __future__ import annotations

import contextlib
import math
import os
import re
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

import mmds
from mmds.errors import MmdsError
from mmds.positioned import PositionedFile
from mmds.ragged import RAGGED, is_ragged
from mmds.reader import Reader
from tests import independent_reader
from tests.likeness import alike
from tests.resealing import MemoryFile

MANY = 8  # samples of a file that are read one by one
READ = "read"

# The rules that the independent reader leaves out, by what mmds says where they are broken. It looks at what decides how
# bytes are read, not at options that say how values are shown, nor at limits of the footer's JSON.
LEFT_OUT = re.compile(
    r"file: footer: (malformed fields|fields are not in their canonical form|unknown dtype"
    r"|(path|kind|nullable|dtype|shape|align|column|key|compression|names|mode) is |(align|mode|shape|compression)\b"
    r"|the names of a Label|key=True with|integer -?\d+ is outside|nested deeper|metadata must be"
    r"|.*keys of a sample|a Scalar of|\d+ fields are named|more than|expected a field kind)"
)


class Fault(AssertionError):
    """A file that shows a defect of a reader."""


def exercise(data: bytes, *, thorough: bool = False) -> str:
    """Return how a file reads: `READ`, or what it is refused with. Raises `Fault`, or what should not have come out.

    What takes long is done with every 32nd file, and with all if `thorough`.
    """
    try:
        file = MemoryFile(data)
    except MmdsError as error:
        _compare(data, None, str(error), constant=False)
        return str(error)
    reader = Reader(file, range(file.n))
    samples: list[Any] = []
    message = READ
    try:
        samples += (reader[row] for row in range(min(file.n, MANY)))
    except MmdsError as error:
        message = str(error)
    _compare(data, samples if message == READ else None, message, constant=file.footer.constant is not None)
    _read_batches(reader, message)
    _read_columns(reader)
    if thorough or zlib.crc32(data) % 32 == 0:
        with contextlib.suppress(MmdsError):
            reader.to_arrow().validate()
        with in_memory_path(data) as path:
            _verify(path, reader, message)
            for checked in (False, True):
                _read_positioned(path, samples, message, checked)
    return message


def _compare(data: bytes, samples: list[Any] | None, message: str, *, constant: bool) -> None:
    """Check that the independent reader gives the same samples, or refuses as well."""
    try:
        others = independent_reader.read(data, MANY)
    except independent_reader.Bad as error:
        if samples is not None and not constant:  # mmds need not look at `ends` then
            raise Fault(f"only the independent reader refuses: {error}") from error
        return
    if samples is None:
        if LEFT_OUT.match(message) or ("not JSON" in message and _only_python_reads(others)):
            return
        with contextlib.suppress(
            independent_reader.Bad
        ):  # mmds may have seen at once what is wrong with a later sample
            independent_reader.read(data, 1000)
            raise Fault(f"only mmds refuses: {message}")
    elif not alike(others, samples):
        raise Fault("the readers differ")


def _only_python_reads(value: Any) -> bool:
    """Return whether samples have what Python's json takes for JSON: NaN, numbers as large as 1e999, half characters."""
    if isinstance(value, dict):
        return any(map(_only_python_reads, (*value, *value.values())))
    if isinstance(value, (list, tuple)):
        return any(map(_only_python_reads, value))
    if isinstance(value, str):
        return any("\ud800" <= character <= "\udfff" for character in value)
    return isinstance(value, float) and not math.isfinite(value)


def _read_batches(reader: Reader, message: str) -> None:
    """Read the same samples together; what is refused alone is refused together, and nothing else is."""
    rows = np.arange(min(len(reader), MANY))
    for ragged in RAGGED:
        try:
            reader.gather(rows, ragged)
            refused = READ
        except MmdsError as error:
            refused = str(error)
        if (refused == READ) != (message == READ) and "would be padded" not in refused:
            raise Fault(f"one by one: {message}; {ragged}: {refused}")
    if len(reader):
        with contextlib.suppress(MmdsError):
            reader[[-1, 0, -1]]
            reader[-1]


def _read_columns(reader: Reader) -> None:
    for field in reader.fields:
        reader.valid(field.name)
        with contextlib.suppress(MmdsError):
            column = reader.column(field.name)
            if len(reader):
                column[len(reader) - 1]
        if is_ragged(field.kind, "jagged"):
            with contextlib.suppress(MmdsError):
                reader.flat(field.name)
    key = next((field for field in reader.fields if getattr(field.kind, "key", False)), None)
    if key is not None and len(reader):
        with contextlib.suppress(MmdsError, KeyError):
            reader.get(reader.column(key.name)[0])
        with contextlib.suppress(MmdsError, KeyError):
            reader.get("a")


def _verify(path: str, reader: Reader, message: str) -> None:
    """Check that `mmds.verify` tells of everything for which a sample is refused."""
    if mmds.verify(path, num_workers=1):
        if message != READ:
            raise Fault(f"verify finds nothing, but {message}")
        for sample in reader if len(reader) < 1000 else ():
            del sample


def _read_positioned(path: str, samples: list[Any], message: str, checked: bool) -> None:
    """Check that a file reads the same without a map; with its blocks checked it may be refused before."""
    read: list[Any] = []
    found = READ
    try:
        reader = mmds.open(path, verify="read") if checked else Reader(file := PositionedFile(path), range(file.n))
        read += (reader[row] for row in range(min(len(reader), MANY)))
        reader.gather(np.arange(min(len(reader), MANY)), "jagged")
    except MmdsError as error:
        found = str(error).replace(path, "file", 1)
    if found != message and not (checked and "differ" in found):
        raise Fault(f"through a map: {message}; by position: {found}")
    if not alike(read, samples[: len(read)]) or (found == READ and len(read) != len(samples)):
        raise Fault(f"by position (checked: {checked}) other samples than through a map")


@contextlib.contextmanager
def in_memory_path(data: bytes) -> Iterator[str]:
    """Give a path where a file with these bytes is, which is in no folder."""
    fd = os.memfd_create("mmds-test")
    try:
        os.write(fd, data)
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)
