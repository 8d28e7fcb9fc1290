"""Arrow IPC files and `datasets` folders and objects: what others find in ours, what we find in theirs."""

from __future__ import annotations

import datetime
import decimal
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow as pa
import pytest

import mmds
from mmds.columns import Column
from mmds.converters import arrow, arrowwriter, chunkcache
from mmds.converters.arrowitems import open_chunks
from mmds.converters.batches import Batches
from mmds.errors import FormatError, SchemaError
from mmds.fields import Kind
from tests.likeness import assert_alike
from tests.samples import EVERY_KIND, sample


def write_file(path: Path, table: pa.Table, rows: int = 2, **options: Any) -> Path:
    with pa.ipc.new_file(str(path), table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=rows)
    return path


def write_stream(path: Path, table: pa.Table, rows: int = 2) -> Path:
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)
    return path


def test_pyarrow_and_pandas_find_proper_types_in_our_files(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    with arrow.Writer(path, EVERY_KIND, metadata={"made": "here"}) as writer:
        writer.extend(map(sample, range(5)))
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    assert {column.name: str(column.type) for column in table.schema} == {
        "image": "large_binary",
        "array": "fixed_size_list<item: fixed_size_list<item: float>[100]>[3]",
        "small": "fixed_size_list<item: fixed_size_list<item: int16>[2]>[2]",
        "ragged": "large_list<item: int64>",
        "bf16": "fixed_size_list<item: uint16>[4]",
        "count": "uint8",
        "score": "float",
        "flag": "bool",
        "label": "dictionary<values=large_string, indices=int64, ordered=0>",
        "nested.0": "large_string",
        "nested.1.key": "large_string",
        "nested.1.raw": "large_binary",
        "maybe": "int32",
        "json": "large_string",
    }
    table.validate(full=True)
    assert table.column("label").to_pylist() == ["cat", "dog", "owl", "cat", "dog"]
    assert table.column("maybe").to_pylist() == [None, 1, 2, None, 4]
    assert pandas.read_feather(path)["nested.1.key"][3] == "key/3"


def test_batches_are_collected_and_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow.Writer, "TARGET", 2**16)
    path = tmp_path / "a.arrow"
    values = np.arange(100_000, dtype="int64")
    with arrow.Writer(path, mmds.Scalar("int64")) as writer:
        writer.write_batch(values[:90_000])
        for start in range(90_000, 100_000, 100):
            writer.write_batch(values[start : start + 100])
    reader = pa.ipc.open_file(pa.memory_map(str(path)))
    sizes = [reader.get_batch(k).num_rows for k in range(reader.num_record_batches)]
    assert sum(sizes) == 100_000 and 2**15 <= max(sizes) * 8 <= 2**16 and len(sizes) < 20
    opened = mmds.open(path)
    np.testing.assert_array_equal(opened[values], values)
    shuffled = np.random.default_rng(0).integers(-100_000, 100_000, 1000)
    np.testing.assert_array_equal(opened[shuffled], values[shuffled])


def test_metadata_that_is_added_late_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    with arrow.Writer(path, mmds.Text()) as writer:
        writer.write("one")
        writer.metadata["late"] = 1
    assert mmds.open(path).metadata == {"late": 1} and list(mmds.open(path)) == ["one"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_that_is_taken_by_the_shapes_is_refused(tmp_path: Path) -> None:
    fields = {"a": mmds.Array("int8", (None, None)), "a.shape": mmds.Text()}
    with pytest.raises(SchemaError, match=r"'a\.shape' has the name of the column for the shapes of 'a'"):
        arrow.Writer(tmp_path / "a.arrow", fields)


def test_values_are_views_of_the_mapped_file(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    with arrow.Writer(path, mmds.Array("uint8", (1000,))) as writer:
        writer.write_batch(np.zeros((100, 1000), "uint8"))
    before = pa.total_allocated_bytes()
    values = [mmds.open(path)[k] for k in range(100)]
    assert pa.total_allocated_bytes() - before < 10_000
    assert not any(value.flags.writeable for value in values)
    with pytest.raises(ValueError, match="WRITEABLE"):
        values[0].setflags(write=True)


# Files of others

COLUMNS: dict[str, tuple[pa.Array, Kind, Any]] = {
    "int": (pa.array([1, 2, 3], pa.int16()), mmds.Scalar("int16"), [1, 2, 3]),
    "bool": (pa.array([True, False, True]), mmds.Scalar("bool"), [True, False, True]),
    "nulls": (pa.array([1.5, None, 2.5]), mmds.Scalar("float64", nullable=True), [1.5, None, 2.5]),
    "string": (pa.array(["a", "", "é"]), mmds.Text(), ["a", "", "é"]),
    "string view": (pa.array(["a", None, "é" * 20], pa.string_view()), mmds.Text(nullable=True), ["a", None, "é" * 20]),
    "binary": (pa.array([b"a", b"", b"\xff"]), mmds.Bytes(), [b"a", b"", b"\xff"]),
    "digest": (pa.array([b"abc", b"def", b"ghi"], pa.binary(3)), mmds.Bytes(), [b"abc", b"def", b"ghi"]),
    "codes": (pa.array(["b", "a", "b"]).dictionary_encode(), mmds.Label(("b", "a")), [0, 1, 0]),
    "null code": (pa.array(["b", None, "a"]).dictionary_encode(), mmds.Label(("b", "a"), nullable=True), [0, None, 1]),
    "numbers by code": (pa.array([7, 8, 7]).dictionary_encode(), mmds.Scalar("int64"), [7, 8, 7]),
    "day": (pa.array([datetime.date(1970, 1, 3)] * 3), mmds.Scalar("int32"), [2, 2, 2]),
    "time": (pa.array([5, 6, 7], pa.timestamp("us", "UTC")), mmds.Scalar("int64"), [5, 6, 7]),
    "price": (pa.array([decimal.Decimal("1.50")] * 3), mmds.Text(), ["1.50"] * 3),
    "fixed": (
        pa.array([[1, 2], [3, 4], [5, 6]], pa.list_(pa.int8(), 2)),
        mmds.Array("int8", (2,)),
        [np.array(pair, "int8") for pair in ([1, 2], [3, 4], [5, 6])],
    ),
    "null fixed": (
        pa.array([[1, 2], None, [5, 6]], pa.list_(pa.int8(), 2)),
        mmds.Array("int8", (2,), nullable=True),
        [np.array([1, 2], "int8"), None, np.array([5, 6], "int8")],
    ),
    "ragged": (
        pa.array([[1.0], [], [2.0, 3.0]]),
        mmds.Array("float64", (None,)),
        [np.array([1.0]), np.array([]), np.array([2.0, 3.0])],
    ),
    "null ragged": (
        pa.array([[1.0], None, []]),
        mmds.Array("float64", (None,), nullable=True),
        [np.array([1.0]), None, np.array([])],
    ),
    "boxes": (
        pa.array([[[1, 2]], [], [[3, 4], [5, 6]]], pa.list_(pa.list_(pa.int32(), 2))),
        mmds.Array("int32", (None, 2)),
        [np.array([[1, 2]], "int32"), np.zeros((0, 2), "int32"), np.array([[3, 4], [5, 6]], "int32")],
    ),
    "rectangles": (
        pa.array([[[1, 2]], [[1], [2]], []], pa.list_(pa.list_(pa.int32()))),
        mmds.Array("int32", (None, None)),
        [np.array([[1, 2]], "int32"), np.array([[1], [2]], "int32"), np.zeros((0, 0), "int32")],
    ),
    "words": (pa.array([["a"], [], ["b", None]]), mmds.Json(), [["a"], [], ["b", None]]),
    "records": (pa.array([[{"a": 1}], [], None]), mmds.Json(nullable=True), [[{"a": 1}], [], None]),
    "nothing": (pa.nulls(3), mmds.Json(nullable=True), [None, None, None]),
}


@pytest.mark.parametrize("write", [write_file, write_stream])
@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_of_another_writer(tmp_path: Path, name: str, write: Callable[..., Path]) -> None:
    array, kind, values = COLUMNS[name]
    reader = mmds.open(write(tmp_path / "a.arrow", pa.table({"c": array})))
    assert reader.fields == mmds.Schema({"c": kind})
    assert_alike([found["c"] for found in reader], values)
    assert_alike(list(reader[[2, 0, -1]]["c"]), list(mmds_batch(kind, [values[2], values[0], values[2]])))


def mmds_batch(kind: Kind, values: list[Any]) -> Any:
    if isinstance(kind, (mmds.Scalar, mmds.Label)) and not kind.nullable:
        return np.array(values, kind.stored)
    return values


def test_structs_are_dicts_and_a_null_one_has_null_children(tmp_path: Path) -> None:
    column = pa.array([{"a": 1, "b": {"c": "x"}}, None, {"a": 3, "b": {"c": "z"}}])
    reader = mmds.open(write_file(tmp_path / "a.feather", pa.table({"s": column})))
    assert list(reader) == [
        {"s": {"a": 1, "b": {"c": "x"}}},
        {"s": {"a": None, "b": {"c": None}}},
        {"s": {"a": 3, "b": {"c": "z"}}},
    ]


def test_sliced_columns(tmp_path: Path) -> None:
    table = pa.table({name: pa.concat_arrays([array] * 3) for name, (array, _, _) in COLUMNS.items()}).slice(2, 5)
    store = open_chunks(Batches(table.schema, table.to_batches(), [5]), "x", "y")
    for name, items in zip(table.column_names, store.items, strict=True):
        values = COLUMNS[name][2]
        assert_alike([items.get(k) for k in range(5)], [values[(2 + k) % 3] for k in range(5)])


def test_what_no_field_can_hold_is_named(tmp_path: Path) -> None:
    for column in (pa.array([[b"a"]]), pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int8()))):
        with pytest.raises(FormatError, match=r"a\.arrow: column 'c' of type .* has no field kind"):
            mmds.open(write_file(tmp_path / "a.arrow", pa.table({"c": column})))


@pytest.mark.parametrize("column", [pa.array([[[1, 2], [3]]]), pa.array([[1, None]])])
def test_lists_that_are_no_arrays(tmp_path: Path, column: pa.Array) -> None:
    reader = mmds.open(write_file(tmp_path / "a.arrow", pa.table({"c": column})))
    with pytest.raises(FormatError, match=r"a\.arrow: sample 0, field 'c': (lists of differing length|a null inside)"):
        reader[0]


def test_compressed_files_are_unpacked_batch_by_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunkcache, "BUDGET", 20_000)
    table = pa.table({"x": np.arange(10_000), "t": [str(k) for k in range(10_000)]})
    path = write_file(tmp_path / "a.feather", table, 1000, compression="zstd")
    reader = mmds.open(path)
    indices = np.random.default_rng(0).integers(0, 10_000, 100)
    batch = reader[indices]
    assert batch["x"].tolist() == indices.tolist() and batch["t"] == [str(k) for k in indices]
    pandas.DataFrame({"x": [1, 2], "t": ["a", None]}).to_feather(tmp_path / "b.feather")
    assert list(mmds.open(tmp_path / "b.feather")) == [{"x": 1, "t": "a"}, {"x": 2, "t": None}]


def test_our_columns_after_another_tool_had_them(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    with arrow.Writer(path, {"x": mmds.Scalar("int64"), "l": mmds.Label(("a", "b"))}, metadata={"k": 1}) as writer:
        writer.extend([{"x": number, "l": number % 2} for number in range(4)])
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    part = mmds.open(write_file(tmp_path / "b.arrow", table.slice(1, 2)))
    assert list(part) == [{"x": 1, "l": 1}, {"x": 2, "l": 0}] and part.metadata == {"k": 1}
    less = mmds.open(write_file(tmp_path / "c.arrow", table.select(["l"])))  # "mmds" no longer describes it
    assert list(less) == [{"l": 0}, {"l": 1}, {"l": 0}, {"l": 1}]
    other = pa.DictionaryArray.from_arrays(pa.array([0, 1, 1, 0]), pa.array(["b", "a"], pa.large_utf8()))
    renamed = mmds.open(write_file(tmp_path / "d.arrow", table.set_column(1, table.schema.field(1), other)))
    assert renamed[np.arange(4)]["l"].tolist() == [1, 0, 0, 1]


@pytest.mark.fault(31)
def test_a_file_in_which_an_offset_lies(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    with arrow.Writer(path, mmds.Bytes()) as writer:
        writer.extend([b"aaaa", b"bbbb", b"cccc"])
    data = path.read_bytes()
    old, new = (np.array(ends, "<i8").tobytes() for ends in ([0, 4, 8, 12], [0, 9, 1 << 40, 12]))
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, new))
    for index in (1, 2):
        with pytest.raises(FormatError, match=rf"a\.arrow: sample {index}, field 'value': bytes"):
            mmds.open(path)[index]


def test_the_cache_keeps_what_was_used_last() -> None:
    cache = chunkcache.ChunkCache(100)
    reads: list[str] = []

    def get(key: str) -> None:
        def read() -> memoryview:
            reads.append(key)
            return memoryview(bytes(40))

        cache.get(key, read)

    for key in "ababcab":
        get(key)
    assert "".join(reads) == "abcab"
    cache.get("large", lambda: memoryview(bytes(1000)))
    get("b")
    assert "".join(reads) == "abcabb"


def test_the_writer_makes_no_copy_of_a_batch() -> None:
    values = np.arange(24, dtype="float32").reshape(2, 3, 4)
    (array,) = arrowwriter.to_arrays(mmds.Array("float32", (3, 4)), Column(values), None)
    assert array.flatten().flatten().buffers()[1].address == values.ctypes.data


def test_a_stream_without_its_end_mark(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with pa.ipc.new_stream(buffer, pa.schema([("b", pa.binary())])) as writer:
        writer.write_batch(pa.record_batch({"b": pa.array([b"x"])}))
    (tmp_path / "a.arrow").write_bytes(buffer.getvalue()[:-8])  # a stream without its end mark is a whole one
    assert list(mmds.open(tmp_path / "a.arrow")) == [{"b": b"x"}]
