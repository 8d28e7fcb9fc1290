"""The file behind a `SharedDataset`: every sample at most once, written by whichever process has it first.

    0       header of 4096 bytes: magic, number of samples, what the samples are of, where the next record goes
    4096    a table of u64, one per sample: where its record is; 0: nowhere yet
            records at multiples of 64: 8 bytes length, 8 bytes XXH3-64 (seed: the sample's number), the sample (`mmds.nested`)

A record is written before the table says where it is, and is never changed afterwards, so that readers need no lock. Writers
lock the entry of the table (an open file description lock, which the kernel takes back from a process that ends): the second
one that wants a sample waits for the first instead of reading it again. Every process that has the file open holds a shared
`flock` on it. Whoever gets an exclusive one is alone: the last one to close the file, or the first after everybody was killed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import mmap
import os
import stat
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from mmds.cgroup import memory_left
from mmds.errors import ExistsError, FormatError, printable
from mmds.publish import storage_errors

NdArray = np.ndarray[Any, Any]

MAGIC = b"\x89MMDCAC2"
HEADER = np.dtype(
    [("magic", "V8"), ("n", "<u8"), ("identity", "V16"), ("size", "<u8"), ("next", "<u8"), ("full", "<u8")]
)
TABLE = 4096  # where the table begins
ALIGN = 64
HEAD = 16  # bytes before a sample: length and hash
_length = struct.Struct("<Q").unpack_from
SPARE = 2**26  # bytes of a control group's limit that are left to others
# O_NONBLOCK: what is no file shall answer at once
OPEN_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
ATTEMPTS = 300  # to open a file that others make, lose and remove meanwhile: three seconds
STEP = 2**24  # bytes that a process writes before it looks at the limit again
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NEXT = HEADER.fields["next"][1]  # type: ignore[index]


class Full(Exception):
    """There is no room for another sample."""


class NoCache:
    """What a process has where there is no room for a `SampleCache`: nothing is ever here."""

    filled = nbytes = 0

    def get(self, index: int) -> None:
        """Return None: a sample is nowhere."""

    def put(self, index: int, data: bytes) -> None:
        """Raise `Full`."""
        raise Full

    def lock(self, index: int) -> contextlib.AbstractContextManager[None]:
        """Return a lock that nobody else has."""
        return contextlib.nullcontext()

    def close(self) -> None:
        """Do nothing."""


class SampleCache:
    """One open file, in one process."""

    def __init__(self, path: Path, n: int, identity: str, size: int, *, keep: bool) -> None:
        self._path, self._keep, self._pid = path, keep, os.getpid()
        self._identity = hashlib.sha256(identity.encode()).digest()[:16]
        self._fd, self._allowed = -1, 0
        with storage_errors(path):
            for attempt in range(ATTEMPTS):
                self._fd = self._open(n, size)
                if self._fd >= 0:
                    break
                time.sleep(min(attempt, 10) / 1000)
            else:
                raise FormatError(
                    f"{printable(path)}: damaged, but in use; end who has it open, or choose another name"
                )
            mapped = mmap.mmap(self._fd, os.fstat(self._fd).st_size)
        self._view = memoryview(mapped)
        self._header: NdArray = np.frombuffer(mapped, HEADER, 1)
        self._table: NdArray = np.frombuffer(mapped, "<u8", n, TABLE)
        self._checked = np.zeros(n, bool)  # by this process

    def get(self, index: int) -> memoryview | None:
        """Return a sample as it was given to `put`; None if it is not here yet."""
        start = self._table.item(index)
        if not start:
            return None
        if not self._checked[index]:  # a computer may have stopped between the record and its entry, or somebody lies
            self._check_record(index, start)
        return self._view[start : start + _length(self._view, start - HEAD)[0]]

    def _check_record(self, index: int, start: int) -> None:
        """Raise `FormatError` unless there is a whole record of sample `index` at `start`."""
        if _aligned(TABLE + 8 * len(self._table)) + HEAD <= start <= len(self._view) and not start % ALIGN:
            length, found = struct.unpack_from("<QQ", self._view, start - HEAD)
            data = self._view[start : start + length]
            if len(data) == length and xxhash.xxh3_64_intdigest(data, index) == found:
                self._checked[index] = True
                return
        raise FormatError(f"{printable(self._path)}: sample {index} is damaged; delete the file to fill it again")

    def put(self, index: int, data: bytes) -> None:
        """Add a sample, which the caller has locked. Raises `Full`."""
        if not self._keep:
            self._check_memory(len(data))
        start = self._reserve(len(data))
        record = memoryview(struct.pack("<QQ", len(data), xxhash.xxh3_64_intdigest(data, index)) + data)
        offset = start - HEAD
        try:
            with storage_errors(self._path):
                while record:
                    written = os.pwrite(self._fd, record, offset)
                    record, offset = record[written:], offset + written
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            self._header["full"] = 1
            raise Full from None
        self._table[index] = start

    def _check_memory(self, length: int) -> None:
        """Raise `Full` before the kernel would end processes of this control group, for what is in memory counts there."""
        self._allowed -= length
        if self._allowed < 0:
            left = memory_left()
            if left is not None and left < length + SPARE:
                self._header["full"] = 1
                raise Full
            self._allowed = STEP if left is None else min(STEP, left // 4)

    def _reserve(self, length: int) -> int:
        with self._locked(NEXT):
            start = _aligned(self._header["next"].item() + HEAD)
            if self._header["full"].item() or start + length > len(self._view):
                raise Full
            self._header["next"] = start + length
        return start

    def lock(self, index: int) -> contextlib.AbstractContextManager[None]:
        """Lock a sample against other processes; waits for one that has it."""
        return self._locked(TABLE + 8 * index)

    @contextlib.contextmanager
    def _locked(self, offset: int) -> Iterator[None]:
        with storage_errors(self._path):
            _lock(self._fd, fcntl.F_WRLCK, offset)
        try:
            yield
        finally:
            with storage_errors(self._path):
                _lock(self._fd, fcntl.F_UNLCK, offset)

    @property
    def filled(self) -> int:
        """How many samples are here."""
        return int(np.count_nonzero(self._table))

    @property
    def nbytes(self) -> int:
        """Bytes that are taken, holes that killed processes left included."""
        return int(self._header["next"].item())

    def close(self) -> None:
        """Let go of the file; the last process removes it, unless it is to be kept."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        if os.getpid() == self._pid and not self._keep:
            with contextlib.suppress(OSError):  # somebody else has it open
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._path.unlink()
        with contextlib.suppress(OSError):  # nothing is promised of what was written
            os.close(fd)

    # Opening

    def _open(self, n: int, size: int) -> int:
        """Return a descriptor of the file that has the name, -1 if it lost it meanwhile."""
        fd = os.open(self._path, OPEN_FLAGS, 0o600)
        is_empty = False
        try:
            status = os.fstat(fd)
            if status.st_uid != os.geteuid() or not stat.S_ISREG(status.st_mode):
                raise self._taken("another user")
            is_empty = not status.st_size
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                is_empty = False  # to whoever has it
                fcntl.flock(fd, fcntl.LOCK_SH)  # waits for one who is making it
            else:  # nobody else has it
                if self._has_name(fd):
                    if self._keep and any(os.pread(fd, HEADER.itemsize, 0)):
                        self._forget_lost(fd, n)
                    else:
                        is_empty = True
                        self._make(fd, n, size)
                fcntl.flock(fd, fcntl.LOCK_SH)
            if self._has_name(fd) and self._check(fd, n):
                kept, fd = fd, -1
                return kept
            return -1
        except BaseException:
            if is_empty:
                with contextlib.suppress(OSError):  # whoever waits for it makes another
                    self._path.unlink()
            raise
        finally:
            if fd >= 0:
                os.close(fd)

    def _has_name(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), self._path.stat())
        except FileNotFoundError:
            return False

    def _make(self, fd: int, n: int, size: int) -> None:
        """Make an empty cache of what may be there of an old one, whose processes are all gone."""
        data = _aligned(TABLE + 8 * n)
        header = np.zeros(1, HEADER)
        header["magic"], header["n"], header["identity"] = MAGIC, n, self._identity
        header["size"], header["next"] = max(size, data), data
        os.ftruncate(fd, 0)
        os.posix_fallocate(fd, 0, data)  # what is written through the map must be there
        os.ftruncate(fd, max(size, data))
        if os.pwrite(fd, header.tobytes(), 0) < HEADER.itemsize:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _forget_lost(self, fd: int, n: int) -> None:
        """Forget samples whose place the header does not know to be taken.

        The computer stopped when the table had reached the disk, but the header had not. Others would be written over them.
        """
        with contextlib.suppress(FormatError, ExistsError):  # which `_check` is about to say
            if self._check(fd, n):
                with mmap.mmap(fd, TABLE + 8 * n) as mapped:
                    end = np.frombuffer(mapped, HEADER, 1)["next"].item()
                    table: NdArray = np.frombuffer(mapped, "<u8", n, TABLE)
                    lost = np.flatnonzero(table >= end)
                    table[lost] = 0
                    del table

    def _check(self, fd: int, n: int) -> bool:
        """Return whether the cache is whole; `ExistsError` if it is another dataset's."""
        data = os.pread(fd, HEADER.itemsize, 0)
        header = np.frombuffer(data.ljust(HEADER.itemsize, b"\0"), HEADER)[0]
        size, begin = os.fstat(fd).st_size, _aligned(TABLE + 8 * n)
        is_whole = header["magic"].tobytes() == MAGIC and header["size"] == size
        if header["n"] == n:
            is_whole &= begin <= size and begin <= header["next"] <= size
        if not is_whole:
            if self._keep and data:
                raise FormatError(f"{printable(self._path)}: not a cache of samples, or an unfinished one; delete it")
            return False  # whoever was making it was killed
        if header["n"] != n or header["identity"].tobytes() != self._identity:
            raise self._taken("another dataset")
        return True

    def _taken(self, by: str) -> ExistsError:
        return ExistsError(
            errno.EEXIST, f"{printable(self._path)} belongs to {by}; choose another name, or remove it if it is unused"
        )


def reclaim(folder: Path, prefix: str) -> None:
    """Remove the caches of this user in `folder` whose processes are all gone."""
    for path in folder.glob(f"{prefix}*"):
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:  # gone meanwhile, or not ours
            continue
        try:
            if os.fstat(fd).st_uid == os.geteuid():
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
        except (BlockingIOError, FileNotFoundError):  # in use, or removed by somebody else
            pass
        finally:
            os.close(fd)


def _lock(fd: int, kind: int, offset: int) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLKW, struct.pack("hhqqi4x", kind, os.SEEK_SET, offset, 1, 0))


def _aligned(offset: int) -> int:
    return -(-offset // ALIGN) * ALIGN
