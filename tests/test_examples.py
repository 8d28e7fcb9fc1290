"""The examples do what they say: real pictures, no pixel in both splits, and training that beats guessing."""

from __future__ import annotations

import doctest
import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
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


# Several ranks: each example is killed in the middle of an epoch and started again

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
COMMANDS = {
    "ddp": (*TORCHRUN, "-m", "examples.ddp"),
    "lightning_ddp": ("-m", "examples.lightning_ddp"),
    "accelerate_ddp": (*TORCHRUN, "-m", "examples.accelerate_ddp"),
}


def start(name: str, files: Path, folder: Path, epochs: int) -> subprocess.Popen[str]:
    saved = ("--checkpoint", folder / "ddp.pt") if name == "ddp" else ("--checkpoints", folder)
    command = [*COMMANDS[name], files / "pictures-train.mmds", files / "pictures-val.mmds", *saved, "--epochs", epochs]
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=EXAMPLES.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
    )


def trained(name: str, files: Path, folder: Path, epochs: int) -> str:
    """Return what the command prints."""
    process = start(name, files, folder, epochs)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 0, printed
    assert processes(printed).keys() == {0, 1}
    return printed


def processes(printed: str) -> dict[int, int]:
    """Return the process of each rank. Both print at the same time, so what they say may be in one line."""
    return {int(rank): int(process) for rank, process in re.findall(r"rank ([01]) of 2 is process (\d+)", printed)}


def losses(printed: str) -> dict[int, float]:
    return {int(epoch): float(loss) for epoch, loss in re.findall(r"^epoch (\d+): loss ([\d.]+)", printed, re.M)}


def saved(name: str, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the state of the loader and of the model in the newest checkpoint."""
    if name == "ddp":
        state = torch.load(folder / "ddp.pt", weights_only=True)
        return state["loader"], state["model"]
    if name == "lightning_ddp":
        state = torch.load(folder / "last.ckpt", weights_only=False)
        return state["loops"]["fit_loop"]["state_dict"]["combined_loader"][0], state["state_dict"]
    from safetensors.torch import load_file

    last = (folder / "last").resolve()  # of which the example may make another one meanwhile
    return torch.load(last / "custom_checkpoint_0.pkl", weights_only=True), load_file(last / "model.safetensors")


def in_the_middle(name: str, folder: Path) -> bool:
    """Return whether the newest checkpoint is of the middle of an epoch."""
    try:
        return bool(0 < saved(name, folder)[0]["position"] < 192)
    except (OSError, EOFError, RuntimeError):  # none is there yet, or not whole
        return False


@pytest.mark.stress
def test_training_on_two_ranks(files: Path, tmp_path: Path) -> None:
    found = losses(trained("ddp", files, tmp_path, epochs=3))
    assert found.keys() == {0, 1, 2}
    assert found[2] < found[1] < found[0]


@pytest.mark.stress
@pytest.mark.parametrize("name", COMMANDS)
def test_training_goes_on_after_a_rank_was_killed(name: str, files: Path, tmp_path: Path) -> None:
    for folder in ("whole", "killed"):
        (tmp_path / folder).mkdir()
    epochs = 6
    whole = losses(trained(name, files, tmp_path / "whole", epochs))
    assert whole.keys() == set(range(epochs))
    assert whole[5] < whole[2] < whole[0]

    process = start(name, files, tmp_path / "killed", epochs)
    assert process.stdout
    ranks = {}
    for line in process.stdout:
        ranks.update(processes(line))
        if line.startswith("epoch 1:"):
            break
    while process.poll() is None and not in_the_middle(name, tmp_path / "killed"):
        time.sleep(0.01)
    os.kill(ranks[1], signal.SIGKILL)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "epoch 5:" not in printed

    place, _ = saved(name, tmp_path / "killed")
    assert 0 < place["epoch"] < epochs - 1
    rest = losses(trained(name, files, tmp_path / "killed", epochs))
    later = range(place["epoch"] + 1, epochs)  # whole epochs
    assert {epoch: rest[epoch] for epoch in later} == {epoch: whole[epoch] for epoch in later}
    assert rest.keys() - {place["epoch"]} == set(later)
    weights, again = (saved(name, tmp_path / folder)[1] for folder in ("whole", "killed"))
    assert all(torch.equal(weights[key], again[key]) for key in weights)


@pytest.mark.stress
def test_the_three_ways_are_one_training(files: Path, tmp_path: Path) -> None:
    found = []
    for name in COMMANDS:
        (tmp_path / name).mkdir()
        found.append(losses(trained(name, files, tmp_path / name, epochs=2)))
    assert found[0] == found[1] == found[2]
    assert found[0].keys() == {0, 1}
