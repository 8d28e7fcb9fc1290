"""Parquet: what others find in our files, and what we find in theirs. The rest is in the contract of all stores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import mmds
from mmds import canonical
from mmds.converters import parquet
from mmds.errors import FormatError
from tests.likeness import assert_alike
from tests.samples import EVERY_KIND, sample
from tests.test_arrow import COLUMNS


def test_pandas_and_duckdb_read_our_files(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    with parquet.Writer(path, EVERY_KIND, metadata={"made": "here"}) as writer:
        writer.extend(map(sample, range(6)))
    frame = pandas.read_parquet(path)
    assert frame["label"].tolist() == ["cat", "dog", "owl"] * 2 and frame["nested.0"][3] == "text 3"
    query = f"select label, count(*), max(count) from '{path}' group by label order by label"
    found = duckdb.connect().execute(query).fetchall()
    assert found == [("cat", 2, 3), ("dog", 2, 4), ("owl", 2, 5)]
    said = canonical.load(pq.read_metadata(path).metadata[b"mmds"])
    assert (said["n"], said["metadata"]) == (6, {"made": "here"})


def test_row_groups_are_small_and_the_ones_read_last_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    values = np.random.default_rng(0).integers(0, 256, (3000, 4096), dtype="uint8")
    with parquet.Writer(path, {"x": mmds.Bytes(), "l": mmds.Scalar("int64")}) as writer:
        writer.write_batch({"x": [row.tobytes() for row in values], "l": np.arange(3000)})
    metadata = pq.read_metadata(path)
    assert 10 <= metadata.num_row_groups <= 14
    reader = mmds.open(path)
    reads: list[tuple[int, str]] = []
    read = parquet.RowGroups._read

    def counted(groups: parquet.RowGroups, chunk: int, name: str) -> Any:
        reads.append((chunk, name))
        return read(groups, chunk, name)

    monkeypatch.setattr(parquet.RowGroups, "_read", counted)
    indices = np.random.default_rng(1).integers(0, 3000, 500)
    batch = reader[indices]
    assert batch["x"] == [values[k].tobytes() for k in indices] and batch["l"].tolist() == indices.tolist()
    assert len(reads) == len(set(reads)) == 2 * metadata.num_row_groups


def test_many_small_samples_share_a_row_group(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    with parquet.Writer(path, mmds.Scalar("int8")) as writer:
        writer.extend(number % 100 for number in range(20_000))
    assert pq.read_metadata(path).num_row_groups == 1


@pytest.mark.parametrize("name", [name for name in COLUMNS if "code" not in name and name != "string view"])
@pytest.mark.parametrize("statistics", [True, False])
def test_a_column_of_another_writer(tmp_path: Path, name: str, statistics: bool) -> None:
    array, kind, values = COLUMNS[name]
    pq.write_table(pa.table({"c": array}), tmp_path / "a.parquet", row_group_size=2, write_statistics=statistics)
    reader = mmds.open(tmp_path / "a.parquet")
    if statistics:
        assert reader.fields == mmds.Schema({"c": kind})
    assert reader.fields[0].kind.nullable or not kind.nullable
    assert_alike([found["c"] for found in reader], values)
    assert_alike(list(reader[[2, 0]]["c"])[1:], [values[0]]) if kind.nullable else None


def test_codes_are_text_since_each_row_group_has_its_own(tmp_path: Path) -> None:
    frame = pandas.DataFrame({"c": pandas.Categorical(["b", "a", "b"]), "n": [1, 2, 3]})
    frame.to_parquet(tmp_path / "a.parquet")
    assert list(mmds.open(tmp_path / "a.parquet"))[2] == {"c": "b", "n": 3}
    assert mmds.open(tmp_path / "a.parquet").fields[0].kind == mmds.Text()


def test_structs(tmp_path: Path) -> None:
    column = pa.array([{"a": 1, "b": ["x"]}, None, {"a": 3, "b": []}])
    pq.write_table(pa.table({"s": column}), tmp_path / "a.parquet")
    rows = [{"s": {"a": 1, "b": ["x"]}}, {"s": {"a": None, "b": None}}, {"s": {"a": 3, "b": []}}]
    assert list(mmds.open(tmp_path / "a.parquet")) == rows


def test_a_file_without_rows(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": pa.array([], pa.int8())}), tmp_path / "a.parquet")
    assert list(mmds.open(tmp_path / "a.parquet")) == []


def test_our_columns_after_another_tool_had_them(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    with parquet.Writer(path, {"x": mmds.Scalar("int64"), "l": mmds.Label(("a", "b"))}) as writer:
        writer.extend([{"x": number, "l": number % 2} for number in range(4)])
    table = pq.read_table(path)
    pq.write_table(table.sort_by([("x", "descending")]), tmp_path / "b.parquet", row_group_size=1)
    again = mmds.open(tmp_path / "b.parquet")
    assert again.fields == mmds.open(path).fields and again[[0, 1]]["l"].tolist() == [1, 0]


@pytest.mark.fault(31)
def test_a_page_that_is_damaged_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    with parquet.Writer(path, {"x": mmds.Array("int64", (50,))}) as writer:
        writer.write_batch({"x": np.random.default_rng(0).integers(0, 2**60, (1000, 50))})
    data = bytearray(path.read_bytes())
    data[4:60] = bytes(56)
    path.write_bytes(data)
    with pytest.raises(FormatError, match=r"a\.parquet: row group 0, column 'x'"):
        mmds.open(path)[0]
