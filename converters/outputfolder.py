"""A new folder that is filled with files by names that nobody vouches for."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from types import TracebackType
from typing import Self

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class OutputFolder:
    """The new folder `path`. Every step of a name is opened below the step before it and links are never followed, so
    that nothing outside can be reached. The file system itself tells which names were there before."""

    def __init__(self, path: Path) -> None:
        path.mkdir()
        self._top = os.open(path, FOLDER)
        self._last: tuple[list[bytes], int] = ([], self._top)  # the folder of the last file, which the next is often in

    def put(self, name: bytes, data: bytes | memoryview | None) -> None:
        """Write `data` to the new file `name`, whose parts are separated by slashes; without data, make a folder.

        Raises ValueError, to be read after the name, where it is no relative path or clashes with another one.
        """
        *folders, last = parts = name.split(b"/")
        if b"" in parts or b"." in parts or b".." in parts or b"\0" in name:
            raise ValueError("is no relative path of plain names")
        if data is None:
            self._enter(parts)
            return
        folder = self._enter(folders)
        try:
            fd = os.open(last, NEW_FILE, 0o666, dir_fd=folder)
        except FileExistsError:
            raise ValueError("is there already: another file, or a folder that files are in") from None
        try:
            view = memoryview(data).cast("B")
            while view:
                view = view[os.write(fd, view) :]
        finally:
            os.close(fd)

    def _enter(self, parts: list[bytes]) -> int:
        """Return the descriptor of a folder, which is made if it is not there; it stays open until the next one is."""
        if parts == self._last[0]:
            return self._last[1]
        self._leave()
        folder = self._top
        for part in parts:
            try:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, dir_fd=folder)
                inner = os.open(part, FOLDER, dir_fd=folder)
            except NotADirectoryError:
                raise ValueError(f"goes through a file, or a link: step {parts.index(part) + 1}") from None
            finally:
                if folder != self._top:
                    os.close(folder)
            folder = inner
        self._last = (parts, folder)
        return folder

    def _leave(self) -> None:
        _, folder = self._last
        self._last = ([], self._top)
        if folder != self._top:
            os.close(folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()
        os.close(self._top)
