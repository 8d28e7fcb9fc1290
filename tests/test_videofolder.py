"""Folders of films: classes as in picture folders, files byte for byte, and files that were cut off are found."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from skimage import data as photos

import mmds
from mmds.converters import sources
from mmds.converters.containers import declared_length
from mmds.converters.recordings import check_film
from mmds.converters.signatures import extension
from mmds.errors import SourceError
from tests.source_contract import SourceContract

PHOTO = photos.astronaut()  # type: ignore[no-untyped-call]
FORMATS = {
    ".mp4": ("mp4", "libx264"),
    ".mkv": ("matroska", "libx264"),
    ".avi": ("avi", "mpeg4"),
    ".mov": ("mov", "mpeg4"),
    ".webm": ("webm", "libvpx"),
    ".mpg": ("mpeg", "mpeg2video"),
}
SUFFIXES = tuple(FORMATS)


@cache
def film(number: int = 0, suffix: str = ".mp4", options: tuple[tuple[str, str], ...] = ()) -> bytes:
    """Return a film of ten frames that moves over a photograph, another one for every number."""
    file = io.BytesIO()
    format, codec = FORMATS[suffix]
    with av.open(file, "w", format=format, options=dict(options)) as container:
        stream: Any = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for step in range(10):
            y, x = 5 * number + 3 * step, 4 * number + 2 * step
            pixels = np.ascontiguousarray(PHOTO[y : y + 48, x : x + 64])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def reason(data: bytes, decode: bool = False) -> str:
    with pytest.raises(SourceError) as caught:
        check_film(data, decode=decode)
    return str(caught.value)


class TestVideoFolder(SourceContract):
    format = "videofolder"

    def make(self, folder: Path) -> Path:
        for each in self.samples():
            path = folder / each["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(each["video"])
        return folder

    def samples(self) -> list[Any]:
        return [
            {
                "video": film(number, SUFFIXES[number % 6]),
                "label": label,
                "path": f"{name}/{number:02}{SUFFIXES[number % 6]}",
            }
            for label, name in enumerate(("run", "walk"))
            for number in range(label * 20, label * 20 + 20)
        ]

    def spoil(self, path: Path) -> str | None:
        file = path / "run" / "07.mkv"
        file.write_bytes(file.read_bytes()[:-1])
        return "run/07.mkv"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_is_whole_or_truncated(suffix: str) -> None:
    data = film(1, suffix)
    assert extension(data) == suffix
    for decode in (False, True):
        check_film(data, decode=decode)
        if suffix != ".mpg":  # whose packets end anywhere
            for cut in (1, 7, 100, len(data) // 2, len(data) - 40):
                reason(data[: len(data) - cut], decode)
    if suffix != ".mpg":
        assert declared_length(data) == len(data)


def test_the_index_may_come_first(tmp_path: Path) -> None:
    path = tmp_path / "1.mp4"
    with av.open(io.BytesIO(film()), "r") as source, av.open(path, "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                container.mux(packet)
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    check_film(data, decode=True)
    for cut in (1, 9, 500):
        assert "truncated film" in reason(data[: len(data) - cut])


def test_a_live_segment_of_unknown_size_passes() -> None:
    data = film(1, ".webm", options=(("live", "1"),))
    assert declared_length(data) is None
    check_film(data)


@pytest.mark.fault(32)
def test_no_playlist_reaches_ffmpeg(tmp_path: Path) -> None:
    (tmp_path / "secret.ts").write_bytes(film(1, ".mpg"))
    for text in (
        f"#EXTM3U\n#EXTINF:1,\nfile://{tmp_path}/secret.ts\n",
        f"ffconcat version 1.0\nfile {tmp_path}/secret.ts\n",
    ):
        assert reason(text.encode(), decode=True) == "not a film in any format that is known"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"RIFF\xff\xff\xff\x7fAVI LIST",
        b"RIFF\x04\0\0\0AVI ",
        b"\x1a\x45\xdf\xa3",
        b"\x1a\x45\xdf\xa3\x01\xff\xff\xff\xff\xff\xff\xff",
        b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\x01\xff\xff\xff\xff\xff\xff\xfe",
        b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\x80",
        b"\0\0\0\x10ftypisom\0\0\0\0\0\0\0\0",
        b"\0\0\x01\xba" + bytes(100),
        b"\xff\xd8\xff\xe0",
    ],
)
def test_hostile_bytes_are_refused(data: bytes) -> None:
    assert reason(data) and reason(data, decode=True)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damaged_structures_are_measured_without_an_error(suffix: str) -> None:
    random = np.random.default_rng(0)
    data = film(2, suffix)
    for _ in range(300):
        damaged = bytearray(data[: random.integers(1, len(data))])
        for place in random.integers(0, min(len(damaged), 200), 4):
            damaged[place] = (0, 1, 0x7F, 0x80, 0xFF, 0x55)[random.integers(6)]
        length = declared_length(bytes(damaged))
        assert length is None or length >= 0


def test_a_file_without_pictures_is_no_film(tmp_path: Path) -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), "float32"), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert reason(file.getvalue(), decode=True) == "a file without video"


def test_decode_computes_and_quick_reads(tmp_path: Path) -> None:
    (tmp_path / "1.mp4").write_bytes(film())
    (quick,) = sources(tmp_path)
    (slow,) = sources(tmp_path, check="decode")
    assert not quick.cpu_bound and slow.cpu_bound and quick.metadata == slow.metadata == {"source": "videofolder"}
    assert quick.fields == {"video": mmds.Video(), "path": mmds.Text(key=True)}
    assert slow.load(("1.mp4", None)) == {"video": film(), "path": "1.mp4"}
