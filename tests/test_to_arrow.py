"""A dataset as an Arrow table over the mapped file: no copies, and nothing that could crash who reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import mmds
from mmds.converters.arrowview import to_arrow
from mmds.errors import FormatError, SchemaError
from mmds.fields import Kind
from tests.conftest import Write
from tests.likeness import assert_alike
from tests.samples import EVERY_KIND, write_every_kind, write_fixed

COUNT = 100
FIELDS = {
    "path": mmds.Text(column=True),
    "raw": mmds.Bytes(column=True),
    "label": mmds.Label(("cat", "dog", "owl")),
    "x": mmds.Scalar("float32"),
    "flag": mmds.Scalar("bool"),
    "box": mmds.Array("int16", (2, 2)),
    "c": mmds.Scalar("complex64"),
    "maybe": mmds.Scalar("int32", nullable=True),
    "caption": mmds.Text(column=True, nullable=True),
    "maybe label": mmds.Label(("a", "b"), nullable=True),
}


def sample(number: int) -> dict[str, Any]:
    null = number % 3 == 0
    return {
        "path": f"{number:03}é.jpg",
        "raw": bytes([number]) * (number % 4),
        "label": number % 3,
        "x": number / 2,
        "flag": number % 2 == 0,
        "box": np.full((2, 2), number, "int16"),
        "c": complex(number, 1),
        "maybe": None if null else number,
        "caption": None if null else f"caption {number}",
        "maybe label": None if null else number % 2,
    }


def in_map(reader: mmds.Reader, buffer: pa.Buffer | None) -> bool:
    view = np.frombuffer(reader.store.view, "u1")  # type: ignore[attr-defined]
    return buffer is not None and view.ctypes.data <= buffer.address < view.ctypes.data + len(view)


def data_buffers(array: pa.Array) -> list[pa.Buffer]:
    """Return the buffers of an array but validity and the names of labels."""
    array = array.indices if pa.types.is_dictionary(array.type) else array
    while pa.types.is_fixed_size_list(array.type):
        array = array.values
    return list(array.buffers()[1:])


@pytest.fixture
def reader(write: Write) -> mmds.Reader:
    return mmds.open(write(FIELDS, map(sample, range(COUNT)), metadata={"made": "here"}))


def test_columns_are_the_mapped_file_itself(reader: mmds.Reader) -> None:
    before = pa.total_allocated_bytes()
    table = to_arrow(reader)
    assert pa.total_allocated_bytes() - before < 1000
    table.validate(full=True)
    for name in FIELDS:
        for buffer in data_buffers(table.column(name).chunk(0)):
            assert in_map(reader, buffer) is (name != "flag"), name
    assert table.column("path").to_pylist() == [f"{k:03}é.jpg" for k in range(COUNT)]
    assert table.column("label").to_pylist()[:4] == ["cat", "dog", "owl", "cat"]
    assert table.column("maybe").to_pylist()[:4] == [None, 1, 2, None]
    assert table.column("caption").to_pylist()[:2] == [None, "caption 1"]
    assert table.column("maybe label").to_pylist()[:4] == [None, "b", "a", None]
    assert table.column("box").to_pylist()[3] == [[3, 3], [3, 3]] and table.column("c").to_pylist()[3] == [3, 1]
    assert table.column("flag").to_pylist()[:3] == [True, False, True]


def test_duckdb_and_pandas_query_it(reader: mmds.Reader) -> None:
    table = to_arrow(reader, ["label", "path", "x", "maybe"])
    connection = duckdb.connect()
    connection.register("samples", table)
    counts = connection.execute(
        "SELECT label, count(*), count(maybe) FROM samples GROUP BY label ORDER BY label"
    ).fetchall()
    assert counts == [("cat", 34, 0), ("dog", 33, 33), ("owl", 33, 33)]
    assert connection.execute("SELECT path FROM samples WHERE x > 49").fetchall() == [("099é.jpg",)]
    connection.close()
    frame = table.to_pandas()
    assert frame["label"].value_counts().to_dict() == {"cat": 34, "dog": 33, "owl": 33}


@pytest.mark.parametrize("part", [slice(10, 20), slice(0, 0), slice(99, 100), slice(5, 50, 7), slice(None, None, -1)])
def test_views_of_a_reader(reader: mmds.Reader, part: slice) -> None:
    view = reader[part]
    table = to_arrow(view, list(FIELDS))
    table.validate(full=True)
    assert table.column("path").to_pylist() == [found["path"] for found in view]
    assert table.column("x").to_pylist() == [found["x"] for found in view]
    assert table.column("maybe").to_pylist() == [found["maybe"] for found in view]
    if part.step is None and len(view):
        assert in_map(reader, table.column("path").chunk(0).buffers()[2])


def test_the_table_outlives_the_reader(reader: mmds.Reader) -> None:
    column = to_arrow(reader, "x").column("x")
    path = Path(reader.path)
    del reader
    path.unlink()
    assert column.to_pylist()[5] == 2.5


@pytest.mark.parametrize("kind", [mmds.Bytes(), mmds.Image(), mmds.Bytes(nullable=True)])
def test_bytes_that_are_alone_in_the_payload(write: Write, kind: Kind) -> None:
    values = [b"\xff" * k for k in range(20)]
    reader = mmds.open(write({"data": kind, "n": mmds.Scalar("int8")}, [{"data": v, "n": 1} for v in values]))
    array = to_arrow(reader).column("data").chunk(0)
    assert array.to_pylist() == values and all(in_map(reader, buffer) for buffer in array.buffers()[1:])


def test_payload_with_something_between_the_values_is_refused_or_copied(write: Write) -> None:
    fields = {"a": mmds.Bytes(), "b": mmds.Text(), "n": mmds.Scalar("int8")}
    reader = mmds.open(write(fields, [{"a": b"x", "b": "y", "n": 1}] * 3))
    with pytest.raises(SchemaError, match=r"field 'a' is not contiguous in the file; fields=\[\.\.\.\] with its name"):
        to_arrow(reader)
    table = to_arrow(reader, ["a", "n"])
    assert table.to_pylist() == [{"a": b"x", "n": 1}] * 3
    assert not in_map(reader, table.column("a").chunk(0).buffers()[2]) and in_map(
        reader, table.column("n").chunk(0).buffers()[1]
    )


def test_tokens_are_a_list_array_over_the_data(write: Write) -> None:
    reader = mmds.open(write(mmds.Array("uint16", (None,), align=2), [np.arange(k, dtype="uint16") for k in range(9)]))
    array = to_arrow(reader).column("value").chunk(0)
    assert array.to_pylist() == [list(range(k)) for k in range(9)] and in_map(reader, array.values.buffers()[1])
    assert to_arrow(reader[3:5]).column("value").to_pylist() == [[0, 1, 2], [0, 1, 2, 3]]
    pairs = mmds.open(write(mmds.Array("int8", (None, 2), align=1), [np.ones((k, 2), "int8") for k in range(3)]))
    assert to_arrow(pairs).column("value").to_pylist() == [[], [[1, 1]], [[1, 1], [1, 1]]]
    padded = mmds.open(write(mmds.Array("uint16", (None,)), [np.arange(2, dtype="uint16")]))
    with pytest.raises(SchemaError, match="field 'value' is not contiguous"):
        to_arrow(padded)


def test_arrays_without_padding(tmp_path: Path) -> None:
    exact = mmds.open(write_fixed(tmp_path / "a.mmds", shape=(3, 16, 16)))  # 768 bytes, 12 * 64
    array = to_arrow(exact).column("image").chunk(0)
    assert in_map(exact, data_buffers(array)[0]) and array.to_pylist()[5][2][15][15] == 5
    padded = mmds.open(write_fixed(tmp_path / "b.mmds", shape=(3, 17, 17)))
    with pytest.raises(SchemaError, match="field 'image'"):
        to_arrow(padded)
    assert to_arrow(padded, ["image"]).column("image").to_pylist()[5][2][16][16] == 5


def test_every_kind_by_copy_and_back(tmp_path: Path) -> None:
    """A table that is written as Parquet is a dataset again."""
    path = write_every_kind(tmp_path / "a.mmds")
    reader = mmds.open(path)
    table = to_arrow(reader, list(EVERY_KIND))
    table.validate(full=True)
    pq.write_table(table, tmp_path / "b.parquet")
    back = mmds.open(tmp_path / "b.parquet")
    assert back.fields == reader.fields and back.metadata == reader.metadata
    assert_alike(list(back), list(reader))
    assert_alike(to_arrow(back, list(EVERY_KIND)).equals(table), True)  # of any store, by copy


def test_an_empty_dataset(write: Write) -> None:
    assert to_arrow(mmds.open(write(FIELDS))).num_rows == 0


def test_a_shape_with_a_zero(write: Write) -> None:
    reader = mmds.open(
        write({"e": mmds.Array("int8", (0, 2)), "x": mmds.Scalar("int8")}, [{"e": np.zeros((0, 2), "i1"), "x": 1}])
    )
    assert to_arrow(reader, ["e", "x"]).to_pylist() == [{"e": [], "x": 1}]


def damaged(reader: mmds.Reader, role: str, name: str, row: int, value: int) -> mmds.Reader:
    """Return a reader of the same file with one number of its index changed."""
    section = reader.footer.section(role, reader.fields.index(name))
    data = bytearray(Path(reader.path).read_bytes())
    data[section.data + 8 * row : section.data + 8 * row + 8] = value.to_bytes(8, "little")
    Path(reader.path).write_bytes(data)
    return mmds.open(reader.path)


def test_offsets_and_labels_that_lie_do_not_reach_arrow(write: Write) -> None:
    for role, name, value in (("value_ends", "path", 2**40), ("value_ends", "path", 0), ("column", "label", 3)):
        reader = damaged(mmds.open(write(FIELDS, map(sample, range(COUNT)))), role, name, 50, value)
        with pytest.raises(FormatError, match=f"field '{name}': (offsets that decrease|a label that is none)"):
            to_arrow(reader, [name])
