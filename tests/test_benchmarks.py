"""Every benchmark runs, measures what it says, and notices when a promise is broken. No test looks at a clock."""

from __future__ import annotations

import dataclasses
import doctest
import importlib.metadata
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import mmds
from benchmarks import (
    conversion,
    machine,
    picture_folder,
    processes,
    progress,
    reading,
    rounds,
    scaling,
    sparse,
    transport,
)
from benchmarks.memory import cached, workers
from benchmarks.memory.epoch import Measurement, Moment
from benchmarks.memory.report import broken_promises, table

ROOT = Path(conversion.__file__).parent.parent
MIB = 2**20


def run(module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_reading() -> None:
    done = run("reading", "--quick", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no progress in a pipe
    figures: dict[str, Any] = json.loads(done.stdout)
    assert figures["open"]["private_mib"] < 1
    assert figures["open"]["on_disk_kib"] < 1024
    assert figures["open"]["file_gb"] > 300
    for part in ("sample", "batch"):
        assert all(value > 0 for value in figures[part].values()), figures[part]
    text = reading.report(figures, figures["samples"], figures["rounds"])
    assert "| batch of 256 : `np.copyto` of as many bytes, speed |" in text
    assert f"mmds {importlib.metadata.version('mmds')}" in text


def test_cached() -> None:
    done = run("memory.cached", "--quick", "--json")
    assert done.returncode == 0, done.stderr
    figures: dict[str, Any] = json.loads(done.stdout)
    assert sum(figures["together"]) == figures["samples"] == 50  # four processes read nothing twice
    assert cached.report(figures).startswith("filling adds ")


@pytest.mark.stress  # many processes that import torch, or holes of a sparse file: half a minute
def test_scaling() -> None:
    done = run("scaling", "--quick", "--json")
    assert done.returncode == 0, done.stderr
    figures: dict[str, Any] = json.loads(done.stdout)
    assert figures["per_batch_us"].keys() == scaling.WAYS.keys()
    for found in figures["per_batch_us"].values():
        assert [int(n) for n in found] == list(scaling.SIZES)
        assert all(value > 0 for value in found.values())
    assert figures["first_batch_s"]["mmds"] > 0
    figures["per_batch_us"] = {
        way: {int(n): value for n, value in found.items()} for way, found in figures["per_batch_us"].items()
    }
    assert "| 100,000,000 samples |" in scaling.report(figures, 1)


def test_transport() -> None:
    done = run("transport", "--quick", "--json")
    assert done.returncode == 0, done.stderr
    figures: dict[str, Any] = json.loads(done.stdout)["epochs"]
    assert tuple(figures) == transport.NAMES
    assert all(found[way] > 0 for found in figures.values() for way in ("transport", "dataset", "loader"))
    assert transport.report(figures, 1).count("k/s") == 4


@pytest.mark.stress
def test_images() -> None:
    done = run("images", "--quick", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)


def test_a_sparse_file_opens_and_reads_as_zeros(tmp_path: Path) -> None:
    sparse.write_sparse(tmp_path / "a.mmds", 10**9)
    reader = mmds.open(tmp_path / "a.mmds")
    assert len(reader) == 10**9
    for index in (0, 123_456_789, 10**9 - 1):
        assert reader[index]["label"] == 0
        assert not reader[index]["vector"].any()
    with pytest.raises(ValueError, match="fixed size"):
        sparse.write_sparse(tmp_path / "b.mmds", 10, mmds.Bytes())
    with pytest.raises(ValueError, match="at least one sample"):
        sparse.write_sparse(tmp_path / "b.mmds", 0)
    assert not (tmp_path / "b.mmds").exists()


def test_a_small_sparse_file_is_what_the_writer_writes(tmp_path: Path) -> None:
    """All but the block hashes, which a sparse file has none of."""
    sparse.write_sparse(tmp_path / "sparse.mmds", 3, {"vector": mmds.Array("uint8", (320,))})
    with mmds.Writer(tmp_path / "written.mmds", {"vector": mmds.Array("uint8", (320,))}) as writer:
        for sample in mmds.open(tmp_path / "sparse.mmds"):
            writer.write(sample)
    ours, theirs = (mmds.open(tmp_path / name).footer for name in ("sparse.mmds", "written.mmds"))
    assert dataclasses.replace(ours, root="", content_id="") == dataclasses.replace(theirs, root="", content_id="")


@pytest.mark.stress
def test_memory_of_workers(tmp_path: Path) -> None:
    arguments = ("--size", 4 * MIB, "--workers", "0,2", "--check", "--json", "--plot", tmp_path / "plot.png")
    done = run("memory.workers", *arguments)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    runs = [Measurement.from_json(json.dumps(one)) for one in figures["runs"]]
    assert {(one.contender, one.workers) for one in runs} == {(c, w) for c in ("list", "mmds") for w in (0, 2)}
    for one in runs:
        assert len(one.last.private) == len(one.first.private) == max(one.workers, 1)
        assert one.last.total > sum(one.last.private) > MIB
        assert one.last.file <= figures["file_bytes"] + 4096
        assert (one.last.file > 3 * MIB) == (one.contender == "mmds")
    text = table(runs)
    assert len(text.splitlines()) == 4
    assert "MiB (" in text
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.size[0] > 300


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--size", "1000"), "every worker needs a batch"),
        (("--contenders", "dict"), "--contenders list,mmds"),
        (("--check", "--workers", "0"), "--check is about the workers"),
    ],
)
def test_memory_refuses_what_it_cannot_measure(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        workers.main(arguments)
    assert message in capsys.readouterr().err


def test_broken_promises_are_found() -> None:
    first = Moment(total=400 * MIB, file=50 * MIB, private=(10 * MIB, 10 * MIB), uss=(10 * MIB, 10 * MIB))
    last = dataclasses.replace(first, total=450 * MIB, file=100 * MIB)
    good = Measurement("mmds", 2, first, last, 1.0)
    assert broken_promises([good], 100 * MIB) == []
    copied = dataclasses.replace(last, private=(10 * MIB, 12 * MIB))
    assert "grew by 2.0 MiB" in broken_promises([dataclasses.replace(good, last=copied)], 100 * MIB)[0]
    twice = dataclasses.replace(last, total=550 * MIB, file=200 * MIB)
    [message] = broken_promises([dataclasses.replace(good, last=twice)], 100 * MIB)
    assert "of a file of" in message
    leaked = dataclasses.replace(last, total=456 * MIB)
    [message] = broken_promises([dataclasses.replace(good, last=leaked)], 100 * MIB)
    assert "the total beside the file grew by 6.0 MiB" in message
    assert broken_promises([dataclasses.replace(good, contender="list", last=copied)], 100 * MIB) == []


def test_conversion(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    small = ["--count", "30", "--real", "14", "--classes", "3", "--rounds", "1", "--cache", "warm"]
    assert conversion.main([*small, "--json", "--folder", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["pictures"], found["compared"], found["folders"]) == (44, 44, 15)
    assert found["figures"]["warm"]["mmds_peak_bytes"] > 10 * MIB
    assert found["figures"]["warm"]["ratio_to_cp"] > 0
    assert "| warm |" in conversion.report(found["figures"], found)
    assert list(tmp_path.iterdir()) == []


def test_conversion_compares_every_byte(tmp_path: Path) -> None:
    source = tmp_path / "pictures"
    picture_folder.write_pictures(source, generated=6, real=0, classes=2)
    mmds.convert(source, tmp_path / "out.mmds")
    assert conversion.compare(source, tmp_path / "out.mmds") == 6
    victim = sorted(source.rglob("*.jpg"))[4]
    data = bytearray(victim.read_bytes())
    data[-3] ^= 1
    victim.write_bytes(data)
    with pytest.raises(AssertionError, match=victim.name):
        conversion.compare(source, tmp_path / "out.mmds")
    victim.unlink()
    with pytest.raises((AssertionError, ValueError)):
        conversion.compare(source, tmp_path / "out.mmds")


def test_generated_pictures_are_different_and_whole(tmp_path: Path) -> None:
    size = picture_folder.write_pictures(tmp_path, generated=300, real=13, classes=7)
    files = [path.read_bytes() for path in tmp_path.rglob("*.jpg")]
    assert len(files) == len(set(files)) == 313
    assert sum(map(len, files)) == size
    picture = Image.open(io.BytesIO((tmp_path / "generated_004" / "0000277.jpg").read_bytes()))  # 277 = 39 * 7 + 4
    assert picture.info["comment"] == b"277"
    picture.load()
    sizes = [len(data) for data in picture_folder.encoded(16)]
    assert 10_000 < min(sizes) <= max(sizes) < 32_000


def test_contenders_take_turns() -> None:
    calls: list[tuple[str, int]] = []
    contenders = {name: lambda number, name=name: calls.append((name, number)) for name in "ab"}
    found = rounds.medians(contenders, 5, warm_up=1)
    assert found.keys() == {"a", "b"}
    assert [number for _, number in calls] == [number for number in range(6) for _ in "ab"]
    assert {name for name, _ in calls[:2]} == {"a", "b"}


def test_peak_memory_counts_child_processes() -> None:
    child = "import time; data = b'x' * 50_000_000; time.sleep(0.3)"
    parent = f"import subprocess, sys; data = b'x' * 50_000_000; subprocess.run([sys.executable, '-c', {child!r}])"
    assert processes.run([sys.executable, "-c", parent]).peak_rss > 100_000_000


def test_a_command_that_fails_says_why() -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        processes.run(["sh", "-c", "echo broken >&2; exit 3"])
    assert (caught.value.returncode, caught.value.stderr) == (3, "broken\n")
    processes.run(["sh", "-c", "exit 3"], expected=3)


def test_the_machine_is_described() -> None:
    assert "cores" in machine.describe("numpy")
    assert 0 < machine.memory_bytes("MemAvailable") <= machine.memory_bytes()
    with pytest.raises(LookupError):
        machine.memory_bytes("MemNowhere")


def test_progress_is_quiet_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress.progress(range(3), "things")) == [0, 1, 2]
    progress.say("at work")
    assert capsys.readouterr().err == ""


def test_docstrings() -> None:
    assert doctest.testmod(picture_folder).failed == 0
