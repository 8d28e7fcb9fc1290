"""`split`: which sample goes to which part, the same everywhere; and nothing appears before all of it is there."""

from __future__ import annotations

import json
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

import mmds
from mmds import publish, splitting, stored
from mmds.cli import main
from mmds.errors import ExistsError, SchemaError
from mmds.splitting import _sizes
from tests.conftest import Write
from tests.samples import write_every_kind

CLASSES = ("rare", "some", "many")


def class_of(k: int) -> int:
    return 0 if k % 25 == 0 else 1 if k % 4 == 0 else 2


@pytest.fixture
def source(write: Write) -> Path:
    fields = {
        "x": mmds.Scalar("int64"),
        "label": mmds.Label(CLASSES),
        "group": mmds.Text(column=True),
        "maybe": mmds.Scalar("bool", nullable=True),
        "score": mmds.Scalar("float32"),
        "b": mmds.Bytes(),
    }
    samples = [
        {
            "x": k,
            "label": class_of(k),
            "group": "abc"[k % 3],
            "maybe": [None, True, False][k % 3],
            "score": 0.0,
            "b": bytes([k]) * k,
        }
        for k in range(200)
    ]
    return write(fields, samples, metadata={"a": 1})


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "out.mmds"


def numbers(path: Path) -> list[int]:
    assert mmds.verify(path)
    return [sample["x"] for sample in mmds.open(path)]


def test_by_count(source: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "MAX_ROWS", 7)
    parts = mmds.split(source, out, count=60)
    assert [part.path.name for part in parts] == [f"out-0000{k}.mmds" for k in range(4)]
    assert [numbers(part.path) for part in parts] == [list(range(k, min(k + 60, 200))) for k in (0, 60, 120, 180)]
    assert [part.samples for part in parts] == [60, 60, 60, 20]
    assert sorted(out.parent.iterdir()) == [part.path for part in parts]
    assert mmds.open(parts[3].path).metadata == {"a": 1}
    assert mmds.open(f"{out.parent}/out-*.mmds")[:].metadata == {"a": 1}


@pytest.mark.parametrize("rows_at_once", [1, 3, 1000])
@pytest.mark.parametrize("size", [1, 250, 1000, 5000, 10**9])
def test_by_size(source: Path, out: Path, size: int, rows_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "MAX_ROWS", rows_at_once)
    parts = [numbers(part.path) for part in mmds.split(source, out, size=size)]
    assert [k for part in parts for k in part] == list(range(200))
    sizes = [8 + 8 + (8 + 1) + (1 + 1) + 4 + (8 + k) for k in range(200)]
    expected: list[list[int]] = [[]]
    for k in range(200):
        if expected[-1] and sum(sizes[j] for j in expected[-1]) + sizes[k] > size:
            expected.append([])
        expected[-1].append(k)
    assert parts == expected


def test_a_part_of_a_size_is_about_as_large(tmp_path: Path) -> None:
    source = write_every_kind(tmp_path / "a.mmds", 60)
    parts = mmds.split(source, tmp_path / "out.mmds", size=20_000)
    empty = mmds.select(source, tmp_path / "empty.mmds", []).path.stat().st_size
    sizes = [part.path.stat().st_size - empty for part in parts]
    assert all(12_000 < size <= 20_000 for size in sizes[:-1]) and sizes[-1] <= 20_000


def test_at_random(source: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = mmds.split(source, out, fractions={"train": 0.8, "val": 0.15, "test": 0.05}, seed=3)
    assert [part.path.name for part in parts] == ["out-train.mmds", "out-val.mmds", "out-test.mmds"]
    found = [numbers(part.path) for part in parts]
    assert [len(part) for part in found] == [160, 30, 10]
    assert all(part == sorted(part) for part in found)
    assert sorted(k for part in found for k in part) == list(range(200))
    assert found[2] == TEST_OF_SEED_3
    monkeypatch.setattr(stored, "MAX_ROWS", 13)
    again = mmds.split(source, out.with_name("again.mmds"), fractions=[0.8, 0.15, 0.05], seed=3)
    assert [part.path.read_bytes() for part in again] == [part.path.read_bytes() for part in parts]
    other = mmds.split(source, out.with_name("other.mmds"), fractions=[0.8, 0.15, 0.05], seed=4)
    assert numbers(other[2].path) != found[2]


# Which samples these are is part of the interface, as the order of a `Permutation` is.
TEST_OF_SEED_3 = [5, 12, 33, 69, 101, 127, 134, 153, 169, 196]


@pytest.mark.parametrize("column", ["label", "group", "maybe", "x"])
def test_stratified(source: Path, out: Path, column: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "MAX_ROWS", 17)
    parts = mmds.split(source, out, fractions={"train": 0.9, "val": 0.1}, stratify=column)
    found = [numbers(part.path) for part in parts]
    assert all(part == sorted(part) for part in found) and sorted(found[0] + found[1]) == list(range(200))
    assert abs(len(found[1]) - 20) <= 1
    values = [sample[column] for sample in mmds.open(source)]
    in_all, in_val = Counter(values), Counter(values[k] for k in found[1])
    for value, count in in_all.items():
        assert abs(in_val[value] - count * 0.1) < 1
    again = mmds.split(source, out, fractions={"train": 0.9, "val": 0.1}, stratify=column, seed=1, overwrite=True)
    assert numbers(again[1].path) != found[1]


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=30),
    st.lists(st.integers(0, 20), min_size=1, max_size=4).filter(any),
)
def test_sizes(counts: list[int], weights: list[int]) -> None:
    shares = [Fraction(weight, sum(weights)) for weight in weights]
    carry = [Fraction(0)] * len(shares)
    totals = [0] * len(shares)
    for count in counts:
        sizes, carry = _sizes(count, shares, carry)
        assert sum(sizes) == count
        assert all(abs(size - count * share) < 1 for size, share in zip(sizes, shares, strict=True))
        totals = [total + size for total, size in zip(totals, sizes, strict=True)]
    assert [sum(counts) * share - total for share, total in zip(shares, totals, strict=True)] == carry
    if len(shares) < 3:
        assert all(abs(each) <= Fraction(1, 2) for each in carry)
    assert all(abs(each) < len(shares) for each in carry)


@pytest.mark.parametrize(
    "how, message",
    [
        ({}, "one of size=, count= and fractions="),
        ({"size": 1, "count": 2}, "one of size="),
        ({"count": 0}, "count=0: expected at least 1"),
        ({"size": -1}, "size=-1"),
        ({"count": 1, "stratify": "label"}, "stratify= is for random splits"),
        ({"fractions": []}, "add up to 1, not to 0"),
        ({"fractions": [0.5, 0.4]}, "add up to 1, not to 0.9"),
        ({"fractions": [1.5, -0.5]}, "numbers from 0 to 1"),
        ({"fractions": [float("nan"), 1]}, "expected numbers"),
        ({"fractions": {"a/b": 1}}, "'a/b' cannot be a part of a file's name"),
        ({"fractions": {"": 1}}, "'' cannot be"),
        ({"fractions": [1], "stratify": "nothing"}, "no field 'nothing'"),
        ({"fractions": [1], "stratify": "b"}, "expected a column of labels, integers, bools or text"),
        ({"fractions": [1], "stratify": "score"}, "expected a column of labels"),
    ],
)
def test_what_is_refused(source: Path, out: Path, how: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mmds.split(source, out, **how)
    assert not list(out.parent.iterdir())


def test_shares_that_are_not_exact(source: Path, out: Path) -> None:
    assert [part.samples for part in mmds.split(source, out, fractions=[1 / 3, 1 / 3, 1 / 3])] == [67, 67, 66]
    assert [part.samples for part in mmds.split(source, out, fractions=[0.3333333, 0.6666667], overwrite=True)] == [
        67,
        133,
    ]
    assert [part.samples for part in mmds.split(source, out, fractions={"a": 1, "b": 0})] == [200, 0]


def test_an_empty_dataset(write: Write, out: Path) -> None:
    source = write({"x": mmds.Scalar("int8"), "label": mmds.Label(("a",))}, [])
    for how in ({"size": 10}, {"count": 3}, {"fractions": [1.0]}, {"fractions": [1.0], "stratify": "label"}):
        assert [part.samples for part in mmds.split(source, out, overwrite=True, **how)] == [0]


def test_nothing_is_replaced(source: Path, out: Path) -> None:
    taken = out.with_name("out-00002.mmds")
    taken.write_text("mine")
    with pytest.raises(ExistsError, match="out-00002"):
        mmds.split(source, out, count=50)
    assert list(out.parent.iterdir()) == [taken] and taken.read_text() == "mine"
    mmds.split(source, out, count=50, overwrite=True)
    assert numbers(taken) == list(range(100, 150))


def test_somebody_else_is_faster(source: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = publish.link_into_place
    taken = out.with_name("out-00002.mmds")

    def racing(temporary: Path, path: Path) -> None:
        if path == taken:
            path.write_text("theirs")
        link(temporary, path)

    monkeypatch.setattr(splitting, "link_into_place", racing)
    with pytest.raises(ExistsError):
        mmds.split(source, out, count=50)
    assert list(out.parent.iterdir()) == [taken] and taken.read_text() == "theirs"


def test_nothing_appears_before_all_is_there(source: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def third_fails(draft: publish.Draft) -> None:
        assert not [path for path in out.parent.iterdir() if path.is_file()]
        calls.append(draft.path.name)
        if len(calls) == 3:
            raise OSError("no more")
        original(draft)

    original = publish.Draft.publish
    monkeypatch.setattr(publish.Draft, "publish", third_fails)
    with pytest.raises(OSError, match="no more"):
        mmds.split(source, out, count=50)
    assert len(calls) == 3 and not list(out.parent.iterdir())


def test_many_parts_take_few_descriptors(write: Write, out: Path) -> None:
    source = write(None, [{"x": k} for k in range(300)])
    parts = mmds.split(source, out, count=1)
    assert [part.path.name for part in parts[:2] + parts[-1:]] == ["out-00000.mmds", "out-00001.mmds", "out-00299.mmds"]
    assert len(mmds.open(f"{out.parent}/out-*.mmds")) == 300


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def test_split_on_the_command_line(source: Path, out: Path) -> None:
    shown = json.loads(run("split", source, out, "--fractions", "train=0.9,val=0.1", "--seed", 5, "--json").stdout)
    assert [(Path(each["path"]).name, each["samples"]) for each in shown["outputs"]] == [
        ("out-train.mmds", 180),
        ("out-val.mmds", 20),
    ]
    assert "exists already" in run("split", source, out, "--fractions", "val=0.1,train=0.9", code=1).stderr
    lines = run("split", source, out, "--count", 150, "--no-progress").stdout.splitlines()
    assert [line.partition(",")[0] for line in lines] == [
        f"{out.with_name('out-00000.mmds')}: 150 samples",
        f"{out.with_name('out-00001.mmds')}: 50 samples",
    ]
    assert len(run("split", source, out, "--size", "10kB", "--overwrite").stdout.splitlines()) == 3
    arguments = ("--fractions", "0.5,0.5", "--stratify", "label", "--overwrite")
    assert len(run("split", source, out, *arguments).stdout.splitlines()) == 2
    for wrong in (
        (),
        ("--count", 1, "--size", "1GB"),
        ("--count", 0),
        ("--fractions", "train=x"),
        ("--fractions", "a=0.5,a=0.5"),
        ("--fractions", "0.5,0.2"),
        ("--size", "much"),
    ):
        run("split", source, out, *wrong, code=2)
    assert isinstance(run("split", source, out, "--fractions", "1", "--stratify", "b", code=1).exception, SystemExit)


def test_sorted_values_have_seeds_of_their_own(write: Write, out: Path) -> None:
    """Two classes of one size must not be split alike."""
    source = write(
        {"label": mmds.Label(("a", "b")), "x": mmds.Scalar("int64")}, [{"label": k % 2, "x": k} for k in range(400)]
    )
    parts = mmds.split(source, out, fractions=[0.5, 0.5], stratify="label")
    first = np.array(numbers(parts[0].path))
    assert set(first[first % 2 == 0] // 2) != set(first[first % 2 == 1] // 2)


def test_a_column_that_is_none(source: Path, out: Path) -> None:
    with pytest.raises(SchemaError, match="stratify"):
        mmds.split(source, out, fractions=[1.0], stratify="score")
