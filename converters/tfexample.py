"""``tf.train.Example``: the protocol buffer that most TFRecord files hold, as a sample.

A feature is a list of int64, of float32 or of bytes. Seen over all records, one that never has more than one value is a
single value (`Scalar` or `Bytes`), a longer one an `Array`, of fixed length if it is the same everywhere. Lists of bytes
that are all UTF-8 are `Json`. A feature that a record does not have is None there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

import mmds
from mmds.errors import SchemaError, SourceError, missing, printable
from mmds.fields import Kind

DTYPES = {"int64_list": "int64", "float_list": "float32"}
BYTES = "bytes_list"
KINDS: dict[str, type[Kind]] = {
    "bytes": mmds.Bytes,
    "text": mmds.Text,
    "image": mmds.Image,
    "audio": mmds.Audio,
    "video": mmds.Video,
}


@cache
def _example() -> Any:
    """Return the message class, made from tensorflow/core/example/{example,feature}.proto as far as it is used here."""
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    except ImportError:
        raise missing("protobuf", "tfrecord", "reading tf.train.Example") from None
    described = descriptor_pb2.FileDescriptorProto(name="mmds/example.proto", package="mmds", syntax="proto3")
    types = descriptor_pb2.FieldDescriptorProto

    def message(parent: Any, name: str, *fields: tuple[str, int, bool, str]) -> Any:
        made = parent.add(name=name)
        for number, (label, kind, repeated, of) in enumerate(fields, 1):
            made.field.add(
                name=label,
                number=number,
                type=kind,
                label=types.LABEL_REPEATED if repeated else types.LABEL_OPTIONAL,
                type_name=f".mmds.{of}" if of else None,
            )
        return made

    top = described.message_type
    message(top, "BytesList", ("value", types.TYPE_BYTES, True, ""))
    message(top, "FloatList", ("value", types.TYPE_FLOAT, True, ""))
    message(top, "Int64List", ("value", types.TYPE_INT64, True, ""))
    lists = ((BYTES, "BytesList"), ("float_list", "FloatList"), ("int64_list", "Int64List"))
    feature = message(top, "Feature", *((name, types.TYPE_MESSAGE, False, of) for name, of in lists))
    feature.oneof_decl.add(name="kind")
    for each in feature.field:
        each.oneof_index = 0
    features = message(top, "Features", ("feature", types.TYPE_MESSAGE, True, "Features.FeatureEntry"))
    key, value = ("key", types.TYPE_STRING, False, ""), ("value", types.TYPE_MESSAGE, False, "Feature")
    message(features.nested_type, "FeatureEntry", key, value).options.map_entry = True
    # A SequenceExample has feature_lists where an Example has nothing.
    lists_of = ("feature_lists", types.TYPE_BYTES, True, "")
    message(top, "Example", ("features", types.TYPE_MESSAGE, False, "Features"), lists_of)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(described)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("mmds.Example"))


def parse(record: bytes) -> Mapping[str, Any]:
    """Return the features of a record by name, or raise `SourceError`."""
    from google.protobuf.message import DecodeError

    example = _example()()
    try:
        example.ParseFromString(record)
    except DecodeError as error:
        raise SourceError(f"no tf.train.Example ({printable(error)}); raw=True keeps records as they are") from None
    if example.feature_lists:
        raise SourceError("a tf.train.SequenceExample, which no field holds; raw=True keeps records as they are")
    found: Mapping[str, Any] = example.features.feature
    if not found:
        raise SourceError("no tf.train.Example, or one without features; raw=True keeps records as they are")
    return found


@dataclass
class FeatureColumn:
    """What was seen of one feature: the type of its list, how often, the least and most values, whether bytes are UTF-8."""

    list_type: str
    least: int
    most: int
    seen: int = 0
    text: bool = True

    def add(self, values: Any) -> None:
        """Take note of one more list of the type."""
        self.seen += 1
        self.least = min(self.least, len(values))
        self.most = max(self.most, len(values))
        self.text = self.text and self.list_type == BYTES and all(map(_is_text, values))

    def feature(self, name: str, records: int, chosen: str | None) -> Feature:
        """Return the feature's field, of `records` records; `chosen` names another kind for single bytes."""
        single = self.most <= 1
        nullable = self.seen < records or (single and not self.least)
        shown = f"feature '{printable(name)}'"
        if chosen and not (single and self.list_type == BYTES):
            raise SchemaError(f"types: {shown} is no single bytes value, and cannot be '{chosen}'")
        if self.list_type != BYTES:
            dtype = DTYPES[self.list_type]
            size = self.most if self.least == self.most else None
            kind = mmds.Scalar(dtype, nullable=nullable) if single else mmds.Array(dtype, (size,), nullable=nullable)
            return Feature(self.list_type, single, kind)
        if single:
            return Feature(BYTES, True, KINDS[chosen or "bytes"](nullable=nullable))
        if not self.text:
            raise SchemaError(f"{shown} has lists of bytes, which no field holds; exclude=[...] leaves it out")
        return Feature(BYTES, False, mmds.Json(nullable=nullable))


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


@dataclass(frozen=True)
class Feature:
    """A feature as a field."""

    list_type: str
    single: bool
    kind: Kind

    def value(self, name: str, feature: Any) -> Any:
        """Return the value of a record's feature, or None where it has none; `SourceError` where it does not fit."""
        found = feature.WhichOneof("kind")
        if found is None:
            return None
        if found != self.list_type:
            raise SourceError(f"feature '{printable(name)}' is a {found}; in other records, a {self.list_type}")
        values = getattr(feature, found).value
        if self.list_type != BYTES and not self.single:
            return np.fromiter(values, DTYPES[found], len(values))
        try:
            if not self.single:
                return [value.decode() for value in values]
            value = values[0] if values else None
            return value.decode() if value is not None and isinstance(self.kind, mmds.Text) else value
        except UnicodeDecodeError:
            raise SourceError(f"feature '{printable(name)}' is not UTF-8") from None
