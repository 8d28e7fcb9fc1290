"""Decoding pictures, sounds and films to the arrays that the formats promise."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

import mmds
from mmds import decode
from mmds.errors import FormatError
from tests.samples import jpeg


def encoded(mode: str, format: str) -> bytes:
    """Return a picture of 20 x 10 pixels in `mode`, encoded as `format`."""
    pixels = np.arange(600, dtype=np.uint32).reshape(10, 20, 3).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, format)
    return file.getvalue()


@pytest.mark.parametrize(
    ("mode", "format"),
    [
        ("RGB", "PNG"),
        ("L", "PNG"),
        ("P", "PNG"),
        ("RGBA", "PNG"),
        ("RGB", "BMP"),
        ("RGB", "JPEG"),
        ("L", "JPEG"),
        ("CMYK", "JPEG"),
        ("RGB", "WEBP"),
        ("1", "TIFF"),
    ],
)
def test_pictures_of_every_mode_decode_to_the_mode_of_their_field(mode: str, format: str) -> None:
    data = encoded(mode, format)
    for wanted, channels in (("RGB", 3), ("L", 1), ("RGBA", 4)):
        pixels = decode.picture(data, wanted)
        assert pixels.shape == (10, 20, channels) and pixels.dtype == np.uint8 and pixels.flags.writeable
        reference = np.asarray(Image.open(io.BytesIO(data)).convert(wanted)).reshape(10, 20, channels)
        assert np.abs(pixels.astype(int) - reference).max() <= (2 if format == "JPEG" else 0)  # two versions of libjpeg


def test_without_a_mode_pictures_keep_their_own() -> None:
    assert decode.picture(encoded("RGBA", "PNG"), None).shape == (10, 20, 4)
    assert decode.picture(encoded("L", "PNG"), None).shape == (10, 20, 1)


def test_simplejpeg_and_pillow_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    data = jpeg(3)
    fast = decode.picture(data, "RGB")
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    slow = decode.picture(data, "RGB")
    assert fast.shape == slow.shape and np.abs(fast.astype(int) - slow).max() <= 2


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff", b"not a picture", jpeg(0)[:200], encoded("RGB", "PNG")[:60]])
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises((ValueError, OSError)):
        decode.picture(data, "RGB")


@pytest.mark.fault(32)
def test_a_decompression_bomb_is_refused() -> None:
    header = encoded("L", "PNG")
    ihdr = (2**31 - 1).to_bytes(4, "big") * 2 + header[24:29]
    import zlib

    bomb = header[:16] + ihdr + zlib.crc32(b"IHDR" + ihdr).to_bytes(4, "big") + header[33:]
    with pytest.raises((ValueError, OSError)):
        decode.picture(bomb, "RGB")
    size = (14000).to_bytes(4, "big")  # Pillow refuses it before our own limit does
    ihdr = size * 2 + header[24:29]
    with pytest.raises((ValueError, OSError)):
        decode.picture(header[:16] + ihdr + zlib.crc32(b"IHDR" + ihdr).to_bytes(4, "big") + header[33:], "RGB")


def test_sound_and_film_decode_from_a_dataset(tmp_path: Path) -> None:
    wave = (np.sin(np.arange(800) / 20) / 2).astype("float32")
    sound = io.BytesIO()
    soundfile.write(sound, np.stack([wave, -wave], 1), 8000, format="FLAC")
    film = io.BytesIO()
    with av.open(film, "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 16, 8, "bgr0"
        for number in range(3):
            frame = av.VideoFrame.from_ndarray(np.full((8, 16, 3), number * 40, "uint8"), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    path = tmp_path / "a.mmds"
    with mmds.Writer(path, {"sound": mmds.Audio(), "film": mmds.Video()}) as writer:
        writer.write({"sound": sound.getvalue(), "film": film.getvalue()})
    sample = mmds.MemoryMappedDataset(path)[0]
    assert sample["sound"].dtype == torch.float32 and sample["sound"].shape == (2, 800)
    assert torch.allclose(sample["sound"][0], torch.from_numpy(wave), atol=1e-3)
    assert sample["film"].dtype == torch.uint8 and sample["film"].shape == (3, 3, 8, 16)
    assert sample["film"][:, 0, 0, 0].tolist() == [0, 40, 80]
    assert mmds.MemoryMappedDataset(path, format="numpy")[0]["film"].shape == (3, 8, 16, 3)
    assert mmds.MemoryMappedDataset(path, decode=False)[0]["sound"] == sound.getvalue()


@pytest.mark.parametrize("suffix", [".m4a", ".aac"])
@pytest.mark.parametrize("channels", [1, 2])
def test_aac_decodes_as_other_sounds_do(suffix: str, channels: int) -> None:
    """The codec shifts what it encodes and adds a little at both ends; the tone stays what it was, in -1..1."""
    tone = np.sin(np.arange(32_768) * 2 * np.pi * 1000 / 16_000).astype(np.float32) / 2
    planes = np.stack([tone, -tone / 2])[:channels]
    layout = {1: "mono", 2: "stereo"}[channels]
    file = io.BytesIO()
    with av.open(file, "w", format={".m4a": "ipod", ".aac": "adts"}[suffix]) as container:
        stream = container.add_stream("aac", rate=16_000, layout=layout)
        for start in range(0, planes.shape[1], 1024):
            part = np.ascontiguousarray(planes[:, start : start + 1024])
            frame = av.AudioFrame.from_ndarray(part, format="fltp", layout=layout)
            frame.sample_rate, frame.pts = 16_000, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    found = decode.sound(file.getvalue())
    assert found.dtype == np.float32 and found.flags.c_contiguous
    assert found.shape[0] == channels and abs(found.shape[1] - planes.shape[1]) <= 3 * 1024
    for plane, want in zip(found[:, 8000:24_000], (0.5, 0.25), strict=False):
        assert abs(np.abs(plane).max() - want) < 0.05
        assert np.abs(np.fft.rfft(plane)).argmax() == 1000


@pytest.mark.fault(32)
def test_broken_sounds_and_films_name_their_sample(tmp_path: Path) -> None:
    path = tmp_path / "a.mmds"
    with mmds.Writer(path, {"sound": mmds.Audio(), "film": mmds.Video()}) as writer:
        writer.write({"sound": b"no sound", "film": b"no film"})
    for name in ("sound", "film"):
        with pytest.raises(FormatError, match=f"sample 0, field '{name}': cannot be decoded"):
            mmds.MemoryMappedDataset(path, fields=name)[0]


@pytest.mark.parametrize(
    ("package", "extra", "call"),
    [
        ("PIL", "image", "decode.picture(b'x', 'RGB')"),
        ("soundfile", "audio", "decode.sound(b'x')"),
        ("av", "video", "decode.film(b'x')"),
    ],
)
def test_a_missing_package_is_named_with_its_install_command(package: str, extra: str, call: str) -> None:
    missing = f"import sys; sys.modules[{package!r}] = None\nfrom mmds import decode\n"
    code = missing + f"try: {call}\nexcept ImportError as error: print(error)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith(f'which is not installed. Run: pip install "mmds[{extra}]"\n')
