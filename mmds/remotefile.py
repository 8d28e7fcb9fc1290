"""One ``.mmds`` file in object storage, read by ranges: nothing is downloaded but what is asked for.

Opening takes the last 64 KiB in one request, which tells how long the object is and mostly holds the footer, and then what
of header and section headers lies elsewhere. Small reads, of which looking into an index is made, are served from windows of
32 KiB that are kept. All requests name the version of the object that was opened (its ETag), so that what is replaced meanwhile
is a `ChangedError` and never a mixture.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import count

import numpy as np

from mmds import canonical
from mmds.datafile import DataFile
from mmds.errors import ChangedError, FormatError, printable
from mmds.filebytes import FileBytes, NdArray
from mmds.format import MIN_FILE, TRAILER
from mmds.parse import parse_footer
from mmds.positioned import POSITIONED, CheckedBytes
from mmds.remote import Remote, Version, at_once

TAIL = 2**16  # bytes of the end that are read first
WINDOW = 2**15  # bytes around a small read that come with it: in the time of a request, they are free
SMALL = 2**12  # bytes of such a read
WINDOWS = 2**10  # that a process keeps: 32 MiB
ENDS = 2**8  # likewise: 16 MiB, however many shards are open


class RemoteFile(DataFile):
    """With `checked`, every block of 1 MiB is fetched and compared to its hash before anything of it is used."""

    def __init__(self, url: str, *, checked: bool = False) -> None:
        remote = Remote(url)
        self.view = _CheckedRemoteBytes(remote) if checked else RemoteBytes(remote)
        self.view.fetch_index()
        super().__init__(remote.url, self.view, POSITIONED)
        if isinstance(self.view, _CheckedRemoteBytes):
            self.view.check_from_now_on(self.footer)
        self._open_items()

    def wanted(self, samples: int) -> bool:
        """Return False: there is no kernel to ask ahead."""
        return False


class RemoteBytes(FileBytes):
    """The bytes of an object, as it was when this was made."""

    def __init__(self, remote: Remote) -> None:
        self.path, self._remote = remote.url, remote
        self._opening = next(_openings)
        end, self._version = _end(remote, self._opening)
        self._length = self._version.size
        self._tail_start = self._length - len(end)
        self._seen_by = self._opening if self._version.etag is None else 0
        if not self._length:
            raise FormatError(f"{printable(self.path)}: an empty object, so not an mmds file")

    def fetch_index(self) -> None:
        """Fetch at once what `parse` is going to look at one after the other. It is `parse` that says what is wrong."""
        if self._length < MIN_FILE:
            return
        trailer = np.frombuffer(self[self._length - TRAILER.itemsize :], TRAILER)[0]
        start, length = int(trailer["footer_offset"]), int(trailer["footer_length"])
        if length > canonical.MAX_BYTES or start + length + TRAILER.itemsize != self._length:
            return
        try:
            sections = parse_footer(self[start : start + length], "", self._length).sections
        except FormatError:
            return
        wanted = {0, *(at for section in sections for at in (section.offset, section.data, section.end - 8))}
        windows = sorted({at // WINDOW * WINDOW for at in wanted if 0 <= at < self._tail_start})
        for _ in at_once(self._window, windows):
            pass

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` on; `ChangedError` or `StorageError` if they are not there any more."""
        if offset >= self._tail_start:
            end, version = _end(self._remote, self._opening)
            if version != self._version:
                raise ChangedError(f"{printable(self.path)}: was replaced while it was read; open it again")
            return end[offset - self._tail_start :][:length]
        if length > SMALL:
            return self._remote.read(offset, length, self._version)
        first, stop = offset // WINDOW * WINDOW, offset + length
        return b"".join(map(self._window, range(first, stop, WINDOW)))[offset - first : stop - first]

    def _window(self, start: int) -> bytes:
        return _window(self._remote, self._version, self._seen_by, start)

    def read_spans(self, starts: NdArray, lengths: NdArray) -> list[bytes]:
        """Return the bytes from each of `starts` on: in few requests, several at once."""
        starts, lengths = starts.astype(np.int64), lengths.astype(np.int64)
        if len(starts) == 1 or (len(starts) and starts.min() >= self._tail_start):
            return [self.read(start, length) for start, length in zip(starts.tolist(), lengths.tolist(), strict=True)]
        return self._remote.read_spans(starts, lengths, self._version)

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill `target` with the bytes from `offset` on: large parts several at once."""
        if len(target) <= SMALL or offset >= self._tail_start:
            target[:] = self.read(offset, len(target))
        else:
            self._remote.read_into(offset, target, self._version)

    def read_each_into(self, starts: NdArray, target: NdArray) -> None:
        """Fill each row of `target`, which is bytes, with those from each of `starts` on: as `read_spans`."""
        for data, row in zip(self.read_spans(starts, np.full(len(starts), target.shape[1])), target, strict=True):
            row[:] = np.frombuffer(data, np.uint8)

    def rows(self, offset: int, stride: int, size: int, rows: NdArray) -> NdArray:
        """Return `size` bytes at ``offset + row * stride`` for each of `rows`: uint8 of shape (len(rows), size)."""
        parts = self.read_spans(offset + rows * stride, np.full(len(rows), size))
        return np.frombuffer(b"".join(parts), np.uint8).reshape(len(rows), size)

    def expect(self, offset: int, length: int) -> None:
        """Do nothing: there is no kernel to ask ahead."""


class _CheckedRemoteBytes(CheckedBytes, RemoteBytes):
    def _open_again(self) -> DataFile:
        return RemoteFile(self.path)


_openings = count(1)


@lru_cache(ENDS)
def _end(remote: Remote, opening: int) -> tuple[bytes, Version]:
    """Return the end of an object, for whoever opened it: another one looks again, since it may have been replaced."""
    return remote.tail(TAIL)


@lru_cache(WINDOWS)
def _window(remote: Remote, version: Version, seen_by: int, start: int) -> bytes:
    """Return a window; of an object without an ETag, for the one that opened it only."""
    return remote.read(start, min(WINDOW, version.size - start), version)
