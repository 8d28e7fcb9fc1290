"""A small ext4 disk in a file: it gets full, read-only, loses its power, and has blocks that cannot be read.

    with disk(tmp_path, megabytes=32) as small:
        path = write(small.root / "a.mmds")
        small.unreadable(path, 5000)            # reading the 4096 bytes around offset 5000 is EIO, and SIGBUS in a map
        ...
    # unmounted, its loop device and its file gone, after a failure too

For blocks that cannot be read: this machine has neither a device mapper nor scsi_debug. So the block is moved to the end of
the disk (EXT4_IOC_MOVE_EXT, as e4defrag does), and the end of the disk is cut off. The kernel then answers reads of this block
alone with EIO, and those of others as before. Open and map the file after `unreadable`: pages that are mapped stay in memory.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BLOCK = 4096
SHUTDOWN, LOGFLUSH, NOLOGFLUSH = 0x8004587D, 1, 2
MOVE_EXTENT, FIEMAP = 0xC028660F, 0xC020660B
SYNC = 1  # FIEMAP_FLAG_SYNC
EXTENTS = 512


class Disk:
    """A file system of its own; `root` is an empty folder on it."""

    def __init__(self, folder: Path, megabytes: int, options: str, inodes: int | None) -> None:
        if not 8 <= megabytes <= 128:  # one block group: the end of the disk is free
            raise ValueError(f"megabytes={megabytes}: expected 8 to 128")
        self._image, self._mounted = folder / "disk.img", folder / "disk"
        self._options = f"loop,{options}" if options else "loop"
        self._mounted.mkdir()
        with self._image.open("xb") as image:
            image.truncate(megabytes * 2**20)
        form = [
            "-b",
            BLOCK,
            "-m",
            0,
            "-E",
            "lazy_itable_init=0,lazy_journal_init=0",
            *(["-N", inodes] if inodes else ()),
        ]
        _run("mkfs.ext4", "-q", "-F", *form, self._image)
        self.mount()
        self.root = self._mounted / "root"
        try:
            self.root.mkdir()
            self.sync()
        except BaseException:
            self.remove()
            raise

    def mount(self) -> None:
        """Mount it; what the journal holds is replayed."""
        _run("mount", "-t", "ext4", "-o", self._options, self._image, self._mounted)

    def unmount(self) -> None:
        """Unmount it; OSError where files on it are open or mapped."""
        gc.collect()
        done = subprocess.run(["umount", self._mounted], capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(errno.EBUSY, done.stderr.strip())

    def remove(self) -> None:
        """Take everything away. Files that are still mapped go when their maps do."""
        try:
            if self._mounted.is_mount():
                try:
                    self.unmount()
                except OSError:
                    _run("umount", "--lazy", self._mounted)
        finally:
            with contextlib.suppress(FileNotFoundError):
                self._image.unlink()
            with contextlib.suppress(OSError):  # of a mount that is still busy
                self._mounted.rmdir()

    def sync(self) -> None:
        """Bring everything to the disk."""
        _run("sync", "--file-system", self._mounted)

    @property
    def free(self) -> int:
        """Bytes that are free."""
        return shutil.disk_usage(self._mounted).free

    def fill(self, leave: int = 0) -> None:
        """Leave `leave` bytes free, rounded to blocks; calling it again changes what is left."""
        filler = self._mounted / "filler"
        fd = os.open(filler, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        try:
            os.ftruncate(fd, 0)
            os.fsync(fd)  # blocks that were freed are free after the journal's next commit
            _allocate(fd, self.free - leave)
        finally:
            os.close(fd)

    def read_only(self) -> None:
        """Refuse all writes from now on. Nothing on it may be open for writing."""
        _run("mount", "-o", "remount,ro", self._mounted)

    def cut_power(self, *, after_commit: bool = False) -> None:
        """Lose all that has not reached the disk; everything is EIO afterwards, until `restart`.

        With `after_commit`, the journal has just been written, as it is every few seconds.
        """
        fd = os.open(self._mounted, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, SHUTDOWN, struct.pack("I", LOGFLUSH if after_commit else NOLOGFLUSH))
        finally:
            os.close(fd)

    def restart(self) -> None:
        """Mount what is on the disk after `cut_power`, as a computer does that starts again."""
        self.unmount()
        self.mount()

    def faults(self) -> str:
        """Unmount it and return what fsck has to say of it: nothing, if it is whole."""
        self.unmount()
        done = subprocess.run(["e2fsck", "-f", "-n", self._image], capture_output=True, text=True, check=False)
        return done.stdout + done.stderr if done.returncode else ""

    def _setting(self, name: str) -> Path:
        device = self._mounted.stat().st_dev
        return Path("/sys/fs/ext4", Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve().name, name)

    def unreadable(self, path: Path, offset: int) -> None:
        """Make the block of `path` that holds byte `offset` unreadable; again for others, as long as the disk is not full.

        `os.pread` of it is EIO, `madvise(MADV_POPULATE_READ)` of its page EFAULT, touching it in a map SIGBUS. All other
        blocks, its neighbours too, are read as before. Its content is lost.
        """
        block = offset // BLOCK
        donor = self._mounted / "donor"
        fds = [os.open(path, os.O_RDWR | os.O_CLOEXEC), os.open(donor, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)]
        try:
            self.sync()
            self._setting("reserved_clusters").write_text("0")  # which the kernel keeps to itself
            spare = self._mounted / "spare"  # blocks that the file system needs to write down what moves where
            spare.write_bytes(bytes(16 * BLOCK))
            self.sync()
            _allocate(fds[1], self.free)
            spare.unlink()
            self.sync()
            last = max(_extents(fds[1]), key=lambda extent: extent[1])
            logical, physical = (start + last[2] - 1 for start in last[:2])
            if (physical + 1) * BLOCK != self._image.stat().st_size:
                raise RuntimeError("the last block of the disk is in use")
            if logical:  # all but the last block go back: moving takes some
                _run("fallocate", "--punch-hole", "--offset", 0, "--length", logical * BLOCK, donor)
                self.sync()
            request = bytearray(struct.pack("IIQQQQ", 0, fds[1], block, logical, 1, 0))
            fcntl.ioctl(fds[0], MOVE_EXTENT, request)
            donor.unlink()
            self.sync()
            if physical not in [start + k for _, start, n in _extents(fds[0]) for k in range(n)]:
                raise RuntimeError("the block was not moved")
            os.truncate(self._image, physical * BLOCK)
            os.posix_fadvise(fds[0], 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            for fd in fds:
                os.close(fd)


@contextmanager
def disk(folder: Path, *, megabytes: int = 32, options: str = "", inodes: int | None = None) -> Iterator[Disk]:
    """Make a disk whose image and mount point are in `folder`, and take both away in the end.

    `options` are those of mount; `inodes` is how many files and folders it can hold, 12 that are there already included.
    """
    made = Disk(folder, megabytes, options, inodes)
    try:
        yield made
    finally:
        made.remove()


def _allocate(fd: int, size: int) -> None:
    """Give an empty file `size` bytes, or all that there is."""
    start, step = 0, max(size, 0) // BLOCK * BLOCK
    while step >= BLOCK:
        try:
            os.posix_fallocate(fd, start, step)
            start += step
            step = min(step, (size - start) // BLOCK * BLOCK)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            start, step = max(start, os.fstat(fd).st_blocks * 512), step // 2 // BLOCK * BLOCK


def _extents(fd: int) -> list[tuple[int, int, int]]:
    """Return (first block in the file, first block on the disk, blocks) of a file's extents."""
    request = bytearray(struct.pack("QQIIII", 0, 2**63, SYNC, 0, EXTENTS, 0) + bytes(56 * EXTENTS))
    fcntl.ioctl(fd, FIEMAP, request)
    found = struct.unpack_from("I", request, 20)[0]
    if found == EXTENTS:
        raise RuntimeError(f"more than {EXTENTS} extents")
    extents = [struct.unpack_from("QQQ", request, 32 + 56 * number) for number in range(found)]
    return [(logical // BLOCK, physical // BLOCK, length // BLOCK) for logical, physical, length in extents]


def _run(*command: object) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(errno.EIO, f"{command[0]}: {done.stderr.strip() or done.stdout.strip()}")
