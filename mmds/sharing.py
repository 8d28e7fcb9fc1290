"""`share`: samples packed once into memory that every process of this machine can read, and nobody has to clean up.

They are in an ``.mmds`` file without a name: a memfd, or an unlinked file of a folder. Other processes open it through
``/proc/PID/fd`` of a process that has it, so it lasts as long as somebody has it open, and goes with the last one, however
that ends. It cannot be changed any more.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import sys
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, overload

from mmds.errors import MmdsError, printable
from mmds.fields import Bytes
from mmds.items import VariableItems
from mmds.mapped import MappedFile
from mmds.nested import decode, encode
from mmds.publish import Draft, storage_errors
from mmds.writer import Writer

CHUNK = 1024  # samples that are written at once


class SharedSamples(Sequence[Any]):
    """Samples in memory that processes share; each access makes one of them, equal to the original and of the same types.

    Pickles to where it is, in less than 300 bytes; whoever unpickles it reads the same memory. That has to happen while
    the process that pickled it lives. A slice is a view.
    """

    def __init__(self, fd: int) -> None:
        self._file = _File(fd)
        self._rows = range(self._file.mapped.n)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> SharedSamples: ...

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self._view(self._rows[index])
        try:
            row = self._rows[index]
        except IndexError:
            raise IndexError(f"index {index} is out of range for {len(self)} shared samples") from None
        return self._file.read(row)

    def __iter__(self) -> Iterator[Any]:
        return map(self._file.read, self._rows)

    def __repr__(self) -> str:
        return f"<{len(self)} shared samples, {self.nbytes:,} bytes>"

    @property
    def nbytes(self) -> int:
        """How much memory all samples take, together with their index."""
        return len(self._file.mapped.view)

    def _view(self, rows: range) -> SharedSamples:
        view = object.__new__(type(self))
        view._file, view._rows = self._file, rows
        return view

    def __reduce__(self) -> Any:
        return _attach, (os.getpid(), self._file.fd, self._file.mapped.content_id, self._rows)


class _File:
    """What a process holds of shared samples: a descriptor for others to open, and the map."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        weakref.finalize(self, os.close, fd).atexit = False  # the kernel does that
        self.mapped = MappedFile(f"/proc/self/fd/{fd}")
        self.mapped.path = "shared samples"
        items = self.mapped.items[0]
        assert isinstance(items, VariableItems)
        self._span, self._view = items.span, self.mapped.view

    def read(self, row: int) -> Any:
        """Return sample `row`."""
        start, stop = self._span(row)
        return decode(self._view[start:stop])


def share(
    samples: Iterable[Any], *, directory: str | os.PathLike[str] | None = None, distributed: bool | None = None
) -> SharedSamples:
    """Pack samples into memory that every process reads without a copy of its own.

    Works over fork, spawn and forkserver, as an argument of `multiprocessing` and `ProcessPoolExecutor`, and in workers of a
    DataLoader. A sample may be any nesting of dicts, lists, tuples, sets, strings, bytes, numbers, numpy arrays and tensors.

    Args:
        samples: a list, or anything to iterate over once; not more than 1,024 of them are held at a time.
        directory: a folder of a disk to keep them in, for more than fits into memory. By default they are memory.
        distributed: whether all ranks of `torch.distributed` take part: the first one on each host packs its samples, and the
            others attach to them. By default if it is initialised; all ranks have to call this then.

    Raises `SampleError` for what cannot be kept, and says where it is; `StorageError` if there is no room. Linux only.
    """
    if not sys.platform.startswith("linux"):
        raise OSError("mmds.share needs Linux, where other processes can open a file that has no name")
    if distributed is None:
        distributed = _is_distributed()
    return _share_on_host(samples, directory) if distributed else SharedSamples(_pack(samples, directory))


def _pack(samples: Iterable[Any], directory: str | os.PathLike[str] | None) -> int:
    """Return the descriptor of a file that holds all samples."""
    with _UnnamedWriter(directory) as writer:
        numbered = enumerate(samples)
        while chunk := list(itertools.islice(numbered, CHUNK)):
            writer.write_batch({"sample": [encode(sample, number) for number, sample in chunk]})
    return writer.draft.published


class _UnnamedDraft(Draft):
    """A file that never gets a name."""

    def __init__(self, directory: str | os.PathLike[str] | None) -> None:
        self.path = Path("shared memory") if directory is None else Path(directory)
        self._in_memory, self._pid = directory is None, os.getpid()
        with storage_errors(self.path):
            if directory is None:
                self._fd = os.memfd_create("mmds-shared", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            else:
                self._fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        self.published = -1

    def open_log(self) -> IO[bytes]:
        """Return a file without a name: nobody could salvage what has none."""
        return tempfile.TemporaryFile(dir="/dev/shm" if self._in_memory else self.path, buffering=0)

    def publish(self) -> None:
        """Let nobody change it any more."""
        if self._in_memory:
            seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
            fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, seals)
        self.published, self._fd = self._fd, -1

    def discard(self) -> None:
        """Give an unfinished file back to the system."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class _UnnamedWriter(Writer):
    """A writer to a file without a name, in memory or in a folder."""

    def __init__(self, directory: str | os.PathLike[str] | None) -> None:
        self._directory = directory
        super().__init__(Path(directory or "/dev/shm") / "shared samples", {"sample": Bytes()})

    def _new_draft(self, path: str | os.PathLike[str], overwrite: bool) -> Draft:
        self.draft = _UnnamedDraft(self._directory)
        return self.draft


def _attach(pid: int, fd: int, content_id: str, rows: range | None = None) -> SharedSamples:
    """Return the samples that process `pid` has open as `fd`."""
    try:
        own = os.open(f"/proc/{pid}/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise MmdsError(
            f"shared samples of process {pid} cannot be opened: {error.strerror}. Unpickle them while the process that "
            "pickled them lives, on the same machine, as the same user"
        ) from None
    found = SharedSamples(own)
    if found._file.mapped.content_id != content_id:
        raise MmdsError(f"process {pid} no longer has these shared samples; it has ended, or has dropped them")
    return found if rows is None else found._view(rows)


# Ranks


def _is_distributed() -> bool:
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


def _share_on_host(samples: Iterable[Any], directory: str | os.PathLike[str] | None) -> SharedSamples:
    import torch.distributed as distributed

    rank, size = distributed.get_rank(), distributed.get_world_size()
    hosts: list[Any] = [None] * size
    host = Path("/proc/sys/kernel/random/boot_id").read_text(), str(Path("/proc/self/ns/pid").readlink())
    distributed.all_gather_object(hosts, host)
    first = hosts.index(hosts[rank])
    found: SharedSamples | None = None
    said: tuple[Any, ...] = ()
    if rank == first:
        try:
            found = SharedSamples(_pack(samples, directory))
            said = os.getpid(), found._file.fd, found._file.mapped.content_id
        except Exception as error:  # noqa: BLE001 (raised below; or the other ranks would wait for ever)
            said = (printable(error, 1000),)
            failure = error
    told: list[Any] = [None] * size
    distributed.all_gather_object(told, said)
    for number in dict.fromkeys(hosts.index(host) for host in hosts):
        if len(told[number]) == 1:
            if rank == number:
                raise failure
            raise MmdsError(f"rank {number} could not share its samples: {told[number][0]}")
    if found is None:
        found = _attach(*told[first])
    distributed.barrier()  # until all have attached
    return found
