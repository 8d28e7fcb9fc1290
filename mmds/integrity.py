"""`verify`: what of a dataset is damaged, and which samples and fields that hits.

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
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import numpy as np

from mmds.blocks import block_hash
from mmds.errors import FormatError, SchemaError, printable
from mmds.format import BLOCK, DATA_START, KEY_ROLES, Section, constant_layout, schema_id
from mmds.items import section_array
from mmds.manifest import NAME, Manifest, open_listed
from mmds.mapped import MappedFile
from mmds.opening import Source, matches
from mmds.rules import broken_rules
from mmds.sidecar import folder_manifest, open_folder

Progress = Callable[[int, int], None]

SPAN = 64  # blocks that one task hashes
MAX_BROKEN_RULES, MAX_STRAYS = 1000, 10  # of one file, of a folder: a report is for people


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

    def within(self, name: str, start: int) -> Damage:
        """Return this damage of a file as one of a dataset in which the file's samples begin at `start`."""
        samples = None if self.samples is None else (self.samples[0] + start, self.samples[1] + start)
        return Damage(name + self.reason, samples, self.fields)


@dataclass(frozen=True)
class Verification:
    """What `verify` found. It is true if nothing is damaged; `notes` are about what is no part of the dataset."""

    path: str
    samples: int
    bytes: int
    damages: tuple[Damage, ...]
    notes: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return not self.damages


def verify(path: Source, *, num_workers: int | None = None, progress: Progress | None = None) -> Verification:
    """Check every byte of a dataset, and every rule of the format, and say which samples and fields are damaged.

    `path` is a file, a folder of shards, or several files as for `mmds.open`; samples are numbered through all of them.
    Blocks are hashed by `num_workers` threads (default: one per usable core). `progress` is called with the bytes done
    and the bytes in all. A damaged header, footer, trailer or manifest, and a missing shard, are reported like any
    other damage.
    """
    check = _Check(num_workers or len(os.sched_getaffinity(0)), progress)
    if not isinstance(path, (str, os.PathLike)):
        return _verify_files([os.fspath(each) for each in path], check)
    if os.path.isdir(path):  # noqa: PTH112 (takes both kinds of path)
        return _verify_folder(path, check)
    found = [] if os.path.lexists(path) else matches(path)
    return _verify_files(found or [os.fspath(path)], check)


def _verify_files(paths: list[str], check: _Check) -> Verification:
    damages: list[Damage] = []
    sizes = [Path(path).stat().st_size for path in paths]
    check.total = sum(sizes)
    several = len(paths) > 1
    first: list[Any] | None = None
    samples, numbered = 0, True  # from a file on whose length nobody knows, numbers are those in each file
    for path, size in zip(paths, sizes, strict=True):
        name = f"{printable(path)}{'' if numbered else ', counted from its start'}: " if several else ""
        try:
            file = MappedFile(path)
        except FormatError as error:
            damages.append(Damage(str(error)))
            numbered = False
        else:
            fields = file.schema.to_json()
            first = first or fields
            if fields != first:
                damages.append(Damage(f"{printable(path)}: has other fields than the first file"))
            damages += [damage.within(name, samples if numbered else 0) for damage in check.file(file)]
            samples += file.n
        check.finish(size)
    more = f" and {len(paths) - 1} more" * several
    return Verification(paths[0] + more, samples, check.total, tuple(damages))


def _verify_folder(folder: str | os.PathLike[str], check: _Check) -> Verification:
    try:
        manifest = folder_manifest(folder)
    except FormatError as error:
        return Verification(os.fspath(folder), 0, 0, (Damage(str(error)),))
    damages: list[Damage] = []
    check.total = sum(entry.bytes for entry in (*manifest.shards, *manifest.columns))
    starts = [*accumulate((shard.n for shard in manifest.shards), initial=0)][:-1] + [0] * len(manifest.columns)
    for number, (entry, start) in enumerate(zip((*manifest.shards, *manifest.columns), starts, strict=True)):
        try:
            file = open_listed(folder, entry)
            if number < len(manifest.shards) and schema_id(file.schema).hex() != manifest.schema_id:
                raise FormatError(f"{printable(file.path)}: has other fields than {NAME} says")
        except FormatError as error:
            damages.append(Damage(str(error), (start, start + entry.n)))
        else:
            damages += [damage.within(f"{printable(entry.path)}: ", start) for damage in check.file(file)]
        check.finish(entry.bytes)
    if not damages:
        try:
            open_folder(folder)
        except (FormatError, SchemaError) as error:  # each file is whole, but they do not go together
            damages.append(Damage(str(error)))
    return Verification(os.fspath(folder), manifest.n, check.total, tuple(damages), _notes(Path(folder), manifest))


def _notes(folder: Path, manifest: Manifest) -> tuple[str, ...]:
    listed = {NAME, *(entry.path for entry in (*manifest.shards, *manifest.columns))}
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    strays = [printable(path) for path in found if path not in listed]
    if not strays:
        return ()
    more = f" and {len(strays) - MAX_STRAYS} more" * (len(strays) > MAX_STRAYS)
    return (f"no part of the dataset, for {NAME} does not list it: {', '.join(strays[:MAX_STRAYS])}{more}",)


class _Check:
    """A check of one file or several, and how far it is."""

    def __init__(self, num_workers: int, progress: Progress | None) -> None:
        self.done, self.total = 0, 0  # bytes
        self._num_workers, self._progress = num_workers, progress

    def file(self, file: MappedFile) -> list[Damage]:
        """Return what of an open file is damaged."""
        hashes = section_array(file.view, file.footer.sections[-1])
        if hashlib.sha256(hashes.data).hexdigest() != file.footer.root:
            return [Damage("the block hashes differ from their sha256 in the footer, so no block can be checked")]
        bad = dict(_bad_blocks(file, hashes, self._num_workers, self._report))
        damages = [damage for block, reason in bad.items() for damage in _affected(file, block, reason, bad)]
        return damages or [
            Damage(rule.reason, (rule.sample, rule.sample + 1), (rule.field,))
            for rule in islice(broken_rules(file), MAX_BROKEN_RULES)
        ]

    def finish(self, size: int) -> None:
        """Note that a file of so many bytes is done."""
        self.done += size
        self._report(0, 0)

    def _report(self, done: int, covers: int) -> None:
        if self._progress is not None:
            self._progress(min(self.done + done, self.total), self.total)


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
    if section.field is None and not schema.payload:
        return Damage(f"{where} in the index of no data")
    if section.field is None:
        size = 8 * len(schema.payload)  # one more end than items: the last belongs to the last sample
        fields = tuple(schema.fields[position].name for position in schema.payload)
        return Damage(
            f"{where} in the index", (min(start // size, n - 1) if size else 0, min(-(-end // size), n)), fields
        )
    name = (schema.fields[section.field].name,)
    if section.role in ("values", "dictionary", *KEY_ROLES):
        part = "index of keys" if section.role in KEY_ROLES else section.role
        return Damage(f"{where} in the {part}", (0, n), name)
    size = section.nbytes // section.shape[0]
    return Damage(f"{where} in the index", (min(start // size, n - 1), min(-(-end // size), n)), name)
