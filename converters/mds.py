"""MosaicML Streaming's MDS: a folder with an ``index.json`` (version 2) and shards of samples.

A sample is a dict of the columns; `mdscolumns` says which field each encoding gives. A folder whose subfolders have an index
(``train/``, ``val/``) gives one source per subfolder, and those of subfolders of subfolders have to be named.

A shard is ``<u4`` n, ``<u4`` (n + 1) offsets of samples, a JSON text that the index repeats, and the samples: the sizes of the
values that differ in size as ``<u4``, then all values. Compressed shards (``.zstd``, ``.gz``, ``.bz2``) are decompressed in
memory, whole, where their uncompressed file is not there too. A shard that is not as the index says (size, number of samples,
any of its hashes) is a problem and left out; with ``check=False`` hashes are not computed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from mmds.converters import Source
from mmds.converters.mdscolumns import MdsColumn
from mmds.converters.mdsshard import Entry, Kept, Shard
from mmds.converters.rawfile import read_exactly, whole_source
from mmds.converters.records import Records
from mmds.errors import SourceError, printable

INDEX = "index.json"
MAX_INDEX_BYTES = 2**28


class Index(msgspec.Struct):
    """An ``index.json``."""

    version: int
    shards: list[Entry]


def recognise(path: Path) -> bool:
    """Return whether `path` is a folder with an index of shards, or with folders that have one."""
    return path.is_dir() and any(map(_has_shards, [path, *_splits(path)]))


def _has_shards(folder: Path) -> bool:
    if not (folder / INDEX).is_file():
        return False
    with (folder / INDEX).open("rb") as file:
        head = file.read(4096)
    return b'"shards"' in head and b'"column_encodings"' in head


def _splits(path: Path) -> list[Path]:
    with os.scandir(path) as entries:
        folders = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    return [path / name for name in folders if (path / name / INDEX).is_file()]


def sources(path: Path, *, check: bool = True) -> list[Source]:
    """Return the sources in the folder `path`: one, or one per subfolder. `check` says whether to check hashes."""
    if not isinstance(check, bool):
        raise ValueError(f"check={check!r}: expected True or False")
    folders = [path] if (path / INDEX).exists() else _splits(path) if path.is_dir() else []
    if not folders:
        raise SourceError(f"{printable(path)}: expected a folder with {INDEX}, or with folders that have one")
    return [_source(folder, folder.name if folder != path else "", check) for folder in folders]


def _source(folder: Path, split: str, check: bool) -> Source:
    shown = printable(folder / INDEX)
    root = os.path.realpath(folder)
    file = whole_source(folder / INDEX, root)
    if file.size > MAX_INDEX_BYTES:
        raise SourceError(f"{shown}: {file.size} bytes; the limit is {MAX_INDEX_BYTES}")
    try:
        index = msgspec.json.decode(file.read(), type=Index)
        columns = _columns(index)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, SourceError) as error:
        raise SourceError(f"{shown}: {printable(error, 500)}") from None
    shards, problems = [], []
    for entry in index.shards:
        try:
            shards.append(Shard.find(root, entry, check))
        except SourceError as error:
            problems.append((entry.raw_data.basename, f"{error}; {entry.samples} samples are left out"))
    load = LoadSample(tuple(columns))

    def begin() -> Iterator[Item]:
        for shard in shards:
            for number in range(shard.samples):
                yield f"{shard.name}: sample {number}", shard, number

    fields = _fields(columns, load, begin())
    count = sum(shard.samples for shard in shards)
    return Records(load, fields, {"source": "mds"}, count, begin, problems, split=split)


def _columns(index: Index) -> list[MdsColumn]:
    """Return the columns of all shards, or raise `SourceError`."""
    if index.version != 2:
        raise SourceError(f"version {index.version} of the index; 2 is known")
    if not index.shards:
        raise SourceError("no shards")
    first = index.shards[0]
    names, encodings, sizes = first.column_names, first.column_encodings, first.column_sizes
    for number, entry in enumerate(index.shards):
        if entry.format != "mds" or entry.version != 2:
            raise SourceError(f"shard {number} is of format '{entry.format}', version {entry.version}; expected mds, 2")
        if (entry.column_names, entry.column_encodings, entry.column_sizes) != (names, encodings, sizes):
            raise SourceError(f"shard {number} has other columns than shard 0")
        if min(entry.samples, entry.raw_data.bytes) < 0:
            raise SourceError(f"shard {number} has {entry.samples} samples and {entry.raw_data.bytes} bytes")
    if not len(names) == len(set(names)) == len(encodings) == len(sizes) or not names:
        raise SourceError(
            f"columns {names}, {encodings}, {sizes}: expected as many different names as encodings and sizes"
        )
    return [MdsColumn.checked(*each) for each in zip(names, encodings, sizes, strict=True)]


def _fields(columns: list[MdsColumn], load: LoadSample, items: Iterator[Item]) -> dict[str, Any] | None:
    """Return the fields; where an encoding does not say enough, of the first sample that can be read."""
    sample: dict[str, Any] = {}
    if any(column.needs_value for column in columns):
        for item in items:
            with suppress(SourceError):  # named when the item is loaded
                sample = load(item)
                break
        else:
            return None
    return {column.name: column.kind(sample.get(column.name)) for column in columns}


Item = tuple[str, Shard, int]


@dataclass(frozen=True)
class LoadSample:
    """The function from item to sample."""

    columns: tuple[MdsColumn, ...]
    kept: Kept = field(default_factory=Kept, compare=False)

    def __call__(self, item: Item) -> dict[str, Any]:
        """Return the sample of an item, or raise `SourceError` with the reason why there is none."""
        _, shard, number = item
        if shard.compression is None:
            with shard.file.opened() as fd:
                low, high = self._bounds(shard, read_exactly(fd, 4 * (1 + number), 8))
                data = read_exactly(fd, low, high - low)
        else:
            content = self.kept[shard]
            low, high = self._bounds(shard, content[4 * (1 + number) : 4 * (3 + number)])
            data = content[low:high]
        return self.decode(data)

    @staticmethod
    def _bounds(shard: Shard, pair: bytes) -> tuple[int, int]:
        low, high = np.frombuffer(pair, "<u4").tolist()
        if not 4 * (shard.samples + 2) <= low <= high <= shard.size:
            raise SourceError(f"bytes {low} to {high} of a shard of {shard.size} bytes and {shard.samples} samples")
        return low, high

    def decode(self, data: bytes) -> dict[str, Any]:
        """Return the sample whose bytes are `data`."""
        variable = [column.size is None for column in self.columns]
        start = 4 * sum(variable)
        if len(data) < start:
            raise SourceError(f"{len(data)} bytes; {start} of sizes were expected")
        sizes = iter(np.frombuffer(data, "<u4", sum(variable)).tolist() if start else ())
        lengths = [next(sizes) if column.size is None else column.size for column in self.columns]
        if start + sum(lengths) != len(data):
            raise SourceError(f"{len(data)} bytes; its values take {start + sum(lengths)}")
        sample = {}
        for column, length in zip(self.columns, lengths, strict=True):
            sample[column.name] = column.decode(data[start : start + length])
            start += length
        return sample
