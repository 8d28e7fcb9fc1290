"""The examples do what they say: real pictures, no pixel in both splits, and training that beats guessing."""

from __future__ import annotations

import doctest
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import mmds
from examples import pictures

EXAMPLES = Path(pictures.__file__).parent


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", str(EXAMPLES / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.jpg"))}


def test_pictures_are_the_same_for_the_same_seed(tmp_path: Path) -> None:
    assert pictures.build(tmp_path / "a", per_class=5) == 60
    pictures.build(tmp_path / "b", per_class=5)
    pictures.build(tmp_path / "c", per_class=5, seed=1)
    first, again, other = (contents(tmp_path / name) for name in "abc")
    assert first == again
    assert first.keys() == other.keys()
    assert all(first[name] != other[name] for name in first)
    assert len(set(first.values())) == 60
    assert sum(name.startswith("val/") for name in first) == 12


def test_pictures_command(tmp_path: Path) -> None:
    done = run("pictures.py", tmp_path / "p", "--per-class", 2)
    assert done.returncode == 0, done.stderr
    assert "24 JPEG files" in done.stdout
    found = contents(tmp_path / "p")
    assert {Path(name).parts[1] for name in found} == set(pictures.PHOTOGRAPHS)
    for data in found.values():
        picture = Image.open(io.BytesIO(data))
        assert (picture.format, picture.size, picture.mode) == ("JPEG", (128, 128), "RGB")


def test_the_default_is_at_least_600_pictures_of_six_classes(tmp_path: Path) -> None:
    assert pictures.build(tmp_path) >= 600
    assert len(list((tmp_path / "train").iterdir())) == len(list((tmp_path / "val").iterdir())) >= 6


@pytest.mark.parametrize("name", pictures.PHOTOGRAPHS)
def test_no_pixel_is_in_both_splits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = pictures.photograph(name)
    regions = pictures.regions(real.width)
    (left, border), (start, right) = regions["train"], regions["val"]
    assert (left, right) == (0, real.width)
    assert border == start
    assert min(border - left, right - start, real.height) >= pictures.SIZE
    marked = Image.new("RGB", real.size, "black")
    marked.paste("white", (start, 0, right, real.height))  # the held-out strip
    monkeypatch.setattr(pictures, "photograph", lambda _: marked)
    for split, expected in (("train", 0), ("val", 255)):
        for data in pictures.crops(name, split, 40):
            assert Image.open(io.BytesIO(data)).convert("L").getextrema() == (expected, expected)


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    stranger = tmp_path / "train" / "cat" / "mine.jpg"
    stranger.parent.mkdir(parents=True)
    stranger.write_bytes(b"mine")
    done = run("pictures.py", tmp_path, "--per-class", 2)
    assert done.returncode == 1
    assert "mine.jpg" in done.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [stranger]


def test_impossible_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 pictures"):
        pictures.build(tmp_path / "p", per_class=1)
    with pytest.raises(ValueError, match="13 classes"):
        pictures.build(tmp_path / "p", classes=13)


def test_docstrings() -> None:
    assert doctest.testmod(pictures).failed == 0


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    pictures.build(folder / "pictures", per_class=40, classes=6)
    mmds.convert(folder / "pictures", folder / "pictures.mmds")
    return folder


@pytest.mark.stress
def test_training_beats_chance_and_repeats(files: Path) -> None:
    arguments = (files / "pictures-train.mmds", files / "pictures-val.mmds", "--epochs", 4)
    first, again = (run("train_cnn.py", *arguments) for _ in range(2))
    assert first.returncode == 0, first.stdout + first.stderr
    assert "192 samples of 6 classes" in first.stdout
    assert "times chance (16.7%)" in first.stdout
    assert "private memory of each worker" in first.stdout

    def measured(text: str) -> list[str]:  # without speeds, which differ
        return re.findall(r"epoch \d+: loss [\d.]+, accuracy [\d.]+%", text)

    assert len(measured(first.stdout)) == 4
    assert measured(first.stdout) == measured(again.stdout)


@pytest.mark.stress
def test_training_that_learns_nothing_fails(files: Path, tmp_path: Path) -> None:
    held_out = mmds.open(files / "pictures-val.mmds")
    with mmds.Writer(tmp_path / "wrong.mmds", held_out.fields) as writer:
        for sample in held_out:
            writer.write({**sample, "label": (sample["label"] + 3) % 6})
    done = run(
        "train_cnn.py", files / "pictures-train.mmds", tmp_path / "wrong.mmds", "--epochs", 3, "--num-workers", 0
    )
    assert done.returncode == 1, done.stdout
    assert "expected at least 3 times chance" in done.stderr
    assert "private memory" not in done.stdout  # there are no workers
