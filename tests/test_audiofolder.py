"""Folders of sounds: classes as in picture folders, files byte for byte, and files that were cut off are found."""

from __future__ import annotations

import importlib.util
import io
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import scipy.io
import soundfile

import mmds
from mmds.converters import sources
from mmds.converters.containers import declared_length
from mmds.converters.recordings import check_sound
from mmds.converters.signatures import extension
from mmds.errors import SourceError
from tests.source_contract import SourceContract

RECORDINGS = Path(scipy.io.__file__).parent / "tests" / "data"  # WAV files of many programs
FORMATS = {
    ".wav": ("WAV", None),
    ".flac": ("FLAC", None),
    ".ogg": ("OGG", "VORBIS"),
    ".opus": ("OGG", "OPUS"),
    ".mp3": ("MP3", None),
    ".aiff": ("AIFF", None),
}
SUFFIXES = (*FORMATS, ".m4a", ".aac")


def wave(number: int = 0, seconds: float = 0.25) -> np.ndarray[Any, Any]:
    """Return a chirp in noise at 16 kHz, another one for every number."""
    time = np.arange(int(16000 * seconds)) / 16000
    noise = np.random.default_rng(number).normal(0, 0.02, len(time))
    return np.asarray(np.sin((500 + 100 * number + 900 * time) * 2 * np.pi * time) / 2 + noise, np.float32)


@cache
def sound(number: int = 0, suffix: str = ".wav", seconds: float = 0.25) -> bytes:
    """Return the chirp encoded."""
    file = io.BytesIO()
    if suffix in FORMATS:
        format, subtype = FORMATS[suffix]
        soundfile.write(file, wave(number, seconds), 16000, format=format, subtype=subtype)
        return file.getvalue()
    with av.open(file, "w", format={".m4a": "ipod", ".aac": "adts"}[suffix]) as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frames = wave(number, seconds)
        for start in range(0, len(frames) - 1023, 1024):
            frame = av.AudioFrame.from_ndarray(frames[None, start : start + 1024], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def reason(data: bytes, decode: bool = False) -> str:
    with pytest.raises(SourceError) as caught:
        check_sound(data, decode=decode)
    return str(caught.value)


class TestAudioFolder(SourceContract):
    format = "audiofolder"

    def make(self, folder: Path) -> Path:
        for each in self.samples():
            path = folder / each["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(each["audio"])
        (folder / "silence").mkdir()
        (folder / "LICENSE.txt").touch()
        return folder

    def samples(self) -> list[Any]:
        return [
            {
                "audio": sound(number, SUFFIXES[number % 8]),
                "label": label,
                "path": f"{name}/{number:02}{SUFFIXES[number % 8]}",
            }
            for label, name in ((0, "music"), (2, "speech/loud"))
            for number in range(label * 10, label * 10 + 20)
        ]

    def spoil(self, path: Path) -> str | None:
        file = path / "music" / "09.flac"
        file.write_bytes(file.read_bytes()[:-1])
        return "music/09.flac"


class TestDecodedAudioFolder(TestAudioFolder):
    options = {"check": "decode"}  # noqa: RUF012 (as in the contract)


def test_flat_folders_and_splits(tmp_path: Path) -> None:
    for name in ("train/a/1.wav", "train/2.wav", "val/3.WAV", "val/x.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(sound())
    train, val = sources(tmp_path, "audiofolder")
    assert [each.split for each in (train, val)] == ["train", "val"]
    assert train.fields == {"audio": mmds.Audio(), "label": mmds.Label(("a",)), "path": mmds.Text(key=True)}
    assert val.fields == {"audio": mmds.Audio(), "path": mmds.Text(key=True)}
    assert train.ignored["sound outside every class folder"].examples == ["train/2.wav"]
    assert val.ignored["file extension of no sound format"].examples == ["val/x.jpg"]
    assert val.load(("3.WAV", None)) == {"audio": sound(), "path": "3.WAV"}
    assert sources(tmp_path)[0].metadata == {"source": "imagefolder"}  # mixed: what is meant has to be said
    with pytest.raises(ValueError, match="expected 'quick' or 'decode'"):
        sources(tmp_path, "audiofolder", check=1)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_is_whole_or_truncated(suffix: str) -> None:
    data = sound(1, suffix, seconds=2)
    assert extension(data) == suffix
    for decode in (False, True):
        check_sound(data, decode=decode)
        for cut in (1, 7, 100, len(data) // 2, len(data) - 40):
            if suffix == ".mp3" and cut < 100 and not decode:
                continue  # nothing in a frame says that its last bytes are missing
            reason(data[: len(data) - cut], decode)


@pytest.mark.parametrize("suffix", [suffix for suffix in SUFFIXES if suffix not in (".flac", ".mp3")])
def test_structures_tell_every_missing_byte(suffix: str) -> None:
    data = sound(1, suffix)
    assert declared_length(data) == declared_length(data + b"\0") == len(data)
    frames = 0
    for size in range(100, len(data), 13):
        length = declared_length(data[:size])
        if length is None:  # a stream of pages may end without a mark on the last one, and a box be missing as a whole
            assert suffix in (".ogg", ".opus", ".m4a")
        elif length == size:
            frames += 1
        else:
            assert length > size
    assert frames < (10 if suffix == ".aac" else 1)  # a stream of frames may end behind any of them


def test_an_mp3_without_a_table_of_contents_passes() -> None:
    data = sound(1, ".mp3", seconds=2)
    second = data.index(data[:2], 4)
    assert b"Xing" in data[:second] or b"Info" in data[:second]
    check_sound(data[second:])
    check_sound(data[second:], decode=True)
    check_sound(b"ID3\x03\0\0\0\0\0\x0a" + bytes(10) + data, decode=True)


def test_recordings_of_other_programs() -> None:
    found = {}
    for path in sorted(RECORDINGS.glob("*.wav")):
        try:
            check_sound(path.read_bytes())
        except SourceError as error:
            found[path.stem.removeprefix("test-")] = str(error)
    assert {name: text for name, text in found.items() if "truncated" not in text} == {}
    assert set(found) == {
        "44100Hz-le-1ch-4bytes-early-eof",
        "44100Hz-le-1ch-4bytes-early-eof-no-data",
        "44100Hz-le-1ch-4bytes-incomplete-chunk",
    }


def test_streams_of_untold_length_pass_if_they_can_be_decoded() -> None:
    data = bytearray(sound())
    data[40:44] = data[4:8] = b"\xff\xff\xff\xff"
    assert declared_length(bytes(data)) is None
    check_sound(bytes(data))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a sound",
        b"RIFF",
        b"RIFF\x04\0\0\0WAVE",
        b"RIFF\xff\xff\xff\x7fWAVEdata\xff\xff\xff\x7f",
        b"RF64\xff\xff\xff\xffWAVEds64\x1c\0\0\0" + b"\xff" * 28,
        b"OggS" + bytes(22) + b"\xff" + b"\xff" * 255,
        b"OggS" + bytes(22),
        b"fLaC\0\0\0\x22" + bytes(34),
        b"FORM\xff\xff\xff\xffAIFFCOMM",
        b"\0\0\0\x08ftypM4A ",
        b"\0\0\0\x01ftypM4A " + b"\xff" * 8,
        b"\0\0\0\x01ftypM4A ",
        b"\0\0\0\x10ftypM4A \0\0\0\0\0\0\0\x01moov" + b"\xff" * 8,
        b"\xff\xf1\x50\x80\0\x1f\xfc",
        b"\xff\xf1\x50\x80\xff\xff\xfc",
        b"ID3\x04\0\0\x7f\x7f\x7f\x7f",
        b"\xff\xfb\x90\x64" + bytes(10),
    ],
)
def test_hostile_bytes_are_refused(data: bytes) -> None:
    assert reason(data) and reason(data, decode=True)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damaged_structures_are_measured_without_an_error(suffix: str) -> None:
    random = np.random.default_rng(0)
    data = sound(2, suffix)
    for _ in range(300):
        damaged = bytearray(data[: random.integers(1, len(data))])
        for place in random.integers(0, min(len(damaged), 200), 4):
            damaged[place] = (0, 1, 0x7F, 0x80, 0xFF, 0x55)[random.integers(6)]
        length = declared_length(bytes(damaged))
        assert length is None or length >= 0


def test_an_mp3_whose_length_is_an_estimate_passes() -> None:
    """A real one: it declares 80,151 samples, and decodes to 80,064."""
    spec = importlib.util.find_spec("pygame")
    assert spec is not None and spec.submodule_search_locations is not None
    data = (Path(spec.submodule_search_locations[0]) / "examples" / "data" / "house_lo.mp3").read_bytes()
    check_sound(data)
    check_sound(data, decode=True)
