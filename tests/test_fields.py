"""Each kind of field: what it takes, what it refuses and says, which bytes it makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import mmds
from mmds import Array, Audio, Bytes, Image, Json, Label, Scalar, Text, Video
from mmds.dtypes import LOGICAL, STORED
from mmds.errors import SchemaError
from mmds.fields import Kind, Misfit, Variable
from tests.likeness import assert_alike

INTEGERS = [name for name in STORED if np.dtype(STORED[name]).kind in "iu" and name not in LOGICAL]
RAMP = np.arange(6).reshape(2, 3)


def encoded(kind: Kind, value: Any) -> bytes:
    return bytes(np.asarray(kind.encode(value)).data) if isinstance(kind, Array) else bytes(kind.encode(value))


@pytest.mark.parametrize("name", INTEGERS)
def test_integers_hold_their_whole_range_and_no_more(name: str) -> None:
    info = np.iinfo(name)
    for value in (int(info.min), 0, int(info.max)):
        assert encoded(Scalar(name), value) == np.array(value, name).astype(STORED[name]).tobytes()
        assert encoded(Scalar(name), np.array(value, name)) == encoded(Scalar(name), value)
    for value in (int(info.min) - 1, int(info.max) + 1):
        with pytest.raises(Misfit, match=f"expected a scalar of {name}, got int {value}"):
            Scalar(name).encode(value)


@pytest.mark.parametrize(
    ("kind", "value", "data"),
    [
        (Scalar("bool"), True, b"\1"),
        (Scalar("bool"), np.False_, b"\0"),
        (Scalar("float16"), 1.5, b"\0\x3e"),
        (Scalar("float32"), 3, b"\0\0\x40\x40"),
        (Scalar("float64"), np.float32(0.5), np.float64(0.5).tobytes()),
        (Scalar("float32"), float("inf"), b"\0\0\x80\x7f"),
        (Scalar("complex64"), 1 - 2j, np.complex64(1 - 2j).tobytes()),
        (Scalar("complex128"), 1.5, np.complex128(1.5).tobytes()),
        (Scalar("int16"), np.array(5, ">i8"), b"\5\0"),
        (Scalar("int16"), torch.tensor(-2), b"\xfe\xff"),
        (Scalar("bool"), torch.tensor(True), b"\1"),
        (Label(("a", "b")), 1, b"\1" + bytes(7)),
        (Label(("a", "b")), np.uint8(1), b"\1" + bytes(7)),
        (Label(("a", "b")), torch.tensor(0), bytes(8)),
        (Bytes(), bytearray(b"ab"), b"ab"),
        (Bytes(), memoryview(b"abcd")[::2], b"ac"),
        (Text(), "é\0🙂", b"\xc3\xa9\0\xf0\x9f\x99\x82"),
        (Json(), {"b": [1, 2.5, None, True], "a": "é"}, '{"b":[1,2.5,null,true],"a":"é"}'.encode()),
        (Image(), b"\xff\xd8", b"\xff\xd8"),
        (Audio(), b"RIFF", b"RIFF"),
        (Video(), b"", b""),
        (Array("int16", (2, 3)), RAMP.astype(">i2"), RAMP.astype("<i2").tobytes()),
        (Array("int64", (3, 2)), RAMP.T, np.ascontiguousarray(RAMP.T).tobytes()),
        (Array("int64", (2, 2)), RAMP[:, ::2], np.ascontiguousarray(RAMP[:, ::2]).tobytes()),
        (Array("bool", (None,)), np.array([True, False]), b"\1\0"),
        (Array("float32", ()), np.float32(1), np.float32(1).tobytes()),
        (Array("float32", (None, 0 + 2)), np.zeros((0, 2), "f4"), b""),
        (Array("float32", (2,)), torch.ones(2, requires_grad=True), np.ones(2, "f4").tobytes()),
        (Array("bfloat16", (2,)), torch.tensor([1, -2], dtype=torch.bfloat16), b"\x80\x3f\0\xc0"),
        (Array("bfloat16", (2,)), torch.tensor([[1, 9], [-2, 9]], dtype=torch.bfloat16)[:, 0], b"\x80\x3f\0\xc0"),
        (Array("bfloat16", ()), torch.tensor(1, dtype=torch.bfloat16), b"\x80\x3f"),
        (Array("bfloat16", (2,)), np.array([1, -2], ml_dtypes.bfloat16), b"\x80\x3f\0\xc0"),
        (Array("bfloat16", (1,)), np.array([0x3F80], "uint16"), b"\x80\x3f"),
        (Array("float8_e5m2", (1,)), torch.ones(1).to(torch.float8_e5m2), b"\x3c"),
        (Array("float8_e4m3fn", (1,)), np.ones(1, ml_dtypes.float8_e4m3fn), b"\x38"),
        (
            Array("complex64", (2,)),
            torch.conj(torch.tensor([1j, 2 - 1j])),
            np.array([complex(0, -1), 2 + 1j], "c8").tobytes(),
        ),
        (Array("float32", (1,)), torch._neg_view(torch.ones(1)), np.float32(-1).tobytes()),
    ],
)
def test_encode(kind: Kind, value: Any, data: bytes) -> None:
    assert encoded(kind, value) == data


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (Scalar("int8"), 1.0, "expected a scalar of int8, got float 1.0"),
        (Scalar("int8"), True, "got bool True"),
        (Scalar("int8"), "1", "got str '1'"),
        (Scalar("int8"), None, "got NoneType None"),
        (Scalar("int8"), np.zeros(1, "i1"), "got ndarray of int8 (1,)"),
        (Scalar("bool"), 1, "got int 1"),
        (Scalar("float32"), 1j, "got complex 1j"),
        (Scalar("float32"), 1e300, "got float 1e+300"),
        (Scalar("float32"), np.array(None), "got NoneType None"),
        (Scalar("float64"), 10**400, "got int 1000"),
        (Scalar("complex64"), np.str_("1+2j"), "got str '1+2j'"),
        (Scalar("complex64"), np.array(None), "got NoneType None"),
        (Scalar("complex64"), 1e300 + 0j, "got complex (1e+300+0j)"),
        (Scalar("complex128"), 10**400, "got int 1000"),
        (Scalar("int64"), np.datetime64("2020", "Y"), "expected a scalar of int64"),
        (Label(("a", "b")), 2, "expected a class index in 0..1, got int 2"),
        (Label(("a", "b")), -1, "got int -1"),
        (Label(("a", "b")), "a", "got str 'a'"),
        (Label(("a", "b")), True, "got bool True"),
        (Label(()), 0, "got int 0"),
        (Bytes(), "x", "expected bytes, got str 'x'"),
        (Bytes(), np.zeros(1, "u1"), "got ndarray of uint8 (1,)"),
        (Text(), b"x", "expected text, got bytes b'x'"),
        (Text(), "\ud800", "text that is valid Unicode, got str '\\ud800'"),
        (Json(), (1, 2), "lists not tuples"),
        (Json(), {1: 2}, "str keys"),
        (Json(), [float("nan")], "no NaN"),
        (Json(), [b"x"], "got list [b'x']"),
        (Json(), {"x": {1, 2}}, "a value that JSON can hold"),
        (Json(), [object()], "a nest of lists"),
        (Json(), np.zeros(2), "a nest of lists"),
        (Json(), "\ud800", "a nest of lists"),
        (Image(), "cat.png", "expected an encoded image (bytes) or a PIL image, got str 'cat.png'"),
        (Audio(), np.zeros(2), "expected audio, got ndarray of float64 (2,)"),
        (Array("int8", (2,)), [1, 2], "expected array of int8 (2,), got list [1, 2]"),
        (Array("int8", (2,)), np.zeros(2), "got ndarray of float64 (2,)"),
        (Array("int8", (2,)), np.zeros(3, "i1"), "got ndarray of int8 (3,); sizes that vary are None"),
        (Array("int8", (2,)), np.zeros((2, 1), "i1"), "got ndarray of int8 (2, 1)"),
        (Array("int8", (2, None)), np.zeros((3, 5), "i1"), "expected array of int8 (2, None), got ndarray"),
        (Array("int8", (2,)), np.zeros(2, object), "got ndarray of object (2,)"),
        (Array("int8", (1,)), np.zeros(1, [("a", "i1")]), "got ndarray of [('a', 'i1')] (1,)"),
        (Array("int8", (1,)), np.zeros(1, "U3"), "got ndarray of <U3 (1,)"),
        (Array("int64", (1,)), np.zeros(1, "M8[s]"), "got ndarray of datetime64[s] (1,)"),
        (Array("bfloat16", (1,)), np.zeros(1, "f4"), "got ndarray of float32 (1,)"),
        (Array("bfloat16", (1,)), np.zeros(1, "i2"), "got ndarray of int16 (1,)"),
        (Array("float8_e5m2", (1,)), np.zeros(1, ml_dtypes.float8_e4m3fn), "got ndarray of float8_e4m3fn (1,)"),
        (Array("uint16", (1,)), torch.zeros(1, dtype=torch.bfloat16), "got Tensor of bfloat16 (1,)"),
        (Array("float32", (2,)), torch.zeros(2).to_sparse(), "got Tensor of float32 (2,)"),
        (Array("float32", (2,)), torch.zeros(2, device="meta"), "got Tensor of float32 (2,)"),
    ],
)
def test_what_does_not_fit(kind: Kind, value: Any, message: str) -> None:
    with pytest.raises(Misfit) as caught:
        kind.encode(value)
    assert message in str(caught.value)


def test_deep_json_does_not_fit_or_comes_back() -> None:
    value: Any = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(Misfit, match=r"a nest of lists"):
        Json().encode(value)


def test_a_picture_is_stored_without_loss() -> None:
    import io

    from PIL import Image as Pictures

    picture = Pictures.fromarray(np.arange(48, dtype="uint8").reshape(4, 4, 3))
    again = Pictures.open(io.BytesIO(bytes(Image().encode(picture))))
    assert again.format == "PNG"
    assert np.asarray(again).tolist() == np.asarray(picture).tolist()
    with pytest.raises(Misfit, match="that PNG can hold"):
        Image().encode(Pictures.new("CMYK", (1, 1)))


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Bytes(), b"\0x"),
        (Text(), "ü"),
        (Json(), [None, {"x": [2**64, -0.0]}]),
        (Image(), b"x"),
        (Audio(), b""),
        (Video(), b"x"),
    ],
)
def test_decode(kind: Variable, value: Any) -> None:
    assert_alike(kind.decode(memoryview(bytes(kind.encode(value)))), value)


@pytest.mark.parametrize(
    ("kind", "data"), [(Text(), b"\xff"), (Json(), b""), (Json(), b"NaN"), (Json(), b"[" * 10**5), (Json(), b'"\xff"')]
)
def test_what_cannot_be_decoded(kind: Variable, data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        kind.decode(memoryview(data))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Scalar("object"), "dtype 'object' cannot be stored"),
        (lambda: Scalar("float128x"), "cannot be stored"),
        (lambda: Scalar("datetime64[s]"), "cannot be stored"),
        (lambda: Scalar("bfloat16"), "use Array('bfloat16', ())"),
        (lambda: Array([("a", "i4")], (2,)), "cannot be stored"),  # type: ignore[arg-type]
        (lambda: Array("int8", (-1,)), "expected up to 32 dimensions"),
        (lambda: Array("int8", (2**32,)), "expected up to 32 dimensions"),
        (lambda: Array("int8", (1,) * 33), "expected up to 32 dimensions"),
        (lambda: Array("int8", (2**27, 2**26)), "is larger than"),
        (lambda: Array("int8", (None, 0)), "leaves the unknown ones undetermined"),
        (lambda: Array("int8", (1,), align=3), "expected a power of two"),
        (lambda: Array("int32", (1,), align=2), "from the item size (4)"),
        (lambda: Array("int32", (1,), align=8192), "expected a power of two"),
        (lambda: Bytes(align=0), "expected a power of two"),
        (lambda: Label(("a", "a")), "must be different strings"),
        (lambda: Label(("a", 1)), "must be different strings"),  # type: ignore[arg-type]
        (lambda: Image(mode="CMYK"), "expected 'RGB', 'L', 'RGBA' or None"),
    ],
)
def test_what_is_no_kind(build: Callable[[], Kind], message: str) -> None:
    with pytest.raises(SchemaError) as caught:
        build()
    assert message in str(caught.value)


BIG = 2**32 - 1


@pytest.mark.parametrize(
    "shape",
    [(0, BIG), (0, BIG, BIG, BIG), (0, *(BIG,) * 7), (0, *(BIG,) * 31), (1, 0, 2**20), (2**20,), (2**20, 2**20)],
)
def test_a_shape_is_refused_or_can_be_written_and_read(shape: tuple[int, ...], write: Any) -> None:
    try:
        kind = Array("uint8", shape)
    except SchemaError:
        return
    path = write({"x": kind, "y": kind})
    assert len(mmds.open(path)) == 0
    assert len(mmds.open(path)[[]]["x"]) == 0


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (">f4", "float32"),
        (np.uint8, "uint8"),
        (torch.int16, "int16"),
        (bool, "bool"),
        (torch.bfloat16, "bfloat16"),
        (np.dtype(ml_dtypes.float8_e5m2), "float8_e5m2"),
    ],
)
def test_dtypes_by_any_name(dtype: Any, name: str) -> None:
    assert Array(dtype, (1,)).dtype == name
