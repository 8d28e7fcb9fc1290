"""What a limit on memory ends and what it does not, and what `Pool.map` pickles. No test looks at a clock."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks.memory import limit_group, limits, pool
from benchmarks.memory.limit_report import Run, Workload, table

ROOT = Path(limits.__file__).parents[2]


def run(module: str, folder: Path) -> tuple[str, dict[str, Any]]:
    """Run a program; return what it printed and its figures."""
    command = [sys.executable, "-m", module, "--quick", "--json", str(folder / "out.json"), "--plots", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout, json.loads((folder / "out.json").read_text())


def groups() -> set[Path]:
    return set(limit_group.ROOT.glob("**/mmds-limit-*"))


@pytest.mark.stress
def test_limits(tmp_path: Path) -> None:
    before = groups()
    text, figures = run("benchmarks.memory.limits", tmp_path)
    assert groups() <= before
    runs = {(one["source"], one["way"], one["limit"]): Run(**one) for one in figures["runs"]}
    limited = figures["refused"] is None
    for workload in limits.QUICK:
        size = workload.rows * workload.size
        for source in workload.sources:
            for way in workload.ways:
                free = runs.pop((source, way, None))
                assert (free.finished, free.killed) == (workload.rows, False)
                assert (free.growth_of_files > 0.9 * size) == (source != "plain"), (source, way)
                assert (max(free.own) - free.own[0] > 0.9 * size) == (way == "copies"), (source, way)
                if limited:
                    found = runs.pop((source, way, workload.limit))
                    assert found.killed == (way == "copies"), (source, way)
                    assert (found.finished < workload.rows) == found.killed
    assert not runs
    assert text.count("**killed**") == (5 if limited else 0)
    with Image.open(tmp_path / "memory-limits.png") as picture:
        assert picture.size[0] > 300


def test_where_nothing_can_be_limited_the_rest_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines, rows = limits.QUICK
    monkeypatch.setattr(
        limits, "QUICK", (lines.resized(2, 1000, 1), dataclasses.replace(rows, sources=("mmds",), rows=2))
    )
    monkeypatch.setattr(limit_group, "ROOT", tmp_path)
    assert limits.main(["--quick", "--folder", str(tmp_path), "--plots", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "Without limits: no control group can be made (No such file or directory" in printed
    assert printed.count("| - | - |") == 7
    assert [path.name for path in tmp_path.iterdir()] == ["memory-limits.png"]


def test_a_reader_that_fails_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "rows.mmds").write_bytes(b"no mmds file")
    with pytest.raises(subprocess.CalledProcessError):
        limits.measure(limits.QUICK[1], "mmds", "dropped", tmp_path / "rows.mmds", limited=False)


def test_rows_that_were_not_read_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines, rows = limits.QUICK
    small = (
        dataclasses.replace(lines.resized(1, 10, 1), sources=("plain",)),
        dataclasses.replace(rows, sources=(), rows=1),
    )
    seen = iter(range(9))

    def measure(workload: Workload, source: str, way: str, file: Path, limited: bool) -> Run:
        return Run(workload.row, source, way, None, 1, False, (0, 0), (0, 0), next(seen))

    monkeypatch.setattr(limits, "measure", measure)
    with pytest.raises(AssertionError, match="not every line was read"):
        limits.measure_all(small, tmp_path, limited=False)


@pytest.mark.skipif(limit_group.refusal() is not None, reason="no control group can be made")
def test_a_group_goes_whatever_happens() -> None:
    before = groups()
    with pytest.raises(KeyboardInterrupt), limit_group.memory_group(2**20) as group:
        assert group in groups()
        assert limit_group.kills(group) == 0
        raise KeyboardInterrupt
    assert groups() <= before


@pytest.mark.parametrize("name", ["memory.events", "memory.oom_control"])
def test_kills_are_counted_in_both_versions(tmp_path: Path, name: str) -> None:
    assert limit_group.kills(tmp_path) == 0
    (tmp_path / name).write_text("oom 5\noom_kill 3\n")
    assert limit_group.kills(tmp_path) == 3


def test_growth_and_outcome() -> None:
    done = Run("row", "mmds", "views", None, 2, False, (10, 10, 12), (5, 25, 15), 0)
    assert done.growth == [0, 20, 12]
    assert done.growth_of_files == 20
    workload = dataclasses.replace(limits.TABLE, sources=("mmds",), ways=("views",))
    killed = dataclasses.replace(done, limit=workload.limit, killed=True, finished=1)
    assert "| **killed** in row 2 |" in table([done, killed], workload)


@pytest.mark.stress  # many processes that import torch, or holes of a sparse file: half a minute
def test_pool(tmp_path: Path) -> None:
    text, figures = run("benchmarks.memory.pool", tmp_path)
    data = figures["data_bytes"]
    runs = {(one["contender"], one["method"]): one for one in figures["runs"]}
    assert runs.keys() == {(contender, method) for contender in pool.CONTENDERS for method in pool.METHODS}
    for (contender, _), one in runs.items():
        copied = contender == "array"
        assert (one["pickled"] > data) == copied
        assert (one["pickled"] < 1000) != copied
        assert (one["after"] - one["before"] > 0.9 * data) == copied, one
    assert len(text.splitlines()) == 11
    with Image.open(tmp_path / "memory-pool.png") as picture:
        assert picture.size[0] > 300
