"""`select` and `merge`: which samples, in which order, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import mmds
from mmds import stored
from mmds.cli import main
from mmds.errors import ExistsError, FormatError, SchemaError, StorageError
from mmds.expressions import ExpressionError
from tests.conftest import Write
from tests.samples import write_every_kind


@pytest.fixture
def source(write: Write) -> Path:
    fields = {
        "x": mmds.Scalar("int64"),
        "t": mmds.Text(column=True),
        "label": mmds.Label(("even", "odd")),
        "b": mmds.Bytes(),
    }
    samples = [{"x": k, "t": f"t{k}", "label": k % 2, "b": bytes([k]) * k} for k in range(100)]
    return write(fields, samples, metadata={"a": 1})


def numbers(path: Path) -> list[int]:
    return [sample["x"] for sample in mmds.open(path)]


@pytest.mark.parametrize(
    "indices, chosen",
    [
        (None, list(range(100))),
        (slice(None), list(range(100))),
        (slice(90, 10, -7), list(range(90, 10, -7))),
        (slice(-5, None), [95, 96, 97, 98, 99]),
        (range(3, 50, 4), list(range(3, 50, 4))),
        (range(-2, 2), [98, 99, 0, 1]),
        ([], []),
        ([5], [5]),
        ([-1, 0, 99, 3, 3, 4], [99, 0, 99, 3, 3, 4]),
        (np.array([7, 8, 9], "uint8"), [7, 8, 9]),
        (np.arange(100) % 3 == 0, list(range(0, 100, 3))),
        (np.zeros(100, bool), []),
        ([True, False] * 50, list(range(0, 100, 2))),
    ],
)
def test_indices(
    source: Path, tmp_path: Path, indices: Any, chosen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "MAX_ROWS", 11)
    output = mmds.select(source, tmp_path / "out.mmds", indices)
    assert numbers(output.path) == chosen
    assert output.samples == len(chosen)
    assert mmds.open(output.path).metadata == {"a": 1}
    assert mmds.verify(output.path)


@pytest.mark.parametrize(
    "indices, error",
    [([100], IndexError), ([-101], IndexError), (range(99, 102), IndexError), ([0.5], TypeError), ("x", TypeError),
     ([[1]], TypeError), ([True] * 99, TypeError), (np.array([2**64 - 1], "u8"), IndexError), (5, TypeError)],
)  # fmt: skip
def test_indices_that_are_none(source: Path, tmp_path: Path, indices: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        mmds.select(source, tmp_path / "out.mmds", indices)
    assert not list(tmp_path.glob("*out*"))


def test_a_condition(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "MAX_ROWS", 7)
    output = mmds.select(source, tmp_path / "a.mmds", where="label == 'odd' and 10 < x < 90 and t.endswith('3')")
    assert numbers(output.path) == [13, 23, 33, 43, 53, 63, 73, 83]
    output = mmds.select(source, tmp_path / "b.mmds", [50, 3, 50, 4], where="x >= 4", fields=["x"])
    assert list(mmds.open(output.path)) == [{"x": 50}, {"x": 50}, {"x": 4}]
    assert mmds.select(source, tmp_path / "c.mmds", where="x < 0").samples == 0
    with pytest.raises(ExpressionError, match="no column 'y'"):
        mmds.select(source, tmp_path / "d.mmds", where="y == 1")
    assert not (tmp_path / "d.mmds").exists()


def test_text_that_is_damaged(tmp_path: Path) -> None:
    path = write_every_kind(tmp_path / "a.mmds", 5)
    section = next(each for each in mmds.open(path).footer.sections if each.role == "values")
    data = bytearray(path.read_bytes())
    data[section.data] = 0xFF
    path.write_bytes(data)
    with pytest.raises(FormatError, match=r"field 'nested.1.key'"):
        mmds.select(path, tmp_path / "b.mmds", where="nested.`1`.key == 'a'")


def test_what_exists_is_kept(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mmds"
    out.write_text("mine")
    with pytest.raises(ExistsError):
        mmds.select(source, out, [1, 2])
    with pytest.raises(ExistsError):
        mmds.merge([source], out)
    assert out.read_text() == "mine"
    mmds.select(source, out, [1, 2], overwrite=True)
    assert numbers(out) == [1, 2]
    mmds.merge([source], out, overwrite=True)
    assert numbers(out) == list(range(100))
    mmds.select(source, source, [4, 2], overwrite=True)
    assert numbers(source) == [4, 2]


def test_merge_takes_all_that_open_takes(source: Path, tmp_path: Path) -> None:
    for k in range(3):
        mmds.select(source, tmp_path / f"part-{k}.mmds", slice(10 * k, 10 * k + 10))
    output = mmds.merge([tmp_path / "part-2.mmds", f"{tmp_path}/part-*.mmds", [source, source]], tmp_path / "m.mmds")
    assert numbers(output.path) == [*range(20, 30), *range(30), *range(100), *range(100)]
    assert numbers(mmds.merge(f"{tmp_path}/part-*.mmds", tmp_path / "p.mmds").path) == list(range(30))
    with pytest.raises(ValueError, match="no datasets"):
        mmds.merge([], tmp_path / "q.mmds")
    with pytest.raises(FileNotFoundError):
        mmds.merge([tmp_path / "nothing.mmds"], tmp_path / "q.mmds")


def test_merge_refuses_other_fields(write: Write, tmp_path: Path) -> None:
    def one(**fields: Any) -> Path:
        return write(fields, [])

    first = one(x=mmds.Scalar("int8"), label=mmds.Label(("cat", "dog")))
    for other, message in (
        (
            one(x=mmds.Scalar("int8"), label=mmds.Label(("cat", "cow"))),
            "label 'label' has the classes cat, cow, expected cat, dog",
        ),
        (
            one(x=mmds.Scalar("int16"), label=mmds.Label(("cat", "dog"))),
            "'x' is Scalar.*int16.*, expected Scalar.*int8",
        ),
        (one(x=mmds.Scalar("int8")), "'label' is missing, expected Label"),
        (
            one(x=mmds.Scalar("int8"), label=mmds.Label(("cat", "dog")), y=mmds.Text()),
            "'y' is Text.*, expected no such field",
        ),
        (one(label=mmds.Label(("cat", "dog")), x=mmds.Scalar("int8")), "their order or structure"),
    ):
        with pytest.raises(SchemaError, match=f"{other.name}: has other fields than .*{first.name}: {message}"):
            mmds.merge([first, other], tmp_path / "m.mmds")


def test_progress(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "MAX_ROWS", 30)
    monkeypatch.setattr("mmds.conversion.PROGRESS_SECONDS", 0)
    said: list[tuple[int, int | None]] = []

    def progress(done: int, total: int | None) -> None:
        said.append((done, total))

    mmds.select(source, tmp_path / "a.mmds", where="x < 3", progress=progress)
    assert said == [(30, 100), (60, 100), (90, 100), (100, 100), (100, 100)]
    said.clear()
    mmds.merge([source, source], tmp_path / "b.mmds", progress=progress)
    assert said[-1] == (200, 200) and len(said) == 9


def test_a_large_range_takes_no_memory(source: Path, tmp_path: Path) -> None:
    with pytest.raises(IndexError):  # and not MemoryError
        mmds.select(source, tmp_path / "a.mmds", range(10**15))


def test_a_folder_that_is_not_there(source: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        mmds.select(source, tmp_path / "missing" / "a.mmds")


# On the command line


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def test_select_on_the_command_line(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mmds"
    assert run("select", source, out, "--indices", "0:10,-1,5").stdout.startswith(f"{out}: 12 samples, ")
    assert numbers(out) == [*range(10), 99, 5]
    assert "exists already" in run("select", source, out, code=1).stderr
    shown = run(
        "select", source, out, "--where", "label == 'odd' and x > 95", "--fields", "x,t", "--overwrite", "--json"
    )
    assert json.loads(shown.stdout) == {"outputs": [{"path": str(out), "samples": 2}]}
    assert list(mmds.open(out)) == [{"x": 97, "t": "t97"}, {"x": 99, "t": "t99"}]
    run("select", source, out, "--indices", "::-50", "--overwrite", "--no-progress")
    assert numbers(out) == [99, 49]
    assert "no column 'z'" in run("select", source, out, "--where", "z == 1", "--overwrite", code=1).stderr
    assert "expected numbers and slices" in run("select", source, out, "--indices", "1:x", code=2).stderr
    assert "expected numbers and slices" in run("select", source, out, "--indices", "1:2:3:4", code=2).stderr
    assert "slice step cannot be zero" in run("select", source, out, "--indices", "::0", "--overwrite", code=2).stderr
    assert "out of range" in run("select", source, out, "--indices", "100", "--overwrite", code=1).stderr


def test_merge_on_the_command_line(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mmds"
    assert run("merge", source, source, out).stdout.startswith(f"{out}: 200 samples, ")
    assert json.loads(run("merge", source, out, tmp_path / "b.mmds", "--json").stdout)["outputs"][0]["samples"] == 300
    assert "exists already" in run("merge", source, out, code=1).stderr
    assert "nothing.mmds" in run("merge", tmp_path / "nothing.mmds", tmp_path / "c.mmds", code=1).stderr
