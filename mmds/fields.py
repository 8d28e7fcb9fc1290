"""The kinds of field: how one leaf of a sample becomes bytes, and bytes become that leaf again.

A kind is an immutable description. It knows the value's type, whether every value takes the same number of bytes,
and how to `encode` and `decode` one value. It does not know where the bytes are; `format.py` says that.

=================================  =========================================  =======================================
kind                               value                                      bytes
=================================  =========================================  =======================================
``Scalar(dtype)``                  number or bool                             the number, little-endian
``Label(names)``                   int, ``0 <= value < len(names)``           ``<i8``
``Array(dtype, shape)``            ndarray or tensor, C order                 the elements, little-endian
``Bytes()``, ``Text()``            bytes, str                                 as they are, UTF-8
``Json()``                         nested lists, dicts, numbers, str, None    JSON text, UTF-8
``Image()``, ``Audio()``, ...      an encoded file (bytes)                    as they are
=================================  =========================================  =======================================

A dimension of an `Array` may be None: it then differs from sample to sample ("ragged").
"""

from __future__ import annotations

import io
import math
import operator
import reprlib
import struct
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import numpy as np

from mmds.dtypes import LOGICAL, STORED, as_array, dtype_name, is_tensor
from mmds.errors import SchemaError, printable

Buffer = bytes | bytearray | memoryview | np.ndarray[Any, Any]

MAX_COLUMN_BYTES = 256  # a fixed value up to this size is kept in the index: about what a cold read of it would cost
MAX_COLUMN_RANK = 8  # so that a column's .npy header always fits into its 128 bytes
MAX_RANK = 32
MAX_DIMENSION = 2**32 - 1  # sizes of ragged dimensions are stored as <u4
MAX_ITEM_BYTES = 2**53 - 1
MAX_ALIGNMENT = 4096  # a page: more would need a larger header


class Misfit(ValueError):
    """A value that does not fit its kind; the writer adds file, sample and field and raises a `SampleError`."""

    def __init__(self, expected: str, got: str, field: str = "") -> None:
        super().__init__(f"expected {expected}, got {got}")
        self.expected = expected
        self.got = got
        self.field = field


def describe(value: Any) -> str:
    """Return a short, printable description of `value` for an error message."""
    if isinstance(value, np.ndarray) or is_tensor(value):
        return f"{type(value).__name__} of {str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return f"{type(value).__name__} {printable(_repr(value), 60)}"


def _repr(value: Any) -> str:
    """Return `repr(value)`, of nests only their beginning: they may be deep or large."""
    return repr(value) if isinstance(value, (int, float, complex, type(None))) else _SHORT.repr(value)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 200


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Base of all kinds. With `nullable=True`, None is a value too and costs one byte per sample."""

    nullable: bool = False
    name: ClassVar[str]

    @property
    def expected(self) -> str:
        """Say in words what values this kind takes, for error messages."""
        return self.name

    def encode(self, value: Any) -> Buffer:
        """Return the bytes of `value`, or raise `Misfit`."""
        raise NotImplementedError

    def options(self) -> dict[str, Any]:
        """Return what the schema's JSON says of this kind beside its name and `nullable`."""
        return {}

    def extras(self) -> dict[str, Any]:
        """Return the options that the schema's JSON has only where they are set."""
        return {name: value for name in ("key", "compression") if (value := getattr(self, name, None))}


@dataclass(frozen=True)
class Fixed(Kind):
    """Base of the kinds that consist of elements of one dtype: `Scalar`, `Label` and `Array`."""

    @property
    def stored(self) -> np.dtype[Any]:
        """The little-endian numpy dtype of the elements in the file."""
        raise NotImplementedError

    @property
    def dimensions(self) -> tuple[int | None, ...]:
        """The shape of one value; None where it differs from sample to sample."""
        return ()

    @property
    def unknown(self) -> int:
        """The number of dimensions that differ from sample to sample."""
        return sum(size is None for size in self.dimensions)

    @property
    def nbytes(self) -> int | None:
        """The size of every value in bytes, or None for a ragged array."""
        if self.unknown:
            return None
        return math.prod(cast("tuple[int, ...]", self.dimensions)) * self.stored.itemsize

    @property
    def is_column(self) -> bool:
        """Whether values live in the index, one row of a column per sample, and not in the payload."""
        if self.unknown or len(self.dimensions) > MAX_COLUMN_RANK:
            return False
        return math.prod(size or 1 for size in self.dimensions) * self.stored.itemsize <= MAX_COLUMN_BYTES


@dataclass(frozen=True)
class Scalar(Fixed):
    """One number or bool of `dtype`; it comes back as a Python number."""

    dtype: str
    name: ClassVar[str] = "scalar"

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", dtype_name(self.dtype))
        if self.dtype in LOGICAL:
            raise SchemaError(f"a Scalar of {self.dtype} has no Python number; use Array({self.dtype!r}, ())")

    @property
    def stored(self) -> np.dtype[Any]:
        return STORED[self.dtype]

    @property
    def expected(self) -> str:
        return f"a scalar of {self.dtype}"

    def encode(self, value: Any) -> Buffer:
        if not isinstance(value, (bool, int, float, complex)):
            if getattr(value, "shape", None) != ():
                raise Misfit(self.expected, describe(value))
            value = value.item()
        if not isinstance(value, (bool, int, float, complex)):  # a numpy str_, datetime64, ...
            raise Misfit(self.expected, describe(value))
        kind, size = self.stored.kind, self.stored.itemsize
        try:
            if isinstance(value, bool) != (kind == "b"):
                raise TypeError
            if kind in "iu":
                return operator.index(cast("int", value)).to_bytes(size, "little", signed=kind == "i")
            if kind == "c":
                value = complex(value)
                part = "<f" if size == 8 else "<d"
                return struct.pack(part, value.real) + struct.pack(part, value.imag)
            return struct.pack({("b", 1): "?", ("f", 2): "<e", ("f", 4): "<f", ("f", 8): "<d"}[kind, size], value)
        except (TypeError, OverflowError, struct.error):
            raise Misfit(self.expected, describe(value)) from None

    def options(self) -> dict[str, Any]:
        return {"dtype": self.dtype}


@dataclass(frozen=True)
class Label(Fixed):
    """A class index into `names`; datasets that have one answer `.classes`, `.class_to_idx` and `.targets`."""

    names: tuple[str, ...]
    name: ClassVar[str] = "label"

    def __post_init__(self) -> None:
        if isinstance(self.names, str) or not isinstance(self.names, Iterable):
            raise SchemaError(f"the names of a Label must be a list of strings, got {describe(self.names)}")
        object.__setattr__(self, "names", tuple(self.names))
        if not all(isinstance(name, str) for name in self.names) or len(set(self.names)) != len(self.names):
            raise SchemaError("the names of a Label must be different strings")

    @property
    def stored(self) -> np.dtype[Any]:
        return STORED["int64"]

    @property
    def expected(self) -> str:
        return f"a class index in 0..{len(self.names) - 1}"

    def encode(self, value: Any) -> Buffer:
        if getattr(value, "shape", None) == ():
            value = value.item()
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < len(self.names):
            raise Misfit(self.expected, describe(value))
        return value.to_bytes(8, "little")

    def options(self) -> dict[str, Any]:
        return {"names": list(self.names)}


@dataclass(frozen=True)
class Array(Fixed):
    """An array of `dtype` and `shape`; a dimension of None differs from sample to sample.

    `align` is the alignment of each value in the payload, a power of two from the item size up to 4096 bytes. The
    default of 64 is a cache line and the widest vector register; the item size makes the values of a single-field
    dataset one gap-free flat array. With ``compression="zstd"`` values are compressed one by one, and not aligned.

    >>> Array("float32", (None, 4))
    Array(nullable=False, dtype='float32', shape=(None, 4), align=64, compression=None)
    """

    dtype: str
    shape: tuple[int | None, ...]
    align: int = 64
    compression: str | None = field(default=None, kw_only=True)
    name: ClassVar[str] = "array"

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", dtype_name(self.dtype))
        if not isinstance(self.shape, (tuple, list)):
            raise SchemaError(f"shape must be a tuple such as (3, None), got {describe(self.shape)}")
        object.__setattr__(self, "shape", tuple(None if size is None else operator.index(size) for size in self.shape))
        known = [size for size in self.shape if size is not None]
        if len(self.shape) > MAX_RANK or any(not 0 <= size <= MAX_DIMENSION for size in known):
            raise SchemaError(
                f"shape {self.shape}: expected up to {MAX_RANK} dimensions of 0 to {MAX_DIMENSION}, or None where it varies"
            )
        if math.prod(size or 1 for size in known) * self.stored.itemsize > MAX_ITEM_BYTES:
            raise SchemaError(f"shape {self.shape} of {self.dtype} is larger than {MAX_ITEM_BYTES} bytes")
        if self.unknown and 0 in known:
            raise SchemaError(f"shape {self.shape}: a dimension of 0 leaves the unknown ones undetermined")
        if self.align not in (1 << bit for bit in range(13)) or self.align < self.stored.itemsize:
            raise SchemaError(
                f"align={self.align!r}: expected a power of two from the item size ({self.stored.itemsize}) to {MAX_ALIGNMENT}"
            )
        _check_compression(self, self.is_column)

    @property
    def stored(self) -> np.dtype[Any]:
        return STORED[self.dtype]

    @property
    def dimensions(self) -> tuple[int | None, ...]:
        return self.shape

    @property
    def expected(self) -> str:
        return f"array of {self.dtype} {self.shape}"

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return whether `shape` is one that this kind takes."""
        if len(shape) != len(self.shape):
            return False
        for have, want in zip(shape, self.shape, strict=True):  # all() with a generator takes three times as long
            if have != want and (want is not None or have > MAX_DIMENSION):
                return False
        return True

    def as_stored(self, value: Any) -> np.ndarray[Any, Any]:
        """Return array-like `value` with the stored dtype, checking only its type; `Misfit` where it differs.

        The bits of a logical type are accepted as they are read: bfloat16 as uint16.
        """
        if type(value) is np.ndarray and value.dtype == self.stored:
            return value
        if not hasattr(value, "__array__"):
            raise Misfit(self.expected, describe(value))
        try:
            array, name = as_array(value)
        except SchemaError:
            raise Misfit(self.expected, describe(value)) from None
        if name != self.dtype and not (self.dtype in LOGICAL and array.dtype == self.stored and name not in LOGICAL):
            raise Misfit(self.expected, describe(value))
        return array

    def encode(self, value: Any) -> np.ndarray[Any, Any]:
        array = self.as_stored(value)
        if not self.fits(array.shape):
            hint = "" if len(array.shape) != len(self.shape) else "; sizes that vary are None in Array(dtype, shape)"
            raise Misfit(self.expected, describe(value) + hint)
        return array if array.flags.c_contiguous else array.copy(order="C")

    def options(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "shape": list(self.shape), "align": self.align}


@dataclass(frozen=True)
class Variable(Kind):
    """Base of the kinds whose values differ in length: `Bytes`, `Text`, `Json` and the encoded files.

    With ``compression="zstd"`` values in the payload are compressed one by one.
    """

    compression: str | None = field(default=None, kw_only=True)
    python_type: ClassVar[type | str] = bytes

    def __post_init__(self) -> None:
        _check_compression(self, getattr(self, "column", False))

    def encode(self, value: Any) -> Buffer:
        if not isinstance(value, (bytes, bytearray, memoryview)):
            raise Misfit(self.expected, describe(value))
        return value if isinstance(value, bytes) else bytes(value)

    def decode(self, view: memoryview) -> Any:
        """Return the value whose bytes are `view`; ValueError where they are not of this kind."""
        return bytes(view)


@dataclass(frozen=True)
class Bytes(Variable):
    """Any bytes. With `column=True` they are kept together in the index and scanned without touching the payload.

    With `key=True` (which implies `column=True`) samples are found by them: ``reader.get(key)``.
    """

    column: bool = False
    align: int = 1
    key: bool = field(default=False, kw_only=True)
    name: ClassVar[str] = "bytes"

    def __post_init__(self) -> None:
        _check_key(self)
        super().__post_init__()
        if self.align not in (1 << bit for bit in range(13)):
            raise SchemaError(f"align={self.align!r}: expected a power of two up to {MAX_ALIGNMENT}")

    def options(self) -> dict[str, Any]:
        return {"column": self.column, "align": self.align}


@dataclass(frozen=True)
class Text(Variable):
    """A string, stored as UTF-8. With `column=True` (keys, file names, captions) it is kept in the index.

    With `key=True` (which implies `column=True`) samples are found by it: ``reader.get(key)``.
    """

    column: bool = False
    key: bool = field(default=False, kw_only=True)
    name: ClassVar[str] = "text"

    def __post_init__(self) -> None:
        _check_key(self)
        super().__post_init__()

    def encode(self, value: Any) -> Buffer:
        if not isinstance(value, str):
            raise Misfit("text", describe(value))
        try:
            return value.encode()
        except UnicodeEncodeError as error:
            raise Misfit("text that is valid Unicode", f"{describe(value)} ({error.reason})") from None

    def decode(self, view: memoryview) -> str:
        return str(view, "utf-8")

    def options(self) -> dict[str, Any]:
        return {"column": self.column}


def _check_key(kind: Bytes | Text) -> None:
    if kind.key:
        if kind.nullable:
            raise SchemaError("key=True with nullable=True: a sample without a key could never be found")
        object.__setattr__(kind, "column", True)


def _check_compression(kind: Array | Variable, in_index: bool) -> None:
    if kind.compression not in (None, "zstd"):
        raise SchemaError(f"compression={kind.compression!r}: expected 'zstd' or None")
    if kind.compression and in_index:
        raise SchemaError(
            f"compression={kind.compression!r}: {kind.expected} is kept in the index, which is not compressed"
        )


@dataclass(frozen=True)
class Json(Variable):
    """A nest of lists, dicts with str keys, strings, finite numbers, bools and None; what comes back is equal."""

    name: ClassVar[str] = "json"

    def encode(self, value: Any) -> Buffer:
        import msgspec

        try:
            text = msgspec.json.encode(value)
            same = msgspec.json.decode(text) == value
        except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
            raise Misfit("a nest of lists, dicts, strings and numbers", f"{describe(value)} ({error})") from None
        if not same:
            raise Misfit("a value that JSON can hold (str keys, lists not tuples, no NaN)", describe(value))
        return text

    def decode(self, view: memoryview) -> Any:
        import msgspec

        try:
            return msgspec.json.decode(view)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise ValueError(f"not JSON: {error}") from None


@dataclass(frozen=True)
class Image(Variable):
    """An encoded picture (JPEG, PNG, ...), kept byte for byte and decoded when it is read.

    `mode` is what a picture is decoded to: "RGB" (the default, as torchvision's ImageFolder does), "L", "RGBA", or
    None for the mode of the file. A PIL picture may be written too; it is encoded as PNG, without loss.
    """

    mode: str | None = "RGB"
    name: ClassVar[str] = "image"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in ("RGB", "L", "RGBA", None):
            raise SchemaError(f"mode={self.mode!r}: expected 'RGB', 'L', 'RGBA' or None")

    @property
    def expected(self) -> str:
        return "an encoded image (bytes) or a PIL image"

    def encode(self, value: Any) -> Buffer:
        if is_picture(value):
            file = io.BytesIO()
            try:
                value.save(file, "PNG")
            except (OSError, ValueError) as error:
                raise Misfit(self.expected + " that PNG can hold", f"{describe(value)} ({error})") from None
            return file.getvalue()
        return super().encode(value)

    def options(self) -> dict[str, Any]:
        return {"mode": self.mode}


@dataclass(frozen=True)
class Audio(Variable):
    """An encoded sound (WAV, FLAC, MP3, ...), kept byte for byte and decoded when it is read."""

    name: ClassVar[str] = "audio"


@dataclass(frozen=True)
class Video(Variable):
    """An encoded film (MP4, WebM, ...), kept byte for byte and decoded when it is read."""

    name: ClassVar[str] = "video"


KINDS: dict[str, type[Kind]] = {
    kind.name: kind for kind in (Scalar, Label, Array, Bytes, Text, Json, Image, Audio, Video)
}


def is_picture(value: Any) -> bool:
    """Return whether `value` is a PIL image, without importing Pillow for those who do not use it."""
    pil = sys.modules.get("PIL.Image")
    return pil is not None and isinstance(value, pil.Image)
