"""The members of a tar archive that nobody vouches for, in order, without unpacking: header by header.

Headers are those that Python's `tarfile` knows: ustar, pax and GNU long names. One block at a time is parsed by
`TarInfo.frombuf`; the walk over them is our own, because `tarfile` ends in silence at a damaged header, reads extended
headers of any size, follows chains of them by recursion, and keeps every member that it has seen.

An archive has to end with its end mark, a block of zeros, and nothing but zeros may follow. Whatever else is found there
raises `SourceError` with the byte where it is: a header with a wrong checksum, a size beyond the end of the file.
"""

from __future__ import annotations

import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from gzip import BadGzipFile, GzipFile
from typing import BinaryIO

from mmds.converters.tree import MAX_FILE_BYTES, opened
from mmds.errors import SourceError

BLOCK = tarfile.BLOCKSIZE
MAX_EXTENDED = 2**20  # bytes of an extended header; real ones hold a name and a few numbers
MAX_CHAIN = 16  # extended headers before one member
END_LOOK = 2**20  # bytes after the end mark that are looked at; writers fill up to 10 KiB with zeros
MAX_OFFSET = 2**60  # in what is compressed, whose length shows only at its end
CHUNK = 2**16
GZIP = b"\x1f\x8b"
OTHERS = {b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz"}

SPARSE = "a sparse file, of which the archive holds parts only"
LINK = "a link, which is never followed"
SPECIAL = "a device, FIFO or other member that is no file"
NAMES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)


@dataclass(frozen=True, slots=True)
class Member:
    """One member: its name as it is in the archive, where its data are, and why it is no plain file ("" if it is one)."""

    name: str
    offset: int
    size: int
    reason: str = ""
    is_folder: bool = False


@contextmanager
def open_archive(path: str, boundary: str) -> Iterator[Archive]:
    """Open the archive at `path`, a file below `boundary`, for the time of a with-statement."""
    with opened(path, boundary) as (fd, size):
        magic = os.pread(fd, 6, 0)
        for start, name in OTHERS.items():
            if magic.startswith(start):
                raise SourceError(f"compressed with {name}; gzip alone is read as it is: unpack it to .tar first")
        with open(fd, "rb", closefd=False) as file:
            if magic.startswith(GZIP):
                with GzipFile(fileobj=file, mode="rb") as unpacked:
                    yield Archive(unpacked, None)
            else:
                yield Archive(file, size)


class Archive:
    """An open archive of `size` bytes, None if it is compressed. Iterate over it once; `read` goes on from a member."""

    def __init__(self, file: BinaryIO | GzipFile, size: int | None) -> None:
        self._file, self._size = file, size
        self.is_compressed = size is None

    def __iter__(self) -> Iterator[Member]:
        position = 0  # of the next header
        common: dict[str, bytes] = {}  # what pax headers say of all members that follow
        special: dict[str, bytes] = {}  # what extended headers say of the next member
        chain = 0
        while True:
            info = self._header(position)
            if info is None:
                return
            data = position + BLOCK
            if info.type in NAMES or info.type in PAX or info.type == tarfile.XGLTYPE:
                chain += 1
                if info.size > MAX_EXTENDED or chain > MAX_CHAIN:
                    raise SourceError(f"at byte {position}: extended headers beyond all measure")
                content = self._extended(data, info.size)
                if info.type == tarfile.GNUTYPE_LONGNAME:
                    special["path"] = content.partition(b"\0")[0]
                elif info.type in PAX:
                    special |= _records(content, position)
                elif info.type == tarfile.XGLTYPE:
                    common |= _records(content, position)
                position = data + _padded(info.size)
                continue
            said = common | special
            special, chain = {}, 0
            if info.type == tarfile.GNUTYPE_SPARSE:
                data = self._after_sparse_headers(info, data)
            member = _member(info, said, data)
            stored = member.size if info.type in tarfile.REGULAR_TYPES or _is_unknown(info) else 0
            position = data + _padded(stored)
            self._check(member, data + stored)
            yield member
            self._seek(position)

    def read(self, member: Member, limit: int | None = None) -> bytes:
        """Return the data of the member that was just yielded, or their first `limit` bytes."""
        if limit is None and member.size > MAX_FILE_BYTES:
            raise SourceError(f"a member of {member.size} bytes; the limit is {MAX_FILE_BYTES}")
        self._seek(member.offset)
        size = member.size if limit is None else min(limit, member.size)
        data = self._read(size)
        if len(data) < size:
            raise SourceError(
                f"ends at byte {member.offset + len(data)}, within a member: it was cut off, or the size is a lie"
            )
        return data

    def _header(self, position: int) -> tarfile.TarInfo | None:
        """Return the header at `position`, None for the end mark."""
        block = self._read(BLOCK)
        if not block:
            raise SourceError(f"no end mark at its end, byte {position}; it may have been cut off")
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            if len(block) == BLOCK and not any(block):
                self._check_end(position + BLOCK)
                return None
            raise SourceError(f"no tar header at byte {position} ({error})") from None
        if info.size < 0:
            raise SourceError(f"at byte {position}: a size of {info.size} bytes")
        return info

    def _extended(self, offset: int, size: int) -> bytes:
        content = self._read(_padded(size))
        if len(content) < size:
            raise SourceError(f"ends within an extended header, at byte {offset + len(content)}")
        return content[:size]

    def _after_sparse_headers(self, info: tarfile.TarInfo, offset: int) -> int:
        """Return where the data of an old GNU sparse member start: more of its map may precede them."""
        more = bool(info._sparse_structs[1])  # type: ignore[attr-defined]
        while more:
            block = self._read(BLOCK)
            if len(block) < BLOCK:
                raise SourceError(f"ends within the map of a sparse file, at byte {offset}")
            more, offset = bool(block[504]), offset + BLOCK
        return offset

    def _check(self, member: Member, end: int) -> None:
        """Raise `SourceError` if the data of a member would end beyond the file; compressed ones are found out later."""
        if end > (MAX_OFFSET if self._size is None else self._size):
            raise SourceError(
                f"at byte {member.offset}: a member of {member.size} bytes, but the file has {self._size or 'fewer'}: "
                "it was cut off, or the size is a lie"
            )

    def _check_end(self, position: int) -> None:
        rest = self._read(END_LOOK)
        if any(rest):
            raise SourceError(
                f"data after the end mark at byte {position - BLOCK}, which nobody reads; several archives in one file?"
            )

    def _seek(self, position: int) -> None:
        with _reading():
            self._file.seek(position)  # GzipFile unpacks what lies between
        if self._size is None and self._file.tell() < position:
            raise SourceError(
                f"ends at byte {self._file.tell()}, within a member: it was cut off, or the size is a lie"
            )

    def _read(self, size: int) -> bytes:
        """Return up to `size` bytes, fewer only at the end of the file."""
        parts: list[bytes] = []
        with _reading():
            while size and (part := self._file.read(min(size, CHUNK) if self.is_compressed else size)):
                parts.append(part)
                size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


@contextmanager
def _reading() -> Iterator[None]:
    """Turn what gzip raises over damaged data into `SourceError`."""
    try:
        yield
    except (EOFError, zlib.error, BadGzipFile) as error:
        raise SourceError(f"damaged gzip data ({error})") from None
    except OSError as error:
        raise SourceError(f"cannot be read ({error.strerror})") from None


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _is_unknown(info: tarfile.TarInfo) -> bool:
    return info.type not in tarfile.SUPPORTED_TYPES  # has data, as in tarfile


def _member(info: tarfile.TarInfo, said: dict[str, bytes], offset: int) -> Member:
    name, size = info.name, info.size
    if "path" in said:
        name = said["path"].decode("utf-8", "surrogateescape")
    if "size" in said:
        if not re.fullmatch(rb"[0-9]{1,18}", said["size"]):
            raise SourceError(f"at byte {offset - BLOCK}: a size that is no number")
        size = int(said["size"])
    reason = ""
    if info.type == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse.") for key in said):
        reason = SPARSE
    elif info.type not in PLAIN:
        reason = LINK if info.type in (tarfile.SYMTYPE, tarfile.LNKTYPE) else SPECIAL
    return Member(name, offset, size, reason, info.type == tarfile.DIRTYPE)


def _records(content: bytes, position: int) -> dict[str, bytes]:
    """Return the records ``LENGTH KEY=VALUE\\n`` of a pax header."""
    found: dict[str, bytes] = {}
    content = content.rstrip(b"\0")
    start = 0
    while start < len(content):
        match = re.compile(rb"([0-9]{1,7}) ([^=]+)=").match(content, start)
        end = start + int(match[1]) if match else 0
        if match is None or not match.end() < end <= len(content) or content[end - 1 : end] != b"\n":
            raise SourceError(f"at byte {position}: a malformed pax header")
        found[match[2].decode("utf-8", "surrogateescape")] = content[match.end() : end - 1]
        start = end
    return found
