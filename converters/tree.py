"""A folder tree of samples that nobody vouches for: listing it, and reading one file of it.

Symbolic links are followed inside the tree. A link out of it, or back to a folder above itself, is a problem; so is a
folder that cannot be listed. FIFOs, devices and sockets under a sample's name fail in `read` and never block.
"""

# ruff: noqa: PTH118 (plain strings: a million Path objects would take seconds)
from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mmds.converters import Ignored
from mmds.converters.extensions import Files
from mmds.errors import SourceError

MAX_FILE_BYTES = 2**30  # a file is read whole; one beyond this is no training sample
# O_NONBLOCK: opening a FIFO would wait for a writer for ever. O_NOFOLLOW: links are resolved and judged first.
OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY

LINK_OUT = "a symbolic link out of the tree"
LINK_LOOP = "a symbolic link back to a folder above it"


@dataclass(frozen=True)
class Listing:
    """One folder, sorted by name: subfolders as (name, real path), samples, links to folders that are not followed."""

    folders: list[tuple[str, str]]
    files: list[str]
    refused: list[str]


class Tree:
    """The `files` in folder `root`, of which links may lead anywhere below `boundary` (both are real paths).

    `problems` and `ignored` fill up as folders are listed; names in them are relative to `boundary`.
    """

    def __init__(self, root: str, boundary: str, files: Files) -> None:
        self.root = root
        self.boundary = boundary
        self.files = files
        self.problems: list[tuple[str, str]] = []
        self.ignored: dict[str, Ignored] = {}
        self.top = self._list("", frozenset([root]))

    def ignore(self, reason: str, name: str) -> None:
        """Count `name`, a path relative to the root, as left out for `reason`."""
        self.ignored.setdefault(reason, Ignored()).add(self._name(name))

    def walk(self, name: str, real: str) -> list[tuple[str, list[str]]]:
        """Return all folders from subfolder `name` of the root on, as (path relative to the root, its samples).

        They are in the order of ``sorted(os.walk(...))``: by their paths as strings.
        """
        found: list[tuple[str, list[str]]] = []
        pending = [(name, frozenset([self.root, real]))]
        while pending:
            folder, above = pending.pop()
            listing = self._list(folder, above)
            if listing.files:
                found.append((folder, listing.files))
            pending += [(f"{folder}/{sub}", above | {sub_real}) for sub, sub_real in listing.folders]
        return sorted(found)

    def _name(self, name: str) -> str:
        return os.path.relpath(os.path.join(self.root, name), self.boundary)

    def _list(self, folder: str, above: frozenset[str]) -> Listing:
        """List `folder`, whose own real path and those of all folders that led to it are `above`."""
        folders: list[tuple[str, str]] = []
        files: list[str] = []
        refused: list[str] = []
        path = os.path.join(self.root, folder)
        real = os.path.realpath(path)
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    if not _is_folder(entry):
                        if entry.name.lower().endswith(self.files.extensions):
                            files.append(entry.name)
                        else:
                            self.ignore(self.files.foreign, os.path.join(folder, entry.name))
                        continue
                    target = os.path.join(real, entry.name)
                    if entry.is_symlink():
                        target = os.path.realpath(target)
                        reason = LINK_LOOP if target in above else None if _inside(target, self.boundary) else LINK_OUT
                        if reason:
                            refused.append(entry.name)
                            self.problems.append((self._name(os.path.join(folder, entry.name)), reason))
                            continue
                    folders.append((entry.name, target))
        except OSError as error:
            self.problems.append((self._name(folder), f"a folder that cannot be listed ({error.strerror})"))
        return Listing(sorted(folders), sorted(files), sorted(refused))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, for example; os.walk takes it for a file as well
        return False


def _inside(real: str, boundary: str) -> bool:
    return real == boundary or real.startswith(os.path.join(boundary, ""))


def read(path: str, boundary: str) -> bytes:
    """Return the content of the regular file at `path`, which may be a link to one below `boundary`.

    Raises `SourceError` with the reason, without the name, where that cannot be had.
    """
    with opened(path, boundary) as (fd, size):
        if size > MAX_FILE_BYTES:
            raise SourceError(f"a file of {size} bytes; the limit is {MAX_FILE_BYTES}")
        data = os.read(fd, size + 1)  # one more, to see the end in the same call
        while len(data) < size:  # a signal or a network file system can shorten a read
            more = os.read(fd, size - len(data))
            if not more:
                raise SourceError("a file that became shorter while it was read")
            data += more
        return data


@contextmanager
def opened(path: str, boundary: str) -> Iterator[tuple[int, int]]:
    """Open a regular file as `read` does, for the time of a with-statement: its descriptor and its size."""
    try:
        fd = _open(path, boundary)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise SourceError(f"not a file but {_type_name(status.st_mode)}")
            yield fd, status.st_size
        finally:
            os.close(fd)
    except OSError as error:
        raise SourceError(f"cannot be read ({error.strerror})") from None


def _open(path: str, boundary: str) -> int:
    try:
        return os.open(path, OPEN_FLAGS)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise SourceError("not a file but a socket or a device without a driver") from None
        if error.errno != errno.ELOOP:
            raise
    real = os.path.realpath(path)
    if not _inside(real, boundary):
        raise SourceError(LINK_OUT)
    try:
        return os.open(real, OPEN_FLAGS)
    except FileNotFoundError:
        raise SourceError("a symbolic link to nothing") from None


def _type_name(mode: int) -> str:
    names = {stat.S_IFIFO: "a FIFO", stat.S_IFDIR: "a folder", stat.S_IFSOCK: "a socket"}
    return names.get(stat.S_IFMT(mode), "a device")
