"""`repair`: all that is whole of a damaged or unfinished dataset as a new file, and a list of what is lost."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmds.copying import Copier
from mmds.damage import Damage
from mmds.errors import FormatError, SchemaError, SourceError, printable
from mmds.filebytes import FileBytes
from mmds.format import HEADER_MAGIC, TRAILER_MAGIC
from mmds.manifest import NAME, Shard, check_listed, listed_path, read_manifest
from mmds.mended import MendedFile
from mmds.publish import log_of, publish_lines
from mmds.reader import Reader
from mmds.rules import BrokenRule, broken_rules
from mmds.stored import StoredDataset
from mmds.unfinished import Finisher, Unfinished

NdArray = np.ndarray[Any, Any]
Progress = Callable[[int, int], None]

CHUNK = 2**16  # samples that are looked at together


@dataclass(frozen=True)
class Repair:
    """What `repair` has saved. `lost` says which samples it has not, and why; `report` is the file with that list."""

    path: Path
    samples: int
    samples_lost: int  # that the damaged dataset had beside these; of an unfinished file, nobody knows, and it is 0
    lost: tuple[Damage, ...]
    report: Path | None


def repair(
    path: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    doubtful: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Repair:
    """Write all samples that are whole to a new ``.mmds`` file, and list the others in ``DESTINATION.lost.jsonl``.

    `path` is a damaged file, a folder of shards, or the temporary file ``.NAME.XXXXXXXX.tmp`` that a killed writer left. It is
    not changed. A sample is lost if anything of it is in a block (1 MiB) that differs from its hash or cannot be read; where
    no block is, if it breaks a rule of the format. With `doubtful`, those in damaged blocks that can be read are kept all the
    same, and are in the list.

    Header, trailer and section headers may be damaged, the footer may not. `progress` is called with the bytes that have been
    looked at, and the bytes in all. Raises `FormatError` if nothing can be saved.
    """
    path = Path(path)
    entries: list[Shard | None] = [None]
    if os.path.isdir(path):  # noqa: PTH112 (as everywhere)
        entries = [*_shards(path)]
    elif _is_unfinished(path):
        return _finish(path, destination, overwrite, progress)
    done = _Done(progress, sum(path.stat().st_size if entry is None else entry.bytes for entry in entries))
    writer: Copier | None = None
    start, lost = 0, list[Damage]()
    try:
        for entry in entries:
            before = done.done
            try:
                mended = MendedFile(path, done.add) if entry is None else _open_shard(path, entry, done)
            except (FormatError, OSError) as error:
                if entry is None:
                    raise
                lost.append(Damage(str(error), (start, start + entry.n)))
                start += entry.n
                done.add(before + entry.bytes - done.done)
                continue
            if writer is None:
                writer = Copier(destination, mended.schema, metadata=mended.metadata, overwrite=overwrite)
            if writer.fields is None or writer.fields.to_json() != mended.schema.to_json():
                raise SchemaError(f"{printable(mended.path)}: has other fields than the shards before it")
            name = "" if entry is None else f"{printable(entry.path)}: "
            lost += [damage.within(name, start) for damage in _save(mended, writer, doubtful)]
            start += mended.n
        if writer is None:
            raise FormatError(f"{printable(path)}: none of its {len(entries)} shards can be read; the first: {lost[0]}")
        writer.close()
    finally:
        if writer is not None:
            writer.abort()
    return Repair(writer.path, len(writer), start - len(writer), tuple(lost), _list(writer.path, lost))


def _shards(folder: Path) -> tuple[Shard, ...]:
    manifest = read_manifest(folder)
    if manifest.columns:
        raise SourceError(
            f"{printable(folder)}: has columns that were added later, in files of their own, which would no longer fit. "
            f"Repair the files that {NAME} lists one by one"
        )
    return manifest.shards


def _open_shard(folder: Path, entry: Shard, done: _Done) -> MendedFile:
    mended = MendedFile(listed_path(folder, entry), done.add)
    check_listed(mended, entry)
    return mended


def _save(mended: MendedFile, writer: Copier, doubtful: bool) -> Iterator[Damage]:
    """Copy all whole samples of a file, and yield which are not."""
    reader = Reader(mended, range(mended.n))
    dataset = StoredDataset(reader, opened=lambda _: mended.view)
    names = mended.schema.names
    broken: dict[int, BrokenRule] = {}
    if not mended.bad.any():  # as it was written, but not by this Writer
        broken = {rule.sample: rule for rule in broken_rules(mended, keys=False)}
        for row, rule in broken.items():
            yield Damage(rule.reason, (row, row + 1), (rule.field,))
    for start in range(0, mended.n, step := min(CHUNK, dataset.rows_at_once)):
        stop = min(start + step, mended.n)
        hit = mended.lost(start, stop, mended.bad)
        kept: NdArray = np.logical_not(hit.any(axis=1))
        if doubtful:
            for row in np.flatnonzero(~(kept | mended.lost(start, stop, mended.unreadable).any(axis=1))).tolist():
                kept[row] = _can_be_read(reader, start + row)
        kept[[row - start for row in broken if start <= row < stop]] = False
        reasons: list[tuple[int, str]] = []
        _copy(dataset, start + np.flatnonzero(kept), writer, reasons)
        for row, reason in reasons:
            yield Damage(reason, (row, row + 1))
        yield from _ranges(hit, kept, start, names)


def _can_be_read(reader: Reader, row: int) -> bool:
    try:
        reader[row]
    except FormatError:
        return False
    return True


def _copy(dataset: StoredDataset, rows: NdArray, writer: Copier, reasons: list[tuple[int, str]]) -> None:
    """Copy rows; note those that cannot be, which is found out before anything is written."""
    try:
        writer.copy(dataset, rows)
    except FormatError as error:
        if len(rows) == 1:
            reasons.append((rows.item(0), str(error)))
            return
        for half in np.array_split(rows, 2):
            _copy(dataset, half, writer, reasons)


def _ranges(hit: NdArray, kept: NdArray, start: int, names: Sequence[str]) -> Iterator[Damage]:
    """Yield runs of samples with the same damaged fields and the same fate."""
    rows = np.flatnonzero(hit.any(axis=1))
    marks = np.column_stack([hit[rows], kept[rows]])
    same = (np.diff(rows) == 1) & (marks[1:] == marks[:-1]).all(axis=1) if len(rows) else np.zeros(0, bool)
    for run in np.split(rows, np.flatnonzero(~same) + 1) if len(rows) else ():
        fields = tuple(name for name, is_hit in zip(names, hit[run[0]], strict=True) if is_hit)
        reason = "in a damaged block, kept" if kept[run[0]] else "in a damaged block"
        yield Damage(reason, (start + int(run[0]), start + int(run[-1]) + 1), fields)


def _is_unfinished(path: Path) -> bool:
    """Return whether a file begins like an ``.mmds`` file and has no trailer, and a log is beside it."""
    data = FileBytes(os.fspath(path))
    begins, ends = data[: len(HEADER_MAGIC)], data[-len(TRAILER_MAGIC) :]
    return begins == HEADER_MAGIC and ends != TRAILER_MAGIC and (path.suffix == ".tmp" or log_of(path).exists())


def _finish(path: Path, destination: Any, overwrite: bool, progress: Progress | None) -> Repair:
    found = Unfinished(path)
    with Finisher(destination, found.schema, metadata=found.metadata, overwrite=overwrite) as writer:
        writer.finish(found, _Done(progress, found.data_end).add)
    lost = Damage(f"an unfinished file: samples from {found.n} on were not written, or are not whole")
    return Repair(writer.path, found.n, 0, (lost,), _list(writer.path, [lost]))


def _list(destination: Path, lost: Sequence[Damage]) -> Path | None:
    lines = [{"samples": damage.samples, "fields": damage.fields, "reason": damage.reason} for damage in lost]
    return publish_lines(destination.with_name(destination.name + ".lost.jsonl"), lines)


class _Done:
    """How many bytes of all have been looked at."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.done, self._total, self._progress = 0, total, progress

    def add(self, size: int) -> None:
        """Note that so many bytes more are done."""
        self.done += size
        if self._progress is not None:
            self._progress(self.done, self._total)
