"""A folder of shards that were downloaded, bounded in bytes, shared by all processes of a computer.

::

    ID.mmds      a shard, whole and checked; ID is its content id, so that datasets, versions and jobs share it
    .ID.tmp      one that is being downloaded, at its full length, so that the room is taken
    .lock        locked by whoever makes room; its time is when somebody last found none; in it, the bound that is exceeded

* Whoever has ``.ID.tmp`` locked (flock) downloads into it; who else wants the shard waits for that lock. The kernel drops
  it with the process, and the next one begins anew in the same file. It is synced before it gets its name, so that what has
  one is whole after a power cut, too.
* Every process that has a shard mapped holds a shared lock on it, as long as the map lives. Shards are removed under an
  exclusive lock, which nobody gets then; those first whose opening is longest ago.
* If all that is left is mapped, the bound is exceeded rather than waited for, and whoever next opens a shard removes what
  nobody has mapped by then. What is fetched ahead of its need waits instead.
* A process that needs room first lets go of all shards that it has open and does not need at this moment. Those that it goes
  on using it opens again, which makes them the youngest: what was not used since is removed first.

Files with other names, links, and what belongs to another user are never touched.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from mmds.errors import StorageError, printable
from mmds.publish import storage_errors
from mmds.sizes import bytes_of

LOCK = ".lock"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)

_is_shard = re.compile(r"[0-9a-f]{32}\.mmds").fullmatch
_is_draft = re.compile(r"\.[0-9a-f]{32}\.tmp").fullmatch

# O_NONBLOCK: what is no file shall answer at once. O_NOFOLLOW: a link is nothing of ours.
_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY


class Keeper(Protocol):
    """Something that keeps shards open for the case that they are needed again."""

    def forget(self) -> None:
        """Let go of them."""


_keepers: weakref.WeakSet[Keeper] = weakref.WeakSet()  # of this process, whichever caches they are of


class _Entry(NamedTuple):
    name: str
    size: int
    opened: int  # ns


class ShardCache:
    """One folder, as one process sees it.

    Args:
        folder: where it is; made if it does not exist. On a local file system, and this user's own.
        size: how many bytes it may have, or text such as "200GB". None: as many as there is room for.

    Raises `StorageError` if the folder cannot be used, ValueError for a size that is none.
    """

    def __init__(self, folder: str | os.PathLike[str], size: int | str | None = None) -> None:
        self.folder = cache_path(folder)
        self.size = checked_size(size)
        self._asked = 0  # when somebody found no room, as far as this process has heeded it
        self._check_folder()

    def add(self, keeper: Keeper) -> None:
        """Have `keeper` asked to let go of shards when there is no room. It is not kept alive."""
        _keepers.add(keeper)

    def path(self, content_id: str) -> Path:
        """Return where a shard is, if it is here."""
        return self.folder / f"{content_id}.mmds"

    def hold(self, content_id: str, size: int, fill: Callable[[Path], None]) -> int:
        """Return a descriptor that keeps a shard here as long as it is open, which `let_go` or `settled` must get.

        `fill` downloads and checks it, if nobody has yet, into a file that exists. Waits for another process that does.
        """
        self._heed()
        while (fd := self._hold(content_id, size)) is None:
            with storage_errors(self.path(content_id)):
                self._fill(content_id, size, fill)
        return fd

    def fetch(self, content_id: str, size: int, fill: Callable[[Path], None], keep: Collection[str]) -> bool:
        """Have a shard here before it is needed, and return whether it is, or will be by what another process does.

        Does not wait, and does nothing if there is no room but that of shards in use and those in `keep`.
        """
        with storage_errors(self.path(content_id)):
            return self._fill(content_id, size, fill, keep)

    def renew(self, content_ids: Collection[str]) -> None:
        """Take shards for opened now: they are about to be."""
        now = time.time_ns()
        for place, content_id in enumerate(content_ids):  # later ones are younger, within a tick of the clock, too
            with contextlib.suppress(FileNotFoundError):
                os.utime(self.path(content_id), ns=(now + place, now + place), follow_symlinks=False)

    def remove(self, content_id: str, fd: int) -> None:
        """Remove a shard, open as `fd`, that turned out to be damaged: not one that took its name. Who has it open keeps it."""
        path = self.path(content_id)
        with storage_errors(path):
            if _has_name(fd, path):
                path.unlink(missing_ok=True)

    # One shard

    def _hold(self, content_id: str, size: int) -> int | None:
        """Return a descriptor of a shard that is here, with a shared lock on it."""
        path = self.path(content_id)
        with storage_errors(path):
            try:
                fd = _open(path, os.O_RDONLY)
            except FileNotFoundError:
                return None
            try:
                fcntl.flock(fd, fcntl.LOCK_SH)  # whoever removes it has it for a moment only
                if _has_name(fd, path):
                    if os.fstat(fd).st_size == size:
                        os.utime(fd)
                        kept, fd = fd, -1
                        return kept
                    path.unlink()  # somebody has cut it short
                return None
            finally:
                let_go(fd)

    def _fill(
        self, content_id: str, size: int, fill: Callable[[Path], None], keep: Collection[str] | None = None
    ) -> bool:
        """Download a shard, or wait for whoever does; with `keep`, as `fetch` says. The caller looks whether it is there."""
        path, draft = self.path(content_id), self.folder / f".{content_id}.tmp"
        fd = _open(draft, os.O_RDWR | os.O_CREAT)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if keep is None:
                    fcntl.flock(fd, fcntl.LOCK_SH)
                return True
            if not _has_name(fd, draft):
                return True
            try:
                if path.exists():
                    return True
                if not self._reserve(fd, draft.name, size, keep):
                    return False
                fill(draft)
                os.fdatasync(fd)
                draft.rename(path)
                return True
            finally:
                if _has_name(fd, draft):
                    draft.unlink()
        finally:
            let_go(fd)

    # Room

    def _reserve(self, fd: int, name: str, size: int, keep: Collection[str] | None) -> bool:
        """Give an open draft its length, others removed for it as far as they may be. False: `keep`, and no room yet."""
        with self._locked() as lock:
            if self.size is not None and (over := self._used(name) + size - self.size) > 0:
                _forget()
                if self._remove_oldest(over, keep or ()) < over:
                    os.utime(lock)
                    if keep is not None:
                        return False
                    _write_bound(lock, min(self.size, _read_bound(lock) or self.size))
            disk = os.fstatvfs(fd)
            free = disk.f_bavail * disk.f_frsize
            if size > free and size > free + self._used(name):  # to remove them all would not help
                raise self._no_room(size, errno.ENOSPC)
            while True:
                try:
                    os.posix_fallocate(fd, 0, size)
                    return True
                except OSError as error:
                    os.ftruncate(fd, 0)
                    if error.errno not in NO_ROOM:
                        raise
                    _forget()
                    if self._remove_oldest(size, keep or ()):
                        continue
                    os.utime(lock)
                    if keep is not None:
                        return False
                    raise self._no_room(size, error.errno) from None

    def _no_room(self, size: int, code: int) -> StorageError:
        return StorageError(
            code,
            f"{printable(self.folder)}: no room for a shard of {size} bytes, even without what is not in use here: "
            f"{os.strerror(code)}. Make room, or choose another cache_dir",
        )

    def _used(self, name: str = "") -> int:
        """Return how many bytes the cache has, but for the draft called `name`; drafts of dead processes are removed."""
        others = [entry for entry in self._entries() if entry.name != name]
        return sum(entry.size for entry in others if _is_shard(entry.name) or not self._remove_unused(entry.name))

    def _remove_oldest(self, wanted: int, keep: Collection[str]) -> int:
        """Remove at least `wanted` bytes if possible: drafts of dead processes, then shards, opened longest ago first.

        Returns how many it were.
        """
        removed = 0
        found = [entry for entry in self._entries() if _is_draft(entry.name) or entry.name[:32] not in keep]
        for entry in sorted(found, key=lambda entry: (_is_shard(entry.name) is not None, entry.opened)):
            if removed < wanted and self._remove_unused(entry.name):
                removed += entry.size
        return removed

    def _entries(self) -> Iterator[_Entry]:
        """Yield the shards and drafts of this cache."""
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if _is_shard(entry.name) or _is_draft(entry.name):
                    with contextlib.suppress(FileNotFoundError):  # gone meanwhile
                        status = entry.stat(follow_symlinks=False)
                        if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid():
                            yield _Entry(entry.name, status.st_size, status.st_mtime_ns)

    def _remove_unused(self, name: str) -> bool:
        """Remove a shard or draft that nobody has locked, and return whether there was one."""
        try:
            fd = _open(self.folder / name, os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _has_name(fd, self.folder / name):
                (self.folder / name).unlink()
                return True
        except BlockingIOError:
            pass
        finally:
            let_go(fd)
        return False

    def _heed(self) -> None:
        """Let go of shards if another process has found no room since this one last did; remove what is too much."""
        if self.size is None:
            return
        try:
            lock = (self.folder / LOCK).stat(follow_symlinks=False)
        except FileNotFoundError:
            return
        if lock.st_mtime_ns > self._asked:
            self._asked = lock.st_mtime_ns
            _forget()
        if lock.st_size:
            with self._locked() as fd:
                over = self._used() - (_read_bound(fd) or self.size)  # of whoever exceeded it
                if over <= 0 or self._remove_oldest(over, ()) >= over:
                    os.ftruncate(fd, 0)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        fd = _open(self.folder / LOCK, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield fd
        finally:
            let_go(fd)

    def _check_folder(self) -> None:
        shown = printable(self.folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            status = self.folder.stat()
        except FileExistsError:
            raise StorageError(errno.ENOTDIR, f"cache_dir {shown} is no folder; choose another") from None
        except OSError as error:
            raise StorageError(error.errno, f"cannot use cache_dir {shown}: {error.strerror}") from None
        if status.st_uid != os.geteuid():
            raise StorageError(
                errno.EPERM,
                f"cache_dir {shown} belongs to another user, who could change what is in it; choose another",
            )
        if not os.access(self.folder, os.R_OK | os.W_OK | os.X_OK):
            raise StorageError(errno.EACCES, f"cache_dir {shown} cannot be written to; choose another")


def cache_path(folder: str | os.PathLike[str]) -> Path:
    """Return the absolute path of a cache; "~" is the user's home."""
    return Path(folder).expanduser().absolute()


def checked_size(size: int | str | None) -> int | None:
    """Return a size of a cache as a number of bytes; ValueError or TypeError if it is none."""
    if isinstance(size, str):
        return bytes_of(size)
    if size is None:
        return None
    if type(size) is not int:
        raise TypeError(f"cache_size={size!r}: expected a number of bytes, text such as '200GB', or None")
    if size < 1:
        raise ValueError(f"cache_size={size}: expected at least one byte, or None for no bound")
    return size


def _forget() -> None:
    for keeper in list(_keepers):
        keeper.forget()


def _read_bound(lock: int) -> int | None:
    text = os.pread(lock, 20, 0)
    return int(text) if text.isdigit() else None


def _write_bound(lock: int, bound: int) -> None:
    os.ftruncate(lock, 0)
    os.pwrite(lock, b"%d" % bound, 0)


# Descriptors that a forked child must not keep: it would hold their locks, and map nothing for it.
_open_ones: set[int] = set()
_guard = threading.Lock()


def _open(path: Path, flags: int) -> int:
    """Open a file of the cache; `StorageError` if it is none, or not this user's."""
    with _guard:
        try:
            fd = os.open(path, flags | _FLAGS, 0o600)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
                raise _foreign(path) from None
            raise
        _open_ones.add(fd)
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
        let_go(fd)
        raise _foreign(path)
    return fd


def let_go(fd: int) -> None:
    """Close a descriptor, if it is one."""
    if fd >= 0:
        with _guard:
            _open_ones.discard(fd)
            os.close(fd)


def settled(fd: int) -> None:
    """Note that a descriptor belongs to a map from now on, which a forked child has, too."""
    with _guard:
        _open_ones.discard(fd)


def _close_in_child() -> None:
    global _guard
    _guard = threading.Lock()
    for fd in _open_ones:
        os.close(fd)
    _open_ones.clear()


os.register_at_fork(
    before=lambda: _guard.acquire(),
    after_in_parent=lambda: _guard.release(),
    after_in_child=_close_in_child,
)


def _has_name(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False


def _foreign(path: Path) -> StorageError:
    return StorageError(
        errno.EPERM,
        f"{printable(path)}: not a file of this user's cache; it is left as it is. Choose another cache_dir",
    )
