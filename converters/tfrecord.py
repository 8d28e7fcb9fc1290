"""TFRecord: a file of records, or a folder of such files, which come in the order of their names.

A record is ``<u8`` length, its checksum, the data, its checksum; a checksum is a masked CRC-32C as ``<u4``. Both are checked.
What the data is, `tfexample` says; with ``raw=True`` a sample is ``{"record": Bytes}``, whatever it may be.

A record whose data is damaged fails alone. Where a length is, nobody knows where the next record begins: the rest of
the file is a problem.
"""

from __future__ import annotations

import os
import re
import struct
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmds
from mmds.converters import Ignored, Source
from mmds.converters.rawfile import RawFile
from mmds.converters.records import Records
from mmds.converters.tfexample import KINDS, Feature, FeatureColumn, parse
from mmds.errors import SchemaError, SourceError, missing, printable
from mmds.schema import MAX_FIELDS

NAME = re.compile(r"\.tfrec(ords?)?(-\d+-of-\d+)?$", re.IGNORECASE)
OTHER = "file whose name is not that of a TFRecord file"
HEAD = struct.Struct("<QI")
MAX_RECORD_BYTES = 2**30  # a record is held in memory; a protocol buffer may have 2 GiB
GZIP = b"\x1f\x8b"

Item = tuple[str, RawFile, int, int]  # name, file, offset and size of the data


def recognise(path: Path) -> bool:
    """Return whether `path` is a file with the name of a TFRecord file, or a folder with such files."""
    if not path.is_dir():
        return bool(NAME.search(path.name)) and path.is_file()
    with os.scandir(path) as entries:
        return any(NAME.search(entry.name) for entry in entries)


def sources(
    path: Path, *, raw: bool = False, types: dict[str, str] | None = None, exclude: list[str] | None = None
) -> list[Source]:
    """Return the source at `path`.

    With `raw`, samples are the records as they are. `types` gives "text", "image", "audio" or "video" for features that are a
    single bytes value; the features in `exclude` are left out.
    """
    chosen, excluded = _checked_options(raw, types, exclude)
    if path.is_dir():
        root = os.path.realpath(path)
        names = sorted(entry.name for entry in path.iterdir())
    else:
        real = Path(os.path.realpath(path))
        root, names = str(real.parent), [real.name]
    problems: list[tuple[str, str]] = []
    left_out = Ignored()
    shards: list[Shard] = []
    features = Features(excluded)
    for name in names:
        if path.is_dir() and not NAME.search(name):
            left_out.add(name)
            continue
        shard = Shard(f"{name}: " if path.is_dir() else "")
        try:
            shard.scan(RawFile.find(f"{root}/{name}", root), None if raw else features.add)
        except SourceError as error:
            problems.append((name, str(error)))
        shards.append(shard)
    found = None if raw else features.found(chosen)
    fields = {"record": mmds.Bytes()} if found is None else {name: each.kind for name, each in found.items()}

    def begin() -> Iterator[Item]:
        for shard in shards:
            yield from shard.items()

    ignored = {OTHER: left_out} if left_out.count else {}
    length = sum(len(shard.starts) for shard in shards)
    return [Records(LoadRecord(found), fields or None, {"source": "tfrecord"}, length, begin, problems, ignored)]


def _checked_options(raw: Any, types: Any, exclude: Any) -> tuple[dict[str, str], set[str]]:
    if not isinstance(raw, bool):
        raise ValueError(f"raw={raw!r}: expected True or False")
    if not isinstance(types or {}, Mapping) or not all(kind in KINDS for kind in (types or {}).values()):
        raise ValueError(f"types={types!r}: expected names of features, each with one of {', '.join(KINDS)}")
    if not isinstance(exclude or [], list) or not all(isinstance(name, str) for name in exclude or []):
        raise ValueError(f"exclude={exclude!r}: expected a list of names")
    if raw and (types or exclude):
        raise ValueError("raw=True keeps records as they are: types and exclude mean nothing")
    return dict(types or {}), set(exclude or [])


class Shard:
    """The records of a file: 16 bytes of memory for each."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._file: RawFile | None = None
        self.starts, self._sizes = array("Q"), array("Q")

    def scan(self, file: RawFile, see: Callable[[bytes], None] | None) -> None:
        """Find the records of `file` and show them to `see`; `SourceError` where that comes to an early end."""
        self._file = file
        with file.stream() as stream:
            if stream.read(len(GZIP)) == GZIP:
                raise SourceError("compressed by gzip, which cannot be read from the middle; decompress it")
            stream.seek(0)
            position = 0
            while position < file.size:
                try:
                    size = _size(stream.read(HEAD.size), file.size - position)
                except SourceError as error:
                    left = file.size - position
                    raise SourceError(
                        f"record {len(self.starts)}, at byte {position}: {error}; the {left} bytes from there on are left out"
                    ) from None
                self.starts.append(position + HEAD.size)
                self._sizes.append(size)
                position += HEAD.size + size + 4
                if see is None or size > MAX_RECORD_BYTES:
                    stream.seek(position)
                else:
                    data = stream.read(size + 4)
                    with suppress(SourceError):  # again in `load`, which is asked for every record
                        see(checked(data))

    def items(self) -> Iterator[Item]:
        """Yield the items in the order of the file."""
        for number, (start, size) in enumerate(zip(self.starts, self._sizes, strict=True)):
            assert self._file is not None
            yield f"{self._prefix}record {number}", self._file, start, size


def _size(head: bytes, left: int) -> int:
    """Return the size of a record's data, of which `left` bytes of the file are left with its head, or raise `SourceError`."""
    if len(head) < HEAD.size:
        raise SourceError(f"it ends after {len(head)} bytes")
    size, checksum = HEAD.unpack(head)
    if masked_crc(head[:8]) != checksum:
        raise SourceError("its length and the checksum of that differ, or this is no TFRecord file")
    if size + HEAD.size + 4 > left:
        raise SourceError(f"{size} bytes of data, but the file ends before")
    return int(size)


def checked(data: bytes) -> bytes:
    """Return a record's data, which its checksum follows, or raise `SourceError`."""
    content = data[:-4]
    if masked_crc(content) != int.from_bytes(data[-4:], "little"):
        raise SourceError("its data and the checksum of that differ")
    return content


def masked_crc(data: bytes) -> int:
    """Return the checksum that TFRecord files have of `data`."""
    try:
        import google_crc32c
    except ImportError:
        raise missing("google-crc32c", "tfrecord", "reading TFRecord files") from None
    crc: int = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


class Features:
    """What is seen of the features of all records, but for those of the names in `excluded`."""

    def __init__(self, excluded: set[str]) -> None:
        self._excluded = excluded
        self._columns: dict[str, FeatureColumn] = {}
        self._records = 0

    def add(self, record: bytes) -> None:
        """Take note of a record's features, or raise `SourceError`."""
        features = parse(record)
        self._records += 1
        for name, feature in features.items():
            list_type = feature.WhichOneof("kind")
            if list_type is None or name in self._excluded:
                continue
            values = getattr(feature, list_type).value
            column = self._columns.get(name)
            if column is None:
                column = self._columns[name] = FeatureColumn(list_type, len(values), len(values))
                if len(self._columns) > MAX_FIELDS:
                    raise SchemaError(f"more than {MAX_FIELDS} different features in {self._records} records")
            if column.list_type == list_type:
                column.add(values)

    def found(self, types: Mapping[str, str]) -> dict[str, Feature]:
        """Return the features of all records, by name."""
        for name in types:
            if name not in self._columns:
                names = printable(", ".join(sorted(self._columns)), 500)
                raise SchemaError(f"types: no feature '{printable(name)}'; there are: {names}")
        return {
            name: self._columns[name].feature(name, self._records, types.get(name)) for name in sorted(self._columns)
        }


@dataclass(frozen=True)
class LoadRecord:
    """The function from item to sample: of the given features, or the record as it is if there are none given."""

    features: Mapping[str, Feature] | None

    def __call__(self, item: Item) -> dict[str, Any]:
        """Return the sample of an item, or raise `SourceError` with the reason why there is none."""
        _, file, start, size = item
        if size > MAX_RECORD_BYTES:
            raise SourceError(f"{size} bytes; the limit is {MAX_RECORD_BYTES}")
        record = checked(file.read(start, size + 4))
        if self.features is None:
            return {"record": record}
        found = parse(record)
        return {name: each.value(name, found[name]) if name in found else None for name, each in self.features.items()}
