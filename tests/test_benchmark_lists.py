"""The experiments with lists of samples: every way holds the same, figures mean what they say, promises are judged."""

from __future__ import annotations

import dataclasses
import doctest
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.memory import list_holders, list_report, lists
from benchmarks.memory.list_epochs import Configuration, Measurement, Moment, Process

ROOT = Path(lists.__file__).parents[2]
MIB = 2**20
CONFIGURATION = Configuration("share", "spawn", 1, 2, 1000, 10)
BASE = Process(pss=100 * MIB, uss=90 * MIB, shared=30 * MIB, private=90 * MIB)
TIMES = {"pack": {"pickle": 1.0, "share": 1.4}, "read": {"pickled": 2.0, "share": 2.9}}


@pytest.mark.stress  # ten processes that import torch: half a minute
def test_quick(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    arguments = ("--quick", "--json", str(file), "--plots", str(tmp_path / "plots"))
    command = [sys.executable, "-m", "benchmarks.memory.lists", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no progress in a pipe
    figures = json.loads(file.read_text())
    found = {
        name: [Measurement.from_dict(one) for one in figures[name]] for name in ("holders", "methods", "acceptance")
    }
    assert {name: [one.configuration for one in runs] for name, runs in found.items()} == lists.quick_plan(8192, 2)
    for runs in found.values():
        for one in runs:
            assert len(one.last.workers) == one.configuration.workers * one.configuration.ranks
            assert len(one.last.mains) == one.configuration.ranks
            assert all(process.pss >= process.uss > MIB for process in (*one.last.mains, *one.last.workers))
    by_holder = {one.configuration.holder: one for one in found["holders"]}
    assert by_holder["deepcopy"].growth("private") > by_holder["share"].growth("private") + 5 * MIB  # of 25 MiB
    assert [name for name, one in by_holder.items() if one.packed] == ["numpy", "share", "mmds"]
    assert 4 * MIB < (by_holder["share"].packed or 0) < 8 * MIB
    assert all(value > 0 for part in figures["times"].values() for value in part.values())
    assert done.stdout.count("| `mmds.share` |") == 3
    assert {path.name for path in (tmp_path / "plots").iterdir()} == set(lists.PICTURES.values())
    for path in (tmp_path / "plots").iterdir():
        with Image.open(path) as picture:
            assert picture.size[0] > 300


def test_every_way_holds_the_same(tmp_path: Path) -> None:
    samples = list(list_holders.coco_like(50))
    list_holders.write_file(tmp_path / "file.mmds", 50)
    for name in {*list_holders.HOLDERS, "mmds"} - {"empty"}:
        held = list_holders.hold(name, 50, tmp_path / "file.mmds")
        for holder in (held, pickle.loads(pickle.dumps(held))):
            dataset = list_holders.Annotations(holder)
            assert len(dataset) == 50
            for index in (0, 7, 49):
                number, weight = dataset[index]
                assert number == index
                assert weight == pytest.approx(list_holders.weigh(samples[index])), name
                assert name == "mmds" or holder[index] == samples[index]
    nothing = list_holders.Annotations(list_holders.hold("empty", 50, tmp_path))
    assert len(nothing) == 50
    assert nothing[3] == nothing[4]


def test_a_plan_has_every_combination() -> None:
    planned = lists.plan(100_000, 4)
    methods = {(one.holder, one.method, one.ranks) for one in planned["methods"]}
    assert len(methods) == len(planned["methods"]) == len(lists.METHOD_HOLDERS) * len(lists.METHODS) * 2
    assert {(one.samples, one.workers) for one in planned["acceptance"]} == {(300_000, 8)}
    for one in planned["acceptance"]:
        assert dataclasses.replace(one, holder="empty") in planned["acceptance"]


def measurement(holder: str, last: Process, packed: int | None = None) -> Measurement:
    first = Moment((BASE,), (BASE, BASE))
    configuration = dataclasses.replace(CONFIGURATION, holder=holder)
    return Measurement(configuration, packed, first, Moment((BASE,), (BASE, last)))


def test_promises_are_judged() -> None:
    empty = measurement("empty", dataclasses.replace(BASE, uss=95 * MIB))
    good = measurement("share", dataclasses.replace(BASE, uss=96 * MIB, pss=120 * MIB), 20 * MIB)
    found = list_report.acceptance([empty, good], TIMES)
    one = found["methods"]["spawn"]
    assert one["kept"]
    assert one["total_by_allowed"] == pytest.approx(320 / 322)
    assert one["uss_growth_beyond_baseline"] == MIB
    assert (found["pack"]["kept"], found["read"]["kept"]) == (True, True)
    for change in ({"pss": 123 * MIB}, {"uss": 97 * MIB}, {"private": 92 * MIB}):
        worse = measurement("share", dataclasses.replace(good.last.workers[1], **change), 20 * MIB)
        found = list_report.acceptance([empty, worse], TIMES)
        assert not found["methods"]["spawn"]["kept"], change
        assert "**missed**" in list_report.acceptance_table(found)
    slow = {"pack": {"pickle": 1.0, "share": 1.6}, "read": {"pickled": 2.0, "share": 3.1}}
    found = list_report.acceptance([empty, good], slow)
    assert (found["pack"]["kept"], found["read"]["kept"]) == (False, False)


def test_too_few_samples_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        lists.main(["--samples", "1000"])
    assert "every worker" in capsys.readouterr().err


def test_docstrings() -> None:
    assert doctest.testmod(list_holders).failed == 0
