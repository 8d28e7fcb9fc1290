"""Kinds from extensions and arrays, and values from files."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

import mmds
from mmds.converters.memberfields import Fields, array_form, value_of
from mmds.errors import SourceError


def npy(array: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, np.asarray(array), **options)
    return file.getvalue()


def kind_of(*arrays: Any) -> Any:
    """Return the kind of a field of these arrays."""
    fields = Fields({})
    for array in arrays:
        data = array if isinstance(array, bytes) else npy(array, allow_pickle=True)
        fields.add([("npy", array_form(data[:512], len(data)))])
    return fields.kinds()["npy"]


def test_arrays_decide_dtype_and_shape() -> None:
    f4 = np.zeros((3, 4), "f4")
    assert kind_of(f4) == kind_of(f4, f4, b"no array") == mmds.Array("float32", (3, 4))
    assert kind_of(f4, f4[:2]) == mmds.Array("float32", (None, 4))
    assert kind_of(f4[:0], f4) == mmds.Array("float32", (None, 4))
    assert kind_of(f4[:, :0], f4[:2, :0]) == mmds.Array("float32", (None, None))  # (None, 0) would be undetermined
    assert kind_of(np.float64(1)) == mmds.Array("float64", ())
    assert kind_of(f4.astype(">f4")) == mmds.Array("float32", (3, 4))
    for others in ([f4.astype("f8")], [f4[0]]):
        assert kind_of(f4, *others) == mmds.Bytes()
    objects, names = np.array([{}, None]), np.array(["a"])
    assert kind_of(objects) == kind_of(names) == kind_of(b"") == mmds.Bytes()
    assert kind_of(f4, objects) == mmds.Array("float32", (3, 4))  # that one sample will fail, by name


@pytest.mark.fault(31)
def test_a_header_that_lies_decides_nothing() -> None:
    honest = npy(np.zeros((3, 4), "f4"))
    lies = honest.replace(b"(3, 4), }    ", b"(3000000, 4)}")
    assert len(lies) == len(honest) and array_form(lies, len(lies)) is None
    with pytest.raises(SourceError, match="declares float32 \\(3000000, 4\\), but has 176 bytes"):
        value_of(lies, mmds.Array("float32", (3, 4)), "off")


def test_kinds_by_extension_and_option() -> None:
    fields = Fields({"pic": "image", "cls": "text", "seg.png": "bytes"})
    fields.add(
        [(name, None) for name in ("pic", "left.pic", "cls", "cls2", "seg.png", "png", "pth", "mp3", "mp4", "json")]
    )
    fields.add([("pic", None)])
    kinds = fields.kinds()
    assert kinds.pop("pic") == mmds.Image()
    assert kinds == {
        "left.pic": mmds.Image(nullable=True),
        "cls": mmds.Text(nullable=True),
        "cls2": mmds.Scalar("int64", nullable=True),
        "seg.png": mmds.Bytes(nullable=True),
        "png": mmds.Image(nullable=True),
        "pth": mmds.Bytes(nullable=True),
        "mp3": mmds.Audio(nullable=True),
        "mp4": mmds.Video(nullable=True),
        "json": mmds.Json(nullable=True),
    }


def test_too_many_extensions_are_dots_in_keys() -> None:
    fields = Fields({})
    with pytest.raises(SourceError, match="all that follows the first dot of a file's name is its extension"):
        for number in range(65):
            fields.add([(f"{number}.jpg", None)])


def test_values() -> None:
    assert [value_of(text, mmds.Scalar("int64"), "off") for text in (b"7", b" -12\n")] == [7, -12]
    assert value_of("é".encode(), mmds.Text(), "off") == "é"
    assert value_of(b'{"a": [1, null]}', mmds.Json(), "off") == {"a": [1, None]}
    assert value_of(b"\xff", mmds.Bytes(), "quick") == value_of(b"\xff", mmds.Image(), "off") == b"\xff"
    turned = np.arange(12, dtype="i2").reshape(3, 4).T
    for array in (turned, np.array(3.5), np.zeros((0, 2))):
        np.testing.assert_array_equal(value_of(npy(array), mmds.Array("int16", (4, 3)), "off"), array)


@pytest.mark.parametrize(
    ("content", "kind", "reason"),
    [
        (b"cat", mmds.Scalar("int64"), "expected a whole number of 64 bits, got b'cat'"),
        (b"9" * 19, mmds.Scalar("int64"), "expected a whole number"),
        (b"1" * 10_000, mmds.Scalar("int64"), "expected a whole number"),
        (b"", mmds.Scalar("int64"), "expected a whole number"),
        (b"\xff", mmds.Text(), "can't decode byte 0xff"),
        (b"{", mmds.Json(), "not JSON"),
        (b"[" * 10_000, mmds.Json(), "not JSON"),
        (b"no picture", mmds.Image(), "not a picture"),
        (npy(np.array([{}]), allow_pickle=True), mmds.Array("int8", ()), "an object array refused"),
        (b"no array", mmds.Array("int8", ()), "not an .npy block"),
    ],
)
def test_what_is_no_value_says_why(content: bytes, kind: Any, reason: str) -> None:
    with pytest.raises(SourceError) as raised:
        value_of(content, kind, "quick")
    assert reason in str(raised.value)
