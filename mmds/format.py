r"""The bytes of an ``.mmds`` file, version 1.0. This page is the specification; there is no other copy.

MUST and MUST NOT bind writers; a reader MUST refuse a file that it finds to break one of them. All integers are
little-endian and unsigned. Offsets are absolute, in bytes, and every size and offset is below 2**53. "Zero" is the byte
00. ``align_up(x, a)`` is the smallest multiple of ``a`` that is at least ``x``.

A file is, in this order and without gaps other than zero padding::

    HEADER      4096 bytes
    DATA        the payload, sample after sample
    SECTIONS    the index: .npy blocks, each at the next multiple of 64
    FOOTER      canonical JSON, at the next multiple of 64
    TRAILER     64 bytes; the file ends here

It is written from front to back and never patched, so a file without its trailer is an unfinished file.

Header
======
::

     0   8  magic 89 4D 4D 44 0D 0A 1A 0A        24  16  schema id: sha256(fields)[:16], fields as in the footer
     8   2  major version = 1                    40  20  zero
    10   2  minor version                        60   4  CRC-32 of bytes 0..59
    12   4  incompatible-feature bits            64      zero up to byte 4095
    16   4  compatible-feature bits
    20   4  data start = 4096

A reader MUST refuse a major version or an incompatible-feature bit that it does not know, and ignores minor versions and
compatible bits that it does not know. Version 1.0 defines incompatible-feature bit 0, which is set if and only if a field is
compressed.

Data
====
A field's values are either *payload* or *columns* of the index. Columns are: a `scalar` or `label`; an `array` of known
shape of at most 256 bytes and rank 8, where a dimension of 0 counts as 1; `bytes` and `text` with ``"column": true``.
Of these, fields with ``"key": true`` are *keys*, by which samples are found: `key_hashes` and `key_rows` lead from a value to
the samples that may have it, and a reader MUST compare the value itself. Keys need not differ.
Everything else is payload.

With V payload fields, item ``k = i * V + j`` is the value of payload field j (in schema order) of sample i. It occupies
``[align_up(ends[k], align_j), ends[k + 1])``, where ``align_j`` is the field's ``align``, or 1 if it has none or is
compressed. The bytes before it, from ``ends[k]`` on, MUST be zero. The last item's end is the end of the data; the first
starts at 4096 = ``ends[0]``.

An array's bytes are its elements in C order. If one dimension is unknown it follows from the item's length; if two or
more are, the `shape` section holds them; with 0 counting as 1 the product in bytes is below 2**63. Text is UTF-8, json is
UTF-8 JSON text. A null value (see `valid`) has no bytes in the payload and zeros in a column.

A payload field with ``"compression": "zstd"`` is *compressed*: a value's bytes, if it has any, are stored as one Zstandard
frame (RFC 8878) and nothing else. The frame header MUST state the size of the content, and a reader MUST NOT believe more
than 2**15 times the size of the frame, nor another size than an array of known shape has. Frames may need the field's
`dictionary`. A value without bytes has no frame. Room for all arrays of known shape, as small as they can be then, MUST
be in the data; a reader SHOULD check that before it allocates a batch of them.

If all payload fields are arrays of known shape, neither nullable nor empty nor compressed, and the first has the largest
alignment, items have constant positions: with ``stride = align_up(size of one sample's items, align_0)`` sample i begins
at ``4096 + i * stride``. A reader MAY use that instead of `ends`, and MUST check that the end of the data agrees.

Sections
========
Each is a complete .npy file, version 1.0, with a 128-byte header whose dictionary is spelled exactly as
``{'descr': '<u8', 'fortran_order': False, 'shape': (3,), }``, padded with spaces, newline last. In this order::

    ends        <u8 (N * V + 1,)      one; never decreasing
    column      (N, *shape)           per column of fixed size
    values      |u1 (total,)          per bytes or text column: all values, one after the other
    value_ends  <u8 (N + 1,)          and then where each ends, relative to the first; begins with 0, never decreasing
    key_hashes  <u8 (N,)              per key: the XXH3-64 (seed 0) of each value's bytes, ascending
    key_rows    <u8 (N,)              and then the samples that have them, in that order; equal hashes by sample
    shape       <u4 (N, unknown)      per array with two or more unknown dimensions: their sizes
    dictionary  |u1 (size,)           per compressed field: a Zstandard dictionary of at most 1 MiB, or nothing
    valid       |u1 (N,)              per nullable field: 1, or 0 for null; after the field's other sections
    blocks      <u8                   one; XXH3-64 (seed 0) of each 1 MiB block of the file from byte 0 to this section

Fields come in schema order. The offsets and shapes MUST be the ones that this rule gives; the footer repeats them for
convenience.

Footer
======
Canonical JSON: keys sorted, no white space, UTF-8 without needless escapes, no duplicate keys, integers within
±(2**53 - 1), no NaN or infinity, at most 16 MiB and 32 levels. No floats except in metadata. An object with exactly::

    blocks      {"covers": offset of the blocks section, "root": sha256 of its array in hex, "size": 1048576}
    data        [4096, end of the data]
    fields      [{"path": [...], "kind": "...", "nullable": false, options of the kind}, ...]; at least 1, at most 4096
    metadata    any object
    n           number of samples
    sections    [{"dtype": "<u8", "field": position or null, "offset": 4160, "role": "ends", "shape": [3]}, ...]

Paths hold strings for dict keys and integers for tuple positions, at most 16; fields stand in depth-first order of the
sample that they describe; names (paths joined by dots) are unique. Options by kind::

    scalar  dtype                    bytes  align, column      image         mode ("RGB", "L", "RGBA" or null)
    label   names (unique strings)   text   column             audio, video  none
    array   align, dtype, shape      json   none

`bytes` and `text` with ``"column": true`` and ``"nullable": false`` may have ``"key": true`` (never false) beside these,
and payload fields ``"compression": "zstd"`` (never null).

``dtype`` is bool, int8 .. int64, uint8 .. uint64, float16 .. float64, complex64, complex128, and for arrays also
bfloat16 (stored as <u2), float8_e4m3fn, float8_e4m3fnuz, float8_e5m2 and float8_e5m2fnuz (|u1). ``shape`` has up to 32
dimensions of 0 .. 2**32 - 1, null where unknown; none may be 0 beside an unknown one, and with 0 counting as 1 their
product in bytes is below 2**53. ``align`` is a power of two up to
4096, for arrays at least the item size.

Trailer
=======
::

     0   8  footer offset                        48   2  major version
     8   8  footer length                        50   2  minor version
    16   8  file length                          52   4  CRC-32 of bytes 0..51
    24   8  n                                    56   8  magic 4D 4D 44 53 2E 45 4E 44 ("MMDS.END")
    32  16  content id: sha256(footer)[:16]

The content id names the content: trailer, footer, block hashes and blocks form one hash chain over every byte. The same
samples and fields give the same bytes; compressed, they do so with the same version of libzstd, level and dictionaries.

A complete file
===============
Two samples, ``{"x": 5, "t": "hi"}`` and ``{"x": 6, "t": ""}``. A ``*`` stands for more lines like the last one.

>>> import mmds, tempfile, pathlib
>>> folder = tempfile.TemporaryDirectory()
>>> path = pathlib.Path(folder.name) / "two.mmds"
>>> with mmds.Writer(path, {"x": mmds.Scalar("uint8"), "t": mmds.Text()}) as writer:
...     writer.extend([{"x": 5, "t": "hi"}, {"x": 6, "t": ""}])
>>> print(hexdump(path.read_bytes()))
000000  89 4d 4d 44 0d 0a 1a 0a 01 00 00 00 00 00 00 00  .MMD............
000010  00 00 00 00 00 10 00 00 8a c2 a6 df 4b c7 ca 61  ............K..a
000020  bd 0b 78 57 98 5a ea 48 00 00 00 00 00 00 00 00  ..xW.Z.H........
000030  00 00 00 00 00 00 00 00 00 00 00 00 37 06 19 22  ............7.."
000040  00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00  ................
*
001000  68 69 00 00 00 00 00 00 00 00 00 00 00 00 00 00  hi..............
001010  00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00  ................
*
001040  93 4e 55 4d 50 59 01 00 76 00 7b 27 64 65 73 63  .NUMPY..v.{'desc
001050  72 27 3a 20 27 3c 75 38 27 2c 20 27 66 6f 72 74  r':.'<u8',.'fort
001060  72 61 6e 5f 6f 72 64 65 72 27 3a 20 46 61 6c 73  ran_order':.Fals
001070  65 2c 20 27 73 68 61 70 65 27 3a 20 28 33 2c 29  e,.'shape':.(3,)
001080  2c 20 7d 20 20 20 20 20 20 20 20 20 20 20 20 20  ,.}.............
001090  20 20 20 20 20 20 20 20 20 20 20 20 20 20 20 20  ................
*
0010b0  20 20 20 20 20 20 20 20 20 20 20 20 20 20 20 0a  ................
0010c0  00 10 00 00 00 00 00 00 02 10 00 00 00 00 00 00  ................
0010d0  02 10 00 00 00 00 00 00 00 00 00 00 00 00 00 00  ................
0010e0  00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00  ................
*
001100  93 4e 55 4d 50 59 01 00 76 00 7b 27 64 65 73 63  .NUMPY..v.{'desc
001110  72 27 3a 20 27 7c 75 31 27 2c 20 27 66 6f 72 74  r':.'|u1',.'fort
001120  72 61 6e 5f 6f 72 64 65 72 27 3a 20 46 61 6c 73  ran_order':.Fals
001130  65 2c 20 27 73 68 61 70 65 27 3a 20 28 32 2c 29  e,.'shape':.(2,)
001140  2c 20 7d 20 20 20 20 20 20 20 20 20 20 20 20 20  ,.}.............
001150  20 20 20 20 20 20 20 20 20 20 20 20 20 20 20 20  ................
*
001170  20 20 20 20 20 20 20 20 20 20 20 20 20 20 20 0a  ................
001180  05 06 00 00 00 00 00 00 00 00 00 00 00 00 00 00  ................
001190  00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00  ................
*
0011c0  93 4e 55 4d 50 59 01 00 76 00 7b 27 64 65 73 63  .NUMPY..v.{'desc
0011d0  72 27 3a 20 27 3c 75 38 27 2c 20 27 66 6f 72 74  r':.'<u8',.'fort
0011e0  72 61 6e 5f 6f 72 64 65 72 27 3a 20 46 61 6c 73  ran_order':.Fals
0011f0  65 2c 20 27 73 68 61 70 65 27 3a 20 28 31 2c 29  e,.'shape':.(1,)
001200  2c 20 7d 20 20 20 20 20 20 20 20 20 20 20 20 20  ,.}.............
001210  20 20 20 20 20 20 20 20 20 20 20 20 20 20 20 20  ................
*
001230  20 20 20 20 20 20 20 20 20 20 20 20 20 20 20 0a  ................
001240  db ce e9 03 34 34 8b 8f 00 00 00 00 00 00 00 00  ....44..........
001250  00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00  ................
*
001280  7b 22 62 6c 6f 63 6b 73 22 3a 7b 22 63 6f 76 65  {"blocks":{"cove
001290  72 73 22 3a 34 35 34 34 2c 22 72 6f 6f 74 22 3a  rs":4544,"root":
0012a0  22 64 39 32 32 64 31 38 63 37 64 62 31 39 33 31  "d922d18c7db1931
0012b0  62 30 63 37 33 39 66 34 63 37 30 66 61 65 64 65  b0c739f4c70faede
0012c0  65 63 66 31 63 36 36 36 33 35 39 38 34 64 66 39  ecf1c66635984df9
0012d0  35 35 35 64 35 61 39 39 35 64 34 62 65 36 39 33  555d5a995d4be693
0012e0  36 22 2c 22 73 69 7a 65 22 3a 31 30 34 38 35 37  6","size":104857
0012f0  36 7d 2c 22 64 61 74 61 22 3a 5b 34 30 39 36 2c  6},"data":[4096,
001300  34 30 39 38 5d 2c 22 66 69 65 6c 64 73 22 3a 5b  4098],"fields":[
001310  7b 22 64 74 79 70 65 22 3a 22 75 69 6e 74 38 22  {"dtype":"uint8"
001320  2c 22 6b 69 6e 64 22 3a 22 73 63 61 6c 61 72 22  ,"kind":"scalar"
001330  2c 22 6e 75 6c 6c 61 62 6c 65 22 3a 66 61 6c 73  ,"nullable":fals
001340  65 2c 22 70 61 74 68 22 3a 5b 22 78 22 5d 7d 2c  e,"path":["x"]},
001350  7b 22 63 6f 6c 75 6d 6e 22 3a 66 61 6c 73 65 2c  {"column":false,
001360  22 6b 69 6e 64 22 3a 22 74 65 78 74 22 2c 22 6e  "kind":"text","n
001370  75 6c 6c 61 62 6c 65 22 3a 66 61 6c 73 65 2c 22  ullable":false,"
001380  70 61 74 68 22 3a 5b 22 74 22 5d 7d 5d 2c 22 6d  path":["t"]}],"m
001390  65 74 61 64 61 74 61 22 3a 7b 7d 2c 22 6e 22 3a  etadata":{},"n":
0013a0  32 2c 22 73 65 63 74 69 6f 6e 73 22 3a 5b 7b 22  2,"sections":[{"
0013b0  64 74 79 70 65 22 3a 22 3c 75 38 22 2c 22 66 69  dtype":"<u8","fi
0013c0  65 6c 64 22 3a 6e 75 6c 6c 2c 22 6f 66 66 73 65  eld":null,"offse
0013d0  74 22 3a 34 31 36 30 2c 22 72 6f 6c 65 22 3a 22  t":4160,"role":"
0013e0  65 6e 64 73 22 2c 22 73 68 61 70 65 22 3a 5b 33  ends","shape":[3
0013f0  5d 7d 2c 7b 22 64 74 79 70 65 22 3a 22 7c 75 31  ]},{"dtype":"|u1
001400  22 2c 22 66 69 65 6c 64 22 3a 30 2c 22 6f 66 66  ","field":0,"off
001410  73 65 74 22 3a 34 33 35 32 2c 22 72 6f 6c 65 22  set":4352,"role"
001420  3a 22 63 6f 6c 75 6d 6e 22 2c 22 73 68 61 70 65  :"column","shape
001430  22 3a 5b 32 5d 7d 2c 7b 22 64 74 79 70 65 22 3a  ":[2]},{"dtype":
001440  22 3c 75 38 22 2c 22 66 69 65 6c 64 22 3a 6e 75  "<u8","field":nu
001450  6c 6c 2c 22 6f 66 66 73 65 74 22 3a 34 35 34 34  ll,"offset":4544
001460  2c 22 72 6f 6c 65 22 3a 22 62 6c 6f 63 6b 73 22  ,"role":"blocks"
001470  2c 22 73 68 61 70 65 22 3a 5b 31 5d 7d 5d 7d 80  ,"shape":[1]}]}.
001480  12 00 00 00 00 00 00 ff 01 00 00 00 00 00 00 bf  ................
001490  14 00 00 00 00 00 00 02 00 00 00 00 00 00 00 ba  ................
0014a0  55 58 bb e5 07 62 66 fa aa 0d 25 d6 b2 fa 4a 01  UX...bf...%...J.
0014b0  00 00 00 7b 50 72 01 4d 4d 44 53 2e 45 4e 44     ...{Pr.MMDS.END
>>> folder.cleanup()
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmds import canonical
from mmds.fields import Fixed
from mmds.schema import Schema

MAJOR, MINOR = 1, 0
HEADER_MAGIC = b"\x89MMD\r\n\x1a\n"  # like PNG's: not text, and broken by any transfer that changes line ends
TRAILER_MAGIC = b"MMDS.END"
DATA_START = 4096  # one page, so that every alignment up to a page holds for offsets in the file and in memory
SECTION_ALIGN = 64  # the alignment that .npy files promise
NPY_HEADER = 128
BLOCK = 2**20
KEY_ROLES = ("key_hashes", "key_rows")
MAX_DICTIONARY = 2**20
MAX_RATIO = 2**15  # of a frame's content to its size: a block of up to 128 KiB takes at least four bytes
COMPRESSED = 1  # the incompatible-feature bit of files with compressed fields
KNOWN_INCOMPATIBLE = COMPRESSED

HEADER = np.dtype(
    [
        ("magic", "V8"),
        ("major", "<u2"),
        ("minor", "<u2"),
        ("incompatible", "<u4"),
        ("compatible", "<u4"),
        ("data_start", "<u4"),
        ("schema_id", "V16"),
        ("reserved", "V20"),
        ("crc", "<u4"),
    ]
)
TRAILER = np.dtype(
    [
        ("footer_offset", "<u8"),
        ("footer_length", "<u8"),
        ("file_length", "<u8"),
        ("n", "<u8"),
        ("content_id", "V16"),
        ("major", "<u2"),
        ("minor", "<u2"),
        ("crc", "<u4"),
        ("magic", "V8"),
    ]
)
TRAILER_CRC = 52  # bytes of the trailer that its CRC covers
MIN_FILE = DATA_START + TRAILER.itemsize


def align_up(offset: int, alignment: int) -> int:
    """Return the smallest multiple of `alignment` (a power of two) that is at least `offset`."""
    return -(-offset // alignment) * alignment


@dataclass(frozen=True)
class Section:
    """One .npy block of the index: its role, the position of its field (None for the whole file), and its array."""

    role: str
    field: int | None
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def data(self) -> int:
        """The offset of the array itself, behind its .npy header."""
        return self.offset + NPY_HEADER

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def end(self) -> int:
        return self.data + self.nbytes

    def to_json(self) -> dict[str, Any]:
        """Return the section as the footer lists it."""
        return {
            "role": self.role,
            "field": self.field,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "offset": self.offset,
        }

    def npy_header(self) -> bytes:
        """Return the 128 bytes of .npy header before the array.

        >>> Section("ends", None, "<u8", (3,), 4096).npy_header()[:64]
        b"\\x93NUMPY\\x01\\x00v\\x00{'descr': '<u8', 'fortran_order': False, 'shape': (3,)"
        """
        text = f"{{'descr': {self.dtype!r}, 'fortran_order': False, 'shape': {self.shape!r}, }}"
        prefix = b"\x93NUMPY\x01\x00" + (NPY_HEADER - 10).to_bytes(2, "little")
        return prefix + text.encode("ascii").ljust(NPY_HEADER - 11) + b"\n"


def layout(schema: Schema, n: int, data_end: int, value_bytes: Mapping[int, int]) -> tuple[Section, ...]:
    """Return all sections of a file of `n` samples whose data ends at `data_end`.

    `value_bytes` gives the total length of the values of each bytes or text column, and that of the dictionary of each
    compressed field, by field position.
    """
    wanted: list[tuple[str, int | None, str, tuple[int, ...]]] = []
    wanted.append(("ends", None, "<u8", (n * len(schema.payload) + 1,)))
    for position, field in enumerate(schema.fields):
        kind = field.kind
        if isinstance(kind, Fixed):
            if kind.is_column:
                shape: tuple[int, ...] = (n, *(size for size in kind.dimensions if size is not None))
                wanted.append(("column", position, kind.stored.str, shape))
            elif kind.unknown > 1:
                wanted.append(("shape", position, "<u4", (n, kind.unknown)))
        elif not field.is_payload:
            wanted.append(("values", position, "|u1", (value_bytes[position],)))
            wanted.append(("value_ends", position, "<u8", (n + 1,)))
            if getattr(kind, "key", False):
                wanted += [(role, position, "<u8", (n,)) for role in KEY_ROLES]
        if field.is_compressed:
            wanted.append(("dictionary", position, "|u1", (value_bytes[position],)))
        if kind.nullable:
            wanted.append(("valid", position, "|u1", (n,)))
    sections: list[Section] = []
    end = data_end
    for role, number, dtype, shape in wanted:
        sections.append(Section(role, number, dtype, shape, align_up(end, SECTION_ALIGN)))
        end = sections[-1].end
    covers = align_up(end, SECTION_ALIGN)
    sections.append(Section("blocks", None, "<u8", (-(-covers // BLOCK),), covers))
    return tuple(sections)


def constant_layout(schema: Schema) -> tuple[int, list[int], int] | None:
    """Return (stride, offset of each payload field in a sample, size without tail padding), or None if not constant."""
    offsets, end = [], 0
    for position in schema.payload:
        field = schema.fields[position]
        if not isinstance(field.kind, Fixed) or not field.kind.nbytes or field.kind.nullable or field.is_compressed:
            return None
        offsets.append(align_up(end, field.align))
        end = offsets[-1] + field.kind.nbytes
    if not offsets or schema.fields[schema.payload[0]].align != schema.alignment:
        return None
    return align_up(end, schema.alignment), offsets, end


# Packing


def pack_header(schema: Schema) -> bytes:
    """Return the 4096-byte header of a file with this schema."""
    header = np.zeros((), HEADER)
    header["magic"], header["major"], header["minor"] = HEADER_MAGIC, MAJOR, MINOR
    header["data_start"], header["schema_id"] = DATA_START, schema_id(schema)
    header["incompatible"] = incompatible_features(schema)
    header["crc"] = zlib.crc32(header.tobytes()[:60])
    return header.tobytes().ljust(DATA_START, b"\0")


def pack_end(schema: Schema, n: int, data_end: int, sections: tuple[Section, ...], root: str, metadata: Any) -> bytes:
    """Return footer and trailer, as they follow the padded end of the last section."""
    footer = canonical.dump(
        {
            "fields": schema.to_json(),
            "n": n,
            "data": [DATA_START, data_end],
            "sections": [section.to_json() for section in sections],
            "blocks": {"size": BLOCK, "covers": sections[-1].offset, "root": root},
            "metadata": metadata,
        }
    )
    trailer = np.zeros((), TRAILER)
    trailer["footer_offset"] = offset = align_up(sections[-1].end, SECTION_ALIGN)
    trailer["footer_length"] = len(footer)
    trailer["file_length"] = offset + len(footer) + TRAILER.itemsize
    trailer["n"], trailer["content_id"] = n, hashlib.sha256(footer).digest()[:16]
    trailer["major"], trailer["minor"], trailer["magic"] = MAJOR, MINOR, TRAILER_MAGIC
    trailer["crc"] = zlib.crc32(trailer.tobytes()[:TRAILER_CRC])
    return footer + trailer.tobytes()


def schema_id(schema: Schema) -> bytes:
    """Return the 16 bytes that identify the fields."""
    return hashlib.sha256(canonical.dump(schema.to_json())).digest()[:16]


def incompatible_features(schema: Schema) -> int:
    """Return the incompatible-feature bits of a file with these fields."""
    return COMPRESSED if schema.compressed else 0


def hexdump(data: bytes) -> str:
    """Return `data` as lines of offset, 16 bytes in hex and as text; a ``*`` replaces lines that repeat the last one."""
    lines: list[str] = []
    last = None
    for offset in range(0, len(data), 16):
        row = data[offset : offset + 16]
        if row != last:
            text = "".join(chr(byte) if 32 < byte < 127 else "." for byte in row)
            lines.append(f"{offset:06x}  {row.hex(' '):47}  {text}")
        elif lines[-1] != "*":
            lines.append("*")
        last = row
    return "\n".join(lines)
