"""Conversions end to end: the bytes that come out, and what happens when something in the source or a worker is bad."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage import data as photos
from sklearn.datasets import load_sample_images

import mmds
from mmds.errors import ExistsError, SourceError, StorageError
from mmds.pipeline import convert

PHOTOS: list[Any] = [photos.astronaut(), photos.chelsea()]  # type: ignore[no-untyped-call]
IMAGES = [Image.fromarray(array) for array in (*PHOTOS, *load_sample_images().images)]


def picture(number: int, size: int = 48) -> bytes:
    """Return a JPEG of a photograph, another one for every number."""
    image = IMAGES[number % len(IMAGES)]
    x, y = 37 * number % (image.width - size), 53 * number % (image.height - size)
    file = io.BytesIO()
    image.crop((x, y, x + size, y + size - number % 5)).save(file, "JPEG", quality=85)
    return file.getvalue()


def fill(root: Path, count: int, classes: int = 4, size: int = 48) -> Path:
    for number in range(count):
        folder = root / f"class{number % classes}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:06d}.jpg").write_bytes(picture(number, size))
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 pictures: more than a few chunks, less than it takes to be slow."""
    return fill(tmp_path_factory.mktemp("pictures") / "set", 60)


@pytest.fixture
def bad_folder(tmp_path: Path) -> Path:
    """30 good pictures and 3 bad ones."""
    root = fill(tmp_path / "bad", 30)
    (root / "class1" / "a\x1b[2J\u202e\n.jpg").write_text("<script>")
    os.mkfifo(root / "class2" / "fifo.jpg")
    (root / "class3" / "up").symlink_to("..")
    return root


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def left_in(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def test_1000_real_pictures_are_kept_byte_for_byte(tmp_path: Path) -> None:
    root = fill(tmp_path / "set", 1000, 10, 64)
    result = convert(root, tmp_path / "out.mmds", num_workers=2)
    reader = mmds.open(tmp_path / "out.mmds")
    assert result.samples == len(reader) == 1000 and not result.errors and not result.ignored
    names = sorted(str(path.relative_to(root)) for path in root.rglob("*.jpg"))
    assert list(reader.column("path")) == names
    for name, sample in zip(names, reader, strict=True):
        assert sample["image"] == (root / name).read_bytes()
        assert sample["label"] == int(name[len("class")])
    assert left_in(tmp_path) == ["out.mmds", "set"]


@pytest.mark.parametrize("options", [{}, {"resize": 20}, {"resize": 20, "crop": 16, "encode": "raw"}])
def test_bytes_do_not_depend_on_the_number_of_workers(tmp_path: Path, folder: Path, options: dict[str, Any]) -> None:
    counts = (1, 2, 3) if len(options) != 1 else (1, 2)  # starting processes takes half a second
    paths = [tmp_path / f"{workers}.mmds" for workers in counts]
    for workers, path in zip(counts, paths, strict=True):
        convert(folder, path, num_workers=workers, **options)
    assert len({digest(path) for path in paths}) == 1
    moved = tmp_path / "elsewhere"
    folder.rename(moved)
    try:
        convert(moved, tmp_path / "moved.mmds", num_workers=1, **options)
    finally:
        moved.rename(folder)
    assert digest(tmp_path / "moved.mmds") == digest(paths[0])
    assert dict(mmds.open(paths[0]).metadata) == {"source": "imagefolder", **options}


def test_raw_pixels_in_the_file_are_those_of_the_picture(tmp_path: Path, folder: Path) -> None:
    convert(folder, tmp_path / "raw.mmds", encode="raw", limit=3, num_workers=1)
    for sample in mmds.open(tmp_path / "raw.mmds"):
        want = np.asarray(Image.open(folder / sample["path"]).convert("RGB"))
        assert np.array_equal(sample["image"].transpose(1, 2, 0), want)


@pytest.mark.fault(35)
def test_raise_names_the_first_and_publishes_nothing(tmp_path: Path, bad_folder: Path) -> None:
    (bad_folder / "class3" / "up").unlink()
    with pytest.raises(SourceError) as caught:
        convert(bad_folder, tmp_path / "out.mmds", num_workers=2)
    message = str(caught.value)
    assert str(bad_folder) in message and r"class1/a\x1b[2J\u202e\n.jpg: not a picture in any" in message
    assert message.isprintable() and "on_error=" in message
    assert left_in(tmp_path) == ["bad"]


@pytest.mark.parametrize("policy", ["skip", "quarantine"])
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.fault(35)
def test_bad_samples_are_counted_and_listed(tmp_path: Path, bad_folder: Path, policy: str, workers: int) -> None:
    before = sorted(str(path) for path in bad_folder.rglob("*"))
    result = convert(bad_folder, tmp_path / "out.mmds", num_workers=workers, on_error=policy)
    assert result.samples == len(mmds.open(tmp_path / "out.mmds")) == 30
    assert result.errors == (
        ("class3/up", "a symbolic link back to a folder above it"),
        (r"class1/a\x1b[2J\u202e\n.jpg", "not a picture in any format that Pillow knows"),
        ("class2/fifo.jpg", "not a file but a FIFO"),
    )
    assert sorted(str(path) for path in bad_folder.rglob("*")) == before
    if policy == "skip":
        assert result.quarantine is None and left_in(tmp_path) == ["bad", "out.mmds"]
    else:
        assert result.quarantine == tmp_path / "out.mmds.quarantine.jsonl"
        lines = [json.loads(line) for line in result.quarantine.read_text("ascii").splitlines()]
        assert [line["name"] for line in lines] == ["class3/up", "class1/a\x1b[2J\u202e\n.jpg", "class2/fifo.jpg"]
        assert [line["reason"] for line in lines] == [reason for _, reason in result.errors]


@pytest.mark.fault(35)
def test_quarantine_of_good_samples_is_no_file(tmp_path: Path, folder: Path) -> None:
    assert convert(folder, tmp_path / "out.mmds", on_error="quarantine", num_workers=1).quarantine is None
    assert left_in(tmp_path) == ["out.mmds"]


@pytest.mark.fault(35)
def test_nothing_usable_is_an_error_under_every_policy(tmp_path: Path) -> None:
    (tmp_path / "set" / "c").mkdir(parents=True)
    with pytest.raises(SourceError, match="no samples found; class folder without pictures: 1, such as c"):
        convert(tmp_path / "set", tmp_path / "out.mmds", on_error="skip")
    (tmp_path / "set" / "c" / "x.jpg").touch()
    with pytest.raises(SourceError, match=r"none of the 1 samples can be used; c/x.jpg: an empty file"):
        convert(tmp_path / "set", tmp_path / "out.mmds", on_error="quarantine")
    assert left_in(tmp_path) == ["set"]


def test_splits_give_one_file_each_or_none(tmp_path: Path) -> None:
    fill(tmp_path / "set" / "train", 8, 3)
    fill(tmp_path / "set" / "val", 4, 4)
    result = convert(tmp_path / "set", tmp_path / "out.mmds", num_workers=1)
    assert [(Path(output.path).name, output.samples) for output in result.outputs] == [
        ("out-train.mmds", 8),
        ("out-val.mmds", 4),
    ]
    assert result.samples == 12
    train, val = (mmds.open(output.path) for output in result.outputs)
    assert train.fields == val.fields and val[3]["label"] == 3
    (tmp_path / "set" / "val" / "class0" / "z.jpg").touch()
    with pytest.raises(SourceError, match=r"val/class0/z.jpg: an empty file"):
        convert(tmp_path / "set", tmp_path / "new.mmds", num_workers=1)
    assert left_in(tmp_path) == ["out-train.mmds", "out-val.mmds", "set"]
    with pytest.raises(ExistsError):
        convert(tmp_path / "set", tmp_path / "out.mmds", num_workers=1, on_error="skip")
    together = convert(tmp_path / "set", tmp_path / "one.mmds", num_workers=1, on_error="skip", splits=False)
    assert [Path(output.path).name for output in together.outputs] == ["one.mmds"] and together.samples == 12


def test_limit_takes_the_first_of_the_source(tmp_path: Path, folder: Path) -> None:
    convert(folder, tmp_path / "all.mmds", num_workers=1)
    everything = mmds.open(tmp_path / "all.mmds")
    for limit, expected in ((0, 0), (1, 1), (17, 17), (1000, 60)):
        result = convert(folder, tmp_path / "some.mmds", limit=limit, num_workers=2, overwrite=True)
        assert result.samples == expected
        assert list(mmds.open(tmp_path / "some.mmds")) == list(everything[:limit])


def test_progress_is_told_at_most_ten_times_a_second_and_at_the_end(tmp_path: Path, bad_folder: Path) -> None:
    calls: list[tuple[int, int | None, int]] = []
    start = time.monotonic()
    convert(
        bad_folder, tmp_path / "out.mmds", num_workers=1, on_error="skip", progress=lambda *args: calls.append(args)
    )
    assert calls[-1] == (32, 32, 3)
    assert len(calls) <= 2 + 10 * (time.monotonic() - start)


def test_arguments_that_make_no_sense(tmp_path: Path, folder: Path) -> None:
    for options in ({"on_error": "ignore"}, {"num_workers": 0}, {"limit": -1}):
        with pytest.raises(ValueError, match="expected"):
            convert(folder, tmp_path / "out.mmds", **options)
    with pytest.raises(TypeError, match="no option 'resise'"):
        convert(folder, tmp_path / "out.mmds", resise=3)
    with pytest.raises(StorageError):
        convert(folder, tmp_path / "missing" / "out.mmds")
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("options", [{}, {"resize": 20}])
@pytest.mark.parametrize("after", [1, 20, 60])
def test_ctrl_c_publishes_nothing_and_leaves_nobody(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], after: int
) -> None:
    def interrupt(done: int, *_: Any) -> None:
        if done == after:
            raise KeyboardInterrupt

    monkeypatch.setattr("mmds.conversion.PROGRESS_SECONDS", 0)
    with pytest.raises(KeyboardInterrupt):
        convert(folder, tmp_path / "out.mmds", num_workers=2, progress=interrupt, **options)
    assert left_in(tmp_path) == []
    assert not multiprocessing.active_children()


def test_memory_does_not_grow_with_the_source(tmp_path: Path) -> None:
    """3,000 files of 100 KB are 300 MB, through a limit of less than half of it above the start of Python."""
    folder = tmp_path / "set" / "c"
    folder.mkdir(parents=True)
    jpeg = picture(0)
    padded = jpeg[:2] + b"\xff\xfe\xff\xff" + bytes(0xFFFD) + jpeg[2:]
    (folder / "000000.jpg").write_bytes(padded)
    for number in range(1, 3000):
        os.link(folder / "000000.jpg", folder / f"{number:06d}.jpg")
    code = (
        "import sys; from pathlib import Path; from mmds.pipeline import convert\n"
        "convert(sys.argv[1], sys.argv[2], num_workers=2)\n"
        "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"  # getrusage counts the parent's
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "set"), str(tmp_path / "out.mmds")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (tmp_path / "out.mmds").stat().st_size > 3000 * 2**16
    assert int(run.stdout) < 100 * 1024
