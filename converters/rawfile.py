"""A file that nobody vouches for, read by offset from any number of threads and processes.

It is opened for every read: that costs about 5 µs, and in return nothing stays open, nothing is inherited by a fork, the
object pickles, and a file that is replaced or cut short during a conversion is noticed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mmds.errors import SourceError, printable

# O_NONBLOCK: opening a FIFO would wait for a writer for ever. O_NOFOLLOW: links are resolved and judged first.
OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
BUFFER_BYTES = 2**20  # of a file that is read from front to back


@dataclass(frozen=True)
class RawFile:
    """A regular file as it was when it was found: its real path, size and time of change."""

    path: str
    size: int
    changed: int

    @classmethod
    def find(cls, path: str | os.PathLike[str], boundary: str | None = None) -> RawFile:
        """Return the file at `path`; a link has to lead below `boundary`, a real path, if there is one.

        Raises `SourceError` with the reason, without the name, where that is no file that can be read.
        """
        real = os.path.realpath(path)
        if boundary is not None and os.path.commonpath([real, boundary]) != boundary:
            raise SourceError("a symbolic link out of the tree")
        with _described(real) as (_, status):
            return cls(real, status.st_size, status.st_mtime_ns)

    @contextmanager
    def opened(self) -> Iterator[int]:
        """Open the file and hand out the descriptor; `SourceError` if it is not what it was."""
        with _described(self.path) as (fd, status):
            if (status.st_size, status.st_mtime_ns) != (self.size, self.changed):
                raise SourceError("a file that was changed since its conversion began")
            yield fd

    @contextmanager
    def stream(self) -> Iterator[BinaryIO]:
        """Open the file for reading from front to back."""
        with self.opened() as fd, open(fd, "rb", buffering=BUFFER_BYTES, closefd=False) as stream:
            yield stream

    def read(self, offset: int = 0, size: int | None = None) -> bytes:
        """Return `size` bytes from `offset` on, by default all; `SourceError` where the file does not have them."""
        size = self.size - offset if size is None else size
        if offset < 0 or size < 0 or offset + size > self.size:
            raise SourceError(f"{size} bytes at offset {offset} of a file of {self.size}")
        with self.opened() as fd:
            return read_exactly(fd, offset, size)


def read_exactly(fd: int, offset: int, size: int) -> bytes:
    """Return `size` bytes from `offset` on of an open file that had as many when it was opened."""
    data = os.pread(fd, size, offset)
    while len(data) < size:  # Linux reads at most 2 GiB at once
        more = os.pread(fd, size - len(data), offset + len(data))
        if not more:
            raise SourceError("a file that became shorter while it was read")
        data += more
    return data


def whole_source(path: Path, boundary: str | None = None) -> RawFile:
    """Return the file at `path` as `RawFile.find` does, with its name in the errors: nothing can be done without it."""
    try:
        return RawFile.find(path, boundary)
    except SourceError as error:
        raise SourceError(f"{printable(path)}: {error}") from None


@contextmanager
def _described(path: str) -> Iterator[tuple[int, os.stat_result]]:
    try:
        fd = os.open(path, OPEN_FLAGS)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise SourceError("not a file but a folder, a FIFO or a device")
            yield fd, status
        finally:
            os.close(fd)
    except OSError as error:
        raise SourceError(f"cannot be read ({error.strerror})") from None
