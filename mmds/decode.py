"""Decoding the encoded files that samples hold: pictures, sounds and films, each with the field's own library."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np

from mmds.errors import missing
from mmds.fields import Audio, Image, Kind, Video

NdArray = np.ndarray[Any, Any]

JPEG_MAGIC = b"\xff\xd8\xff"
SIMPLEJPEG_SPACES = {"RGB": "RGB", "L": "GRAY"}
MAX_PIXELS = 2**28  # a picture of 16384 x 16384; more is taken for a decompression bomb


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
    image.load()
    return image if mode is None else image.convert(mode)


def sound(data: bytes) -> NdArray:
    """Return an encoded sound as float32 of shape (channels, frames), in -1..1. Raises ValueError, OSError or RuntimeError.

    AAC and M4A, which libsndfile does not know, go through PyAV.
    """
    if data[4:8] == b"ftyp" or (data[:1] == b"\xff" and data[1:2] and data[1] & 0xF6 == 0xF0):
        return _sound_with_av(data)
    try:
        import soundfile
    except ImportError:
        raise missing("soundfile", "audio", "decoding sounds") from None
    samples, _ = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    return np.ascontiguousarray(samples.T)


def _sound_with_av(data: bytes) -> NdArray:
    try:
        import av
    except ImportError:
        raise missing("av", "audio", "decoding AAC") from None
    with av.open(io.BytesIO(data), "r") as container:
        if not container.streams.audio:
            raise ValueError("a file without sound")
        planar = av.AudioResampler(format="fltp")
        frames = [part.to_ndarray() for frame in container.decode(audio=0) for part in planar.resample(frame)]
    if not frames:
        raise ValueError("a sound without frames")
    samples: NdArray = np.concatenate(frames, axis=1)
    return samples


def film(data: bytes) -> NdArray:
    """Return all frames of an encoded film as uint8 of shape (frames, height, width, 3). Raises ValueError or OSError."""
    try:
        import av
    except ImportError:
        raise missing("av", "video", "decoding films") from None
    with av.open(io.BytesIO(data), "r") as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
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
