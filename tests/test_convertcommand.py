"""`mmds convert` with functions of samples: every option, what is printed, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import mmds
from mmds.cli import main
from mmds.convertcommand import convert
from tests.test_steps import write_samples

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_samples(tmp_path_factory.mktemp("command") / "in.mmds")


def mmds_convert(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mmds", "convert", *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == code, run.stderr
    return run


def test_every_step_on_the_command_line(dataset: Path, tmp_path: Path) -> None:
    def convert_with(name: str, *more: object) -> list[Any]:
        shown = json.loads(
            mmds_convert(
                dataset, tmp_path / name,
                "--fields", "n,x,label", "--rename", "x=data", "--rename", "label=class",
                "--filter", "tests.steps:even", "--map", "tests.steps:data_of_n", "--batch-map", "tests.steps:reversed_batch",
                "--batch-size", 4, "--limit", 16, "--json", *more,
            ).stdout
        )  # fmt: skip
        assert shown["outputs"] == [{"path": str(tmp_path / name), "samples": 8}] and shown["quarantine"] is None
        return list(mmds.open(tmp_path / name))

    one = convert_with("one.mmds", "-j", 1)
    assert [(each["n"], each["data"][0], each["class"]) for each in one] == [
        (n, 10 * n, 0) for n in (2, 0, 6, 4, 10, 8, 14, 12)
    ]
    convert_with("two.mmds", "-j", 2)
    assert (tmp_path / "one.mmds").read_bytes() == (tmp_path / "two.mmds").read_bytes()
    shards = ("--shard-size", "1kB", "--compression", "zstd:1", "-j", 1)
    convert_with("shards.mmds", *shards)
    assert len(list((tmp_path / "shards.mmds").glob("*.mmds"))) > 1
    convert_with("shards.mmds", *shards, "--overwrite")
    shown = mmds_convert(dataset, tmp_path / "one.mmds", "--append", code=1)
    assert "one.mmds" in shown.stderr and "nothing to append to" in shown.stderr


def test_a_function_that_fails_is_shown_with_where(dataset: Path, tmp_path: Path) -> None:
    run = mmds_convert(dataset, tmp_path / "o.mmds", "--map", "tests.steps:refuse_fives", "-j", 1, code=1)
    assert r"sample 5: map failed: ValueError: five in 5\x1b. Nothing was written" in run.stderr
    assert "in refuse_fives" in run.stderr and "\x1b" not in run.stderr
    run = mmds_convert(
        dataset, tmp_path / "o.mmds", "--map", "tests.steps:refuse_fives", "-j", 2, "--on-error", "quarantine"
    )
    assert "o.mmds: 18 samples, " in run.stdout
    assert "left out 2 bad samples" in run.stderr and "in refuse_fives" not in run.stderr
    report = [json.loads(line) for line in (tmp_path / "o.mmds.quarantine.jsonl").read_text().splitlines()]
    assert report == [
        {"name": f"sample {n}", "reason": rf"map failed: ValueError: five in {n}\x1b"} for n in (5, 15)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--map", "tests.steps:nope"], 1, "has no attribute 'nope'"),
        (["--filter", "even"], 1, "expected module:"),
        (["--rename", "n"], 2, "expected NAME=VALUE"),
        (["--rename", "q=r"], 1, "no field 'q'"),
        (["--shard-size", "many"], 2, "is no size"),
        (["--resume"], 1, "needs shard_size="),
        (["--append", "--overwrite"], 1, "expected one of them"),
        (["--compression", "rar"], 2, "expected 'zstd'"),
        (["-o", "delimiter=;"], 1, "no option delimiter"),
        (["-j", "0"], 2, "num-workers"),
    ],
    ids=str,
)
def test_options_that_make_no_sense(
    dataset: Path, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    result = CliRunner().invoke(main, ["convert", str(dataset), str(tmp_path / "o.mmds"), *arguments])
    assert result.exit_code == code and message in result.output, result.output
    assert list(tmp_path.iterdir()) == []


def test_every_option_is_in_the_documents() -> None:
    text = (ROOT / "docs" / "pipelines.md").read_text()
    options = [name for parameter in convert.params for name in parameter.opts if name.startswith("--")]
    assert len(options) > 20 and [name for name in options if name not in text] == ["--option"]  # it is there as -o
