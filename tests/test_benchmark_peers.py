"""`python -m benchmarks`: every adapter gives the bytes that it was given, what is missing is named, tables render."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks.peers import PEERS, available
from benchmarks.store_contenders import Failed
from benchmarks.suite_measure import METRICS, QUICK, Bench
from benchmarks.suite_report import plot, report, table
from benchmarks.suite_worker import Process, Worker
from benchmarks.suite_workloads import WORKLOADS, Samples, checksum, each, make, rows_in

ROOT = Path(command.__file__).parent.parent
INSTALLED = "mmds,files,npy,hdf5,lmdb,zarr,datasets"  # with the extra dev
ROWS = np.array([3, 250, 7, 7, 0])


@pytest.fixture(scope="module")
def samples() -> dict[str, Samples]:
    command.load(INSTALLED.split(","))  # once, before processes are forked
    return {name: make(workload, 260) for name, workload in WORKLOADS.items()}


@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize("name", INSTALLED.split(","))
def test_every_adapter_gives_what_it_was_given(
    name: str, workload: str, samples: dict[str, Samples], tmp_path: Path
) -> None:
    given = samples[workload]
    with Process(Worker(PEERS[name], WORKLOADS[workload], given), tmp_path / "log") as process:
        process.ask("write", path=tmp_path / "all", small=tmp_path / "small")
        process.ask("open", path=tmp_path / "all")
        expected = sum(checksum(given.get(row)) for row in ROWS)
        assert process.ask("check", rows=ROWS.tolist()) == {"batch": expected, "single": expected}
        assert process.seconds("cold", path=tmp_path / "small", rows=[255]) > 0
    with Process(Worker(PEERS[name], WORKLOADS[workload]), tmp_path / "log") as process:
        process.ask("at", path=tmp_path / "all")
        assert process.ask("pickled")["bytes"] > 0


def test_samples_are_seeded_and_of_the_sizes_that_are_claimed(samples: dict[str, Samples]) -> None:
    for name, found in samples.items():
        again = make(WORKLOADS[name], 260)
        assert np.array_equal(found.values, again.values) and found.count == 260
    ragged, jpeg = samples["ragged"], samples["jpeg"]
    assert ragged.offsets is not None and 22_000 < np.median(np.diff(ragged.offsets)) < 40_000
    assert len({value.tobytes() for value in jpeg.all()}) == 260
    blocks = [value for block in ragged.blocks(100) for value in block.all()]
    assert sum(map(checksum, blocks)) == checksum(ragged.values)


def test_what_a_batch_is() -> None:
    pair = (np.array([1, 2, 3], np.uint8), np.array([0, 1, 3]))
    assert checksum(pair) == checksum(each(pair)) == 6 and rows_in(pair) == 2
    assert rows_in({"x": np.zeros((4, 2))}) == 4 and checksum([b"\1\2", b"\3"]) == 6


def test_a_missing_library_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PEERS["lmdb"], "module", "no_such_library.lmdb")
    found, notes = available(["hdf5", "lmdb"])
    assert found == ["hdf5"] and notes == ["lmdb is not measured: not installed. Run: pip install lmdb"]
    assert all("install" in peer.install and peer.how for peer in PEERS.values())


def test_other_bytes_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PEERS["npy"], "single", lambda self, i: np.array(self.x[i + 1]))
    with pytest.raises(AssertionError, match="npy, tiny: the sum of bytes"):
        Bench(WORKLOADS["tiny"], ["npy"], tmp_path / "tiny", QUICK, {"single"}).run()


def test_failures_have_their_reason(tmp_path: Path) -> None:
    with Process(Worker(PEERS["hdf5"], WORKLOADS["tiny"]), tmp_path / "log") as process:
        with pytest.raises(Failed, match="open: FileNotFoundError"):
            process.ask("open", path=tmp_path / "none")
        with pytest.raises(Failed, match="ValueError: 'nonsense'"):
            process.ask("nonsense")


def test_a_run(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    options = [
        "--quick",
        "--workloads",
        "tokens",
        "--peers",
        "mmds,npy",
        "--metrics",
        "write,size,open,single,batch,epoch,pickle",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *options, "--json", str(path)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert "### tokens: 600 x uint16" in done.stdout and "\n| mmds | 1.00 | 1.00 |" in done.stdout
    about = json.loads(path.read_text())
    figures = about["results"]["tokens"]["figures"]
    assert list(figures) == ["write", "size", "open", "single", "batch", "epoch", "pickle"]
    assert all(by_peer.keys() == {"mmds", "npy"} and min(by_peer.values()) > 0 for by_peer in figures.values())
    assert about["results"]["tokens"]["floors"].keys() == {"batch", "epoch"} and "numpy" in about["machine"]


def test_the_table_and_the_charts(tmp_path: Path) -> None:
    result: dict[str, Any] = {
        "title": "things", "samples": 5, "bytes": 100, "floors": {"batch": 1e-6}, "extra": {},
        "figures": {"batch": {"mmds": 2e-6, "npy": 1e-6, "lmdb": 3e-4}, "size": {"mmds": 100.0, "npy": 120.0}, "cold": {}},
        "notes": {"lmdb": {"size": "no size"}},
    }  # fmt: skip
    lines = table(result, ["mmds", "npy", "lmdb", "zarr"])
    assert lines == [
        "| | size | batch 256 |",
        "|---|---:|---:|",
        "| *1.00 is* | 100 B | 2 µs |",
        "| mmds | 1.00 | 1.00 |",
        "| npy | 1.20 | 0.50 |",
        "| lmdb | – [1] | 150 |",
        "| zarr | – | – |",
        "| *floor* |  | 0.50 |",
        "",
        "[1] no size  ",
    ]
    about = {"peers": ["mmds"], "notes": ["x"], "how": {"mmds": "so"}, "effort": {"workers": 8}, "machine": "this"}
    assert "Ahead of mmds: batch 256: npy needs 0.50" in report({"w": result}, about)
    assert [path.stat().st_size > 0 for path in plot({"w": result}, about, tmp_path)] == [True]


def test_wrong_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    for options in (["--peers", "sqlite"], ["--metrics", "speed"], ["--workloads", "all"], ["--scale", "0"]):
        with pytest.raises(SystemExit, match="2"):
            command.parse(options)
        assert options[0] in capsys.readouterr().err
    assert set(command.parse(["--quick"]).metrics) == set(METRICS) - {"first", "memory"}
