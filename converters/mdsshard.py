"""The shards of a MosaicML MDS folder: their files, as far as they are what the index says, and what compressed ones hold."""

from __future__ import annotations

import hashlib
import os
import threading
import zlib
from bz2 import BZ2Decompressor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import msgspec
import xxhash

from mmds.converters.rawfile import BUFFER_BYTES, RawFile
from mmds.errors import SourceError, missing, printable

MAX_RATIO = 1100  # of declared to compressed bytes: what the highest ratios in wide use come to
FREE_BYTES = 2**26  # that may be declared in any case
KEPT = 2  # decompressed shards: the threads of one process read in order, and so from one or two of them
HASHES = {"md5", "sha1", "sha224", "sha256", "sha384", "sha512", "blake2b", "blake2s", "sha3_256", "sha3_512"}
XXHASHES = {"xxh32", "xxh64", "xxh128", "xxh3_64", "xxh3_128"}
COMPRESSIONS = ("zstd", "gz", "bz2")


class Part(msgspec.Struct):
    """A file of a shard, as the index describes it."""

    basename: str
    bytes: int
    hashes: dict[str, str] = {}


class Entry(msgspec.Struct):
    """A shard, as the index describes it."""

    format: str
    version: int
    samples: int
    raw_data: Part
    column_names: list[str]
    column_encodings: list[str]
    column_sizes: list[int | None]
    zip_data: Part | None = None
    compression: str | None = None


@dataclass(frozen=True)
class Shard:
    """A shard whose file is there and is as large as the index says."""

    name: str
    file: RawFile
    samples: int
    size: int  # uncompressed
    compression: str | None  # of `file`
    hashes: tuple[tuple[str, str], ...]  # of the content of a compressed one, checked whenever it is decompressed

    @classmethod
    def find(cls, root: str, entry: Entry, check: bool) -> Shard:
        """Return the shard of an entry of the index, or raise `SourceError` where its file is not what that says."""
        part, compression = entry.raw_data, None
        if entry.zip_data is not None and not os.path.lexists(_inside(root, part.basename)):
            part, compression = entry.zip_data, (entry.compression or "").partition(":")[0]
            if compression not in COMPRESSIONS:
                raise SourceError(f"compression '{printable(compression)}'; known are {', '.join(COMPRESSIONS)}")
        file = RawFile.find(_inside(root, part.basename), root)
        if file.size != part.bytes:
            raise SourceError(f"{file.size} bytes; the index says {part.bytes}")
        if compression and entry.raw_data.bytes > FREE_BYTES + MAX_RATIO * file.size:
            raise SourceError(f"{entry.raw_data.bytes} bytes, compressed to {file.size}, which no compression does")
        if entry.raw_data.bytes < 4 * (entry.samples + 2):  # the offsets alone
            raise SourceError(
                f"{entry.samples} samples in {entry.raw_data.bytes} bytes, which the index says, do not fit"
            )
        if check:
            _check_hashes(file, part.hashes)
        hashes = tuple(entry.raw_data.hashes.items()) if compression and check else ()
        shard = cls(entry.raw_data.basename, file, entry.samples, entry.raw_data.bytes, compression, hashes)
        if compression is None:
            shard.check_count(file.read(0, min(4, file.size)))
        return shard

    def check_count(self, head: bytes) -> None:
        """Check the number of samples, which is the first four bytes of a shard."""
        count = int.from_bytes(head, "little")
        if count != self.samples or self.size < 4 * (count + 2):
            raise SourceError(f"{count} samples in {self.size} bytes; the index says {self.samples}")

    def content(self) -> bytes:
        """Return the decompressed content of a compressed shard."""
        data = decompress(self.compression or "", self.file.read(), self.size)
        if len(data) != self.size:
            raise SourceError(f"decompressed to {len(data)} bytes or more; the index says {self.size}")
        for kind, expected in self.hashes:
            hasher = _hasher(kind)
            if hasher is not None:
                hasher.update(data)
                _compare(kind, hasher, expected)
        self.check_count(data[:4])
        return data


def _inside(root: str, basename: str) -> str:
    """Return the path of a file of a shard; `SourceError` where its name leads out of the folder."""
    parts = PurePosixPath(basename).parts
    if not parts or basename.startswith("/") or ".." in parts or "\0" in basename:
        raise SourceError("a file name that leads out of the folder")
    return f"{root}/{basename}"


def _hasher(kind: str) -> Any:
    """Return a new hash object of `kind`, or None if it is not known."""
    if kind in XXHASHES:
        return getattr(xxhash, kind)()
    return hashlib.new(kind, usedforsecurity=False) if kind in HASHES else None


def _compare(kind: str, hasher: Any, expected: str) -> None:
    if hasher.hexdigest() != expected.lower():
        raise SourceError(f"{kind} is {hasher.hexdigest()}; the index says {printable(expected)}")


def _check_hashes(file: RawFile, hashes: dict[str, str]) -> None:
    """Check the content of a file against its hashes; kinds that are not known are passed over."""
    hashers = {kind: hasher for kind in hashes if (hasher := _hasher(kind)) is not None}
    if not hashers:
        return
    with file.stream() as stream:
        while block := stream.read(BUFFER_BYTES):
            for hasher in hashers.values():
                hasher.update(block)
    for kind, hasher in hashers.items():
        _compare(kind, hasher, hashes[kind])


def decompress(compression: str, data: bytes, size: int) -> bytes:
    """Return what `data` decompresses to, but not much more than `size` bytes; `SourceError` where it is damaged."""
    try:
        if compression == "gz":
            return zlib.decompressobj(31).decompress(data, size + 1)
        if compression == "bz2":
            return BZ2Decompressor().decompress(data, size + 1)
        try:
            import zstandard
        except ImportError:
            raise missing("zstandard", "zstd", "reading MDS shards compressed by zstd") from None
        try:
            return bytes(zstandard.ZstdDecompressor(max_window_size=2**27).stream_reader(data).read(size + 1))
        except zstandard.ZstdError as error:
            raise ValueError(error) from None
    except (ValueError, zlib.error, OSError, EOFError) as error:
        raise SourceError(f"cannot be decompressed ({printable(error)})") from None


class Kept:
    """The shards that were decompressed last, or why they could not be; its lock keeps threads from doing one twice."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shards: dict[Shard, bytes | SourceError] = {}

    def __reduce__(self) -> tuple[type[Kept], tuple[()]]:
        return Kept, ()  # another process keeps its own

    def __getitem__(self, shard: Shard) -> bytes:
        with self._lock:
            found = self._shards.get(shard)
            if found is None:
                while len(self._shards) >= KEPT:
                    del self._shards[next(iter(self._shards))]
                try:
                    found = shard.content()
                except SourceError as error:
                    found = error
                self._shards[shard] = found
        if isinstance(found, SourceError):
            raise SourceError(str(found))
        return found
