"""A file that is read by position (`pread`): nothing of it stays in this process, and what cannot be read is an error.

Through a map, a file that is cut short or a disk that fails is a signal (SIGBUS), which ends the process.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from mmds.errors import ChangedError, FormatError, StorageError, printable

NdArray = np.ndarray[Any, Any]

WINDOW = 2**14  # bytes of the index that are read at once for rows that are no neighbours: as long as a call takes


def open_regular(path: str) -> tuple[int, int]:
    """Return a descriptor of a file that is not empty, and its length; `FormatError` if it is no such file."""
    # O_NONBLOCK: a FIFO would wait for a writer for ever. It does nothing to a regular file.
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if error.errno != errno.ENXIO:  # what opening a socket answers
            raise
        raise FormatError(f"{printable(path)}: not a regular file, so not an mmds file") from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise FormatError(f"{printable(path)}: not a regular file, so not an mmds file")
        if not status.st_size:
            raise FormatError(f"{printable(path)}: an empty file, so not an mmds file")
    except BaseException:
        os.close(fd)
        raise
    return fd, status.st_size


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Turn what goes wrong while a file is read into an error of mmds that names it."""
    try:
        yield
    except StorageError:  # of what is written meanwhile
        raise
    except EOFError:
        raise ChangedError(f"{printable(path)} has become shorter while it was read") from None
    except FileNotFoundError as error:
        raise ChangedError(f"{printable(path)} was removed while it was read") from error
    except OSError as error:
        raise read_error(path, error) from error


def read_error(path: str, error: OSError) -> StorageError:
    """Return the error for a file that cannot be read."""
    return StorageError(error.errno, f"cannot read {printable(path)}: {error.strerror}")


class FileBytes:
    """The bytes of an open file, as long as it was then: ``data[start:stop]`` reads them."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.fd, self._length = open_regular(path)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # its own: at exit, `os` may be gone
        if hasattr(self, "fd"):
            close(self.fd)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(self._length)
        return self.read(start, stop - start) if stop > start else b""

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` on; `ChangedError` or `StorageError` if they are not there any more."""
        try:
            data = os.pread(self.fd, length, offset)
        except OSError as error:
            raise read_error(self.path, error) from error
        return data if len(data) == length else self._rest(data, offset, length)

    def _rest(self, data: bytes, offset: int, length: int) -> bytes:
        with reading(self.path):
            while len(data) < length:
                more = os.pread(self.fd, length - len(data), offset + len(data))
                if not more:
                    raise EOFError
                data += more
        return data

    def read_spans(self, starts: NdArray, lengths: NdArray) -> list[bytes]:
        """Return the bytes from each of `starts` on."""
        pread, fd = os.pread, self.fd
        wanted = list(zip(starts.tolist(), lengths.tolist(), strict=True))
        try:
            found = [pread(fd, length, start) for start, length in wanted]
        except OSError as error:
            raise read_error(self.path, error) from error
        for number, (start, length) in enumerate(wanted):
            if len(found[number]) < length:
                found[number] = self._rest(found[number], start, length)
        return found

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill `target` with the bytes from `offset` on, without another copy."""
        with reading(self.path):
            while target:
                got = os.preadv(self.fd, (target,), offset)
                if not got:
                    raise EOFError
                target, offset = target[got:], offset + got

    def read_each_into(self, starts: NdArray, target: NdArray) -> None:
        """Fill each row of `target`, which is bytes, with those from each of `starts` on."""
        for start, row in zip(starts.tolist(), target, strict=True):
            self.read_into(start, row.data)

    def rows(self, offset: int, stride: int, size: int, rows: NdArray) -> NdArray:
        """Return `size` bytes at ``offset + row * stride`` for each of `rows`: uint8 of shape (len(rows), size)."""
        if len(rows) < 2 or not size:
            parts = [self.read(offset + row * stride, size) for row in rows.tolist()]
            return np.frombuffer(b"".join(parts), np.uint8).reshape(len(rows), size)
        groups = list(near(rows, max(1, WINDOW // stride)))
        if len(groups) > len(rows) // 2:
            parts = self.read_spans(offset + rows * stride, np.full(len(rows), size))
            return np.frombuffer(b"".join(parts), np.uint8).reshape(len(rows), size)
        found = np.empty((len(rows), size), np.uint8)
        for at in groups:
            low, high = rows[at][[0, -1]].tolist()
            data = self.read(offset + low * stride, (high - low) * stride + size)
            table: NdArray = np.ndarray((high - low + 1, size), np.uint8, data, 0, (stride, 1))
            found[at] = table[rows[at] - low]
        return found

    def expect(self, offset: int, length: int) -> None:
        """Ask the kernel to read bytes, without waiting for it."""
        os.posix_fadvise(self.fd, offset, length, os.POSIX_FADV_WILLNEED)


def near(numbers: NdArray, distance: int) -> Iterator[Any]:
    """Yield indices into `numbers` by ascending number, in groups of which none spans `distance` or more.

    Neighbours that already ascend are one group, a slice.
    """
    if len(numbers) < 2 or (np.diff(numbers) == 1).all():
        yield slice(None)
        return
    order = np.argsort(numbers, kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(numbers[order] // distance)) + 1)
