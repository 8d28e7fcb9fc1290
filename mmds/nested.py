"""Any nested sample as bytes, and back: equal, and of the same types. Nothing is ever pickled.

A record is MessagePack, as far as a sample consists of dicts, lists, strings, bytes, numbers and None. What MessagePack has no
type for is an extension of it; the bytes of arrays and tensors lie behind the MessagePack, each at a multiple of 64.

    0   4   length of the MessagePack, little-endian; bit 31 says that its list is a tuple, as most samples are
    4       MessagePack, then zeros up to a multiple of 64 (if arrays follow)
            the bytes of the arrays, each followed by zeros up to a multiple of 64

Dicts keep their order and keys; integers of any size, NaN and infinities are kept; bytearrays come back as bytes. Arrays and
tensors are writable copies. Subclasses are refused, since they would come back as something else.
"""

from __future__ import annotations

import importlib
import struct
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any

import numpy as np
import ormsgpack

from mmds.dtypes import LOGICAL, STORED
from mmds.errors import SampleError, printable

NdArray = np.ndarray[Any, Any]
ALIGN = 64
ARRAY, TENSOR, TUPLE, SET, FROZENSET, INT, COMPLEX, NUMBER = range(1, 9)
IS_TUPLE = 2**31
_length = struct.Struct("<I").unpack_from
READ = ormsgpack.OPT_NON_STR_KEYS
EXACT = (
    READ
    | ormsgpack.OPT_PASSTHROUGH_BIG_INT
    | ormsgpack.OPT_PASSTHROUGH_DATACLASS
    | ormsgpack.OPT_PASSTHROUGH_DATETIME
    | ormsgpack.OPT_PASSTHROUGH_ENUM
    | ormsgpack.OPT_PASSTHROUGH_SUBCLASS
    | ormsgpack.OPT_PASSTHROUGH_TUPLE
    | ormsgpack.OPT_PASSTHROUGH_UUID
)


def encode(sample: Any, number: int | str = "") -> bytes:
    """Return sample `number` as bytes. Raises `SampleError` that says where there is something that cannot be kept."""
    buffers = Buffers()
    try:
        packed = ormsgpack.packb(
            list(sample) if type(sample) is tuple else sample, default=partial(_wrap, buffers), option=EXACT
        )
    except TypeError as error:
        place, what = "", str(error)
        if buffers.unfit is not None:
            place, what = next(_paths(sample, buffers.unfit[0], ""), ""), buffers.unfit[1]
        raise SampleError(f"{f'sample {number}'.rstrip()}{printable(place)}: {printable(what, 500)}") from None
    if len(packed) >= IS_TUPLE:
        raise SampleError(
            f"{f'sample {number}'.rstrip()}: {len(packed):,} bytes without its arrays; expected less than 2 GiB"
        )
    start = (len(packed) | (IS_TUPLE if type(sample) is tuple else 0)).to_bytes(4, "little")
    if not buffers:
        return start + packed
    parts: list[Any] = [start, packed, bytes(-(4 + len(packed)) % ALIGN)]
    for buffer in buffers:
        parts += [buffer, bytes(-len(buffer) % ALIGN)]
    return b"".join(parts)


def decode(data: memoryview | bytes) -> Any:
    """Return the sample. Raises ValueError if `data` is no record."""
    size = len(data)
    said = _length(data)[0] if size > 4 else 0
    end = 4 + said % IS_TUPLE
    if not 4 < end <= size:
        raise ValueError(f"a record of {size} bytes that says it is {end}")
    sample = ormsgpack.unpackb(data[4:end], ext_hook=partial(_unwrap, data, -(-end // ALIGN) * ALIGN), option=READ)
    return tuple(sample) if said >= IS_TUPLE else sample


class Buffers(list[memoryview]):
    """The bytes of a sample's arrays, and what of it cannot be kept."""

    unfit: tuple[Any, str] | None = None

    def refuse(self, value: Any, what: str) -> TypeError:
        """Return an error, which will not come through the encoder whole."""
        self.unfit = value, what
        return TypeError(what)


def _wrap(buffers: Buffers, value: Any) -> ormsgpack.Ext:
    kind = type(value)
    wrapper = _WRAPPERS.get(kind)
    if wrapper is None and (kind.__module__, kind.__qualname__) == ("torch", "Tensor"):
        wrapper = _wrap_tensor
    if wrapper is None and isinstance(value, np.generic):
        wrapper = _wrap_number
    if wrapper is None:
        known = "dicts, lists, tuples, sets, strings, bytes, numbers, arrays or tensors"
        raise buffers.refuse(
            value, f"a {kind.__module__}.{kind.__qualname__}, which cannot be kept; make {known} of it"
        )
    code, content = wrapper(buffers, value)
    return ormsgpack.Ext(code, ormsgpack.packb(content, default=partial(_wrap, buffers), option=EXACT))


def _wrap_array(buffers: Buffers, value: NdArray) -> tuple[int, Any]:
    if value.dtype.kind not in "biufcmMSU":
        raise buffers.refuse(
            value, f"an array of {value.dtype}, which cannot be kept; only numbers, dates and strings of one size"
        )
    return ARRAY, [value.dtype.str, list(value.shape), _place(buffers, np.ascontiguousarray(value))]


def _wrap_number(buffers: Buffers, value: Any) -> tuple[int, Any]:
    if value.dtype.kind not in "biufcmMSU":
        raise buffers.refuse(value, f"a number of {value.dtype}, which cannot be kept")
    return NUMBER, [value.dtype.str, value.tobytes()]


def _wrap_tensor(buffers: Buffers, value: Any) -> tuple[int, Any]:
    torch = sys.modules["torch"]
    if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized or value.requires_grad:
        raise buffers.refuse(
            value, f"a {value.layout} tensor on {value.device} that cannot be kept; pass .detach().cpu().to_dense()"
        )
    name = str(value.dtype).removeprefix("torch.")
    if name not in STORED:
        raise buffers.refuse(value, f"a tensor of {value.dtype}, which cannot be kept")
    value = value.resolve_conj().resolve_neg()
    array = value.contiguous().view(-1).view(torch.uint8).numpy() if value.numel() else np.empty(0, np.uint8)
    return TENSOR, [name, list(value.shape), _place(buffers, array)]


def _place(buffers: Buffers, array: NdArray) -> int:
    """Return where among the buffers the bytes of an array begin, in units of `ALIGN`."""
    start = sum(-(-len(buffer) // ALIGN) for buffer in buffers)
    buffers.append(array.reshape(-1).view(np.uint8).data if array.size else memoryview(b""))
    return start


_WRAPPERS: dict[type, Callable[[Buffers, Any], tuple[int, Any]]] = {
    tuple: lambda _, value: (TUPLE, list(value)),
    set: lambda _, value: (SET, list(value)),
    frozenset: lambda _, value: (FROZENSET, list(value)),
    int: lambda _, value: (INT, str(value)),
    complex: lambda _, value: (COMPLEX, [value.real, value.imag]),
    np.ndarray: _wrap_array,
}


def _unwrap(record: memoryview | bytes, first: int, code: int, data: bytes) -> Any:
    if code <= TENSOR:
        dtype, shape, start, finish = _described(code, data)
        try:
            return finish(np.ndarray(shape, dtype, record, first + start))
        except TypeError:
            raise ValueError("an array that ends behind its record") from None
    content = ormsgpack.unpackb(data, ext_hook=partial(_unwrap, record, first), option=READ)
    if code == TUPLE:
        return tuple(content)
    if code == NUMBER:
        return np.frombuffer(content[1], content[0])[0]
    return _MAKERS[code](content)


@lru_cache(1024)
def _described(code: int, data: bytes) -> tuple[np.dtype[Any], tuple[int, ...], int, Callable[[NdArray], Any]]:
    """Return what samples of one structure say again and again: dtype, shape, place, and what makes a copy of the array."""
    name, shape, start = ormsgpack.unpackb(data)
    if code == ARRAY:
        return np.dtype(name), tuple(shape), start * ALIGN, np.ndarray.copy
    torch = importlib.import_module("torch")
    from_numpy, view_as = torch.from_numpy, getattr(torch, name)

    def tensor(array: NdArray) -> Any:
        return from_numpy(array.copy())

    def viewed(array: NdArray) -> Any:
        return from_numpy(array.copy()).view(view_as)

    return STORED[name], tuple(shape), start * ALIGN, viewed if name in LOGICAL else tensor


_MAKERS: dict[int, Callable[[Any], Any]] = {
    SET: set,
    FROZENSET: frozenset,
    INT: int,
    COMPLEX: lambda parts: complex(*parts),
}


def _paths(value: Any, wanted: Any, place: str) -> Iterator[str]:
    if value is wanted:
        yield place
    elif isinstance(value, dict):
        for key, child in value.items():
            yield from _paths(child, wanted, f"{place}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for number, child in enumerate(value):
            yield from _paths(child, wanted, f"{place}[{number}]")
