"""Files of a folder that is a dataset: each has to be a plain file of that folder, whatever a link says."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from mmds.errors import FormatError, printable


def refuse_special(path: str | os.PathLike[str]) -> None:
    """Raise `FormatError` for a FIFO, a device or a socket: a library that opens one may wait for ever."""
    try:
        mode = Path(path).stat().st_mode
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise FormatError(f"{printable(path)}: a symbolic link to itself") from None
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise FormatError(f"{printable(path)}: neither a file nor a folder, so no dataset")


def plain_file(path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> str:
    """Return the path of a plain file below `folder`; `FormatError` where it is none or leads out, by whatever link.

    A link inside of the folder is followed. Raises `FileNotFoundError` where there is nothing.
    """
    real, root = os.path.realpath(path), os.path.realpath(folder)
    if not real.startswith(os.path.join(root, "")):  # noqa: PTH118 (strings)
        raise FormatError(f"{printable(path)}: leads out of the dataset's folder, to {printable(real)}: refused")
    mode = Path(real).stat().st_mode
    if not stat.S_ISREG(mode):
        raise FormatError(f"{printable(path)}: not a plain file: refused")
    return real


def refuse_links(folder: str | os.PathLike[str]) -> None:
    """Raise `FormatError` if anything below `folder` is no plain file or folder: for libraries that follow every link."""
    pending = [os.fspath(folder)]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                elif not entry.is_file(follow_symlinks=False):
                    raise FormatError(f"{printable(entry.path)}: a link, or no plain file: refused")
