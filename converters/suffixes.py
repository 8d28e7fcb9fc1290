"""What extensions of files mean: those of shards, and in them those of a sample's files, and which one a content calls for.

The meanings are those of WebDataset's default decoders (``webdataset/autodecode.py``), as far as a field can have them:
pictures, sounds and films stay encoded. Of a dotted extension the last part counts: "seg.png" is a picture.
"""

from __future__ import annotations

import os
from pathlib import Path

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

_BRANDS = {b"avif": "avif", b"avis": "avif", b"M4A ": "m4a", b"qt  ": "mov"}  # of ISO media files
_STARTS = (
    (b"\xff\xd8\xff", "jpg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"II*\x00", "tiff"),
    (b"MM\x00*", "tiff"),
    (b"P4", "pbm"),
    (b"P5", "pgm"),
    (b"P6", "ppm"),
    (b"\x00\x00\x00\x0cjP  ", "jp2"),
    (b"\x00\x00\x01\x00", "ico"),
    (b"fLaC", "flac"),
    (b"ID3", "mp3"),
    (b"\x00\x00\x01\xba", "mpg"),
)


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
    """Return the extension of an encoded "image", "audio" or "video" by its first bytes, "bin" if they tell nothing.

    >>> extension_of(bytes.fromhex("ffd8ffe0"), "image"), extension_of(b"", "audio")
    ('jpg', 'bin')
    """
    found = _by_content(content[:64], family)
    return found if family_of(found) == family else "bin"


def _by_content(head: bytes, family: str) -> str:
    if head[:4] == b"RIFF":
        return {b"WEBP": "webp", b"WAVE": "wav", b"AVI ": "avi"}.get(head[8:12], "bin")
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12], "m4a" if family == "audio" else "mp4")
    if head[:4] == b"OggS":
        return "ogv" if family == "video" else "opus" if b"OpusHead" in head else "ogg"
    if head[:4] == b"\x1aE\xdf\xa3":
        return "webm" if b"webm" in head else "mkv"
    if family == "audio" and len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0:  # an MPEG audio frame
        return "mp3"
    return next((extension for start, extension in _STARTS if head.startswith(start)), "bin")
