"""What an encoded file is, by its first bytes: the extension that people give to such files."""

# ruff: noqa: PTH122 (names of bytes, which no Path can be)
from __future__ import annotations

import os
import re

ALIASES = {  # other extensions of the same content, so that a name which fits is left alone
    ".jpg": (".jpeg",),
    ".tiff": (".tif",),
    **dict.fromkeys((".pbm", ".pgm", ".ppm"), (".pbm", ".pgm", ".ppm", ".pnm")),
    ".ogg": (".oga", ".opus"),
    ".mp4": (".m4v", ".mov"),
    ".mkv": (".mka",),
    ".mpg": (".mpeg",),
}
STARTS = (
    (b"\xff\xd8\xff", ".jpg"),
    (b"\x89PNG\r\n\x1a\n", ".png"),
    (b"GIF8", ".gif"),
    (b"\0\0\0\x0cjP  ", ".jp2"),
    (b"\0\0\1\0", ".ico"),
    (b"II*\0", ".tiff"),
    (b"MM\0*", ".tiff"),
    (b"fLaC", ".flac"),
    (b"ID3", ".mp3"),
    (b"\x00\x00\x01\xba", ".mpg"),  # a program stream
    (b"\x00\x00\x01\xb3", ".mpg"),  # a bare video stream
    (b"\x93NUMPY", ".npy"),
)
RIFF_FORMS = {b"WAVE": ".wav", b"AVI ": ".avi", b"WEBP": ".webp"}
MP4_BRANDS = {b"M4A ": ".m4a", b"M4B ": ".m4a", b"qt  ": ".mov", b"avif": ".avif", b"heic": ".heic", b"mif1": ".heic"}
MP4_BOXES = (b"moov", b"mdat", b"wide", b"free", b"skip")  # with which a QuickTime film may begin as well


def extension(data: bytes) -> str:
    """Return the usual extension of files that begin as `data` does, empty where it is nothing known.

    >>> extension(b"RIFF....WAVEfmt "), extension(b"fLaC"), extension(b"hello")
    ('.wav', '.flac', '')
    """
    for start, found in STARTS:
        if data.startswith(start):
            return found
    form = data[8:12]
    if data[:4] in (b"RIFF", b"RIFX", b"RF64"):
        return RIFF_FORMS.get(form, "")
    if data.startswith(b"FORM") and form in (b"AIFF", b"AIFC"):
        return ".aiff"
    if data.startswith(b"OggS"):
        return ".opus" if b"OpusHead" in data[:64] else ".ogg"
    if data[4:8] == b"ftyp":
        return MP4_BRANDS.get(form, ".mp4")
    if data[4:8] in MP4_BOXES:
        return ".mov"
    if data.startswith(b"\x1a\x45\xdf\xa3"):  # EBML
        return ".webm" if b"webm" in data[:64] else ".mkv"
    if re.match(rb"P[1-6]\s", data):
        return (".pbm", ".pgm", ".ppm")[(data[1] - ord("1")) % 3]
    if data.startswith(b"BM") and data[6:10] == bytes(4):
        return ".bmp"
    if len(data) > 4 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0:  # the sync word of an MPEG audio frame
        layer = data[1] & 6
        return ".mp3" if layer in (2, 4) else ".aac" if data[1] & 0xF6 == 0xF0 else ""
    if data[:565:188] == b"GGGG":  # packets of a transport stream
        return ".mpg"
    return ""


def fitting(name: bytes, found: str) -> bytes:
    """Return `name` with the extension `found`; as it is where its own one says the same.

    >>> fitting(b"a.b/c.PNG", ".jpg"), fitting(b"b.JPEG", ".jpg"), fitting(b".hidden", ".flac")
    (b'a.b/c.jpg', b'b.JPEG', b'.hidden.flac')
    """
    stem, old = os.path.splitext(name)
    return name if os.fsdecode(old.lower()) in (found, *ALIASES.get(found, ())) else stem + found.encode()
