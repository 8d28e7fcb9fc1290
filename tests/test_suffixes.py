"""What extensions mean: WebDataset's table, and contents by their first bytes."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import soundfile
from PIL import Image
from webdataset import autodecode

from mmds.converters.suffixes import FAMILY_OF, extension_of, family_of, is_shards


def test_values_are_those_that_webdataset_decodes() -> None:
    results = {"int": b"7", "text": b"7", "json": b"7"}
    for extension, family in FAMILY_OF.items():
        if family in results:
            assert autodecode.decoders[extension](results[family]) == {"int": 7, "text": "7", "json": 7}[family]
    named = {extension for extension, family in FAMILY_OF.items() if family in results or family == "npy"}
    ours = named | {"pkl", "pickle", "pyd", "pth", "ten", "tb", "mp", "msg", "npz", "cbor"}  # kept as bytes
    assert set(autodecode.decoders) == ours


def test_the_last_part_counts() -> None:
    assert family_of("left.seg.png") == "image" and family_of("png.weird") == family_of("") == "bytes"


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO"])
def test_pictures_by_content(format: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (20, 20), (9, 8, 7)).save(file, format)
    assert extension_of(file.getvalue(), "image") == {"JPEG": "jpg"}.get(format, format.lower())


@pytest.mark.parametrize("format", ["WAV", "FLAC", "OGG", "MP3"])
def test_sounds_by_content(format: str) -> None:
    file = io.BytesIO()
    soundfile.write(file, [0.0, 0.5] * 800, 16000, format=format)
    assert extension_of(file.getvalue(), "audio") == format.lower()


def test_films_by_content() -> None:
    starts = {"mp4": b"\0\0\0\x20ftypisom", "mov": b"\0\0\0\x14ftypqt  ", "avi": b"RIFF\0\0\0\0AVI ", "ogv": b"OggS\0"}
    starts |= {
        "webm": b"\x1aE\xdf\xa3\x9fB\x82\x84webm",
        "mkv": b"\x1aE\xdf\xa3\xa3B\x82\x88matroska",
        "mpg": b"\0\0\1\xba",
    }
    for extension, start in starts.items():
        assert extension_of(start, "video") == extension
    assert extension_of(b"RIFF\0\0\0\0WAVE", "image") == extension_of(b"?", "video") == "bin"  # not of that family


def test_shards_are_recognised_by_name(tmp_path: Path) -> None:
    for name in ("a.tar", "b.TAR.GZ", "c.tgz", "d.tar.zst"):
        (tmp_path / name).touch()
        assert is_shards(tmp_path / name)
    assert is_shards(tmp_path)
    (tmp_path / "list.txt").touch()
    (tmp_path / ".cache").mkdir()
    assert is_shards(tmp_path) and not is_shards(tmp_path / "list.txt")
    (tmp_path / "cat.jpg").touch()
    assert not is_shards(tmp_path)  # pictures with an archive beside them
    (tmp_path / "cat.jpg").unlink()
    (tmp_path / "train").mkdir()
    assert not is_shards(tmp_path) and not is_shards(tmp_path / "train") and not is_shards(tmp_path / "nothing")
