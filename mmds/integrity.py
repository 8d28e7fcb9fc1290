"""`verify`: what of a dataset is damaged, and which samples and fields that hits.

Opening a file checks its header, footer and trailer. This checks every block against its hash, and then the rules of the
format that opening leaves out (`rules.py`). Blocks are read with positioned reads, not through the map, so that a disk
error is an error and not a signal.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

from mmds.blocks import block_hash
from mmds.damage import Damage as Damage
from mmds.damage import affected
from mmds.datafile import DataFile
from mmds.errors import FormatError, SchemaError, SourceError, StorageError, printable
from mmds.format import BLOCK, schema_id
from mmds.manifest import NAME, Manifest, open_listed
from mmds.openfile import open_file
from mmds.opening import Source, matches
from mmds.remote import Remote, is_url
from mmds.rules import broken_rules
from mmds.sidecar import folder_manifest, open_folder

Progress = Callable[[int, int], None]

SPAN = 64  # blocks that one task hashes
MAX_BROKEN_RULES, MAX_STRAYS = 1000, 10  # of one file, of a folder: a report is for people


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
    if is_url(path):
        raise SourceError(
            f"{printable(Remote(str(path)).url)}: files are verified, and this is a URL; download it first, or read it with "
            "mmds.open(url, verify='read'), which checks every block that it reads"
        )
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
            file = open_file(path, "positioned")
        except (FormatError, StorageError) as error:
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
            file = open_listed(folder, entry, "positioned")
            if number < len(manifest.shards) and schema_id(file.schema).hex() != manifest.schema_id:
                raise FormatError(f"{printable(file.path)}: has other fields than {NAME} says")
        except (FormatError, StorageError) as error:
            damages.append(Damage(str(error), (start, start + entry.n)))
        else:
            damages += [damage.within(f"{printable(entry.path)}: ", start) for damage in check.file(file)]
        check.finish(entry.bytes)
    if not damages:
        try:
            open_folder(folder, "positioned")
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

    def file(self, file: DataFile) -> list[Damage]:
        """Return what of an open file is damaged."""
        hashes = file.array(file.footer.sections[-1])[:]
        if hashlib.sha256(hashes.data).hexdigest() != file.footer.root:
            return [Damage("the block hashes differ from their sha256 in the footer, so no block can be checked")]
        bad = dict(_bad_blocks(file, hashes, self._num_workers, self._report))
        damages = [damage for block, reason in bad.items() for damage in affected(file, block, reason, bad)]
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


def _bad_blocks(file: DataFile, hashes: Any, num_workers: int, progress: Progress | None) -> Iterator[tuple[int, str]]:
    """Yield the number of each bad block, and what is wrong with it."""
    covers = file.footer.sections[-1].offset
    read: Callable[[int, int], bytes] = file.view.read

    def check(first: int) -> list[tuple[int, str]]:
        bad = []
        for block in range(first, min(first + SPAN, len(hashes))):
            start = block * BLOCK
            try:
                if block_hash(read(start, min(BLOCK, covers - start))) != hashes[block]:
                    bad.append((block, "differs from its hash"))
            except StorageError as error:
                bad.append((block, f"cannot be read ({os.strerror(error.errno or 0)})"))
        return bad

    with ThreadPoolExecutor(num_workers) as pool:
        for number, bad in enumerate(pool.map(check, range(0, len(hashes), SPAN)), start=1):
            yield from bad
            if progress is not None:
                progress(min(number * SPAN * BLOCK, covers), covers)
