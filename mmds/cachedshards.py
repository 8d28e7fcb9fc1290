"""The shards of a dataset in object storage, downloaded into a `ShardCache` when they are first needed."""

from __future__ import annotations

import hashlib
import os
import weakref
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from mmds.datafile import DataFile
from mmds.errors import FormatError, VersionError, printable
from mmds.format import BLOCK, MAJOR, MIN_FILE, TRAILER, TRAILER_CRC, TRAILER_MAGIC
from mmds.manifest import NAME, Shard, check_listed
from mmds.openfile import Reading, open_file
from mmds.positioned import CheckedBytes
from mmds.remote import Remote, is_url
from mmds.shardcache import ShardCache, checked_size, let_go, settled
from mmds.shards import Shards
from mmds.sidecar import Joined

Stop = Callable[[], bool]


class Stopped(Exception):
    """A download was stopped, since nobody wants it any more."""


class Downloads:
    """What is at a URL, file by file, through a cache."""

    def __init__(self, url: str, cache: ShardCache, reading: Reading = "mapped") -> None:
        self._remote, self._cache, self._reading = Remote(url), cache, reading

    def open_object(self) -> DataFile:
        """Open the one file that the URL names."""
        return self._open(self._remote, describe_remote(self._remote))

    def open(self, entry: Shard) -> DataFile:
        """Open a file below the URL, which its manifest lists. It stays in the cache as long as its map lives.

        Raises `StorageError` if it cannot be fetched or kept, `FormatError` if it is not the listed one, or damaged.
        """
        return self._open(self._remote.child(entry.path), entry)

    def has(self, entry: Shard) -> bool:
        """Return whether a file is in the cache at this moment."""
        return self._cache.path(entry.content_id).exists()

    def fetch(self, entry: Shard, keep: Sequence[Shard], stop: Stop) -> bool:
        """Have a file in the cache before it is needed; False if there is no room but that of those in `keep`, or in use.

        Raises what `open` does, and `Stopped` soon after `stop` says so.
        """
        fill = partial(download, self._remote.child(entry.path), entry, stop=stop)
        return self._cache.fetch(entry.content_id, entry.bytes, fill, {other.content_id for other in keep})

    def renew(self, entries: Sequence[Shard]) -> None:
        """Keep files that are in the cache for longer, the first ones longest."""
        self._cache.renew([entry.content_id for entry in reversed(entries)])

    @property
    def room(self) -> int | None:
        """How many bytes may be in the cache; None if there is no bound."""
        return self._cache.size

    def watch(self, store: Shards | Joined) -> None:
        """Have a dataset whose files are opened here let go of them when the cache needs room."""
        shards = store.shards if isinstance(store, Joined) else store
        shards.downloads = self
        self._cache.add(shards)

    def _open(self, remote: Remote, entry: Shard) -> DataFile:
        room = self._cache.size
        if room is not None and room < entry.bytes:
            raise ValueError(
                f"cache_size={room}: smaller than {printable(remote.url)}, which has {entry.bytes} bytes; it must have room "
                "for the shards that are in use at a time, and for the next ones"
            )
        is_second = False
        while True:  # until nobody removes it between `hold` and `open_file`
            fd = self._cache.hold(entry.content_id, entry.bytes, partial(download, remote, entry))
            try:
                file = open_file(self._cache.path(entry.content_id), self._reading)
                check_listed(file, entry)
                if isinstance(file.view, CheckedBytes):
                    file.view.discard = partial(self._cache.remove, entry.content_id, fd)
                if self._reading != "in memory":
                    kept, fd = fd, -1
                    settled(kept)  # first: a child that is forked in between must not close it twice
                    weakref.finalize(getattr(file.view, "obj", file.view), os.close, kept).atexit = False
                return file
            except FileNotFoundError:  # another process has found it damaged
                continue
            except FormatError as error:  # it was whole when it was downloaded: somebody or something has changed it
                if is_second or isinstance(error, VersionError):
                    raise
                self._cache.remove(entry.content_id, fd)
                is_second = True
            finally:
                let_go(fd)


@dataclass(frozen=True)
class CacheOptions:
    """Where downloads go, as users say it."""

    folder: str | os.PathLike[str] | None
    size: int | str | None

    def check(self, source: object) -> None:
        """Raise ValueError or TypeError if options do not fit each other, or what is to be opened."""
        if self.folder is None and self.size is None:
            return
        if self.folder is None:
            raise ValueError(f"cache_size={self.size!r}: expected a cache_dir, too")
        checked_size(self.size)
        if not is_url(source):
            shown = printable(source) if isinstance(source, (str, os.PathLike)) else "a list of files"
            raise ValueError(f"cache_dir={printable(self.folder)}: is for URLs, and {shown} is none")
        Remote(str(source))  # refuses credentials

    def downloads(self, url: str, reading: Reading) -> Downloads | None:
        """Return what downloads what is at a URL; None if it is to be read by ranges."""
        return None if self.folder is None else Downloads(url, ShardCache(self.folder, self.size), reading)


NO_CACHE = CacheOptions(None, None)


def download(remote: Remote, entry: Shard, draft: Path, *, stop: Stop | None = None) -> None:
    """Download a shard into a file that exists, and check every block of it."""

    def look(_: int) -> None:
        if stop is not None and stop():
            raise Stopped

    try:
        remote.download(draft, look, expected=entry.bytes)
    except FileNotFoundError:
        raise FormatError(f"{printable(remote.url)}: missing, but {NAME} lists it") from None
    try:
        file = open_file(draft, "positioned")
        check_listed(file, entry)
        _check_blocks(file)
    except FormatError as error:
        reason = str(error).removeprefix(f"{printable(draft)}: ")
        raise type(error)(f"{printable(remote.url)}: not kept after its download: {reason}") from None


def _check_blocks(file: DataFile) -> None:
    from mmds.blocks import block_hash  # xxhash, which other readers have no use for

    section = file.footer.sections[-1]
    hashes = file.view.read(section.data, section.nbytes)
    if hashlib.sha256(hashes).hexdigest() != file.footer.root:
        raise FormatError("the block hashes differ from their sha256 in the footer")
    for block, expected in enumerate(np.frombuffer(hashes, "<u8").tolist()):
        start = block * BLOCK
        if block_hash(file.view.read(start, min(BLOCK, section.offset - start))) != expected:
            raise FormatError(f"block {block} (bytes {start} to {start + BLOCK}) differs from its hash")


def describe_remote(remote: Remote) -> Shard:
    """Return what the trailer of a file in object storage says of it; `FormatError` if it is no ``.mmds`` file."""
    end, version = remote.tail(TRAILER.itemsize)
    trailer = np.frombuffer(end.rjust(TRAILER.itemsize, b"\0"), TRAILER)[0]
    if (
        version.size < MIN_FILE
        or trailer["magic"].tobytes() != TRAILER_MAGIC
        or int(trailer["crc"]) != zlib.crc32(end[:TRAILER_CRC])
    ):
        raise FormatError(f"{printable(remote.url)}: no trailer at the end: not an mmds file, or cut short")
    if int(trailer["major"]) != MAJOR:
        raise VersionError(
            f"{printable(remote.url)}: format version {int(trailer['major'])}; this mmds reads version {MAJOR}. Upgrade mmds"
        )
    return Shard(remote.name, int(trailer["n"]), version.size, trailer["content_id"].tobytes().hex())
