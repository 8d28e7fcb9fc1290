"""One encoded picture: is it whole, and what does it become when it is preprocessed offline.

`check` looks at the structure of the common formats without decoding them. It finds what copies and downloads break
(empty, truncated, another kind of file under a picture's name), not a flipped bit in the middle. What it does not
recognise as whole is decoded by Pillow, which has the last word, so that odd but readable pictures pass.

`Recipe` does what torchvision's ``Resize`` and ``CenterCrop`` do to the picture that its ``ImageFolder`` loads: RGB,
without regard to an EXIF orientation, sizes and rounding the same.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import mmds
from mmds.decode import REFUSED_PICTURES
from mmds.errors import SourceError, missing, printable

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

DEFAULT_QUALITY = 90  # of the JPEG that a JPEG becomes if nothing is said
JPEG_START = b"\xff\xd8\xff"
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"\x00\x00\x00\x00IEND\xaeB`\x82"
FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0..15; the others are tables


def check(data: bytes, *, decode: bool = False) -> None:
    """Raise `SourceError` with the reason if `data` is no whole picture; with `decode`, if any pixel cannot be had."""
    if decode or not _looks_whole(data):
        if not data:
            raise SourceError("an empty file")
        decoded(data)


def _looks_whole(data: bytes) -> bool:
    if data.startswith(JPEG_START):
        return data.endswith(b"\xff\xd9") and _has_frame(data)
    if data.startswith(PNG_START):
        return data.endswith(PNG_END) and data[12:16] == b"IHDR"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return 20 < len(data) == int.from_bytes(data[4:8], "little") + 8
    if data.startswith(b"BM"):
        return 54 < len(data) == int.from_bytes(data[2:6], "little")
    return False


def _has_frame(data: bytes) -> bool:
    """Return whether a JPEG's segments lead to a frame header with a size that is not zero."""
    position, end = 2, len(data) - 9
    while position < end and data[position] == 0xFF:
        marker = data[position + 1]
        if marker in FRAME_MARKERS:  # length (2), precision (1), height (2), width (2)
            return data[position + 5 : position + 7] != b"\0\0" != data[position + 7 : position + 9]
        if marker == 0xFF:  # a fill byte
            position += 1
        else:
            position += 2 + (data[position + 2] << 8 | data[position + 3])
    return False


def decoded(data: bytes) -> Picture:
    """Return the decoded picture, or raise `SourceError` with the reason why there is none."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise missing("Pillow", "image", "checking or preprocessing pictures") from None
    try:
        picture = Image.open(io.BytesIO(data))
        limit, (width, height) = Image.MAX_IMAGE_PIXELS, picture.size
        if limit is not None and width * height > limit:
            raise SourceError(f"{width} x {height} pixels are more than PIL.Image.MAX_IMAGE_PIXELS ({limit})")
        if picture.format in REFUSED_PICTURES:
            raise SourceError(f"{picture.format} is not decoded, as that would run another program")
        picture.load()
    except SourceError:
        raise
    except UnidentifiedImageError:
        raise SourceError("not a picture in any format that Pillow knows") from None
    except Exception as error:  # noqa: BLE001 (Pillow's decoders raise nearly anything on damaged input)
        raise SourceError(f"a corrupt picture ({printable(str(error) or type(error).__name__)})") from None
    return picture


@dataclass(frozen=True)
class Recipe:
    """What happens to every picture: shorter side to `resize`, centre crop to `crop` x `crop`, encoded as `encode`.

    `encode` is "jpeg:QUALITY", "png" or "raw" (uint8 arrays, CHW, RGB); without it, a picture that is resized or
    cropped becomes JPEG of quality 90 if it was a JPEG and PNG otherwise, and one that is not stays byte for byte.
    """

    resize: int | None = None
    crop: int | None = None
    encode: str | None = None

    def __post_init__(self) -> None:
        for name, size in (("resize", self.resize), ("crop", self.crop)):
            if size is not None and (isinstance(size, bool) or not isinstance(size, int) or not 0 < size < 65536):
                raise ValueError(f"{name}={size!r}: expected a number of pixels, 1 to 65535")
        if self.encode is not None and not re.fullmatch(r"png|raw|jpeg:([1-9][0-9]?|100)", str(self.encode)):
            raise ValueError(f"encode={self.encode!r}: expected 'jpeg:QUALITY' (1 to 100), 'png' or 'raw'")

    @property
    def keeps_bytes(self) -> bool:
        """Whether pictures stay as they are."""
        return self.resize is None and self.crop is None and self.encode is None

    @property
    def kind(self) -> Any:
        """The kind of field that holds the result."""
        if self.encode == "raw":
            return mmds.Array("uint8", (3, self.crop, self.crop))
        return mmds.Image()

    def options(self) -> dict[str, Any]:
        """Return what differs from the default, for the metadata of the output."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def apply(self, data: bytes) -> bytes | np.ndarray[Any, Any]:
        """Return the picture `data` preprocessed: encoded bytes, or a uint8 array of shape (3, height, width)."""
        picture = decoded(data)
        try:
            if picture.mode != "RGB":
                picture = picture.convert("RGB")
            picture = self._crop(self._resize(picture))
            encode = self.encode or (f"jpeg:{DEFAULT_QUALITY}" if data.startswith(JPEG_START) else "png")
            if encode == "raw":
                return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))
            file = io.BytesIO()
            if encode == "png":
                picture.save(file, "PNG")
            else:
                picture.save(file, "JPEG", quality=int(encode.removeprefix("jpeg:")))
        except (OSError, ValueError, MemoryError) as error:
            raise SourceError(f"cannot be preprocessed ({printable(error)})") from None
        return file.getvalue()

    def _resize(self, picture: Picture) -> Picture:
        if self.resize is None:
            return picture
        from PIL import Image

        width, height = picture.size
        shorter, longer = sorted(picture.size)
        longer = int(self.resize * longer / shorter)
        size = (self.resize, longer) if width <= height else (longer, self.resize)
        return picture if size == picture.size else picture.resize(size, Image.Resampling.BILINEAR)

    def _crop(self, picture: Picture) -> Picture:
        if self.crop is None:
            return picture
        left, top = (_margin(size, self.crop) for size in picture.size)
        return picture.crop((left, top, left + self.crop, top + self.crop))


def _margin(size: int, crop: int) -> int:
    """Return where a centred `crop` starts; negative where the picture is smaller and black is added around it."""
    return -((crop - size) // 2) if crop > size else round((size - crop) / 2)
