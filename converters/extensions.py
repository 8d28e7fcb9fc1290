"""Which files belong to a folder dataset, by extension, and which kind a folder holds, by a bounded look at it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

LOOK_FOLDERS = 64  # a look at a tree lists at most so many folders,
LOOK_ENTRIES = 10_000  # and of each at most so many entries


@dataclass(frozen=True)
class Files:
    """The files that are the samples of a dataset: the word for one of them, and their extensions, in any case."""

    one: str
    extensions: tuple[str, ...]

    @property
    def foreign(self) -> str:
        """Why a file is left out that has another extension."""
        return f"file extension of no {self.one} format"

    @property
    def outside(self) -> str:
        """Why a file is left out that lies beside the class folders."""
        return f"{self.one} outside every class folder"

    @property
    def empty(self) -> str:
        """What a class folder is that has no sample."""
        return f"class folder without {self.one}s"


PICTURES = Files(
    "picture", (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
)  # torchvision's
SOUNDS = Files("sound", (".wav", ".flac", ".ogg", ".mp3", ".opus", ".m4a", ".aac", ".aiff"))
FILMS = Files("film", (".mp4", ".mkv", ".avi", ".mov", ".webm", ".mpg", ".mpeg"))
ARRAYS = Files("array", (".npy",))
KINDS = (PICTURES, SOUNDS, FILMS, ARRAYS)


def only_holds(folder: Path, files: Files) -> bool:
    """Return whether the first files in a folder's tree are `files` and none of another kind; others are overlooked.

    Names are looked at in order, level by level, so that the answer does not depend on the file system's order unless
    the tree is larger than the look.
    """
    return folder.is_dir() and {each.one for each in _look(folder)} == {files.one}


def has_class_arrays(folder: Path) -> bool:
    """Return whether a folder holds arrays, and in subfolders only: in the folder itself, they are columns of a store."""
    return only_holds(folder, ARRAYS) and not any(map(_is_array, folder.iterdir()))


def _is_array(path: Path) -> bool:
    return path.name.lower().endswith(ARRAYS.extensions) and path.is_file()


def _look(folder: Path) -> Iterator[Files]:
    """Yield the kind of each file that a bounded look at the tree meets."""
    pending = [os.fspath(folder)]
    for number in range(LOOK_FOLDERS):  # which also ends links in circles
        if number == len(pending):
            return
        try:
            with os.scandir(pending[number]) as entries:
                for entry in sorted(islice(entries, LOOK_ENTRIES), key=lambda entry: entry.name):
                    if _is_folder(entry):
                        pending.append(entry.path)
                        continue
                    name = entry.name.lower()
                    yield from (files for files in KINDS if name.endswith(files.extensions))
        except OSError:  # a folder that cannot be listed: the conversion names it, a look does not
            continue


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, for example
        return False
