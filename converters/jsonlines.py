"""JSON Lines: one object per line, which is one sample (``.jsonl``, ``.ndjson``, ``.json-lines``).

The fields are the keys of all objects, in the order in which they appear. A key whose values are all integers is int64 (or
uint64), all numbers float64, all true or false bool, all strings text; everything else is JSON. Where a key is missing or
null in any line, its field is nullable, and both read back as None.

A line that is no JSON object cannot be used, and is named by its number: text that is not UTF-8, NaN, lone surrogates,
nesting beyond what Python allows, and an object that has the same key twice, of which others silently drop one. Blank lines
count as ignored.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from mmds.converters import Ignored, Source
from mmds.converters.cells import Column, chosen_kinds, kind_named, refuse_unknown
from mmds.converters.lines import Spans, each_line
from mmds.converters.rawfile import RawFile, whole_source
from mmds.converters.records import Records
from mmds.errors import SourceError, printable
from mmds.schema import MAX_FIELDS

MAX_LINE_BYTES = 2**24  # as many empty lists become 300 MiB of Python objects
BLANK = "blank line"
DECODER = msgspec.json.Decoder()
KEY = re.compile(rb'"[ \t\r]*:')  # also within a string, where it may look like one


def sources(path: Path, *, types: dict[str, str] | None = None) -> list[Source]:
    """Return the source at `path`. `types` gives the dtype, "text" or "json" of fields that shall not be inferred."""
    chosen = chosen_kinds(types, ("text", "json"))
    file = whole_source(path)
    if file.read(0, min(2, file.size)) == b"\x1f\x8b":
        raise SourceError(f"{printable(path)}: compressed by gzip, which cannot be read from the middle; decompress it")
    spans, columns, ignored = Spans(), dict[str, Column](), Ignored()
    usable = 0
    for number, (start, end, line) in enumerate(each_line(file, MAX_LINE_BYTES), 1):
        if not line.strip():
            ignored.add(f"line {number}")
            continue
        spans.add(number, start, end)
        try:
            sample = parse(line)
        except SourceError:  # again in `load`, which is asked for every line
            continue
        usable += 1
        for key, value in sample.items():
            column = columns.get(key)
            if column is None:
                column = columns[key] = Column()
                if len(columns) > MAX_FIELDS:
                    raise SourceError(f"{printable(path)}: line {number}: more than {MAX_FIELDS} different keys so far")
            if value is not None:
                column.add(value)
    refuse_unknown(chosen, columns)
    fields = {
        key: kind_named(chosen.get(key) or _kind(column), nullable=column.values < usable)
        for key, column in columns.items()
    }
    load = LoadLine(file, tuple(columns))
    metadata = {"source": "jsonl"}
    return [
        Records(
            load, fields or None, metadata, len(spans), spans.items, ignored={BLANK: ignored} if ignored.count else {}
        )
    ]


def _kind(column: Column) -> str:
    return column.dtype() or ("text" if column.types == {str} else "json")


def parse(line: bytes) -> dict[str, Any]:
    """Return the object that `line` is, or raise `SourceError` with the reason why it is none."""
    if len(line) > MAX_LINE_BYTES:
        raise SourceError(f"a line of more than {MAX_LINE_BYTES} bytes")
    try:
        value = DECODER.decode(line)
        if not isinstance(value, dict):
            raise SourceError(f'expected a JSON object such as {{"a": 1}}, got {_type_name(value)}')
        # As many keys as there look to be: none was there twice. It costs a tenth of asking the slower parser.
        looks = len(KEY.findall(line))
        if looks != len(value) and looks != _keys(value):
            json.loads(line, object_pairs_hook=_refuse_twice)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise SourceError(f"not JSON ({error})") from None
    except RecursionError:
        raise SourceError("lists and objects nested too deeply") from None
    return value


def _keys(value: Any) -> int:
    """Return the number of keys in a nest."""
    if isinstance(value, dict):
        return len(value) + sum(_keys(each) for each in value.values() if isinstance(each, (dict, list)))
    return sum(_keys(each) for each in value if isinstance(each, (dict, list)))


def _refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise SourceError(f"the key '{printable(key)}' twice in one object")
            seen.add(key)
    return found


def _type_name(value: Any) -> str:
    names = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


@dataclass(frozen=True)
class LoadLine:
    """The function from (name, start, size) to sample, a dict with the given keys."""

    file: RawFile
    keys: tuple[str, ...]

    def __call__(self, item: tuple[str, int, int]) -> dict[str, Any]:
        """Return the object in a line, with all keys; `SourceError` with the reason why it is none."""
        _, start, size = item
        if size > MAX_LINE_BYTES:
            raise SourceError(f"a line of more than {MAX_LINE_BYTES} bytes")
        found = parse(self.file.read(start, size))
        return {key: found.get(key) for key in self.keys}
