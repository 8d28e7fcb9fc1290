"""What extensions of files mean: those of shards, and in them those of a sample's files, and which one a content calls for.

The meanings are those of WebDataset's default decoders (``webdataset/autodecode.py``), as far as a field can have them:
pictures, sounds and films stay encoded. Of a dotted extension the last part counts: "seg.png" is a picture.
"""

from __future__ import annotations

import os
from pathlib import Path

from mmds.converters.signatures import extension

SHARDS = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")  # the last three are refused, with a reason
PICTURES = (".jpg", ".jpeg", ".png")
FAMILIES = {
    "image": "jpg jpeg jpe jfif png apng webp bmp dib gif tif tiff ppm pgm pbm pnm jp2 tga ico avif",
    "audio": "mp3 wav flac ogg opus m4a aac wma",
    "video": "mp4 m4v mov avi mkv webm mpg mpeg ogv wmv",
    "int": "cls cls2 index inx id",
    "text": "txt text transcript",
    "json": "json jsn",
    "npy": "npy",
    "bytes": "",  # and everything else
}
FAMILY_OF = {extension: family for family, names in FAMILIES.items() for extension in names.split()}


def is_shards(path: Path) -> bool:
    """Return whether `path` is a tar archive by its name, or a folder with some, and no folders or pictures."""
    if not path.is_dir():
        return path.name.lower().endswith(SHARDS) and path.is_file()
    found = False
    with os.scandir(path) as entries:
        for entry in entries:
            name = entry.name.lower()
            if not name.startswith(".") and (entry.is_dir() or name.endswith(PICTURES)):
                return False
            found |= name.endswith(SHARDS)
    return found


def family_of(extension: str) -> str:
    """Return what a file with this extension holds.

    >>> family_of("seg.png"), family_of("cls"), family_of("pth")
    ('image', 'int', 'bytes')
    """
    return FAMILY_OF.get(extension.rpartition(".")[2], "bytes")


def extension_of(content: bytes, family: str) -> str:
    """Return the extension of an encoded "image", "audio" or "video" by its content, "bin" if that tells nothing.

    >>> extension_of(bytes.fromhex("ffd8ffe0"), "image"), extension_of(b"", "audio")
    ('jpg', 'bin')
    """
    found = extension(content).removeprefix(".")
    found = {("ogg", "video"): "ogv", ("mp4", "audio"): "m4a"}.get((found, family), found)  # the same container
    return found if family_of(found) == family else "bin"
