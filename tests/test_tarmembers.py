"""What the members of an exported sample are called, and their bytes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmds
from mmds.converters.tarmembers import Members
from mmds.errors import SchemaError
from tests.samples import jpeg, write_every_kind

NOT_KEYS = [
    "../a",
    "a/../../b",
    "/etc/x",
    "a.b",
    ".hidden",
    "a/.b",
    "",
    "a/",
    "a\nb",
    "\u202egnp",
    "__m__/a",
    "x" * 5000,
]


def reader(folder: Path, fields: Any, *samples: Any) -> mmds.Reader:
    with mmds.Writer(folder / "x.mmds", fields, overwrite=True) as writer:
        writer.extend(samples)
    return mmds.open(folder / "x.mmds")


def names(*args: Any) -> list[list[str]]:
    return [[name for name, _ in sample] for sample in Members(reader(*args))]


def load(content: bytes) -> Any:
    return np.load(io.BytesIO(content))


def test_every_kind(tmp_path: Path) -> None:
    found = [dict(sample) for sample in Members(mmds.open(write_every_kind(tmp_path / "x.mmds", 5)))]
    assert list(found[1]) == [
        "000001.jpg", "000001.array.npy", "000001.small.npy", "000001.ragged.npy", "000001.bf16.npy", "000001.count.cls",
        "000001.score.npy", "000001.flag.npy", "000001.label.cls", "000001.nested.0.txt", "000001.nested.1.key.txt",
        "000001.nested.1.raw", "000001.maybe.cls", "000001.json",
    ]  # fmt: skip
    assert "000003.maybe.cls" not in found[3]
    sample = {name.removeprefix("000004."): content for name, content in found[4].items()}
    assert sample["jpg"] == jpeg(4) and sample["nested.1.raw"] == b"\4" * 4
    assert (sample["count.cls"], sample["label.cls"], sample["maybe.cls"]) == (b"4", b"1", b"4")
    assert sample["json"] == b'{"list": [4, null, "\\u00e9"], "x": 0.5}'
    assert sample["nested.0.txt"] == b"text 4"
    arrays = {name: load(sample[f"{name}.npy"]) for name in ("array", "small", "ragged", "bf16", "score", "flag")}
    assert {name: (array.dtype.name, array.shape) for name, array in arrays.items()} == {
        "array": ("float32", (3, 100)),
        "small": ("int16", (2, 2)),
        "ragged": ("int64", (0,)),
        "bf16": ("float32", (4,)),
        "score": ("float32", ()),
        "flag": ("bool", ()),
    }
    assert arrays["score"] == 2 and arrays["flag"] and (arrays["array"] == 4).all()
    assert arrays["bf16"][0] == np.array([4 * 129 << 16], "<u4").view("<f4")[0]


@pytest.mark.parametrize(
    ("fields", "extensions"),
    [
        ((mmds.Image(), mmds.Label(("a",))), ["jpg", "cls"]),
        ((mmds.Image(), mmds.Image()), ["0.jpg", "1.jpg"]),
        ({"image": mmds.Image(), "seg.png": mmds.Image()}, ["image.jpg", "seg.png"]),
        ({"jpeg": mmds.Image(), "id": mmds.Scalar("int8")}, ["jpeg", "id"]),
        ({"Picture": mmds.Image(), "x/y": mmds.Image()}, ["picture.jpg", "x_y.jpg"]),
        ({"jpg": mmds.Text(), "txt": mmds.Image()}, ["txt", "jpg"]),
        ({"jpg": mmds.Text(), "b": mmds.Text()}, ["jpg.txt", "b.txt"]),
        ({"blob": mmds.Bytes(), "text": mmds.Bytes(), "__url__": mmds.Bytes()}, ["blob", "text.bin", "__url__.bin"]),
        ({"text": mmds.Bytes()}, ["bin"]),
        ({"__key__": mmds.Text(), "path": mmds.Text(nullable=True)}, ["__key__.txt", "path.txt"]),  # no columns
        (mmds.Audio(), ["bin"]),
    ],
)
def test_extensions(tmp_path: Path, fields: Any, extensions: list[str]) -> None:
    values: dict[type, Any] = {mmds.Image: jpeg(0), mmds.Label: 0, mmds.Text: "t", mmds.Scalar: 1}

    def sample(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: sample(kind) for key, kind in node.items()}
        return tuple(map(sample, node)) if isinstance(node, tuple) else values.get(type(node), b"?")

    assert names(tmp_path, fields, sample(fields)) == [[f"000000.{extension}" for extension in extensions]]


def test_members_that_would_collide_are_refused(tmp_path: Path) -> None:
    fields = {"a/b": mmds.Bytes(), "a_b": mmds.Bytes()}
    with pytest.raises(SchemaError, match=r"field .a_b. and another one would both be"):
        names(tmp_path, fields, {"a/b": b"", "a_b": b""})


def test_eight_bit_floats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match=r"field .f8.: [.]npy cannot hold float8_e5m2"):
        names(tmp_path, {"f8": mmds.Array("float8_e5m2", (2,))})


def test_nulls_have_no_member(tmp_path: Path) -> None:
    fields = {"a": mmds.Json(), "b": mmds.Json(nullable=True)}
    assert [dict(sample) for sample in Members(reader(tmp_path, fields, {"a": [None], "b": None}))] == [
        {"000000.a.json": b"[null]"}
    ]


def keyed(folder: Path, name: str, *keys: str) -> list[list[str]]:
    fields = {name: mmds.Text(column=True), "cls": mmds.Scalar("int64")}
    return names(folder, fields, *({name: key, "cls": 1} for key in keys))


def test_keys(tmp_path: Path) -> None:
    assert keyed(tmp_path, "__key__", "a/b", "c d", "./é") == [["a/b.cls"], ["c d.cls"], ["./é.cls"]]
    assert keyed(tmp_path, "path", "cat/a.jpg", "a.b/c.d.e", "x") == [["cat/a.cls"], ["a.b/c.cls"], ["x.cls"]]
    both = {"path": mmds.Text(column=True), "__key__": mmds.Text(column=True)}
    assert names(tmp_path, both, {"path": "p", "__key__": "k"}) == [["k.path.txt"]]
    assert names(tmp_path, both, {"path": "p", "__key__": "../k"}) == [["p.__key__.txt"]]


@pytest.mark.parametrize("key", NOT_KEYS)
@pytest.mark.fault(30)
def test_what_is_no_key_makes_numbers(tmp_path: Path, key: str) -> None:
    assert keyed(tmp_path, "__key__", "good", key) == [
        ["000000.__key__.txt", "000000.cls"],
        ["000001.__key__.txt", "000001.cls"],
    ]


@pytest.mark.fault(30)
def test_keys_that_are_not_unique_make_numbers(tmp_path: Path) -> None:
    assert keyed(tmp_path, "__key__", "a", "a")[1] == ["000001.__key__.txt", "000001.cls"]
    assert keyed(tmp_path, "path", "a.1.jpg", "a.2.jpg")[1] == ["000001.path.txt", "000001.cls"]


def test_a_part_of_a_dataset(tmp_path: Path) -> None:
    fields = {"path": mmds.Text(column=True), "cls": mmds.Scalar("int64")}
    whole = reader(tmp_path, fields, *({"path": f"{number % 6}.jpg", "cls": number} for number in range(9)))
    assert [dict(sample) for sample in Members(whole[7:3:-2])] == [{"1.cls": b"7"}, {"5.cls": b"5"}]
