"""Where the parts of a dataset are put one by one, each whole or not at all: a folder, or a prefix in object storage.

What is common to both: a small object can be created, which fails if there is one of that name; a shard is written to a local
file, and is there when that is complete. Nothing is ever locked, so that any number of hosts can work at one place.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from mmds.errors import ExistsError, FormatError, printable
from mmds.filebytes import FileBytes
from mmds.publish import Draft, exists_error, reclaim, storage_errors, sync_folder
from mmds.remote import Remote, at_once, is_url
from mmds.staging import Staging

AT_ONCE = 16  # requests for small objects, which take tens of milliseconds each


class Place(Protocol):
    """A folder of objects whose names are relative paths with slashes."""

    where: str  # its path or URL

    def prepare(self, subfolder: str) -> None:
        """Make the folder, and one in it, if need be."""

    def sizes(self, subfolder: str = "") -> dict[str, int]:
        """Return the names and sizes of what is directly in it, or in a folder in it; none where there is no such folder."""

    def load(self, name: str, limit: int) -> bytes:
        """Return a small object; `FileNotFoundError`, `FormatError` if it is longer than `limit`."""

    def create(self, name: str, data: bytes) -> None:
        """Create a small object; `ExistsError` if there is one of that name."""

    def replace(self, name: str, data: bytes) -> None:
        """Create a small object, or replace it."""

    def put(self, name: str, write: Callable[[Path], None]) -> None:
        """Let `write` write a file at the path that it gets, which then is `name`; what was there is replaced."""

    def remove(self, subfolder: str) -> None:
        """Remove a folder that holds objects only."""

    def reclaim(self, name: str) -> None:
        """Remove what writers of an object have left that were killed."""


def place(where: str | os.PathLike[str]) -> Place:
    """Return the place at a path or a URL."""
    return RemotePlace(str(where)) if is_url(where) else Folder(where)


class Folder:
    """A folder of a file system, which may be shared by hosts."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()
        self.where = os.fspath(self.path)

    def prepare(self, subfolder: str) -> None:
        """Make the folder, and one in it, if need be; `ExistsError` if it is a file."""
        with storage_errors(self.path):
            for folder in (self.path, self.path / subfolder):
                if folder.is_dir():
                    continue
                if os.path.lexists(folder):
                    raise exists_error(folder)
                folder.mkdir(exist_ok=True)
                sync_folder(folder.parent)

    def sizes(self, subfolder: str = "") -> dict[str, int]:
        """Return the names and sizes of what is directly in it, or in a folder in it, but for temporary files of writers."""
        folder = self.path / subfolder
        with storage_errors(self.path):
            if not folder.is_dir():
                if os.path.lexists(folder):
                    raise exists_error(folder)
                return {}
            with os.scandir(folder) as entries:
                return {each.name: each.stat(follow_symlinks=False).st_size for each in entries if each.name[0] != "."}

    def load(self, name: str, limit: int) -> bytes:
        """Return a small file; `FileNotFoundError`, `FormatError` if it is longer than `limit`, or no file."""
        data = FileBytes(os.fspath(self.path / name))
        if len(data) > limit:
            raise FormatError(f"{printable(self.path / name)}: {len(data)} bytes; at most {limit} are allowed")
        return data.read(0, len(data))

    def create(self, name: str, data: bytes) -> None:
        """Create a small file; `ExistsError` if there is one of that name."""
        self._write(name, data, overwrite=False)

    def replace(self, name: str, data: bytes) -> None:
        """Create a small file, or replace it."""
        self._write(name, data, overwrite=True)

    def _write(self, name: str, data: bytes, *, overwrite: bool) -> None:
        draft = Draft(self.path / name, overwrite=overwrite)
        try:
            draft.write(memoryview(data))
            draft.publish()
        finally:
            draft.discard()

    def put(self, name: str, write: Callable[[Path], None]) -> None:
        """Let `write` write a file, whole or not at all, at its path."""
        write(self.path / name)

    def remove(self, subfolder: str) -> None:
        """Remove a folder that holds files only, and what killed writers have left in it."""
        folder = self.path / subfolder
        with storage_errors(folder):
            if not folder.is_dir():
                return
            with contextlib.suppress(FileNotFoundError):  # somebody else has done it
                for each in folder.iterdir():
                    each.unlink(missing_ok=True)
                folder.rmdir()
            sync_folder(self.path)

    def reclaim(self, name: str) -> None:
        """Remove the temporary files of writers of a file that were killed."""
        with storage_errors(self.path):
            reclaim(self.path / name)


class RemotePlace:
    """A prefix in object storage. Shards are written to a local file first (in `$TMPDIR`), and then uploaded."""

    def __init__(self, url: str) -> None:
        self._remote = Remote(url)
        self.where = self._remote.url

    def prepare(self, subfolder: str) -> None:
        """Do nothing: object storage has no folders."""

    def sizes(self, subfolder: str = "") -> dict[str, int]:
        """Return the names and sizes of what is directly below it, or below a name below it; 0 for what is a prefix."""
        below = self._remote.child(subfolder) if subfolder else self._remote
        return {name.partition("/")[0]: 0 if "/" in name else size for name, size in below.list()}

    def load(self, name: str, limit: int) -> bytes:
        """Return a small object; `FileNotFoundError`, `FormatError` if it is longer than `limit`."""
        return self._remote.child(name).load(limit)

    def create(self, name: str, data: bytes) -> None:
        """Create a small object; `ExistsError` if there is one of that name."""
        self._remote.child(name).create(data)

    def replace(self, name: str, data: bytes) -> None:
        """Create a small object, or replace it."""
        self._remote.child(name).replace(data)

    def put(self, name: str, write: Callable[[Path], None]) -> None:
        """Let `write` write a local file, and upload that."""
        target = self._remote.child(name)
        known_as = hashlib.sha256(target.url.encode()).hexdigest()[:16]
        staging = Staging(
            Path(tempfile.gettempdir()) / f"mmds-{known_as}.mmds"
        )  # which removes what a killed one has left
        try:
            write(staging.content)
            try:
                target.upload(staging.content)
            except ExistsError:  # of a writer that was killed before it said so
                target.upload(staging.content, replace=True)
        finally:
            staging.discard()

    def remove(self, subfolder: str) -> None:
        """Remove everything below a name."""
        below = self._remote.child(subfolder)
        for _ in at_once(lambda name: below.child(name).delete(), [name for name, _ in below.list()], AT_ONCE):
            pass

    def reclaim(self, name: str) -> None:
        """Do nothing: what was not uploaded whole is not there."""
