"""Items compressed one by one with Zstandard, so that any of them can still be read alone.

Each item is one frame that says the size of its content. A dictionary, trained on the first samples of a file, makes up for
what small items cannot know of each other. The same libzstd gives the same bytes for the same samples.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, Self

import numpy as np

from mmds.errors import FormatError, missing, printable
from mmds.fields import Array, Buffer, Bytes, Json, Text
from mmds.format import MAX_RATIO
from mmds.schema import Schema

LEVEL, MAX_LEVEL = 3, 22
HELD_SAMPLES, HELD_BYTES = 1000, 8 * 2**20  # that are held back to train dictionaries on
DICTIONARY_BYTES = 112_640  # the size that zstd itself takes by default
DICTIONARY_SHARE = 16  # how many times as large the samples have to be
CONTEXTS = 16  # decompressors that a thread keeps, of about 100 kB each; those without a dictionary share one

Values = list[Any]  # the encoded values of one sample, or of one field: bytes, arrays, None


@dataclass(frozen=True)
class Compression:
    """How a writer compresses. Readers need not know it, so it is not recorded."""

    level: int = LEVEL
    dictionary: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return what "zstd", "zstd:LEVEL", "zstd:dict" or "zstd:LEVEL:dict" means; ValueError for anything else.

        >>> Compression.parse("zstd:6:dict")
        Compression(level=6, dictionary=True)
        """
        name, *options = text.split(":")
        dictionary = options[-1:] == ["dict"]
        levels = options[: len(options) - dictionary] or [str(LEVEL)]
        if name == "zstd" and len(levels) == 1 and levels[0] in map(str, range(1, MAX_LEVEL + 1)):
            return cls(int(levels[0]), dictionary)
        raise ValueError(
            f"compression='{printable(text)}': expected 'zstd', 'zstd:LEVEL' or 'zstd:LEVEL:dict', level 1 to {MAX_LEVEL}"
        )


def compressed(schema: Schema) -> Schema:
    """Return the schema with all payload compressed but encoded pictures, sounds and films, which are already."""

    def compress(position: int) -> Any:
        kind = schema.fields[position].kind
        if schema.fields[position].is_payload and isinstance(kind, (Array, Bytes, Text, Json)):
            return replace(kind, compression="zstd")
        return kind

    return schema.mapped(compress)


@functools.cache
def _zstandard() -> ModuleType:
    try:
        import zstandard
    except ImportError:
        raise missing("zstandard", "zstd", "a compressed field") from None
    return zstandard


# Writing


def compressor(level: int, dictionary: bytes) -> Callable[[Buffer | None], bytes]:
    """Return the function from the bytes of a value to those of its item; a value without bytes has none.

    `FormatError` where the dictionary, which may be from a file, is none.
    """
    zstandard = _zstandard()
    compress = zstandard.ZstdCompressor(level=level, dict_data=_known(dictionary)).compress
    try:
        compress(b"the dictionary is looked at when it is needed first")
    except zstandard.ZstdError as error:
        raise FormatError(f"a dictionary that zstd cannot use ({error})") from None

    def item(data: Buffer | None) -> bytes:
        return compress(data) if data is not None and _size(data) else b""

    return item


class HeldSamples:
    """The first samples of a file, kept until there are enough of them to train dictionaries."""

    def __init__(self) -> None:
        self.samples: list[Values] = []
        self._bytes = 0

    def append(self, encoded: Values) -> bool:
        """Keep a copy of a sample, and return whether there are enough."""
        self.samples.append([data.copy() if isinstance(data, np.ndarray) else data for data in encoded])
        self._bytes += sum(_size(data) for data in encoded if data is not None)
        return len(self.samples) >= HELD_SAMPLES or self._bytes >= HELD_BYTES

    def dictionary(self, position: int) -> bytes:
        """Return a dictionary for the field at `position`; empty where there is too little to learn from."""
        zstandard = _zstandard()
        values = [bytes(memoryview(sample[position])) for sample in self.samples if sample[position] is not None]
        size = min(DICTIONARY_BYTES, sum(map(len, values)) // DICTIONARY_SHARE)
        try:
            return zstandard.train_dictionary(size, values).as_bytes()  # type: ignore[no-any-return]
        except zstandard.ZstdError:
            return b""


def _size(data: Buffer) -> int:
    return data.nbytes if isinstance(data, np.ndarray) else len(data)


# Reading


class Decompressor:
    """Decompresses items of one field, in any thread, also after a fork."""

    def __init__(self, dictionary: memoryview) -> None:
        self._view = dictionary
        self._dictionary: bytes | None = None  # is not read before it is needed

    def __call__(self, item: memoryview, expected: int | None) -> bytes:
        """Return the content of an item; ValueError where it is none, or not of the `expected` size.

        Memory is allocated for content that the item can hold, and as much as that.
        """
        zstandard = _zstandard()
        try:
            size = zstandard.frame_content_size(item)
        except zstandard.ZstdError:
            raise ValueError("not a zstd frame") from None
        if size <= 0:
            raise ValueError("a zstd frame that is empty, or does not say its size")
        if expected is not None and size != expected:
            raise ValueError(f"a zstd frame of {size} bytes, expected {expected}")
        if size > len(item) * MAX_RATIO:
            raise ValueError(f"a zstd frame of {len(item)} bytes that declares {size}, which it cannot hold")
        if self._dictionary is None:
            self._dictionary = bytes(self._view)
        try:
            content: bytes = _contexts.of(self._dictionary).decompress(item, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise ValueError(f"a damaged zstd frame ({error})") from None
        except MemoryError:
            raise ValueError(f"a zstd frame of {size} bytes, for which there is no memory") from None
        return content


class _Contexts(threading.local):
    """The decompressors of a thread, which no other may use, by dictionary."""

    def __init__(self) -> None:
        self.of = functools.lru_cache(CONTEXTS)(_context)


def _context(dictionary: bytes) -> Any:
    return _zstandard().ZstdDecompressor(dict_data=_known(dictionary))


def _known(dictionary: bytes) -> Any:
    """Return a dictionary as zstandard takes it. It has to be a whole one: any bytes would do for matches alone."""
    zstandard = _zstandard()
    return zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_FULLDICT) if dictionary else None


_contexts = _Contexts()
