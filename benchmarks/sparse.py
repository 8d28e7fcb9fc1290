"""A file of 10**9 samples that takes a few KiB of disk: what opening reads is there, the rest is one hole per section.

It is a whole mmds file as far as opening can tell, and its samples read as zeros. Its block hashes are zeros too, which
only ``mmds verify`` would notice; a real file of this size would take 300 GB.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import mmds
from mmds.format import DATA_START, SECTION_ALIGN, Section, align_up, constant_layout, layout, pack_end, pack_header

FIELDS = {"vector": mmds.Array("uint8", (320,)), "label": mmds.Scalar("int64")}


def write_sparse(path: Path, n: int, fields: Any = None) -> None:
    """Write a file of `n` samples of `fields`, which are scalars and arrays of fixed shape, all of them zero."""
    schema = mmds.Schema(fields or FIELDS)
    constant = constant_layout(schema)
    if constant is None or n < 1:
        raise ValueError("a sparse file needs at least one sample, and fields of fixed size")
    stride, _, size = constant
    data_end = DATA_START + (n - 1) * stride + size
    sections = layout(schema, n, data_end, {})
    blocks = sections[-1]
    footer = align_up(blocks.end, SECTION_ALIGN)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        os.pwrite(fd, pack_header(schema), 0)
        for section in sections:
            os.pwrite(fd, section.npy_header(), section.offset)
        _pwrite_ends(fd, sections[0], data_end)
        root = hashlib.sha256(bytes(blocks.nbytes)).hexdigest()
        os.pwrite(fd, pack_end(schema, n, data_end, sections, root, {}), footer)
    finally:
        os.close(fd)


def _pwrite_ends(fd: int, ends: Section, data_end: int) -> None:
    """Write the first and the last entry, which opening compares; those between would say where each sample ends."""
    os.pwrite(fd, DATA_START.to_bytes(8, "little"), ends.data)
    os.pwrite(fd, data_end.to_bytes(8, "little"), ends.end - 8)
