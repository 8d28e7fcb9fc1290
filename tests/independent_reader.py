"""A second reader of version-1.0 files, from the format page alone: standard library, numpy and zstandard, no mmds."""

import hashlib
import json
import math
import struct
import zlib
from typing import Any

import numpy as np
import zstandard

CODES = {"bool": "|b1", "int8": "|i1", "uint8": "|u1", "complex64": "<c8", "complex128": "<c16", "bfloat16": "<u2"}
CODES |= {f"{name}{8 * size}": f"<{name[0]}{size}" for name in ("int", "uint", "float") for size in (2, 4, 8)}
CODES |= {f"float8_{name}": "|u1" for name in ("e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz")}
BINARY = dict.fromkeys(("bytes", "image", "audio", "video"), bytes)
OPAQUE: dict[str, Any] = {"text": bytes.decode, "json": lambda data: json.loads(data.decode()), **BINARY}
canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode


ZSTD = (zstandard.ZstdError, MemoryError)


class Bad(ValueError):
    """The bytes break a rule of the format."""


def need(fact: bool, rule: str) -> None:
    if not fact:
        raise Bad(rule)


def nest(leaves: list[tuple[list[Any], Any]]) -> Any:
    if not leaves[0][0]:
        return leaves[0][1]
    keys = dict.fromkeys(path[0] for path, _ in leaves)
    nodes = {key: nest([(path[1:], value) for path, value in leaves if path[0] == key]) for key in keys}
    return tuple(nodes.values()) if 0 in nodes else nodes


def read(f: bytes, limit: int | None = None) -> list[Any]:
    need(len(f) >= 4160, "size")
    magic, major, _, features, _, start, schema_id, crc = struct.unpack("<8s2H3I16s20xI", f[:64])
    at, length, size, n, content_id, major2, _, crc2, magic2 = struct.unpack("<4Q16s2HI8s", f[-64:])
    crcs = (zlib.crc32(f[:60]), zlib.crc32(f[-64:-12]))
    need((magic, magic2, crc, crc2) == (b"\x89MMD\r\n\x1a\n", b"MMDS.END", *crcs), "magic or crc")
    need((major, major2, start) == (1, 1, 4096) and not any(f[40:60] + f[64:4096]), "header")
    need(len(f) == size == at + length + 64 and at >= 4096 and length <= 2**24, "sizes")
    need(hashlib.sha256(f[at:-64]).digest()[:16] == content_id, "content id")
    try:
        return samples(f, json.loads(f[at:-64]), at, range(n)[:limit], n, schema_id, features)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError, *ZSTD) as error:
        raise Bad(f"malformed: {error}") from error


def content(frame: bytes, dictionary: bytes) -> bytes:
    size = zstandard.frame_content_size(frame)
    need(0 < size <= 2**15 * len(frame), "content size of a frame")
    known = zstandard.ZstdCompressionDict(dictionary, zstandard.DICT_TYPE_FULLDICT) if dictionary else None
    return zstandard.ZstdDecompressor(known).decompress(frame, allow_extra_data=False)


def samples(f: bytes, footer: Any, at: int, rows: range, n: int, schema_id: bytes, features: int) -> list[Any]:
    fields, (_, end), root, payload = footer["fields"], footer["data"], footer["blocks"]["root"], []
    need(hashlib.sha256(canonical(fields).encode()).digest()[:16] == schema_id, "schema id")
    compressions = {field.get("compression", "none") for field in fields}
    need(features == ("zstd" in compressions) and compressions <= {"none", "zstd"}, "feature bits")
    need(type(end) is int and 4096 <= end <= at and len(root) == 64 and bytes.fromhex(root).hex() == root, "footer")
    index: list[Any] = [("ends", None, "<u8", [1])]
    for k, field in enumerate(fields):
        code = CODES["int64" if field["kind"] == "label" else field.get("dtype", "uint8")]
        shape, unknown, itemsize = field.get("shape", []), field.get("shape", []).count(None), np.dtype(code).itemsize
        need(all(size is None or (type(size) is int and 0 <= size < 2**32) for size in shape), "shape")
        if field["kind"] in OPAQUE and field.get("column"):
            total = footer["sections"][len(index)]["shape"][0]
            index += [("values", k, "|u1", [total]), ("value_ends", k, "<u8", [n + 1])]
            index += [(role, k, "<u8", [n]) for role in ("key_hashes", "key_rows") if field.get("key")]
        elif field["kind"] in OPAQUE or unknown or len(shape) > 8 or itemsize * math.prod(s or 1 for s in shape) > 256:
            payload.append(k)
        else:
            index.append(("column", k, code, [n, *shape]))
        index += [("shape", k, "<u4", [n, unknown])] * (unknown > 1)
        if field.get("compression"):
            index.append(("dictionary", k, "|u1", footer["sections"][len(index)]["shape"]))
            need(index[-1][-1][0] <= 2**20, "size of a dictionary")
        index += [("valid", k, "|u1", [n])] * (field["nullable"] is True)
    index[0] = ("ends", None, "<u8", [n * len(payload) + 1])
    arrays, sections, at_section = {}, [], end
    for role, k, code, shape in [*index, ("blocks", None, "<u8", None)]:
        offset = -(-at_section // 64) * 64
        shape = shape or [-(-offset // 2**20)]
        sections.append({"dtype": code, "field": k, "offset": offset, "role": role, "shape": shape})
        header = f"{{'descr': '{code}', 'fortran_order': False, 'shape': {tuple(shape)}, }}".ljust(117) + "\n"
        expected = bytes(offset - at_section) + b"\x93NUMPY\x01\0v\0" + header.encode()
        need(f[at_section : offset + 128] == expected, "padding or .npy header")
        array = arrays[role, k] = np.frombuffer(f, code, math.prod(shape), offset + 128).reshape(shape)
        at_section = offset + 128 + array.nbytes
        limits = (4096, end) if role == "ends" else (0, arrays["values", k].size) if role == "value_ends" else ()
        need(not limits or (array[0], array[-1]) == limits, "first and last end")
        need(role != "key_hashes" or not n or array[0] <= array[-1], "first and last hash")
        need(role != "key_rows" or not n or max(array[0], array[-1]) < n, "first and last row")
    need(f[at_section:at] == bytes(-at_section % 64), "padding before the footer")
    rest = {"blocks": {"covers": offset, "root": root, "size": 2**20}, "data": [4096, end], "sections": sections}
    need(canonical({"fields": fields, "n": n, "metadata": footer["metadata"], **rest}) == f[at:-64].decode(), "footer")

    def value(i: int, k: int) -> Any:
        kind, shape, key = fields[k]["kind"], fields[k].get("shape", []), ("column", k)
        if not arrays.get(("valid", k), {i: 1})[i]:
            return None
        if key in arrays:
            return arrays[key][i, ...] if kind == "array" else arrays[key][i].item()
        if k in payload:
            data, ends, item = f[:end], arrays["ends", None], i * len(payload) + payload.index(k)
        else:
            data, ends, item = arrays["values", k].tobytes(), arrays["value_ends", k], i
        zstd = fields[k].get("compression")
        align = fields[k].get("align", 1) if k in payload and not zstd else 1
        start, stop = -(-int(ends[item]) // align) * align, int(ends[item + 1])
        need(start <= stop <= len(data), "an item outside of the data")
        sizes = iter(arrays.get(("shape", k), {i: [-1]})[i])
        known = [next(sizes) if size is None else size for size in shape]
        found = data[start:stop]
        found = content(found, arrays["dictionary", k].tobytes()) if zstd and found else found
        return OPAQUE[kind](found) if kind in OPAQUE else np.frombuffer(found, CODES[fields[k]["dtype"]]).reshape(known)

    return [nest([(field["path"], value(i, k)) for k, field in enumerate(fields)]) for i in rows]
