"""A damaged ``.mmds`` file as far as it can be read: headers and trailer made again, what is unreadable as zeros.

All of these follow from the footer, and the footer can be found without the trailer. Without a footer nobody knows what
the fields are.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from mmds import canonical
from mmds.blocks import block_hash
from mmds.datafile import DataFile
from mmds.errors import FormatError, StorageError, printable
from mmds.filebytes import FileBytes
from mmds.format import (
    BLOCK,
    DATA_START,
    KEY_ROLES,
    SECTION_ALIGN,
    TRAILER,
    Section,
    align_up,
    pack_end,
    pack_header,
)
from mmds.parse import Footer, parse_footer
from mmds.positioned import POSITIONED, PositionedArray

NdArray = np.ndarray[Any, Any]

FOOTER_BEGINS = b'{"blocks":{"covers":'


class _MendedBytes(FileBytes):
    """The bytes of a file with some of them replaced, and zeros for blocks that cannot be read."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._patches: list[tuple[int, bytes]] = []
        self.unreadable: NdArray = np.zeros(0, bool)

    def patch(self, offset: int, data: bytes) -> None:
        """Replace bytes."""
        self._patches.append((offset, data))

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes as they should be, as far as that is known."""
        found = bytearray(length)
        for start in range(offset // BLOCK * BLOCK, offset + length, BLOCK):
            block, low, high = start // BLOCK, max(start, offset), min(start + BLOCK, offset + length)
            if not (block < len(self.unreadable) and self.unreadable[block]):
                found[low - offset : high - offset] = super().read(low, high - low)
        for at, data in self._patches:
            low, high = max(at, offset), min(at + len(data), offset + length)
            if low < high:
                found[low - offset : high - offset] = data[low - at : high - at]
        return bytes(found)

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill `target` with bytes as they should be."""
        target[:] = self.read(offset, len(target))


class MendedFile(DataFile):
    """A damaged file: `bad` says which blocks are, and `unreadable` which the disk does not give.

    `FormatError` if there is no footer to be found.
    """

    def __init__(self, path: str | os.PathLike[str], progress: Callable[[int], None]) -> None:
        view = _MendedBytes(os.fspath(path))
        try:
            footer = _mend(view)
        except (FormatError, StorageError) as error:
            raise FormatError(
                f"{printable(path)}: its footer is damaged or missing, and nothing else says which fields there are "
                f"({error})"
            ) from None
        self.bad, self.unreadable = _bad_blocks(view, footer.sections[-1], progress)
        view.unreadable = self.unreadable
        super().__init__(view.path, view, POSITIONED)
        self._open_items()

    def lost(self, start: int, stop: int, bad: NdArray) -> NdArray:
        """Return for samples from `start` to `stop` and each field whether one of the blocks that it lies in is `bad`."""
        schema, footer = self.schema, self.footer
        bad_before = np.concatenate([[0], np.cumsum(bad)])

        def hit(starts: NdArray, stops: NdArray) -> NdArray:
            first, end = np.minimum(starts // BLOCK, len(bad)), np.minimum(-(-stops // BLOCK), len(bad))
            return np.asarray((stops > starts) & (bad_before[np.maximum(end, first)] > bad_before[first]))

        def hit_rows(section: Section, rows: NdArray, count: int) -> NdArray:
            size = section.nbytes // section.shape[0]
            return hit(section.data + rows * size, section.data + (rows + count) * size)

        def hit_values(section: Section, items: NdArray, base: int) -> NdArray:
            """Return whether values are in bad blocks, by an array of ends; of bad ends, anything."""
            pairs = PositionedArray(self.view, np.dtype("<u8"), (section.shape[0] - 1, 2), section.data, 8)[items]
            limit = np.uint64(footer.file_length)
            return hit(*(np.minimum(pairs[:, k], limit).astype(np.int64) + base for k in range(2)))

        lost = np.zeros((stop - start, len(schema)), bool)
        rows = np.arange(start, stop)
        for position, field in enumerate(schema):
            for section in footer.sections[:-1]:
                if section.field != position or section.role in ("values", *KEY_ROLES):
                    continue
                if section.role == "dictionary":
                    lost[:, position] |= hit(np.array([section.data]), np.array([section.end]))
                else:
                    lost[:, position] |= hit_rows(section, rows, 1 + (section.role == "value_ends"))
                if section.role == "value_ends":
                    lost[:, position] |= hit_values(section, rows, footer.section("values", position).data)
            if field.is_payload:
                number, step = schema.payload_numbers[position], len(schema.payload)
                ends = footer.section("ends")
                lost[:, position] |= hit_rows(ends, rows * step + number, 2)
                lost[:, position] |= hit_values(ends, rows * step + number, 0)
        return lost


def _bad_blocks(view: _MendedBytes, section: Section, progress: Callable[[int], None]) -> tuple[NdArray, NdArray]:
    """Return which blocks differ from their hashes or cannot be read, and which cannot. Hashes are taken for what they are."""
    bad, unreadable = np.ones(section.shape[0], bool), np.zeros(section.shape[0], bool)
    try:
        hashes = np.frombuffer(view.read(section.data, section.nbytes), section.dtype)
    except StorageError:
        hashes = np.zeros(len(bad), section.dtype)
    for block in range(len(bad)):
        start = block * BLOCK
        try:
            bad[block] = block_hash(view.read(start, min(BLOCK, section.offset - start))) != hashes[block]
        except StorageError:
            unreadable[block] = True
        progress(min(BLOCK, section.offset - start))
    return bad, unreadable


def _mend(view: _MendedBytes) -> Footer:
    """Replace what follows from the footer by what it should be, and return that."""
    footer = parse_footer(_footer_text(view), "", len(view))
    sections = footer.sections
    start = align_up(sections[-1].end, SECTION_ALIGN)
    end = pack_end(footer.schema, footer.n, footer.data_end, sections, footer.root, footer.metadata)
    if start + len(end) != len(view):
        raise FormatError(f"it describes a file of {start + len(end)} bytes, and this one has {len(view)}")
    view.patch(0, pack_header(footer.schema))
    view.patch(start, end)
    before = footer.data_end
    for section in sections:
        view.patch(before, bytes(section.offset - before) + section.npy_header())
        before = section.end
        if section.role in ("ends", "value_ends"):
            first, last = DATA_START, footer.data_end
            if section.role == "value_ends":
                first, last = 0, footer.section("values", section.field).nbytes
            view.patch(section.data, first.to_bytes(8, "little"))
            view.patch(section.end - 8, last.to_bytes(8, "little"))
    view.patch(before, bytes(start - before))
    return footer


def _footer_text(view: _MendedBytes) -> bytes:
    """Return the text of the footer, where the trailer says it is or where it seems to begin."""
    trailer = np.frombuffer(view[len(view) - TRAILER.itemsize :], TRAILER)[0]
    start, length = int(trailer["footer_offset"]), int(trailer["footer_length"])
    if start + length + TRAILER.itemsize == len(view) and view[start : start + len(FOOTER_BEGINS)] == FOOTER_BEGINS:
        return view[start : start + length]
    tail = view[max(0, len(view) - canonical.MAX_BYTES - TRAILER.itemsize) : len(view) - TRAILER.itemsize]
    found = tail.rfind(FOOTER_BEGINS)
    if found < 0:
        raise FormatError("there is none")
    return tail[found:]
