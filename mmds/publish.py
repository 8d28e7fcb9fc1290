"""Publishing a file whole: written under a temporary name, synced, then linked or renamed into place.

Readers see the old file or the new one, never a part of either, whatever happens to the writer:

* The temporary file ``.NAME.XXXXXXXX.tmp`` lies beside the destination and is locked (flock) as long as its writer lives.
  The kernel drops the lock with the process, so the next writer to the same destination recognises leftovers and
  removes them.
* A new name is given by `link`, which fails if somebody else was faster; only ``overwrite=True`` replaces, by `rename`.
* The index of a long file grows in ``.NAME.XXXXXXXX.log`` beside it (`spool.py`): unfinished, it can be salvaged.
* After a failed `fsync` nothing is retried: the kernel has dropped the pages, and a second call would answer that all is
  well (https://lwn.net/Articles/752063/).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from mmds.errors import ExistsError, StorageError, printable


class Draft:
    """A file that is being written and has no name for readers yet.

    Raises `ExistsError` at once if `path` exists and `overwrite` is false, and again from `publish` if it has come to
    exist meanwhile. All other failures of the operating system are `StorageError` with the `errno` kept.
    """

    def __init__(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        # A link stays a link, and what it leads to is replaced, as by `open(path, "w")`.
        self.path = Path(os.path.realpath(path) if overwrite else os.path.abspath(path))
        self.overwrite = overwrite
        self._fd = -1
        self._log: Path | None = None
        with storage_errors(self.path):
            reclaim(self.path)
            if os.path.lexists(self.path):
                if not overwrite:
                    raise exists_error(self.path)
                if not stat.S_ISREG(os.stat(self.path).st_mode):
                    raise StorageError(errno.EINVAL, f"{self._shown} exists and is not a file; it is left as it is")
            self._create()

    @property
    def _shown(self) -> str:
        return printable(self.path)

    def open_log(self) -> IO[bytes]:
        """Return a new file beside the temporary one, that goes with it."""
        self._log = log_of(self._temporary)
        return open(self._log, "x+b", buffering=0)

    def _create(self) -> None:
        while True:
            self._pid = os.getpid()
            self._temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.tmp")
            self._fd = os.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.exists(self._temporary):
                    return
            except BlockingIOError:  # another writer is reclaiming it: it was not locked yet
                pass
            except BaseException:
                self.discard()
                raise
            self.discard()

    def write(self, data: memoryview) -> None:
        """Write all of `data`."""
        with storage_errors(self.path):
            self._check_process()
            while data:
                data = data[os.write(self._fd, data) :]

    def _check_process(self) -> None:
        """Refuse a forked child: it shares the file and its position with its parent, whose file it would damage."""
        if os.getpid() != self._pid:
            raise StorageError(errno.EPERM, f"{self._shown}: a forked child must not write its parent's file")

    def publish(self) -> None:
        """Make the file durable, give it its name, make the name durable."""
        with storage_errors(self.path):
            self._check_process()
            os.fsync(self._fd)
            if self.overwrite:
                os.replace(self._temporary, self.path)
            else:
                link_into_place(self._temporary, self.path)
            sync_folder(self.path.parent)
        self.discard()

    def discard(self) -> None:
        """Remove the temporary name and close the file. What was published stays. Calling it again does nothing."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        if os.getpid() == self._pid:  # a forked child must not take its parent's file away
            for path in (self._log, self._temporary):
                with contextlib.suppress(OSError):  # renamed into place; or it stays, for the next writer to remove
                    if path is not None:
                        os.unlink(path)
        with contextlib.suppress(OSError):  # what was published was synced, and the rest is thrown away
            os.close(fd)


def as_lines(lines: Sequence[Mapping[str, Any]]) -> bytes:
    """Return a line of JSON for each of `lines`. ASCII only: a name that is not UTF-8 comes back as Python's str of it."""
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def publish_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> Path | None:
    """Publish a report, a line of JSON for each of `lines`, in place of one from an earlier run.

    Without lines the earlier one is removed, and None is returned.
    """
    if not lines:
        path.unlink(missing_ok=True)
        return None
    draft = Draft(path, overwrite=True)
    try:
        draft.write(memoryview(as_lines(lines)))
        draft.publish()
    finally:
        draft.discard()
    return path


def link_into_place(temporary: Path, path: Path) -> None:
    """Give a file a name that nobody else has, or raise `ExistsError`."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise exists_error(path) from None
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        raise StorageError(
            error.errno,
            f"{printable(path)}: this file system has no hard links; pass overwrite=True to publish by rename",
        ) from None


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def log_of(temporary: Path) -> Path:
    """Return where the index of an unfinished file grows."""
    return temporary.with_suffix(".log")


def reclaim(path: Path) -> None:
    """Remove the temporary files of writers to `path` that are no longer alive."""
    with os.scandir(path.parent) as entries:
        names = {entry.name for entry in entries}
    is_ours = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}\.(tmp|log)", re.DOTALL).fullmatch
    for name in sorted(filter(is_ours, names)):  # a log before its file, without which nobody would look for it
        leftover = path.parent / name
        if leftover.suffix == ".tmp":
            _remove_unused(leftover)
        elif name[:-4] + ".tmp" not in names:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(leftover)


def _remove_unused(leftover: Path) -> None:
    """Remove the temporary file of a writer that is no longer alive, and its log."""
    try:
        fd = os.open(leftover, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # gone meanwhile, not ours to read, or no plain file: then it is not ours to remove either
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(log_of(leftover))
        os.unlink(leftover)
    except (BlockingIOError, FileNotFoundError):  # its writer lives, or was just done with it
        pass
    finally:
        os.close(fd)


def exists_error(path: Path) -> ExistsError:
    """Return the error for a destination that exists."""
    return ExistsError(errno.EEXIST, f"{printable(path)} exists already; pass overwrite=True to replace it")


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system refuses into a `StorageError` that names the destination."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(error.errno, f"cannot write {printable(path)}: {error.strerror}") from error
