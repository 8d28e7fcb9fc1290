"""One encoded sound or film: is it whole?

`containers` says how long a file has to be, which finds what copies and downloads break. Where the structure does not
say, and with ``decode=True``, the library that would read the file has to: soundfile, or PyAV for films, AAC and M4A. It
gets a file in pieces, so that memory stays bounded however long the file plays.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from mmds.converters.containers import declared_length
from mmds.converters.extensions import FILMS
from mmds.converters.signatures import extension
from mmds.decode import AV_OPTIONS, MAX_PIXELS
from mmds.errors import SourceError, missing, printable

AV_SOUNDS = (".aac", ".m4a", ".mp4", ".mov")  # which libsndfile does not know
PIECE = 2**20  # numbers that are decoded at once
MP3_SLACK = 2 * 1152  # samples: without a table of contents, the length of an MP3 is an estimate, to a frame or two
MP3_TABLES = (b"Xing", b"Info")  # in its first frame


def check_sound(data: bytes, *, decode: bool = False) -> None:
    """Raise `SourceError` with the reason if `data` is no whole sound; with `decode`, if any of it cannot be had."""
    with_av = extension(data) in AV_SOUNDS
    _check(
        data, "sound", decode, (lambda all: _play(data, "audio", all)) if with_av else lambda all: _listen(data, all)
    )


def check_film(data: bytes, *, decode: bool = False) -> None:
    """Raise `SourceError` with the reason if `data` is no whole film; with `decode`, if any frame cannot be had."""
    if data and extension(data) not in FILMS.extensions:  # FFmpeg would take a playlist and open what it names
        raise SourceError("not a film in any format that is known")
    _check(data, "film", decode, lambda all: _play(data, "video", all))


def _check(data: bytes, what: str, decode: bool, read: Callable[[bool], None]) -> None:
    if not data:
        raise SourceError("an empty file")
    length = declared_length(data)
    if length is not None and length > len(data):
        raise SourceError(f"a truncated {what} ({len(data)} bytes; its structure declares {length} or more)")
    if length is None or decode:
        try:
            read(decode)
        except (SourceError, ImportError):
            raise
        except Exception as error:  # noqa: BLE001 (what the libraries raise on damaged input is not documented)
            reason = printable(str(error).partition(">: ")[2] or str(error) or type(error).__name__)
            raise SourceError(f"a corrupt {what}, or none ({reason})") from None


def _listen(data: bytes, all: bool) -> None:
    """Decode a sound, or its last frame only, which is found where the others are there."""
    try:
        import soundfile
    except ImportError:
        raise missing("soundfile", "audio", "checking sounds") from None
    with soundfile.SoundFile(io.BytesIO(data)) as sound:
        if all:
            frames = max(1, PIECE // sound.channels)
            read = 0
            while size := len(sound.read(frames, dtype="float32")):
                read += size
        else:
            sound.seek(max(0, sound.frames - 1))
            read = sound.frames - 1 + len(sound.read(1))
        is_estimate = sound.format == "MP3" and not any(mark in data for mark in MP3_TABLES)
        if not read or read < sound.frames - (MP3_SLACK if is_estimate else 0):
            raise SourceError(f"a truncated sound ({read} of {sound.frames} frames can be decoded)")


def _play(data: bytes, stream: str, all: bool) -> None:
    """Decode the first stream of a kind, or its first frame only."""
    try:
        import av
    except ImportError:
        raise missing("av", "audio" if stream == "audio" else "video", f"checking {stream}") from None
    with av.open(io.BytesIO(data), "r", options=AV_OPTIONS) as container:
        streams: Any = getattr(container.streams, stream)
        if not streams:
            raise SourceError(f"a file without {stream}")
        size = getattr(streams[0].codec_context, "width", 0) * getattr(streams[0].codec_context, "height", 0)
        if size > MAX_PIXELS:
            raise SourceError(f"a film of {size} pixels; more than {MAX_PIXELS} are not decoded")
        frames = 0
        for _ in container.decode(streams[0]):
            frames += 1
            if not all:
                break
    if not frames:
        raise SourceError(f"a file whose {stream} has no frames")
