"""Decoding the encoded files that samples hold: pictures, sounds and films, each with the field's own library.

Nobody vouches for these files. What would open another file, a connection or a program is refused: FFmpeg gets no playlists,
Pillow no PostScript. So is what would decode to more than the limits here, or than there is memory for.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from mmds.errors import missing
from mmds.fields import Audio, Image, Kind, Video

NdArray = np.ndarray[Any, Any]

JPEG_MAGIC = b"\xff\xd8\xff"
SIMPLEJPEG_SPACES = {"RGB": "RGB", "L": "GRAY"}
MAX_PIXELS = 2**28  # a picture of 16384 x 16384; more is taken for a decompression bomb
MAX_FILM_PIXELS = 2**31  # of all frames of a film: 6 GiB
MAX_NUMBERS = 2**30  # of a sound: 4 GiB, three hours of stereo at 48 kHz
# Containers that hold their streams themselves. FFmpeg also knows playlists and descriptions of streams, which name others.
AV_OPTIONS = {
    "format_whitelist": "mov,matroska,avi,mpeg,mpegts,mpegvideo,flv,asf,ogg,ivf,gif,yuv4mpegpipe,aac,wav,mp3,flac",
    "protocol_whitelist": "none",
}
REFUSED_PICTURES = ("EPS",)  # Pillow runs Ghostscript for these


@contextmanager
def _blaming() -> Iterator[None]:
    """Turn what decoders raise over damaged files, which may be anything, into a ValueError; an OSError stays one."""
    try:
        yield
    except (ValueError, OSError, ImportError):
        raise
    except MemoryError:
        raise ValueError("decoding it takes more memory than there is") from None
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


@_blaming()
def picture(data: bytes, mode: str | None) -> NdArray:
    """Return an encoded picture as uint8 of shape (height, width, channels), in `mode` or as the file has it.

    JPEG goes through simplejpeg where it is installed, which decodes faster than Pillow and without the interpreter
    lock; everything else, and JPEGs that it refuses (CMYK), through Pillow. Raises ValueError or OSError.
    """
    if data[:3] == JPEG_MAGIC and mode in SIMPLEJPEG_SPACES:
        try:
            import simplejpeg
        except ImportError:
            return _with_pillow(data, mode)
        try:
            height, width, space, _ = simplejpeg.decode_jpeg_header(data)
            if space != "CMYK" and height * width <= MAX_PIXELS:
                return np.asarray(simplejpeg.decode_jpeg(data, SIMPLEJPEG_SPACES[mode]))
        except ValueError:
            pass  # Pillow may be more forgiving, and says more clearly what is wrong
    return _with_pillow(data, mode)


def _with_pillow(data: bytes, mode: str | None) -> NdArray:
    array = np.array(pil(data, mode))  # asarray would be read-only
    return array[:, :, None] if array.ndim == 2 else array


@_blaming()
def pil(data: bytes, mode: str | None) -> Any:
    """Return an encoded picture as a PIL image in `mode`, or as the file has it. Raises ValueError or OSError."""
    try:
        from PIL import Image as PilImage
    except ImportError:
        raise missing("Pillow", "image", "decoding pictures") from None
    try:
        image = PilImage.open(io.BytesIO(data))
    except PilImage.DecompressionBombError as error:  # beyond twice PIL.Image.MAX_IMAGE_PIXELS; no ValueError itself
        raise ValueError(str(error)) from None
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels; more than {MAX_PIXELS} are not decoded")
    if image.format in REFUSED_PICTURES:
        raise ValueError(f"{image.format} is not decoded, as that would run another program")
    image.load()
    return image if mode is None else image.convert(mode)


@_blaming()
def sound(data: bytes) -> NdArray:
    """Return an encoded sound as float32 of shape (channels, frames), in -1..1. Raises ValueError or OSError.

    AAC and M4A, which libsndfile does not know, go through PyAV.
    """
    if data[4:8] == b"ftyp" or (data[:1] == b"\xff" and data[1:2] and data[1] & 0xF6 == 0xF0):
        return _sound_with_av(data)
    try:
        import soundfile
    except ImportError:
        raise missing("soundfile", "audio", "decoding sounds") from None
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        _refuse_sound(file.frames * file.channels)
        return np.ascontiguousarray(file.read(dtype="float32", always_2d=True).T)


def _refuse_sound(numbers: int) -> None:
    if numbers > MAX_NUMBERS:
        raise ValueError(f"a sound of {numbers} numbers; more than {MAX_NUMBERS} are not decoded")


def _sound_with_av(data: bytes) -> NdArray:
    try:
        import av
    except ImportError:
        raise missing("av", "audio", "decoding AAC") from None
    frames: list[NdArray] = []
    numbers = 0
    with av.open(io.BytesIO(data), "r", options=AV_OPTIONS) as container:
        if not container.streams.audio:
            raise ValueError("a file without sound")
        planar = av.AudioResampler(format="fltp")
        for frame in container.decode(audio=0):
            for part in planar.resample(frame):
                frames.append(part.to_ndarray())
                numbers += frames[-1].size
                _refuse_sound(numbers)
    if not frames:
        raise ValueError("a sound without frames")
    samples: NdArray = np.concatenate(frames, axis=1)
    return samples


@_blaming()
def film(data: bytes) -> NdArray:
    """Return all frames of an encoded film as uint8 of shape (frames, height, width, 3). Raises ValueError or OSError."""
    try:
        import av
    except ImportError:
        raise missing("av", "video", "decoding films") from None
    frames: list[NdArray] = []
    pixels = 0
    with av.open(io.BytesIO(data), "r", options=AV_OPTIONS) as container:
        if not container.streams.video:
            raise ValueError("a file without pictures")
        for frame in container.decode(video=0):
            pixels += frame.width * frame.height
            if pixels > MAX_FILM_PIXELS or frame.width * frame.height > MAX_PIXELS:
                raise ValueError(f"a film of {pixels} pixels or more; more than {MAX_FILM_PIXELS} are not decoded")
            frames.append(frame.to_ndarray(format="rgb24"))
    if not frames:
        raise ValueError("a film without frames")
    return np.stack(frames)


def decoder(kind: Kind) -> Callable[[bytes], NdArray] | None:
    """Return the function that decodes values of `kind` to channels-last arrays, or None where values need none."""
    if isinstance(kind, Image):
        mode = kind.mode
        return lambda data: picture(data, mode)
    if isinstance(kind, Audio):
        return sound
    if isinstance(kind, Video):
        return film
    return None
