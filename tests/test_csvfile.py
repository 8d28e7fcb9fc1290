"""CSV and TSV: types over the whole file, quoting, and rows that are no sample."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest

import mmds
from mmds.converters import Source, sources
from mmds.errors import SchemaError, SourceError
from tests.source_contract import SourceContract

COLUMNS = ("id", "score", "good", "text", "maybe")


def rows() -> list[tuple[Any, ...]]:
    return [
        (
            number - 7,
            number / 3,
            number % 3 == 0,
            f'said "ü\n\n{number}",\r\n' * (number % 4),
            None if number % 5 == 0 else number * 10**15,
        )
        for number in range(50)
    ]


def write(folder: Path, content: str | bytes, name: str = "a.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def only(path: Path, **options: Any) -> Source:
    (source,) = sources(path, "csv", **options)
    return source


def loaded(path: Path, **options: Any) -> list[Any]:
    source = only(path, **options)
    return [source.load(item) for item in source.items()]


class TestCsv(SourceContract):
    format = "csv"

    def make(self, folder: Path) -> Path:
        path = folder / "a.csv"
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows(rows())
        return path

    def samples(self) -> list[Any]:
        return [dict(zip(COLUMNS, row, strict=True)) for row in rows()]

    def spoil(self, path: Path) -> str | None:
        with path.open(newline="", encoding="utf-8-sig") as file:
            text = file.read()
        line = text[: text.index("\r\n33,")].count("\n") + 2
        path.write_text(text.replace("\r\n33,", "\r\n33,,"), newline="")
        return f"line {line}"


class TestTsv(TestCsv):
    def make(self, folder: Path) -> Path:
        path = folder / "a.tsv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file, "excel-tab")
            writer.writerow(COLUMNS)
            writer.writerows(rows())
        return path

    def spoil(self, path: Path) -> str | None:
        path.write_bytes(path.read_bytes().replace(b"\r\n-6\t", b"\r\n-6\t\xff"))
        return "line 3"


@pytest.mark.parametrize(
    ("cells", "kind", "values"),
    [
        ("1 -2 +3 0", "int64", [1, -2, 3, 0]),
        (f"1 {2**63}", "uint64", [1, 2**63]),
        (f"-1 {2**63}", "text", ["-1", str(2**63)]),
        (f"1 {2**64}", "text", ["1", str(2**64)]),
        ("1 2.5 -.5e-3 7.", "float64", [1.0, 2.5, -0.0005, 7.0]),
        (f"{2**53} 0.5", "float64", [2.0**53, 0.5]),
        (f"{2**53 + 1} 0.5", "text", [str(2**53 + 1), "0.5"]),
        ("inf -Infinity 1", "float64", [math.inf, -math.inf, 1.0]),
        ("1.5 1e999", "text", ["1.5", "1e999"]),
        ("007 1", "text", ["007", "1"]),
        ("1_000 1", "text", ["1_000", "1"]),
        ("٣ 1", "text", ["٣", "1"]),
        ("0x10 1", "text", ["0x10", "1"]),
        (". 1", "text", [".", "1"]),
        ("true False TRUE", "bool", [True, False, True]),
        ("true 1", "text", ["true", "1"]),
        ("a 1 b", "text", ["a", "1", "b"]),
    ],
)
def test_type_is_that_of_all_cells(tmp_path: Path, cells: str, kind: str, values: list[Any]) -> None:
    path = write(tmp_path, "a\n" + "\n".join(cells.split(" ")))
    assert only(path).fields == {"a": mmds.Text() if kind == "text" else mmds.Scalar(kind)}
    mmds.convert(path, tmp_path / "out.mmds", source_format="csv")
    assert [sample["a"] for sample in mmds.open(tmp_path / "out.mmds")] == values


def test_empty_cells_and_nulls(tmp_path: Path) -> None:
    path = write(tmp_path, "a,b,c,d\n1,x,,\n,,,NA\n 3 ,NA,,2\n")
    assert only(path).fields == {
        "a": mmds.Scalar("int64", nullable=True),
        "b": mmds.Text(),
        "c": mmds.Text(),
        "d": mmds.Text(),
    }
    assert [tuple(sample.values()) for sample in loaded(path)] == [
        (1, "x", "", ""),
        (None, "", "", "NA"),
        (3, "NA", "", "2"),
    ]
    assert only(path, null=["NA", ""]).fields["c"] == mmds.Text(nullable=True)
    assert [tuple(sample.values()) for sample in loaded(path, null="NA")] == [
        (1, "x", "", None),
        (None, "", "", None),
        (3, None, "", 2),
    ]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"1", "1 cells; there are 2 columns"),
        (b"1,2,3", "3 cells; there are 2 columns"),
        (b'1,"a"b', "expected after"),
        (b"1,\xff", "not UTF-8"),
        (b"1,a\rb", "new-line character"),
        (b'1,"' + b"x" * 2**24 + b'"', "a row of more than 16777216 bytes"),
    ],
)
@pytest.mark.fault(35)
def test_bad_row_is_named(tmp_path: Path, row: bytes, reason: str) -> None:
    path = write(tmp_path, b"a,b\n0,x\n" + row + b"\n2,y\n")
    with pytest.raises(SourceError, match="line 3"):
        mmds.convert(path, tmp_path / "out.mmds", source_format="csv")
    result = mmds.convert(path, tmp_path / "out.mmds", source_format="csv", on_error="skip")
    assert [name for name, _ in result.errors] == ["line 3"]
    assert reason in result.errors[0][1]
    assert list(mmds.open(tmp_path / "out.mmds")) == [{"a": 0, "b": "x"}, {"a": 2, "b": "y"}]


def test_a_quote_that_does_not_end(tmp_path: Path) -> None:
    path = write(tmp_path, 'a,b\n0,x\n1,"y\n2,z\n')
    result = mmds.convert(path, tmp_path / "out.mmds", source_format="csv", on_error="skip")
    assert result.errors == (("line 3", "unexpected end of data"),)
    assert loaded(path, quote="")[1:] == [{"a": 1, "b": '"y'}, {"a": 2, "b": "z"}]


@pytest.mark.fault(32)
def test_a_quote_that_does_not_end_is_given_up(tmp_path: Path) -> None:
    path = write(tmp_path, 'a\n0\n"1\n' + ("x" * 2**20 + "\n") * 17 + "2\n")
    result = mmds.convert(path, tmp_path / "out.mmds", source_format="csv", on_error="skip")
    assert len(result.errors) == 1 and result.errors[0][0] == "line 3"
    assert mmds.open(tmp_path / "out.mmds")[0] == {"a": "0"}
    assert mmds.open(tmp_path / "out.mmds")[-1] == {"a": "2"}


def test_long_cells_are_kept(tmp_path: Path) -> None:
    assert loaded(write(tmp_path, "a\n" + "x" * 10**6)) == [{"a": "x" * 10**6}]


def test_blank_lines_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path, "\na\n\n1\n\n\n2\n")
    source = only(path)
    assert [item[0] for item in source.items()] == ["line 4", "line 7"]
    assert source.ignored["blank line"].count == 3


def test_names_of_columns(tmp_path: Path) -> None:
    assert list(only(write(tmp_path, " a ,,b\n1,2,3")).fields) == ["a", "column1", "b"]
    path = write(tmp_path, "1;2\n3;4")
    assert loaded(path, names=["x", "y"], delimiter=";") == [{"x": 1, "y": 2}, {"x": 3, "y": 4}]
    with pytest.raises(SourceError, match="2 columns are called 'a'"):
        only(write(tmp_path, "a,b,a\n1,2,3"))
    with pytest.raises(SourceError, match="4097 columns"):
        only(write(tmp_path, "," * 4096 + "\n"))
    with pytest.raises(SourceError, match=r"name the columns, is text that is not UTF-8"):
        only(write(tmp_path, b"\xff\xfe,b\n1,2"))


def test_types_are_taken_over(tmp_path: Path) -> None:
    path = write(tmp_path, "a,b,c\n1,2,3\n4,5.5,x\n")
    chosen = {"a": "text", "b": "float32", "c": "int8"}
    assert only(path, types=chosen).fields == {
        "a": mmds.Text(),
        "b": mmds.Scalar("float32"),
        "c": mmds.Scalar("int8"),
    }
    result = mmds.convert(path, tmp_path / "out.mmds", source_format="csv", types=chosen, on_error="skip")
    assert result.errors == (("line 3", "'c' is 'x', which is no int8"),)
    assert list(mmds.open(tmp_path / "out.mmds")) == [{"a": "1", "b": 2.0, "c": 3}]
    with pytest.raises(SchemaError, match="no column 'z'; there are: a, b, c"):
        only(path, types={"z": "text"})


@pytest.mark.parametrize(
    "option",
    [
        {"delimiter": ",,"},
        {"delimiter": ""},
        {"delimiter": "\n"},
        {"delimiter": '"'},
        {"delimiter": 1},
        {"quote": "''"},
        {"names": "a"},
        {"names": [1]},
        {"null": 7},
        {"types": {"a": "json"}},
    ],
)
def test_options_are_checked(tmp_path: Path, option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(option))):
        only(write(tmp_path, "a\n1"), **option)


def test_gzip_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="gzip"):
        only(write(tmp_path, b"\x1f\x8b\x08\x00"))
    with pytest.raises(SourceError, match="not a file"):
        only(tmp_path)
