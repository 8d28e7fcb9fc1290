"""`verify`: what of a file is damaged, and which samples and fields that hits.

Opening a file checks its header, footer and trailer. This checks every block against its hash, and then the rules of the
format that opening leaves out (`rules.py`). Blocks are read with positioned reads, not through the map, so that a disk
error is an error and not a signal.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mmds.blocks import block_hash
from mmds.errors import FormatError, printable
from mmds.format import BLOCK, DATA_START, Section, constant_layout
from mmds.items import section_array
from mmds.mapped import MappedFile
from mmds.rules import broken_rules

Progress = Callable[[int, int], None]

SPAN = 64  # blocks that one task hashes
MAX_BROKEN_RULES = 1000  # a report is for people


@dataclass(frozen=True)
class Damage:
    """One thing that is wrong, and the samples (a half-open range of numbers) and fields that it can affect."""

    reason: str
    samples: tuple[int, int] | None = None
    fields: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = self.reason
        if self.samples is not None:
            first, last = self.samples[0], self.samples[1] - 1
            text += f": sample {first}" if first == last else f": samples {first} to {last}"
        if self.fields:
            text += f", field{'s' * (len(self.fields) > 1)} {printable(', '.join(self.fields), 1000)}"
        return text


@dataclass(frozen=True)
class Verification:
    """What `verify` found. It is true if nothing is damaged."""

    path: str
    samples: int
    bytes: int
    damages: tuple[Damage, ...]

    def __bool__(self) -> bool:
        return not self.damages


def verify(
    path: str | os.PathLike[str], *, num_workers: int | None = None, progress: Progress | None = None
) -> Verification:
    """Check every byte of a file, and every rule of the format, and say which samples and fields are damaged.

    Blocks are hashed by `num_workers` threads (default: one per usable core). `progress` is called with the bytes done
    and the bytes in all. A damaged header, footer or trailer is reported like any other damage.
    """
    try:
        file = MappedFile(path)
    except FormatError as error:
        return Verification(os.fspath(path), 0, Path(path).stat().st_size, (Damage(str(error)),))
    hashes = section_array(file.view, file.footer.sections[-1])
    if hashlib.sha256(hashes.data).hexdigest() != file.footer.root:
        damages = [Damage("the block hashes differ from their sha256 in the footer, so no block can be checked")]
    else:
        bad = dict(_bad_blocks(file, hashes, num_workers or len(os.sched_getaffinity(0)), progress))
        damages = [damage for block, reason in bad.items() for damage in _affected(file, block, reason, bad)]
    if not damages:
        damages = [
            Damage(rule.reason, (rule.sample, rule.sample + 1), (rule.field,))
            for rule in islice(broken_rules(file), MAX_BROKEN_RULES)
        ]
    return Verification(file.path, file.footer.n, file.footer.file_length, tuple(damages))


def _bad_blocks(
    file: MappedFile, hashes: Any, num_workers: int, progress: Progress | None
) -> Iterator[tuple[int, str]]:
    """Yield the number of each bad block, and what is wrong with it."""
    covers = file.footer.sections[-1].offset
    fd = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)

    def check(first: int) -> list[tuple[int, str]]:
        bad = []
        for block in range(first, min(first + SPAN, len(hashes))):
            start = block * BLOCK
            try:
                if block_hash(os.pread(fd, min(BLOCK, covers - start), start)) != hashes[block]:
                    bad.append((block, "differs from its hash"))
            except OSError as error:
                bad.append((block, f"cannot be read ({error.strerror})"))
        return bad

    try:
        with ThreadPoolExecutor(num_workers) as pool:
            for number, bad in enumerate(pool.map(check, range(0, len(hashes), SPAN)), start=1):
                yield from bad
                if progress is not None:
                    progress(min(number * SPAN * BLOCK, covers), covers)
    finally:
        os.close(fd)


def _affected(file: MappedFile, block: int, reason: str, bad: Iterable[int]) -> Iterator[Damage]:
    """Yield what a bad block holds: a part of the header, samples of the data, rows of the index."""
    footer = file.footer
    start, end = block * BLOCK, min((block + 1) * BLOCK, footer.sections[-1].offset)
    where = f"block {block} (bytes {start} to {end}) {reason}"
    known = False
    if start < footer.data_end and end > DATA_START and footer.schema.payload:
        known = True
        yield _affected_data(file, where, max(start, DATA_START), min(end, footer.data_end), bad)
    for section in footer.sections[:-1]:
        first, last = max(start, section.data), min(end, section.end)
        if first < last:
            known = True
            yield _affected_rows(file, where, section, first - section.data, last - section.data)
    if not known:
        yield Damage(f"{where}; it holds only headers and padding")


def _affected_data(file: MappedFile, where: str, start: int, end: int, bad: Iterable[int]) -> Damage:
    payload = [file.footer.schema.fields[position].name for position in file.footer.schema.payload]
    constant = constant_layout(file.footer.schema)
    if constant is not None and constant[0]:
        stride = constant[0]
        samples = ((start - DATA_START) // stride, -(-(end - DATA_START) // stride))
        return Damage(where, samples, tuple(payload))
    section = file.footer.section("ends")
    if any(section.data // BLOCK <= other <= (section.end - 1) // BLOCK for other in bad):
        return Damage(f"{where}, and so does the index of the data", (0, file.footer.n), tuple(payload))
    ends = section_array(file.view, section)
    first = max(int(np.searchsorted(ends, start, "right")) - 1, 0)
    last = max(int(np.searchsorted(ends, end, "left")), first + 1)  # one past the last item
    samples = (first // len(payload), -(-last // len(payload)))
    hit = {payload[item % len(payload)] for item in range(first, min(last, first + len(payload)))}
    return Damage(where, samples, tuple(name for name in payload if name in hit))


def _affected_rows(file: MappedFile, where: str, section: Section, start: int, end: int) -> Damage:
    schema, n = file.footer.schema, file.footer.n
    if section.field is None:
        size = 8 * len(schema.payload)  # one more end than items: the last belongs to the last sample
        fields = tuple(schema.fields[position].name for position in schema.payload)
        return Damage(
            f"{where} in the index", (min(start // size, n - 1) if size else 0, min(-(-end // size), n)), fields
        )
    name = (schema.fields[section.field].name,)
    if section.role == "values":
        return Damage(f"{where} in the values", (0, n), name)
    size = section.nbytes // section.shape[0]
    return Damage(f"{where} in the index", (min(start // size, n - 1), min(-(-end // size), n)), name)
