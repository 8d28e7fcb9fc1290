"""Fields as columns of Ray Data and back, without a Ray cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from ray.data.block import BlockAccessor
from ray.data.extensions import ArrowTensorArray, ArrowVariableShapedTensorArray

import mmds
from mmds import Array, Bytes, Json, Label, Scalar, Schema, Text
from mmds.errors import SampleError, SchemaError
from mmds.fields import Fixed
from mmds.raycolumns import check_columns, infer, ray_schema, to_block, to_leaf
from tests.likeness import assert_alike
from tests.store_cases import COUNT, EVERY

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray, in Ray


def is_complex(kind: Any) -> bool:
    return isinstance(kind, Fixed) and kind.stored.kind == "c"


@pytest.mark.parametrize("name", [name for name, case in EVERY.items() if not is_complex(case.kind)])
def test_every_kind_there_and_back(name: str, tmp_path: Path) -> None:
    kind, values = EVERY[name]
    if kind.nullable and isinstance(kind, Array) and kind.unknown > 1:  # see raycolumns.py
        values = [value for value in values if value is None or value.size]
    samples = [{"it": values[k % len(values)], "n": k} for k in range(COUNT)]
    schema = Schema({"it": kind, "n": Scalar("int16")})
    with mmds.Writer(tmp_path / "0.mmds", schema) as writer:
        writer.extend(samples)
    reader = mmds.open(tmp_path / "0.mmds")
    columns = ray_schema(reader.fields, "here")
    with mmds.Writer(tmp_path / "1.mmds", schema) as writer:
        for start, stop in ((0, 5), (5, 6), (6, COUNT)):
            block = to_block(reader[start:stop], columns)
            assert len(block) == stop - start and block.schema.equals(columns)
            for batch in block.slice(0, 2).to_batches() + block.slice(2).to_batches():
                writer.write_batch({field.name: to_leaf(batch, field) for field in schema.fields})
    assert (tmp_path / "0.mmds").read_bytes() == (tmp_path / "1.mmds").read_bytes()
    assert_alike(list(mmds.open(tmp_path / "1.mmds")), list(mmds.open(tmp_path / "0.mmds")))


def test_a_row_of_ray_has_what_a_sample_has(tmp_path: Path) -> None:
    """As Ray itself takes the columns apart."""
    fields = {
        "fixed": Array("float32", (2, 3)), "ragged": Array("uint8", (None, None, 3)), "label": Label(("a", "b")),
        "text": Text(), "json": Json(), "maybe": Array("int16", (2,), nullable=True), "bits": Array("bfloat16", (2,)),
    }  # fmt: skip
    sample = {
        "fixed": np.arange(6, dtype="float32").reshape(2, 3), "ragged": np.ones((4, 2, 3), "uint8"), "label": 1,
        "text": "é", "json": {"a": [1, None]}, "maybe": None, "bits": np.array([0x3F80, 1], "uint16"),
    }  # fmt: skip
    with mmds.Writer(tmp_path / "a.mmds", fields) as writer:
        writer.extend([sample, {**sample, "maybe": np.array([1, 2], "int16"), "ragged": np.ones((1, 1, 3), "uint8")}])
    reader = mmds.open(tmp_path / "a.mmds")
    block = to_block(reader[:], ray_schema(reader.fields, ""))
    rows: list[Any] = list(BlockAccessor.for_block(block).iter_rows(public_row_format=True))
    first, second = rows
    for name in ("fixed", "ragged", "bits"):
        np.testing.assert_array_equal(first[name], sample[name])
    assert first["fixed"].dtype == np.float32 and second["ragged"].shape == (1, 1, 3)
    assert (first["label"], first["text"], json.loads(first["json"]), first["maybe"]) == (1, "é", sample["json"], None)
    assert second["maybe"] == [1, 2]


def test_values_of_one_distance_are_not_copied(tmp_path: Path) -> None:
    with mmds.Writer(tmp_path / "a.mmds") as writer:
        writer.write_batch({"x": np.arange(1600, dtype="float32").reshape(4, 20, 20)})
    reader = mmds.open(tmp_path / "a.mmds")
    block = to_block(reader[1:3], ray_schema(reader.fields, ""))
    address = block.column("x").chunk(0).storage.values.buffers()[1].address
    assert address == reader.column("x")[1:].ctypes.data


@pytest.mark.parametrize("kind", [Scalar("complex64"), Array("complex128", (None,))])
def test_complex_numbers_are_refused_by_name(kind: Any) -> None:
    with pytest.raises(SchemaError, match=r"here: field 'z' has complex numbers.*fields="):
        ray_schema(Schema({"z": kind}), "here")


def test_inferred() -> None:
    table = pa.table(
        {
            "i": pa.array([1], pa.int8()), "b": [True], "t": ["x"], "raw": [b"x"], "list": [[1.5]],
            "lists": [[["a"]]], "kind": pa.array(["a"]).dictionary_encode(), "pair": pa.array([[1, 2]], pa.list_(pa.int8(), 2)),
            "deep": [{"x": 1, "y": {"z": "q"}}], "f": ArrowTensorArray.from_numpy(np.zeros((1, 2, 3), "float16")),
            "v": ArrowVariableShapedTensorArray.from_numpy([np.zeros((2, 3), "uint8")]),
        }
    )  # fmt: skip
    assert infer(table.schema).structure == {
        "i": Scalar("int8"), "b": Scalar("bool"), "t": Text(), "raw": Bytes(), "list": Array("float64", (None,)),
        "lists": Json(), "kind": Text(), "pair": Array("int8", (2,)),
        "deep": {"x": Scalar("int64"), "y": {"z": Text()}}, "f": Array("float16", (2, 3)), "v": Array("uint8", (None, None)),
    }  # fmt: skip


@pytest.mark.parametrize("type", [pa.timestamp("s"), pa.null(), pa.decimal128(5), pa.map_(pa.int8(), pa.int8())])
def test_types_without_a_kind_are_named(type: pa.DataType) -> None:
    with pytest.raises(SchemaError, match=r"column 'when\\n.x' is .* in Ray Data.*map_batches.*fields="):
        infer(pa.schema({"when\n": pa.struct({"x": type})}))


def test_columns_and_fields_have_the_same_names() -> None:
    schema = Schema({"a": {"b": Scalar("int8")}, "c": Text()})
    for columns in ({"a": [{"b": 1}], "c": ["x"]}, {"a.b": [1], "c": ["x"]}):
        check_columns(pa.table(columns), schema)
    for wrong in ({"a.b": [1]}, {"a.b": [1], "c": ["x"], "d": [1]}):
        with pytest.raises(SchemaError, match=r"columns \['a.b'.*the fields need \['a.b', 'c'\].*drop_columns"):
            check_columns(pa.table(wrong), schema)


def test_values_that_arrow_has_in_other_ways() -> None:
    """Structs, nested lists as an array, lists as JSON, and integers of another width."""
    batch = pa.record_batch({"a": [{"b": 3}, None], "m": [[[1, 2], [3, 4]]] * 2, "j": [["x"], None]})
    field = Schema({"a": {"b": Scalar("int8", nullable=True)}, "m": Array("int64", (2, 2)), "j": Json()})
    assert to_leaf(batch, field[0]) == [3, None]
    matrix = to_leaf(batch, field[1])[1]
    assert matrix.dtype == np.int64 and matrix.tolist() == [[1, 2], [3, 4]]
    assert to_leaf(batch, field[2]) == [["x"], None]


@pytest.mark.parametrize(
    ("values", "type", "shape"),
    [
        ([[1.0, None]], pa.list_(pa.float32()), (None,)),
        ([[1.0, None]], pa.list_(pa.float32(), 2), (2,)),
        ([[[1.0], [None]]], pa.list_(pa.list_(pa.float32())), (None, None)),
        ([[[1.0], None]], pa.list_(pa.list_(pa.float32())), (None, None)),
        ([[[1.0], [1.0, 2.0]]], pa.list_(pa.list_(pa.float32())), (None, None)),
    ],
)
def test_lists_that_are_no_arrays_are_refused(values: Any, type: pa.DataType, shape: Any) -> None:
    schema = Schema({"it": Array("float32", shape)})
    batch = pa.table({"it": pa.array(values, type)}).to_batches()[0]
    with pytest.raises(SampleError, match="field 'it': lists that are no Array"):
        to_leaf(batch, schema[0])
