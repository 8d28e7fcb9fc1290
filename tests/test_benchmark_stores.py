"""`benchmarks.stores` runs on every store, all of which hold the same samples, and says what it could not measure."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import store_contenders, stores
from benchmarks.store_contenders import Contender, Failed
from benchmarks.store_workloads import WORKLOADS, jpegs
from mmds.converters.stores import STORES

ROOT = Path(stores.__file__).parent.parent


@pytest.mark.stress
def test_quick() -> None:
    command = [sys.executable, "-m", "benchmarks.stores", "--quick", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    about: dict[str, Any] = json.loads(done.stdout)
    names = ["mmds", *(store.name for store in STORES)]
    assert about["stores"] == names and "mmds" in about["machine"] and "zarr" in about["machine"]
    assert list(about["results"]) == list(WORKLOADS)
    for name, result in about["results"].items():
        assert set(result["failures"]) <= {"npy (native)"} and (name != "images" or not result["failures"])
        for metric in ("single", "batch", "epoch", "size", "write"):
            figures = result["figures"][metric]
            assert set(figures) == {*names}, (name, metric)
            assert all(value > 0 for ways in figures.values() for value in ways.values())
    text = stores.report(about["results"], about)
    assert "| images | single read | **1.00** " in text and about["machine"] in text


def test_a_contender_that_fails_or_dies_says_so(tmp_path: Path) -> None:
    with Contender("images", "hdf5", "native", tmp_path / "none.h5") as contender:
        with pytest.raises(Failed, match=r"none\.h5"):
            contender.ask("batch", rows=[1])
        with pytest.raises(Failed, match="KeyError"):
            contender.ask("nonsense")
        os.kill(contender.pid, signal.SIGKILL)
        with pytest.raises(Failed, match="ended with -9"):
            contender.ask("batch", rows=[1])


def test_a_slow_or_failing_task_is_not_called_for_ever() -> None:
    calls: list[tuple[str, int]] = []
    failures: dict[Any, str] = {}

    def slow(number: int) -> float:
        calls.append(("slow", number))
        return 10.0

    def fast(number: int) -> float:
        calls.append(("fast", number))
        return 0.1

    def failing(number: int) -> float:
        raise Failed("reason")

    tasks = {"slow": slow, "fast": fast, "failing": failing}
    seconds = store_contenders.in_turns(tasks, 5, 1.0, failures)
    assert seconds == {"slow": [10.0], "fast": [0.1] * 5}
    assert failures == {"failing": "reason"}
    assert {number for name, number in calls if name == "fast"} == set(range(5))


def test_a_missing_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lmdb" else find(name))
    found, notes = store_contenders.available(["hdf5", "lmdb"])
    assert found == ["mmds", "hdf5"]
    assert notes == ['lmdb is not measured: lmdb is missing. Run: pip install "mmds[lmdb]"']


def test_the_row_says_where_mmds_is_behind() -> None:
    figures = {"single": {"mmds": {"mmds": 2e-6}, "npy": {"mmds": 4e-6, "native": 1e-6}, "hdf5": {"mmds": 1.95e-6}}}
    lines, behind = stores.rows_of({"images": {"figures": figures}}, ["mmds", "hdf5", "npy", "zarr"])
    assert lines == ["| images | single read | **1.00** 2 µs | **0.97** 1.95 µs | **0.50** 1 µs n | – |"]
    assert behind == ["images, single read: npy n takes 0.50 of mmds"]


def test_pictures_are_real_and_of_the_sizes_that_are_claimed() -> None:
    files = [file for batch in jpegs(500) for file in batch["image"]]
    assert len(set(files)) == len(files) == 500
    assert all(6_000 <= len(file) <= 30_100 for file in files)


def test_wrong_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        stores.main(["--stores", "sqlite"])
    assert "--stores of hdf5," in capsys.readouterr().err
