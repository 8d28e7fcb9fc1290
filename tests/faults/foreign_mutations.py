"""Damage to a small dataset: case number k of a subject is always the same, so that a finding can be had again.

What is done to one of its files (or, in a case of eight, to two of them): it ends early, bytes and bits change, pieces are cut
out, repeated or moved, whole numbers of every width become those that overflow, and where a file has a structure that a
generator knows (JSON, the header of a tar member, of an ``.npy`` block, a file within gzip, or between checksums) that
structure is damaged and all around it made right again.
"""

from __future__ import annotations

import json
import random
import re
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tests.faults.foreign import SUBJECTS

Tree = Mapping[str, bytes]
EXTREMES = (0, 1, -1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 1, 7, 255, 65535)
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 2**31, 2**63, 2**64, 10**400, 1.5, float("nan"), float("inf"), "", "x" * 2000, "../../etc/passwd",
    "/dev/zero", "a\0b", "\ud800", "\x1b[2J\u202e", "<script>", "object", "|O", "pickle", [], {}, [[]], {"": None},
)  # fmt: skip
DEEP = b"[" * 100_000


def damaged(name: str, tree: Tree, number: int) -> dict[str, bytes | None]:
    """Return the files of a subject that case `number` changes: their new content, or None where one is removed."""
    draw = random.Random(f"{name}:{number}")
    layers = SUBJECTS[name].layers
    changed: dict[str, bytes | None] = {}
    for _ in range(1 if draw.random() < 7 / 8 else 2):
        file = _chosen(draw, tree)
        data = changed.get(file) or tree[file]
        kind = draw.random()
        if len(tree) > 1 and kind < 0.02:
            changed[file] = None
        elif len(tree) > 1 and kind < 0.04:
            changed[file] = tree[_chosen(draw, tree)]
        else:
            unwrap, wrap = next((layer for end, layer in layers.items() if file.endswith(end)), (None, None))
            if unwrap is not None and wrap is not None and kind < 0.7 and file not in changed:
                changed[file] = wrap(_damage(draw, file, unwrap(data)))
            else:
                changed[file] = _damage(draw, file, data)
    return changed


def truncated(tree: Tree, number: int) -> dict[str, bytes | None]:
    """Return the file that ends early in case `number`: each file at each length in turn."""
    for file, data in sorted(tree.items(), key=lambda each: len(each[1])):
        if number < len(data):
            return {file: data[:number]}
        number -= len(data)
    raise IndexError("no file is as long")


def _chosen(draw: random.Random, tree: Tree) -> str:
    """Return one of the files: the small ones, which say what is in the large ones, as often as those."""
    return draw.choice(sorted(tree))


def _damage(draw: random.Random, file: str, data: bytes) -> bytes:
    structures: list[Callable[[random.Random, bytes], bytes]] = []
    if data[:1] in (b"{", b"["):
        structures = [_json, _json, _json]
    elif data[257:262] == b"ustar":
        structures = [_tar_header]
    elif data.startswith(b"\x93NUMPY"):
        structures = [_npy_header]
    elif b'"mmds' in data or b'{"fields"' in data:
        structures = [_digits]
    ways = [_truncate, _flip, _number, _number, _number, _splice, _digits, *structures * 4]
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        data = draw.choice(ways)(draw, data)
    return data


def _truncate(draw: random.Random, data: bytes) -> bytes:
    return data[: draw.randrange(len(data) + 1)]


def _place(draw: random.Random, data: bytes) -> int:
    """Return a position, mostly one that says something: large files are mostly zeros."""
    said = np.flatnonzero(np.frombuffer(data, np.uint8))
    if len(said) and draw.random() < 0.95:
        return max(0, int(said[draw.randrange(len(said))]) - draw.choice((0, 0, 0, 1, 3, 7)))
    return draw.randrange(max(1, len(data)))


def _flip(draw: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8)) if data else 0):
        place = _place(draw, data)
        changed[place] ^= 1 << draw.randrange(8) if draw.random() < 0.7 else draw.randrange(1, 256)
    return bytes(changed)


def _number(draw: random.Random, data: bytes) -> bytes:
    """Put a number that overflows, or is a little off, where one may be."""
    width = draw.choice((1, 2, 4, 4, 8, 8))
    place = _place(draw, data)
    if draw.random() < 0.7:
        place -= place % width
    order: Any = draw.choice(("little", "little", "little", "big"))
    found = int.from_bytes(data[place : place + width], order)
    value = draw.choice((draw.choice(EXTREMES), draw.choice(EXTREMES), found + 1, found - 1, found * 2, len(data)))
    written: bytes = (value % (1 << 8 * width)).to_bytes(width, order)
    return data[:place] + written + data[place + width :]


def _splice(draw: random.Random, data: bytes) -> bytes:
    start, place = _place(draw, data), _place(draw, data)
    size = draw.choice((1, 4, 8, 16, 64, 512, 4096))
    piece = data[start : start + size]
    over = draw.choice((0, len(piece), len(piece), draw.randrange(2 * size)))  # inserted, or in place of as many bytes
    return data[:place] + draw.choice((piece, piece, b"", bytes(len(piece)))) + data[place + over :]


def _digits(draw: random.Random, data: bytes) -> bytes:
    """Put another number where one is written in digits."""
    places = list(re.finditer(rb"-?\d+", data[:200_000]))
    if not places:
        return _flip(draw, data)
    place = draw.choice(places)
    value = draw.choice((*EXTREMES, int(place[0][:18]) + 1, int(place[0][:18]) - 1, "9" * 5000, "1e999", "NaN"))
    return data[: place.start()] + str(value).encode() + data[place.end() :]


def _json(draw: random.Random, data: bytes) -> bytes:
    """Put odd values into JSON, take keys away, have them twice, or nest without end."""
    lines = data.splitlines(keepends=True) or [b""]
    row = draw.randrange(len(lines))  # of JSON lines, or of a single one
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        try:
            value = json.loads(lines[row])
        except (ValueError, RecursionError):
            return _flip(draw, data)
        lines[row] = _dumped(draw, value) + b"\n"
        return b"".join(lines)
    return _dumped(draw, value)


def _dumped(draw: random.Random, value: Any) -> bytes:
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            places.append((node, key))
            if isinstance(child, (dict, list)):
                walk(child)

    if isinstance(value, (dict, list)):
        walk(value)
    mark = json.dumps("a mark that is replaced below")
    what = draw.random()
    if not places:
        return DEEP
    node, key = draw.choice(places)
    if what < 0.55:
        node[key] = draw.choice(ODD)
    elif what < 0.65:
        del node[key]
    elif what < 0.75 and isinstance(node, dict):
        node[str(draw.choice(ODD))] = node.pop(key)
    elif what < 0.85 and isinstance(node, dict):
        text = json.dumps(value)
        found = json.dumps(key) + ": "
        return text.replace(found, f"{found}{json.dumps(draw.choice(ODD))}, {found}", 1).encode()
    elif what < 0.95:
        other, other_key = draw.choice(places)
        node[key] = other[other_key] if other_key in other or isinstance(other, list) else None
        if node[key] is node or isinstance(node[key], (dict, list)):
            node[key] = json.loads(json.dumps(draw.choice(ODD)))
    else:
        node[key] = json.loads(mark)
        return json.dumps(value).encode().replace(mark.encode(), DEEP)
    return json.dumps(value).encode()


def _tar_header(draw: random.Random, data: bytes) -> bytes:
    """Change a field of a member's header, and make its checksum right."""
    heads = [place for place in range(0, len(data) - 511, 512) if data[place + 257 : place + 262] == b"ustar"]
    if not heads:
        return _flip(draw, data)
    place = draw.choice(heads)
    head = bytearray(data[place : place + 512])
    start, size = draw.choice(((0, 100), (100, 8), (124, 12), (124, 12), (124, 12), (156, 1), (157, 100), (345, 155)))
    value = draw.choice(EXTREMES) % 2**63
    content = draw.choice(
        (
            b"%0*o" % (size - 1, value % 8 ** (size - 1)) + b"\0",
            b"\x80" + value.to_bytes(16, "big")[-(size - 1) :] if size > 1 else b"9",
            b"\xff" * size,
            draw.choice((b"0", b"1", b"2", b"3", b"5", b"6", b"7", b"g", b"x", b"L", b"K", b"S", b"V", b"\0")),
            draw.choice((b"../../x.txt", b"/etc/passwd.txt", b"a\nb.txt", b"\xff.txt", b"\x1b[2J.txt", b".txt")),
            draw.randbytes(size),
        )
    )
    head[start : start + size] = content[:size].ljust(size, b"\0")
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return data[:place] + bytes(head) + data[place + 512 :]


def _npy_header(draw: random.Random, data: bytes) -> bytes:
    """Change what an .npy block says of itself, and make the length of its header right."""
    (size,) = struct.unpack_from("<H", data.ljust(10, b"\0"), 8)
    said = data[10 : 10 + size].decode("latin-1")
    dtypes = ("'|O'", "'<M8[s]'", "'<U7'", "'|V8'", "'<f16'", "[('a', '<i4')]", "'>f4'", "'|S0'", "7", "None", "'|b1'")
    shapes = (
        "()",
        "(-1,)",
        "(2**70,)",
        "(0, 5)",
        "(1,) * 99",
        "(True,)",
        f"({2**63},)",
        f"({2**32}, {2**32})",
        "(3,)",
        "7",
    )
    what = draw.randrange(4)
    if what == 0:
        said = re.sub(r"'descr': [^,]*", f"'descr': {draw.choice(dtypes)}", said, count=1)
    elif what == 1:
        said = re.sub(r"'shape': \([^)]*\)", f"'shape': {draw.choice(shapes)}", said, count=1)
    elif what == 2:
        said = said.replace("False", draw.choice(("True", "None", "1", "__import__('os')")), 1)
    else:
        said = draw.choice(
            ("{}", "[" * 9000, "{'descr': '<f4'}", said * 3, "(" * 200 + ")" * 200, said.replace("'", '"'))
        )
    head = said.encode("latin-1")[:65535]
    return data[:8] + struct.pack("<H", len(head)) + head + data[10 + size :]
