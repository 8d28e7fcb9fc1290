"""Publishing a dataset that a library writes by path: a file or a folder, whole or not at all.

Like `publish.Draft`, but the library opens `content` itself, inside a locked temporary folder beside the destination.
A file is published by link (or rename with ``overwrite=True``), a folder by rename. A folder that exists changes places with
the new one in one step (``RENAME_EXCHANGE``). On file systems that cannot do that, the old one is moved aside first: should
the computer stop just then, the next writer to the same path brings it back.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import secrets
import shutil
from pathlib import Path

from mmds.errors import StorageError, printable
from mmds.publish import exists_error, link_into_place, storage_errors, sync_folder

REPLACED = "replaced"  # in the temporary folder: what was at the destination
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of renameat2(2)


class Staging:
    """A temporary folder in which a library writes `content`, which `publish` moves to `path`."""

    def __init__(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        self.path = Path(os.path.abspath(path))
        self.overwrite = overwrite
        self._pid = os.getpid()
        self._lock, self._is_open = -1, False
        with storage_errors(self.path):
            _reclaim(self.path)
            if os.path.lexists(self.path) and not overwrite:
                raise exists_error(self.path)
            self._create()

    def _create(self) -> None:
        while True:
            self._folder = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.tmp.d")
            self._is_open = True
            try:
                os.mkdir(self._folder)
                self._lock = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.stat(self._folder)
                return
            except (BlockingIOError, FileNotFoundError):  # another writer is reclaiming it: it was not locked yet
                self.discard()
                os.stat(self.path.parent)  # FileNotFoundError, unless that was so
            except BaseException:
                self.discard()
                raise

    @property
    def content(self) -> Path:
        """Where the library writes its file or folder."""
        return self._folder / f"content{self.path.suffix}"

    def publish(self) -> None:
        """Make the content durable, give it its name, make the name durable."""
        with storage_errors(self.path):
            if os.getpid() != self._pid:
                raise StorageError(errno.EPERM, f"{printable(self.path)}: a forked child must not publish")
            sync_tree(self.content)
            if not self.content.is_dir():
                if self.overwrite and not self.path.is_dir():
                    os.replace(self.content, self.path)
                elif self.overwrite:
                    self._swap()
                else:
                    link_into_place(self.content, self.path)
            elif self.overwrite:
                self._swap()
            elif os.path.lexists(self.path):
                raise exists_error(self.path)
            else:
                self._rename()
            sync_folder(self.path.parent)

    def _rename(self) -> None:
        try:
            os.rename(self.content, self.path)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):  # somebody was faster
                raise exists_error(self.path) from None
            raise

    def _swap(self) -> None:
        """Let the content and what is at `path` change places."""
        if not os.path.lexists(self.path):
            os.rename(self.content, self.path)
        elif not exchange(self.content, self.path):
            old = self._folder / REPLACED
            os.rename(self.path, old)
            try:
                os.rename(self.content, self.path)
            except OSError:
                os.rename(old, self.path)
                raise

    def discard(self) -> None:
        """Remove the temporary folder with all that is in it. Calling it again does nothing."""
        is_open, self._is_open = self._is_open, False
        if is_open and os.getpid() == self._pid:
            shutil.rmtree(self._folder, ignore_errors=True)
        lock, self._lock = self._lock, -1
        if lock >= 0:
            with contextlib.suppress(OSError):  # nothing was written through it
                os.close(lock)


def exchange(one: Path, other: Path) -> bool:
    """Let two names change places in one step; False where the system cannot do that."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # a C library without it
        return False
    if rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number))


def sync_tree(root: Path) -> None:
    """Make a file, or a folder with all files and folders in it, durable."""
    for folder, _, files in os.walk(root, topdown=False):
        for name in files:
            _sync(os.path.join(folder, name), os.O_RDONLY)
        _sync(folder, os.O_RDONLY | os.O_DIRECTORY)
    if not root.is_dir():
        _sync(root, os.O_RDONLY)


def _sync(path: str | Path, flags: int) -> None:
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _reclaim(path: Path) -> None:
    """Remove the temporary folders of writers to `path` that are no longer alive; what one had moved aside comes back."""
    prefix = f".{path.name}."
    for leftover in path.parent.iterdir():
        if not leftover.name.startswith(prefix) or len(leftover.name) != len(prefix) + len("XXXXXXXX.tmp.d"):
            continue
        if not leftover.name.endswith(".tmp.d"):
            continue
        try:
            fd = os.open(leftover, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:  # gone meanwhile, or no folder of ours
            continue
        try:
            with contextlib.suppress(BlockingIOError):  # its writer lives
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.lexists(leftover / REPLACED) and not os.path.lexists(path):
                    os.rename(leftover / REPLACED, path)
                    sync_folder(path.parent)
                shutil.rmtree(leftover, ignore_errors=True)
        finally:
            os.close(fd)
