"""Files that look like ``.mmds`` files, with one thing or several wrong, and checksums that mostly agree.

`mutated` takes a golden file apart (`filled.Parts`), changes header, data, index, fields, footer or trailer as the bytes of
`decisions` say, and puts it together again with everything that guards it made right, or not. The same decisions always
make the same file.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import zstandard

from tests.faults.assembly import HEADER_FIELDS, REPAIRS, TRAILER_FIELDS, Parts, parts_of, refit
from tests.faults.decisions import Decisions
from tests.resealing import HUGE, golden

# Those that take long to check come once, so that others are not held up by them.
BASES = (
    *("single", "label", "metadata", "json", "media", "tokens", "strings", "keys", "ragged", "ranks", "nested"),
    *("constant_stride", "mixed_alignment", "column_ranks", "empty", "single", "label", "json", "media", "tokens"),
    *("strings", "keys", "ragged", "ranks", "nested", "mixed_alignment", "bits", "dictionaries", "keys", "ragged"),
    *("scalars", "columns", "nullable", "compressed", "strings", "keys", "ragged", "json", "metadata", "compressed"),
)
WORDS = ("", "x", "x.y", "array", "text", "bytes", "ends", "values", "<u8", "|u1", "bfloat16", "a" * 64, "\ud800", "ü")
NUMBERS = (0, 1, -1, 2, 3, 7, 8, 31, 32, 33, 64, 255, 256, 257, 4096, 4097, 2**20, *HUGE, *(-number for number in HUGE))
PLAIN: tuple[Any, ...] = (None, True, False, 0.0, 1.0, 1.5, float("nan"), float("inf"), [], {}, [[]], {"": 0}, 10**400)
BIG = 2**32 - 1
SHAPES: tuple[list[Any], ...] = (
    *([None], [None, None], [None, 2], [2, None], [None, None, 3], [300], [3], [], [0], [0, BIG, BIG], [BIG] * 3),
    *([1] * 33, [0, None], [None] * 5, [2**20, 0], [None, BIG], [2**15, 2**15, 2**10, 2**10], [1] * 8 + [2], [-1]),
)
DTYPES = ("uint8", "uint16", "int64", "float32", "bool", "complex128", "bfloat16", "float8_e5m2", "<u2", "object")
OPTIONS: dict[str, tuple[Any, ...]] = {
    "dtype": DTYPES,
    "shape": SHAPES,
    "align": (1, 2, 8, 64, 4096, 0, 3, 8192, True, 2.0),
    "nullable": (True, False, 0),
    "column": (True, False, 1),
    "key": (True, False),
    "compression": ("zstd", "lz4", None),
    "names": (["a", "b"], [], ["a", "a"], ["a", 1], "ab"),
    "mode": ("RGB", None, "L", "CMYK"),
    "kind": ("scalar", "label", "array", "bytes", "text", "json", "image", "audio", "video", "tensor"),
}
KINDS: tuple[dict[str, Any], ...] = (
    {"kind": "json"},
    {"kind": "text", "column": False},
    {"kind": "text", "column": True},
    {"kind": "text", "column": True, "key": True},
    {"kind": "bytes", "column": False, "align": 8},
    {"kind": "bytes", "column": True, "align": 1, "key": True},
    {"kind": "array", "dtype": "uint8", "shape": [None], "align": 1},
    {"kind": "array", "dtype": "uint16", "shape": [None, None], "align": 64},
    {"kind": "array", "dtype": "float32", "shape": [80], "align": 4},
    {"kind": "array", "dtype": "uint8", "shape": [1, 1, 3], "align": 64},
    {"kind": "scalar", "dtype": "bool"},
    {"kind": "label", "names": ["a", "b"]},
    {"kind": "image", "mode": None},
    {"kind": "json", "compression": "zstd"},
    {"kind": "array", "dtype": "uint8", "shape": [None, 2], "align": 64, "compression": "zstd"},
)


def _frames() -> tuple[bytes, ...]:
    compress = zstandard.ZstdCompressor().compress
    zeros = (2**17 << 3 | 3).to_bytes(3, "little") + b"\0"  # a block of 128 KiB in four bytes
    declared = [
        b"\x28\xb5\x2f\xfd\xe0" + size.to_bytes(8, "little") for size in (5, 300, 2**17, 2**40, 2**63, 2**64 - 1)
    ]
    whole = [compress(data) for data in (b"hello" * 60, bytes(300), b"\xff", b'{"a":NaN}', bytes(2**16), b"")]
    more = [zstandard.ZstdCompressor(write_content_size=False).compress(b"hi"), b"\x50\x2a\x4d\x18\4\0\0\0abcd"]
    return (
        *whole,
        *more,
        whole[0] * 2,
        whole[0][:-1],
        *(head + blocks for head in declared for blocks in (zeros, b"\1\0\0")),
    )


VALUES = (
    *(b"", b"x", b"null", b'{"a":NaN}', b"[" * 5000, b'"\\ud800"', b"1e999", b"9" * 40, b"\xef\xbb\xbf1", b"-Infinity"),
    *(
        b'{"a":1,"a":2}',
        b" 1 ",
        b"\xff\xfe",
        b'"\xed\xa0\x80"',
        b"1.0e",
        b"-0",
        b'{"\\u0000":[]}',
        b"1 2",
        b"true",
        b"01",
    ),
    *(
        b'"\x01"',
        b"{1:2}",
        b"[1,]",
        bytes(8),
        bytes(300),
        b"\xff" * 16,
        "日本".encode(),
        b"\x89PNG\r\n\x1a\n",
        *_frames(),
    ),
)


def mutated(decisions: bytes) -> tuple[str, bytes]:
    """Return the name of a golden file, and what these decisions make of it."""
    choices = Decisions(decisions)
    name = choices.choose(BASES)
    parts = parts_of(name)
    for _ in range(1 + (choices.below(8) + 1) // 3):
        choices.choose(MUTATIONS)(parts, choices)
    repairs = set(REPAIRS)
    if choices.once_in(8):
        repairs -= {repair for repair in REPAIRS if choices.once_in(3)}
    data = parts.assembled(repairs)
    if choices.once_in(16):
        data = _torn(data, choices)
    return name, data


def _footer(parts: Parts, choices: Decisions) -> None:
    """Change one place of the footer."""
    container: Any = parts.footer
    if not isinstance(container, dict) or not container:
        return
    while True:
        keys = list(container) if isinstance(container, dict) else list(range(len(container)))
        key = choices.choose(keys)
        if not isinstance(container[key], (dict, list)) or not container[key] or choices.once_in(6):
            break
        container = container[key]
    value, how = container[key], choices.below(6)
    if how == 0 and type(value) is int:
        container[key] = value + choices.below(131) - 65
    elif how == 1:
        del container[key]
    elif how == 2:
        container[key] = copy.deepcopy(container[choices.choose(keys)])
    elif how == 3 and isinstance(container, list):
        container.insert(0, container.pop())
    else:
        container[key] = _value(choices)


def _value(choices: Decisions) -> Any:
    kind: tuple[Any, ...] = choices.choose((NUMBERS, PLAIN, WORDS, SHAPES))
    return copy.deepcopy(choices.choose(kind))


def _fields(parts: Parts, choices: Decisions) -> None:
    """Change an option or the kind of a field, or the number of fields, and mostly the sections with them."""
    fields = parts.footer.get("fields") if isinstance(parts.footer, dict) else None
    if not isinstance(fields, list) or not fields or not all(isinstance(field, dict) for field in fields):
        return
    field, how = choices.choose(fields), choices.below(5)
    if how <= 1:
        option = choices.choose([key for key in field if key in OPTIONS] or ["kind"])
        field[option] = copy.deepcopy(choices.choose(OPTIONS[option]))
    elif how == 2:
        kind = copy.deepcopy(choices.choose(KINDS))
        fields[fields.index(field)] = {"path": field.get("path"), "nullable": choices.once_in(3), **kind}
    elif how == 3:
        option = choices.choose(tuple(OPTIONS))
        field[option] = copy.deepcopy(choices.choose(OPTIONS[option]))
    elif choices.once_in(2):
        fields.remove(field)
    else:
        fields.append({"path": [f"{len(fields)}"], "nullable": False, **copy.deepcopy(choices.choose(KINDS))})
    if not choices.once_in(4):
        refit(parts)


def _samples(parts: Parts, choices: Decisions) -> None:
    """Change the number of samples, and mostly the sections with it."""
    if isinstance(parts.footer, dict):
        parts.footer["n"] = parts.n = max(0, parts.n + choices.choose((-1, 1, 2, -2, 300, 2**31, 2**53 - 1)))
        if not choices.once_in(3):
            refit(parts)


def _entry(parts: Parts, choices: Decisions) -> None:
    """Change a number, or some bytes, in one section."""
    array, size = parts.arrays[number := choices.below(len(parts.arrays))], parts.itemsizes[number]
    if len(array) < size:
        return
    at = choices.below(len(array) // size) * size
    old, how = int.from_bytes(array[at : at + size], "little"), choices.below(6)
    if how == 0:
        new = old + choices.choose((1, -1, 2, 8, -8, 64, -64, 4096))
    elif how == 1:
        new = choices.choose((0, 4096, 4096 + len(parts.data), len(array), 1, *HUGE))
    elif how == 2:
        new = old ^ 1 << choices.below(8 * size)
    elif how == 3:
        other = choices.below(len(array) // size) * size
        new = int.from_bytes(array[other : other + size], "little")
        array[other : other + size] = array[at : at + size]
    else:
        new = int.from_bytes(choices.take(size), "little")
    array[at : at + size] = (new % 256**size).to_bytes(size, "little")


def _section(parts: Parts, choices: Decisions) -> None:
    """Drop, repeat, move, lengthen or shorten a section, as the footer lists it or in the index or both."""
    listed = parts.footer.get("sections") if isinstance(parts.footer, dict) else None
    targets: list[list[Any]] = [parts.arrays, parts.itemsizes]
    if isinstance(listed, list) and len(listed) == len(parts.arrays) and not choices.once_in(4):
        targets.append(listed)
    how, number, other = choices.below(5), choices.below(len(parts.arrays)), choices.below(len(parts.arrays))
    if how >= 3:
        array, cut = parts.arrays[number], choices.choose((1, 8, 64, 1000))
        parts.arrays[number] = array[: max(0, len(array) - cut)] if how == 3 else array + choices.take(8) * cut
        return
    for target in targets:
        if how == 0 and len(target) > 1:
            del target[number]
        elif how == 1 and len(target) < 100:
            target.insert(other, copy.deepcopy(target[number]))
        elif number < len(target) and other < len(target):
            target[number], target[other] = target[other], target[number]


def _payload(parts: Parts, choices: Decisions) -> None:
    """Change bytes of the data, or put another value in the place of an item and move what is behind it."""
    spans = parts.items()
    start, stop = choices.choose(spans) if spans else (0, len(parts.data))
    how = choices.below(6)
    if how <= 1:
        parts.replace(start, stop, choices.choose(VALUES), moving=not choices.once_in(6))
    elif how == 2:
        frame = zstandard.ZstdCompressor().compress(bytes(parts.data[start:stop]))
        parts.replace(start, stop, frame, moving=True)
    elif how == 3 and stop > start:
        cut = start + choices.below(stop - start)
        parts.replace(cut, stop, choices.take(choices.below(9)), moving=not choices.once_in(4))
    elif stop > start:
        at = start + choices.below(
            min(stop - start, 24) if how == 4 else stop - start
        )  # frames begin with their header
        parts.data[at] = choices.below(256) if choices.once_in(2) else parts.data[at] ^ 1 << choices.below(8)


def _numbers(parts: Parts, choices: Decisions) -> None:
    """Set a field of the header or of the trailer, after all else agrees."""
    fields = choices.choose((HEADER_FIELDS, TRAILER_FIELDS))
    offset, size = choices.choose(tuple(fields.values()))
    known = (0, 1, 2, 3, 4096, 4160, *HUGE)
    number = choices.choose(known) if choices.once_in(2) else int.from_bytes(choices.take(size), "little")
    parts.patches[offset] = (number % 256**size).to_bytes(size, "little")


def _columns(parts: Parts, choices: Decisions) -> None:
    """Put a value that is special in the place of the values of a column, or of a dictionary."""
    parts.arrays[choices.below(len(parts.arrays))][:] = choices.choose(VALUES)[:1000]


def _text(parts: Parts, choices: Decisions) -> None:
    """Change the text of the footer in one place, whatever its meaning."""
    new = choices.choose(
        (b" ", b"\\u0041", b"\xff", b"\0", b",", b'"n":1,', b"[" * 100, b"1e5", b"-0", b"\xed\xa0\x80", b"")
    )
    parts.text_edit = (choices.below(2**16), choices.below(4), new)


MUTATIONS: tuple[Callable[[Parts, Decisions], None], ...] = (
    *(_entry, _payload, _fields, _footer, _entry, _payload, _fields, _samples, _section, _entry, _payload),
    *(_numbers, _columns, _text, _payload, _entry, _fields, _payload, _entry, _fields, _entry, _columns),
)


def _torn(data: bytes, choices: Decisions) -> bytes:
    """Cut, lengthen, splice or flip a file that is otherwise done."""
    how, at = choices.below(6), choices.below(len(data))
    if how == 0:
        return data[:at]
    if how == 1:
        return data + choices.take(1 + choices.below(100))
    if how == 2:
        other = golden(choices.choose(BASES))
        return data[:at] + other[at:]
    if how == 3:
        return data[:at] + data[at + 1 + choices.below(64) :]
    changed = bytearray(data)
    changed[at] ^= 1 << choices.below(8)
    return bytes(changed)
