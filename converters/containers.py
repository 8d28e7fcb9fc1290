"""How long an encoded sound or film is by the structure of its container, without decoding it.

Decoders play a file that was cut off without a word, as far as it goes, so that only its structure tells.
"""

from __future__ import annotations

from typing import Literal

from mmds.converters.signatures import extension

EBML_SEGMENT = b"\x18\x53\x80\x67"
UNTOLD = (0, 2**32 - 1)  # sizes that programs write which do not know how long a stream will be


def declared_length(data: bytes) -> int | None:
    """Return how many bytes the file has that `data` is or begins; None where its structure does not say.

    The result is larger than ``len(data)`` where the end is missing. It is smaller where something follows.
    """
    measure = _MEASURES.get(extension(data))
    return None if measure is None else measure(data)


def _wave(data: bytes) -> int | None:
    """Chunks, each with its length; what counts is the one with the sound, as programs disagree on the whole length."""
    if data.startswith(b"RF64"):  # the length is in a chunk of its own
        return 8 + int.from_bytes(data[20:28], "little") if data[12:16] == b"ds64" else None
    order: Literal["big", "little"] = "big" if data.startswith(b"RIFX") else "little"
    position = 12
    while position < len(data):
        size = int.from_bytes(data[position + 4 : position + 8], order)
        if data.startswith(b"data", position):
            return None if size in UNTOLD else position + 8 + size
        position += 8 + size + size % 2
    return position + 8  # there is no sound


def _avi(data: bytes) -> int | None:
    """One RIFF, or past 1 GB a sequence of them."""
    position = 0
    while data.startswith(b"RIFF", position):
        size = int.from_bytes(data[position + 4 : position + 8], "little")
        if size in UNTOLD or size <= len("AVI "):  # nothing in it
            return None
        position += 8 + size
    return position


def _aiff(data: bytes) -> int:
    return 8 + int.from_bytes(data[4:8], "big")


def _ogg(data: bytes) -> int | None:
    """Pages, each with a table of the sizes of its segments; the last one is marked."""
    position = flags = 0
    while data.startswith(b"OggS", position):
        if len(data) < position + 27:
            return position + 27
        flags = data[position + 5]
        table = position + 27
        position = table + data[position + 26]
        if position > len(data):
            return position
        position += sum(data[table:position])
    return position if flags & 4 or position > len(data) else None


def _adts(data: bytes) -> int | None:
    """AAC frames, each with its length."""
    position = 0
    while data.startswith(b"\xff", position):
        if len(data) < position + 7:
            return position + 7
        size = (data[position + 3] & 3) << 11 | data[position + 4] << 3 | data[position + 5] >> 5
        if size < 7 or data[position + 1] & 0xF6 != 0xF0:
            return None
        position += size
    return position


def _mp4(data: bytes) -> int | None:
    """Boxes, each with its length; one of them has to be the index."""
    position, indexed = 0, False
    while any(data[position : position + 8]):
        if len(data) < position + 8:
            return position + 8
        size = int.from_bytes(data[position : position + 4], "big")
        if size == 1:
            size = int.from_bytes(data[position + 8 : position + 16], "big")
        elif size == 0:  # up to the end of the file
            return None
        if size < 8:
            return None
        indexed |= data[position + 4 : position + 8] == b"moov"
        position += size
    return position if indexed or position > len(data) else None


def _ebml(data: bytes) -> int | None:
    """Matroska and WebM: a header, then a segment that holds everything."""
    size, start = _vint(data, 4)
    if size is None:
        return None
    position = start + size
    if data[position : position + 4] != EBML_SEGMENT:
        return None
    size, start = _vint(data, position + 4)
    return start + size if size else None


def _vint(data: bytes, position: int) -> tuple[int | None, int]:
    """Return a number of EBML's variable length, None where it says "unknown", and where the next thing begins."""
    first = data[position] if position < len(data) else 0
    if not first:
        return None, position
    width = 9 - first.bit_length()
    limit = 1 << 7 * width
    value = int.from_bytes(data[position : position + width], "big") & (limit - 1)
    return None if value == limit - 1 else value, position + width


_MEASURES = {
    ".wav": _wave,
    ".avi": _avi,
    ".aiff": _aiff,
    **dict.fromkeys((".ogg", ".opus"), _ogg),
    ".aac": _adts,
    **dict.fromkeys((".m4a", ".mp4", ".mov"), _mp4),
    **dict.fromkeys((".mkv", ".webm"), _ebml),
}
