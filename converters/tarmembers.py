"""Samples as members of WebDataset shards: what each is called and which bytes it has.

Each field of a sample becomes a member ``KEY.EXTENSION``; a null has no member.

The key is ``__key__`` or else ``path`` (without its extension), if every value of it makes a key: relative, without ``..``,
hidden or unprintable parts, no two alike. Otherwise keys are numbers, and that field is written as text: names in a
dataset are not to be trusted, and WebDataset makes one sample of two that share a key.

A field whose name is an extension of its kind keeps it, as all do that came from shards. Others get the extension of
their kind, or ``FIELD.EXTENSION`` where several fields are of that kind:

=======================  ===============================================================================
kind                     extension and content
=======================  ===============================================================================
Image, Audio, Video      as the content says (jpg, png, ...): the encoded file
Label, integer Scalar    cls: decimal digits
Text, Json               txt: UTF-8; json: as ``json.dumps`` writes it, which is what WebDataset does
Array, other Scalar      npy; bfloat16 as float32, 8-bit floats are refused
Bytes                    the field's name, or bin if that means another kind: the bytes
=======================  ===============================================================================
"""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

import mmds
from mmds.converters.suffixes import extension_of, family_of
from mmds.converters.webdataset import MAX_NAME, RESERVED, split_name
from mmds.dtypes import LOGICAL
from mmds.errors import SchemaError, printable
from mmds.fields import Array, Audio, Image, Json, Kind, Label, Scalar, Text, Video
from mmds.schema import Field

KEYS = ("__key__", "path")
DIGITS = 6  # of a key that is a number, at least
EXTENSIONS = {"int": "cls", "text": "txt", "json": "json", "npy": "npy", "bytes": "bin"}
FAMILIES = {Image: "image", Audio: "audio", Video: "video", Label: "int", Text: "text", Json: "json", Array: "npy"}


@dataclass(frozen=True)
class Part:
    """How one field becomes a member: its position among the fields, and what is before and after its extension."""

    position: int
    nullable: bool
    encode: Callable[[Any], bytes]
    extension: Callable[[bytes], str]


class Members:
    """The samples of a reader, each as a list of (member's name, content). It may be iterated over more than once."""

    def __init__(self, reader: mmds.Reader) -> None:
        self._reader = reader
        self.key_field, self._keys = _keys(reader)
        self._parts = [part for part in _parts(reader.fields) if reader.fields[part.position].name != self.key_field]

    def __len__(self) -> int:
        return len(self._reader)

    def __iter__(self) -> Iterator[list[tuple[str, bytes]]]:
        leaves_of = self._reader.fields.leaves
        for sample, key in zip(self._reader, self._keys, strict=True):
            leaves = leaves_of(sample)
            found: dict[str, bytes] = {}
            for part in self._parts:
                value = leaves[part.position]
                if value is None and part.nullable:
                    continue
                content = part.encode(value)
                name = f"{key}.{part.extension(content)}"
                if name in found:
                    raise SchemaError(
                        f"field '{printable(self._reader.fields[part.position].name)}' and another one would both be "
                        f"'{printable(name)}'; select or rename fields"
                    )
                found[name] = content
            yield list(found.items())


@dataclass(frozen=True)
class Keys:
    """Keys made of the values of a column of text."""

    values: Sequence[str]
    are_paths: bool

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[str]:
        return map(_stem, self.values) if self.are_paths else iter(self.values)

    def are_good(self) -> bool:
        """Return whether each is a key that WebDataset reads as such, leads nowhere, and is the only one of its kind."""
        hashes = np.empty(len(self), np.uint64)  # 8 bytes per sample; the keys themselves would take ten times as much
        for number, key in enumerate(self):
            if not _is_key(key):
                return False
            hashes[number] = int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "little")
        return len(np.unique(hashes)) == len(hashes)


@dataclass(frozen=True)
class Numbers:
    """Keys of samples that have no names."""

    count: int

    def __iter__(self) -> Iterator[str]:
        digits = max(DIGITS, len(str(self.count - 1)))
        return (f"{number:0{digits}}" for number in range(self.count))


def _keys(reader: mmds.Reader) -> tuple[str | None, Iterable[str]]:
    """Return the name of the field that gives the keys, None if they are numbers, and the keys."""
    for name in KEYS:
        for field in reader.fields:
            kind = field.kind
            if field.path == (name,) and isinstance(kind, Text) and kind.column and not kind.nullable:
                keys = Keys(reader.column(name), name == "path")
                if keys.are_good():
                    return name, keys
    return None, Numbers(len(reader))


def _stem(path: str) -> str:
    """Return a path up to the first dot of its last part."""
    folder, slash, name = path.rpartition("/")
    return folder + slash + name.partition(".")[0]


def _is_key(key: str) -> bool:
    plain = not key.startswith("/") and ".." not in key.split("/") and printable(key, MAX_NAME) == key
    return plain and split_name(f"{key}.x") == ((key, "x"), "")


def _parts(fields: Sequence[Field]) -> Iterator[Part]:
    families = [_family(field.kind) for field in fields]
    counts = Counter(families)
    for position, (field, family) in enumerate(zip(fields, families, strict=True)):
        name = (re.sub(r"[^\w.-]", "_", field.name.lower()).strip(".") or "value")[:255]
        is_alone = counts[family] == 1 and field.name not in KEYS
        encode = _encoder(field)
        yield Part(position, field.kind.nullable, encode, _namer(name, family, is_alone))


def _family(kind: Kind) -> str:
    if isinstance(kind, Scalar):
        return "int" if kind.stored.kind in "iu" else "npy"
    return FAMILIES.get(type(kind), "bytes")


def _namer(name: str, family: str, is_alone: bool) -> Callable[[bytes], str]:
    """Return the function from a member's content to its extension."""
    if family_of(name) == family and name not in RESERVED:
        return lambda content: name
    before = "" if is_alone else f"{name}."
    if family in EXTENSIONS:
        fixed = before + EXTENSIONS[family]
        return lambda content: fixed
    return lambda content: before + extension_of(content, family)


def _encoder(field: Field) -> Callable[[Any], bytes]:
    """Return the function from a field's value to the bytes of its member."""
    kind = field.kind
    family = _family(kind)
    if family == "int":
        return lambda value: b"%d" % value
    if isinstance(kind, Text):
        return lambda value: str(value).encode()
    if isinstance(kind, Json):
        return lambda value: json.dumps(value).encode()
    if isinstance(kind, Scalar):
        return lambda value: _npy(np.array(value, kind.stored))
    if not isinstance(kind, Array):
        return bytes
    if kind.dtype == "bfloat16":  # the upper half of a float32
        return lambda value: _npy((value.astype(np.uint32) << 16).view(np.float32))
    if kind.dtype in LOGICAL:
        raise SchemaError(f"field '{printable(field.name)}': .npy cannot hold {kind.dtype}; select the other fields")
    return _npy


def _npy(array: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=False)
    return file.getvalue()
