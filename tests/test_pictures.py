"""One picture: what passes for whole, and what preprocessing does to it, compared with torchvision's arithmetic."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage import data as photos

from mmds.converters.pictures import Recipe, check
from mmds.errors import SourceError

COFFEE: Any = photos.coffee()  # type: ignore[no-untyped-call]
PHOTO = Image.fromarray(COFFEE).crop((100, 50, 260, 170))  # 160 x 120

FORMATS: dict[str, dict[str, Any]] = {
    "jpeg": {"format": "JPEG", "quality": 85},
    "progressive": {"format": "JPEG", "progressive": True},
    "png": {"format": "PNG"},
    "webp": {"format": "WEBP"},
    "lossless": {"format": "WEBP", "lossless": True},
    "bmp": {"format": "BMP"},
    "ppm": {"format": "PPM"},
    "tiff": {"format": "TIFF"},
    "lzw": {"format": "TIFF", "compression": "tiff_lzw"},
}


def encoded(picture: Image.Image = PHOTO, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, **options)
    return file.getvalue()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("decode", [False, True])
def test_whole_pictures_pass(name: str, decode: bool) -> None:
    check(encoded(**FORMATS[name]), decode=decode)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_colour_modes_pass(mode: str) -> None:
    check(encoded(PHOTO.convert(mode), format="JPEG"))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("part", [0.5, 0.9])
def test_truncated_pictures_do_not(name: str, part: float) -> None:
    whole = encoded(**FORMATS[name])
    with pytest.raises(SourceError, match=r"corrupt picture|not a picture"):
        check(whole[: int(part * len(whole))])


@pytest.mark.parametrize("bad", [b"hello\n" * 100, b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", bytes(1000)])
def test_other_files_under_a_pictures_name_do_not(bad: bytes) -> None:
    with pytest.raises(SourceError, match=r"corrupt picture|not a picture"):
        check(bad)


def test_empty_file() -> None:
    with pytest.raises(SourceError, match="empty file"):
        check(b"")


def test_jpeg_with_both_ends_but_nothing_between() -> None:
    with pytest.raises(SourceError):
        check(b"\xff\xd8\xff\xe0\x00\x10" + bytes(200) + b"\xff\xd9")


def test_odd_but_readable_jpeg_passes() -> None:
    """Bytes after the end are common (cameras, padding); Pillow reads such a file, so it is kept."""
    check(encoded(format="JPEG") + b"\0" * 1000)


def test_damage_inside_is_found_by_decoding() -> None:
    whole = bytearray(encoded(format="PNG"))
    whole[len(whole) // 2] ^= 0xFF
    check(bytes(whole))  # what "quick" does not promise
    with pytest.raises(SourceError, match="corrupt picture"):
        check(bytes(whole), decode=True)


@pytest.mark.fault(32)
def test_bomb_is_refused_without_being_decoded() -> None:
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    bomb = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )
    with pytest.raises(SourceError, match="pixels"):
        check(bomb, decode=True)


def torchvision_resize(picture: Image.Image, size: int) -> Image.Image:
    """``torchvision.transforms.Resize(size)`` of a PIL picture (v0.24, `_compute_resized_output_size`, `resize`)."""
    w, h = picture.size
    short, long = (w, h) if w <= h else (h, w)
    new_short, new_long = size, int(size * long / short)
    new_w, new_h = (new_short, new_long) if w <= h else (new_long, new_short)
    return picture.resize((new_w, new_h), Image.Resampling.BILINEAR)


def torchvision_center_crop(array: np.ndarray[Any, Any], size: int) -> np.ndarray[Any, Any]:
    """``torchvision.transforms.CenterCrop(size)`` of an HWC array (v0.24, `center_crop`)."""
    h, w = array.shape[:2]
    if size > w or size > h:
        left, top = (size - w) // 2 if size > w else 0, (size - h) // 2 if size > h else 0
        right, bottom = (size - w + 1) // 2 if size > w else 0, (size - h + 1) // 2 if size > h else 0
        array = np.pad(array, ((top, bottom), (left, right), (0, 0)))
        h, w = array.shape[:2]
    y, x = round((h - size) / 2.0), round((w - size) / 2.0)
    return array[y : y + size, x : x + size]


@pytest.mark.parametrize("size", [31, 64, 120, 131])
@pytest.mark.parametrize("box", [(0, 0, 160, 120), (0, 0, 97, 120), (0, 0, 101, 101)])
def test_resize_is_that_of_torchvision(size: int, box: tuple[int, int, int, int]) -> None:
    picture = PHOTO.crop(box)
    raw = Recipe(resize=size, encode="raw").apply(encoded(picture, format="PNG"))
    assert isinstance(raw, np.ndarray) and raw.dtype == np.uint8 and raw.flags.c_contiguous
    assert np.array_equal(raw.transpose(1, 2, 0), np.asarray(torchvision_resize(picture, size)))


@pytest.mark.parametrize("size", [10, 33, 119, 120, 121, 150, 161, 200])
@pytest.mark.parametrize("box", [(0, 0, 160, 120), (0, 0, 97, 120), (0, 0, 98, 121)])
def test_crop_is_that_of_torchvision(size: int, box: tuple[int, int, int, int]) -> None:
    picture = PHOTO.crop(box)
    raw = Recipe(crop=size, encode="raw").apply(encoded(picture, format="PNG"))
    assert isinstance(raw, np.ndarray) and raw.shape == (3, size, size)
    assert np.array_equal(raw.transpose(1, 2, 0), torchvision_center_crop(np.asarray(picture), size))


def test_what_becomes_of_each_format() -> None:
    jpeg, png = encoded(format="JPEG"), encoded(format="PNG")

    def result(data: bytes, **options: Any) -> str | None:
        made = Recipe(**options).apply(data)
        assert isinstance(made, bytes)
        return Image.open(io.BytesIO(made)).format

    assert result(jpeg, resize=50) == "JPEG" and result(png, resize=50) == "PNG"
    assert result(encoded(format="BMP"), crop=50) == "PNG"
    assert result(png, encode="jpeg:50") == "JPEG" and result(jpeg, encode="png") == "PNG"


def test_quality_is_used_and_equal_input_gives_equal_bytes() -> None:
    sizes = [len(Recipe(encode=f"jpeg:{quality}").apply(encoded(format="PNG"))) for quality in (10, 50, 90, 100)]
    assert sizes == sorted(set(sizes))
    assert Recipe(resize=60).apply(encoded(format="JPEG")) == Recipe(resize=60).apply(encoded(format="JPEG"))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "I;16", "LA", "CMYK"])
def test_every_mode_becomes_rgb_as_imagefolder_loads_it(mode: str) -> None:
    picture = PHOTO.convert("L").convert("I;16") if mode == "I;16" else PHOTO.convert(mode)
    data = encoded(picture, format="TIFF" if mode == "CMYK" else "PNG")
    raw = Recipe(encode="raw").apply(data)
    assert isinstance(raw, np.ndarray)
    assert np.array_equal(raw.transpose(1, 2, 0), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize(
    "options",
    [
        {"resize": 0},
        {"resize": 1.5},
        {"resize": True},
        {"crop": -1},
        {"encode": "jpeg"},
        {"encode": "jpeg:0"},
        {"encode": "jpeg:101"},
        {"encode": "gif"},
        {"encode": 90},
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Recipe(**options)
