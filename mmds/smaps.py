"""What Linux knows about memory: what one process has (``/proc/PID/smaps``), and how much of a file is there (`mincore`).

A page that a process has is *anonymous* (heap, stacks, copies; gone only when the program frees it), or a page of a file (the
page cache: the kernel takes it back when it needs memory), or a page of shared memory (``/dev/shm``, memfds: it stays until
nobody has it any more). Linux calls a page private as long as a single process has mapped it. The same goes for a page of the
page cache, so USS grows where one process alone reads a mapped file. `private` here are the anonymous ones among them.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PIECE = 2**30  # bytes of a file that are asked about at once
SYSTEM = (
    "/dev/",
    "/etc/",
    "/lib",
    "/proc/",
    "/sys/",
    "/usr/lib",
    "/usr/share/",
)  # files that are mapped, but no datasets
SHARED_MEMORY = ("/dev/", "/memfd:", "/SYSV", "/anon_hugepage", "/[")  # how names of memory begin that is in no file
MEMORY_SYSTEMS = ("tmpfs", "ramfs", "devtmpfs", "hugetlbfs")  # file systems whose files are memory
FIGURES = ("rss", "uss", "pss", "shared", "private", "swap", "pss_private", "pss_cache", "pss_shared_memory")


@dataclass(frozen=True)
class ProcessMemory:
    """Bytes of one process at one time."""

    pid: int
    name: str
    rss: int  # all pages that it has in memory
    uss: int  # those that it alone has mapped
    pss: int  # all, where a page of k processes counts 1/k
    shared: int  # those of files and of shared memory, whoever else has them
    private: int  # anonymous ones that it alone has
    swap: int  # its part of the pages in swap
    pss_private: int  # pss = these three: anonymous pages (after a fork, several processes may share one),
    pss_cache: int  # pages of files,
    pss_shared_memory: int  # and pages of shared memory


@dataclass(frozen=True)
class MappedDataset:
    """A file that processes map, and how many bytes of it are in memory (None: that cannot be found out)."""

    path: str
    size: int
    resident: int | None


@dataclass(frozen=True)
class Snapshot:
    """A tree of processes `seconds` after the watch began; `unreadable` are the numbers of those that nothing is known of."""

    seconds: float
    processes: tuple[ProcessMemory, ...]
    datasets: tuple[MappedDataset, ...]
    unreadable: tuple[int, ...] = ()

    def total(self, figure: str) -> int:
        """Return the sum of one of `FIGURES` over all processes."""
        return sum(getattr(process, figure) for process in self.processes)


@dataclass(frozen=True)
class Mapping:
    """A part of a file in the address space of process `pid`; `end` is the last byte of the file in it, plus one."""

    path: str
    inode: int
    end: int


def read_process(pid: int, name: str, in_memory: frozenset[str]) -> tuple[ProcessMemory, list[Mapping]] | None:
    """Return the memory of process `pid`, and the datasets that it maps; None if it has ended.

    `in_memory` is what `memory_devices` returns. Raises `PermissionError` for other people's processes.
    """
    try:
        lines = Path(f"/proc/{pid}/smaps").read_bytes().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return None
    if not lines:  # ended, and not yet waited for
        return None
    return parse_smaps(pid, name, lines, in_memory)


def parse_smaps(
    pid: int, name: str, lines: Iterable[bytes], in_memory: frozenset[str]
) -> tuple[ProcessMemory, list[Mapping]]:
    """Return what `read_process` does, from the lines of the file."""
    datasets: list[Mapping] = []
    sums = dict.fromkeys(FIGURES, 0)
    found = {b"Rss": 0}
    of_file = False

    def add_up() -> None:
        rss, anonymous, pss = found[b"Rss"], found.get(b"Anonymous", 0), found.get(b"Pss", 0)
        own = found.get(b"Private_Clean", 0) + found.get(b"Private_Dirty", 0)
        sums["swap"] += found.get(b"SwapPss", 0)
        if not rss:
            return
        pss_private = pss * anonymous // rss  # exact but where a page of a file was changed in this process alone
        for figure, kib in (
            ("rss", rss),
            ("uss", own),
            ("pss", pss),
            ("shared", rss - anonymous),
            ("private", min(own, anonymous)),
            ("pss_private", pss_private),
            ("pss_cache" if of_file else "pss_shared_memory", pss - pss_private),
        ):
            sums[figure] += kib

    for line in lines:
        if line[0] > 0x5A or line[0] < 0x41:  # no capital letter: a mapping begins
            add_up()
            found = {b"Rss": 0}
            addresses, permissions, offset, device, inode, *rest = line.split(maxsplit=5)
            path = os.fsdecode(rest[0]).replace("\\012", "\n") if rest else ""
            shared_memory = not path.startswith("/") or path.startswith(SHARED_MEMORY)
            of_file = not shared_memory and device.decode() not in in_memory
            if permissions.endswith(b"s") and _is_dataset(path):
                start, stop = (int(address, 16) for address in addresses.split(b"-"))
                datasets.append(Mapping(path, int(inode), int(offset, 16) + stop - start))
        else:
            key, _, value = line.partition(b":")
            if key in _WANTED:
                found[key] = int(value[:-3])  # without " kB"
    add_up()
    return ProcessMemory(pid, name, **{figure: kib * 1024 for figure, kib in sums.items()}), datasets


_WANTED = frozenset((b"Rss", b"Pss", b"Private_Clean", b"Private_Dirty", b"Anonymous", b"SwapPss"))


def _is_dataset(path: str) -> bool:
    if path.endswith(".mmds") or path.startswith("/memfd:mmds-"):
        return True
    return path.startswith("/") and not path.startswith((*SYSTEM, *SHARED_MEMORY))


def memory_devices(pid: int) -> frozenset[str]:
    """Return the numbers of all file systems in memory that process `pid` sees, as ``smaps`` writes them."""
    try:
        lines = Path(f"/proc/{pid}/mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        return frozenset()
    found = set()
    for line in lines:
        mount, _, system = line.partition(" - ")
        if system.split()[0] in MEMORY_SYSTEMS:
            major, minor = mount.split()[2].split(":")
            found.add(f"{int(major):02x}:{int(minor):02x}")
    return frozenset(found)


def look_at(mappings: Iterable[Mapping]) -> tuple[MappedDataset, ...]:
    """Return each mapped file once, by name. One that is gone, replaced or unreadable has no `resident`."""
    ends: dict[tuple[str, int], int] = {}
    for mapping in mappings:
        key = mapping.path, mapping.inode
        ends[key] = max(mapping.end, ends.get(key, 0))
    return tuple(_look_at_file(path, inode, end) for (path, inode), end in sorted(ends.items()))


def _look_at_file(path: str, inode: int, mapped: int) -> MappedDataset:
    if path.startswith("/memfd:"):
        return MappedDataset(path.removesuffix(" (deleted)"), mapped, mapped)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return MappedDataset(path, mapped, None)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_ino != inode:  # another file has its name by now
            return MappedDataset(path, mapped, None)
        return MappedDataset(path, status.st_size, resident(fd))
    finally:
        os.close(fd)


def resident(fd: int) -> int | None:
    """Return how many bytes of the open file `fd` are in memory; None if Linux does not tell."""
    status = os.fstat(fd)
    if not status.st_size:
        return 0
    # To those who may not write a file, mincore says that all of it is in memory (since Linux 5.2).
    me = os.geteuid()
    if me not in (0, status.st_uid) and not os.access(f"/proc/self/fd/{fd}", os.W_OK, effective_ids=True):
        return None
    try:
        mapped = mmap.mmap(fd, status.st_size, mmap.MAP_SHARED, mmap.PROT_READ)
    except (OSError, ValueError):  # a file system without maps, or the file has just become shorter
        return None
    with mapped:
        return _resident(np.frombuffer(mapped, np.uint8).ctypes.data, status.st_size)


def _resident(address: int, size: int) -> int | None:
    mincore = ctypes.CDLL(None, use_errno=True).mincore
    mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    pages = np.empty(PIECE // mmap.PAGESIZE, np.uint8)
    count = 0
    for start in range(0, size, PIECE):
        length = min(PIECE, size - start)
        if mincore(address + start, length, pages.ctypes.data):
            return None
        count += int(np.count_nonzero(pages[: -(-length // mmap.PAGESIZE)] & 1))
    return min(count * mmap.PAGESIZE, size)
