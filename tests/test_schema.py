"""Fields: inferred from a sample, selected from a dataset, nested as samples are, and written as JSON."""

from __future__ import annotations

import operator
from functools import partial
from typing import Any

import numpy as np
import pytest

from mmds import Array, Bytes, Field, Image, Json, Label, Scalar, Schema, Text
from mmds.errors import SchemaError
from mmds.fields import Kind, Misfit
from tests.make_golden import GOLDEN

TARGET = {"boxes": Array("float32", (None, 4)), "labels": Array("int64", (None,))}
NESTED = Schema({"image": Bytes(), "target": TARGET, "id": (Text(), Scalar("int8"))})


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (True, Scalar("bool")),
        (-1, Scalar("int64")),
        (2**63 - 1, Scalar("int64")),
        (2**63, Scalar("uint64")),
        (0.5, Scalar("float64")),
        (1j, Scalar("complex128")),
        (np.float16(1), Scalar("float16")),
        (np.bool_(True), Scalar("bool")),
        (np.uint8(1), Scalar("uint8")),
        ("x", Text()),
        (np.str_("x"), Text()),
        (b"x", Bytes()),
        (bytearray(b"x"), Bytes()),
        (memoryview(b"x"), Bytes()),
        (np.zeros((2, 3), ">i4"), Array("int32", (2, 3))),
        (np.zeros(()), Array("float64", ())),
        ([1, {"a": None}], Json()),
        ([], Json()),
        ({}, Json()),
    ],
)
def test_infer(value: Any, kind: Kind) -> None:
    assert Schema.infer(value) == Schema(kind)
    assert Schema.infer({"a": (value,)}).fields == (Field(("a", 0), kind),)


@pytest.mark.parametrize(
    "value", [None, object(), {1, 2}, [np.zeros(2)], [(1, 2)], [float("nan")], [b"x"], np.zeros(1, object), ()]
)
def test_what_cannot_be_inferred(value: Any) -> None:
    with pytest.raises((Misfit, SchemaError)):
        Schema.infer({"ok": 1, "bad": value})


def test_a_misfit_names_the_field() -> None:
    for bad in (None, np.zeros(1, object), [b"x"]):
        with pytest.raises(Misfit) as caught:
            Schema.infer({"a": (1, {"b": bad})})
        assert caught.value.field == "a.1.b"


def test_torch_tensors_and_pictures_are_inferred() -> None:
    import torch
    from PIL import Image as Pictures

    assert Schema.infer(torch.zeros(2, 3, dtype=torch.bfloat16)).fields[0].kind == Array("bfloat16", (2, 3))
    assert Schema.infer(Pictures.new("RGB", (1, 1))).fields[0].kind == Image()


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_json_comes_back_as_the_same_fields(name: str) -> None:
    schema = Schema(GOLDEN[name].fields)
    again = Schema.from_json(schema.to_json())
    assert again == schema
    assert hash(again) == hash(schema)
    assert again.to_json() == schema.to_json()
    assert again.tree == schema.tree


def test_a_schema_is_a_sequence_of_fields() -> None:
    assert len(NESTED) == 5
    assert NESTED.names == ("image", "target.boxes", "target.labels", "id.0", "id.1")
    assert [field.path for field in NESTED][3] == ("id", 0)
    assert NESTED[1].kind == Array("float32", (None, 4))
    assert NESTED.index("id.1") == 4
    assert NESTED.payload == (0, 1, 2, 3)
    assert (NESTED.alignment, NESTED[0].align) == (64, 1)
    assert Schema(NESTED) == NESTED
    assert Schema(Scalar("int8")) != Schema((Scalar("int8"),))
    assert Schema(Text()).names == ("value",)
    with pytest.raises(SchemaError, match=r"no field 'x'; there are: image, target\.boxes"):
        NESTED.index("x")


@pytest.mark.parametrize(
    ("wanted", "structure", "positions"),
    [
        (["id", "image"], {"image": Bytes(), "id": (Text(), Scalar("int8"))}, [0, 3, 4]),
        (["id.1"], {"id": (Scalar("int8"),)}, [4]),
        ("image", Bytes(), [0]),
        (("id.1", "image"), (Scalar("int8"), Bytes()), [4, 0]),
        (("target", "image"), ({"boxes": NESTED[1].kind, "labels": NESTED[2].kind}, Bytes()), [1, 2, 0]),
        ({"x": ("image",), "y": "id"}, {"x": (Bytes(),), "y": (Text(), Scalar("int8"))}, [0, 3, 4]),
        (("image", "image"), (Bytes(), Bytes()), [0, 0]),
    ],
)
def test_select(wanted: Any, structure: Any, positions: list[int]) -> None:
    assert NESTED.select(wanted) == (Schema(structure), positions)


@pytest.mark.parametrize(
    "wanted", ["x", "target.", "target.boxes.0", "", ["image", "y"], [], (), {}, 5, ("image", 3), None]
)
def test_what_cannot_be_selected(wanted: Any) -> None:
    with pytest.raises(SchemaError):
        NESTED.select(wanted)


def test_select_by_the_name_of_a_single_value() -> None:
    assert Schema(Text()).select("value") == (Schema(Text()), [0])


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        ({}, "non-empty dict or tuple"),
        ((), "non-empty dict or tuple"),
        ([Text()], "expected a field kind"),
        ({"a": "text"}, "a: expected a field kind"),
        ({"a": {"b": {}}}, "a.b: expected a field kind"),
        ({1: Text()}, "keys of a sample must be strings"),
        ({"a.b": Text(), "a": {"b": Text()}}, "2 fields are named 'a.b'"),
        ({"\x1b": {"a": {}}}, r"\x1b.a"),
        ({str(k): Text() for k in range(4097)}, "more than 4096 fields"),
        ({"\ud800": Text()}, "cannot be written down as JSON"),
        (Label(("x" * 2**24,)), "cannot be written down as JSON"),
    ],
)
def test_what_is_no_schema(structure: Any, message: str) -> None:
    with pytest.raises(SchemaError) as caught:
        Schema(structure)
    assert message in str(caught.value)


def test_depth_and_number_have_limits() -> None:
    deep: Any = Text()
    for _ in range(16):
        deep = (deep,)
    assert Schema.from_json(Schema(deep).to_json()).tree == Schema(deep).tree
    with pytest.raises(SchemaError, match="16 levels"):
        Schema((deep,))
    assert len(Schema({str(k): Text() for k in range(4096)})) == 4096


def test_leaves_and_assembler_are_inverse() -> None:
    sample = {"image": 1, "target": {"labels": 3, "boxes": 2}, "id": (4, 5)}
    assert NESTED.leaves(sample) == [1, 2, 3, 4, 5]
    build = NESTED.assembler([partial(operator.add, k) for k in range(5)])
    assert build(1) == {"image": 1, "target": {"boxes": 2, "labels": 3}, "id": (4, 5)}


@pytest.mark.parametrize(
    ("sample", "field", "got"),
    [
        ({"image": 1}, "value", "keys ['image']"),
        ({"image": 1, "target": {"boxes": 2, "labels": 3}, "id": [4, 5]}, "id", "list [4, 5]"),
        ({"image": 1, "target": {"boxes": 2, "labels": 3}, "id": (4,)}, "id", "tuple (4,)"),
        ({"image": 1, "target": None, "id": (4, 5)}, "target", "NoneType None"),
        ({"image": 1, "target": {"boxes": 2, "labels": 3, "\n": 4}, "id": (4, 5)}, "target", r"'\n'"),
        (5, "value", "int 5"),
    ],
)
def test_another_structure_is_a_misfit(sample: Any, field: str, got: str) -> None:
    with pytest.raises(Misfit) as caught:
        NESTED.leaves(sample)
    assert caught.value.field == field
    assert got in caught.value.got
