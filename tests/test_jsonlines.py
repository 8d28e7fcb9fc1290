"""JSON Lines: what is inferred over the whole file, and lines that are no sample."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import mmds
from mmds.converters import Source, sources
from mmds.converters.jsonlines import parse
from mmds.errors import SchemaError, SourceError
from tests.source_contract import SourceContract


def rows() -> list[dict[str, Any]]:
    return [
        {
            "id": number * 10**15,
            "score": number / 3 if number % 2 else number,
            "good": number % 3 == 0,
            "text": 'line\nfeed ü \\": ' + "x" * number,
            "boxes": [[number, 0.5], {"a": None}],
            "maybe": None if number % 5 == 0 else number,
        }
        for number in range(50)
    ]


def write(folder: Path, *lines: str | bytes, name: str = "a.jsonl") -> Path:
    path = folder / name
    path.write_bytes(b"".join((line.encode() if isinstance(line, str) else line) + b"\n" for line in lines))
    return path


def only(path: Path, **options: Any) -> Source:
    (source,) = sources(path, "jsonl", **options)
    return source


def loaded(path: Path, **options: Any) -> list[Any]:
    source = only(path, **options)
    return [source.load(item) for item in source.items()]


class TestJsonl(SourceContract):
    format = "jsonl"

    def make(self, folder: Path) -> Path:
        return write(folder, *map(json.dumps, rows()))

    def samples(self) -> list[Any]:
        return [{**row, "score": float(row["score"])} for row in rows()]

    def spoil(self, path: Path) -> str | None:
        lines = path.read_bytes().splitlines()
        lines[6] = lines[6][:-3]
        path.write_bytes(b"\n".join(lines))
        return "line 7"


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["1", "-2"], mmds.Scalar("int64")),
        ([str(-(2**63)), str(2**63 - 1)], mmds.Scalar("int64")),
        (["1", str(2**63)], mmds.Scalar("uint64")),
        (["-1", str(2**63)], mmds.Json()),
        (["1", "2.5"], mmds.Scalar("float64")),
        ([str(2**53), "2.5"], mmds.Scalar("float64")),
        ([str(2**53 + 1), "2.5"], mmds.Json()),
        (["true", "false"], mmds.Scalar("bool")),
        (["true", "1"], mmds.Json()),
        (['"a"', '""'], mmds.Text()),
        (['"a"', "1"], mmds.Json()),
        (["[1]", "{}"], mmds.Json()),
        (["null", "null"], mmds.Json(nullable=True)),
        (["null", "1"], mmds.Scalar("int64", nullable=True)),
    ],
)
def test_kind_is_that_of_all_values(tmp_path: Path, values: list[str], kind: Any) -> None:
    path = write(tmp_path, *(f'{{"a": {value}}}' for value in values))
    assert only(path).fields == {"a": kind}
    mmds.convert(path, tmp_path / "out.mmds", source_format="jsonl")
    assert [sample["a"] for sample in mmds.open(tmp_path / "out.mmds")] == list(map(json.loads, values))


def test_missing_key_is_null(tmp_path: Path) -> None:
    path = write(tmp_path, '{"b": 1}', '{"a": "x", "b": 2}', '{"b": 3, "c": []}')
    assert only(path).fields == {
        "b": mmds.Scalar("int64"),
        "a": mmds.Text(nullable=True),
        "c": mmds.Json(nullable=True),
    }
    assert loaded(path)[0] == {"b": 1, "a": None, "c": None}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": NaN}', "not JSON"),
        (b'{"a": "\\ud800"}', "not JSON"),
        (b'{"a": "\xff"}', "not JSON"),
        (b'{"a": 1e999}', "not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
        (b'{"a": 1} {"a": 2}', "not JSON"),
        (b'{"a": ' + b"[" * 10**5 + b"]" * 10**5 + b"}", "nested too deeply"),
        (b"[1]", "got a list"),
        (b"null", "got null"),
        (b"7", "got a number"),
        (b'{"a": 1, "a": 2}', "the key 'a' twice"),
        (b'{"a": 1, "\\u0061" :2}', "the key 'a' twice"),
        (b'{"b": {"c": "x\\": ", "d": [{"e\\u001b": 1, "e\\u001b": 2}]}}', "the key 'e\\x1b' twice"),
    ],
)
@pytest.mark.fault(35)
def test_bad_line_is_named(tmp_path: Path, line: bytes, reason: str) -> None:
    path = write(tmp_path, '{"a": 1}', line, '{"a": 3}')
    with pytest.raises(SourceError, match="line 2"):
        mmds.convert(path, tmp_path / "out.mmds", source_format="jsonl")
    result = mmds.convert(path, tmp_path / "out.mmds", source_format="jsonl", on_error="skip")
    assert [name for name, _ in result.errors] == ["line 2"]
    assert reason in result.errors[0][1]
    assert [sample["a"] for sample in mmds.open(tmp_path / "out.mmds")] == [1, 3]


@pytest.mark.parametrize(
    "line",
    [b'{"a": "\\": \\":", "b": {"c\\":": 1}}', b'{"": 1, " ": {"": 2, "x": [{"": 3}]}}', b'{"a"\t :1}\r\n', b"{}"],
)
def test_what_only_looks_like_a_key_twice_is_none(line: bytes) -> None:
    assert parse(line) == json.loads(line)


def test_blank_lines_are_counted_and_numbers_are_those_of_an_editor(tmp_path: Path) -> None:
    path = write(tmp_path, b'\xef\xbb\xbf{"a": 1}\r', b"\r", b"", '{"a": 2}')
    source = only(path)
    assert [item[0] for item in source.items()] == ["line 1", "line 4"]
    assert source.ignored["blank line"].count == 2
    assert loaded(path) == [{"a": 1}, {"a": 2}]


def test_last_line_may_lack_its_end(tmp_path: Path) -> None:
    path = tmp_path / "a.ndjson"
    path.write_bytes(b'{"a": 1}\n{"a": 2}')
    assert loaded(path) == [{"a": 1}, {"a": 2}]


def test_types_are_taken_over(tmp_path: Path) -> None:
    path = write(
        tmp_path, '{"a": 1, "b": 1, "c": 2}', '{"a": 2, "b": null, "c": 9007199254740993}', '{"a": 300, "b": 0, "c": 0}'
    )
    chosen = {"a": "uint8", "b": "json", "c": "float64"}
    assert only(path, types=chosen).fields == {
        "a": mmds.Scalar("uint8"),
        "b": mmds.Json(nullable=True),
        "c": mmds.Scalar("float64"),
    }
    result = mmds.convert(path, tmp_path / "out.mmds", source_format="jsonl", types=chosen, on_error="skip")
    assert [name for name, _ in result.errors] == ["line 3"]
    assert "uint8" in result.errors[0][1]
    assert [sample["c"] for sample in mmds.open(tmp_path / "out.mmds")] == [2.0, 2.0**53]  # as asked for


@pytest.mark.parametrize("types", ["int64", {"a": "str"}, {"a": 1}, {"a": "complex64"}, ["a"]])
def test_types_are_checked(tmp_path: Path, types: Any) -> None:
    with pytest.raises(ValueError, match="types"):
        only(write(tmp_path, '{"a": 1}'), types=types)


def test_type_of_an_unknown_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="no column 'z'; there are: a"):
        only(write(tmp_path, '{"a": 1}'), types={"z": "int64"})


def test_too_many_keys(tmp_path: Path) -> None:
    path = write(tmp_path, *(f'{{"k{number}": 1}}' for number in range(5000)))
    with pytest.raises(SourceError, match="line 4097: more than 4096 different keys"):
        only(path)


def test_gzip_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="gzip"):
        only(write(tmp_path, b"\x1f\x8b\x08\x00"))


@pytest.mark.fault(32)
def test_a_line_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(b'{"a": 1}\n{"a": "')
        file.truncate(2**24 + 100)  # a hole of zeros
        file.seek(0, 2)
        file.write(b'\n{"a": 3}\n')
    source = only(path)
    first, second, third = source.items()
    assert (first[0], second[0], third[0]) == ("line 1", "line 2", "line 3")
    assert source.load(third) == {"a": 3}
    with pytest.raises(SourceError, match="more than 16777216 bytes"):
        source.load(second)


def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path, '{"a": 1}')
    source = only(path)
    path.write_bytes(b'{"a": 1}\n{"a": 2}\n')
    with pytest.raises(SourceError, match="changed"):
        source.load(next(iter(source.items())))
