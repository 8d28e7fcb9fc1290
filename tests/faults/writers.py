"""All that writes datasets, as cases for sweeps: what is there before, what is done, what readers see, who comes next."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import mmds
from mmds import shareddataset, spool
from mmds.converters.stores import all_stores
from mmds.errors import FormatError
from mmds.shareddataset import SharedDataset

NAME = "d.mmds"
NOTHING = "nothing"
FIELDS = {"n": mmds.Scalar("int64"), "key": mmds.Text(column=True), "data": mmds.Array("uint8", (None,))}

Act = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """Something that writes into a folder. After `write` has failed or was killed, `again` is what the next one does."""

    write: Act
    prepare: Act = lambda _: None
    again: Act | None = None
    resumes: bool = False  # whole shards are kept after an error
    varies: bool = False  # the bytes differ from one time to the next
    look: Callable[[Path], str] = lambda folder: look(folder / NAME)  # a digest of what a reader finds there

    def go_on(self, folder: Path) -> None:
        """Do what the next writer would, which finds what the last one left."""
        (self.again or self.write)(folder)


def look(path: Path) -> str:
    """Return a digest of all samples at `path`, or `NOTHING` where readers find no dataset; all else is an error."""
    if not os.path.lexists(path):
        return NOTHING
    try:
        reader = mmds.open(path)
    except FormatError:
        if path.is_dir() and not (path / "dataset.json").exists():
            return NOTHING  # as a reader is told
        raise
    if path.suffix == ".mmds":
        report = mmds.verify(path)
        assert report, report
    digest = hashlib.sha256()
    for sample in reader:
        for key, value in sample.items():
            data = value.encode() if isinstance(value, str) else np.asarray(value).tobytes()
            digest.update(f"{key} {len(data)} ".encode() + data)
    return f"{len(reader)} {digest.hexdigest()}"


def listing(folder: Path) -> dict[str, str]:
    """Return all that is in a folder, hidden files included, each file with a digest of its content."""
    return {
        path.relative_to(folder).as_posix(): "" if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
    }


def columns(count: int, size: int, seed: int = 0) -> dict[str, Any]:
    """Return samples of all kinds of fields, as columns."""
    data = np.random.default_rng(seed).integers(0, 256, (count, size), np.uint8)
    return {"n": np.arange(count), "key": [f"key {seed} {n}" for n in range(count)], "data": list(data)}


def rows(count: int, size: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return the same, sample by sample."""
    found = columns(count, size, seed)
    return [{key: found[key][n] for key in found} for n in range(count)]


def spill() -> None:
    """Let the index of a writer go to its temporary file early: after 16 KiB a column, not 16 MiB in all."""
    spool.MEMORY = 1


def write_file(folder: Path, count: int, size: int, *, seed: int = 1, overwrite: bool = False) -> None:
    """Write samples of about `size` bytes to one file."""
    with mmds.Writer(folder / NAME, FIELDS, overwrite=overwrite) as writer:
        writer.write_batch(columns(count, size, seed))


def _single(count: int, size: int) -> Case:
    return Case(
        write=lambda folder: write_file(folder, count, size),
        again=lambda folder: write_file(folder, count, size, overwrite=True),
    )


def _overwrite(count: int, size: int) -> Case:
    return Case(
        prepare=lambda folder: write_file(folder, 5, 100, seed=0),
        write=lambda folder: write_file(folder, count, size, overwrite=True),
    )


# Folders of shards


def _convert(folder: Path, count: int, seed: int, **options: Any) -> None:
    mmds.convert(rows(count, 2000, seed), folder / NAME, shard_size=20_000, **options)


def _ranks(folder: Path) -> None:
    """Convert as two ranks, and complete that, as far as it has not been done."""
    for rank in (0, 1):
        mmds.convert(
            rows(40, 2000, 1), folder / NAME, shard_items=10, rank=rank, world_size=2, num_workers=1, resume=True
        )
    if not (folder / NAME / "dataset.json").exists():
        mmds.commit(folder / NAME)


def _append_again(folder: Path) -> None:
    """Go on, but for a conversion that had ended but for its last words: appending once more would be twice."""
    if len(mmds.open(folder / NAME)) < 50 or (folder / NAME / "unfinished.jsonl").exists():
        _convert(folder, 20, 2, append=True, resume=True)


def _add_column(folder: Path, **options: Any) -> None:
    mmds.add_column(folder / NAME, "score", np.arange(30.0), **options)


def _add_column_again(folder: Path) -> None:
    if "score" not in mmds.open(folder / NAME).fields.names:
        _add_column(folder)


def _two_files(folder: Path) -> None:
    for seed in (1, 2):
        with mmds.Writer(folder / f"{seed}.mmds", FIELDS) as writer:
            writer.write_batch(columns(30, 2000, seed))


# Other stores


def write_store(folder: Path, name: str, seed: int, *, overwrite: bool = False) -> None:
    """Write samples to a store of another library."""
    store = all_stores()[name]
    path = folder / f"d{store.suffixes[0]}"
    with store.writer(path, FIELDS, overwrite=overwrite) as writer:
        writer.write_batch(columns(30, 2000, seed))


def _store(name: str, suffix: str, *, overwrite: bool) -> Case:
    return Case(
        prepare=(lambda folder: write_store(folder, name, 0)) if overwrite else (lambda _: None),
        write=lambda folder: write_store(folder, name, 1, overwrite=overwrite),
        again=lambda folder: write_store(folder, name, 1, overwrite=True),
        look=lambda folder: look(folder / f"d{suffix}"),
    )


# Samples in shared memory


class Squares:
    """A dataset that is to be shared."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[int, bytes]:
        return index, bytes([index]) * (index * index * 100)


def _fill(folder: Path, *, keep: bool) -> None:
    """Read all samples, twice. They are right, whatever fails."""
    shareddataset.MEMORY = folder  # so that other processes of this machine do not come in between
    shared = SharedDataset(Squares(), "squares", directory=folder if keep else None, capacity=2**18)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # that it is full
            for index in (*range(12), *range(12)):
                assert shared[index] == Squares()[index], f"sample {index} is wrong"
    finally:
        shared.close()


def _shared(*, keep: bool) -> Case:
    def look_into(folder: Path) -> str:
        if any(folder.iterdir()):
            _fill(folder, keep=keep)
        return "whole"

    return Case(write=lambda folder: _fill(folder, keep=keep), look=look_into, varies=True)


WRITERS = {
    "a file": _single(2200, 1000),
    "overwriting a file": _overwrite(40, 3000),
    "shards": Case(lambda folder: _convert(folder, 40, 1, resume=True), resumes=True),
    "ranks": Case(_ranks, resumes=True),
    "overwriting shards": Case(
        prepare=lambda folder: _convert(folder, 30, 0), write=lambda folder: _convert(folder, 40, 1, overwrite=True)
    ),
    "appending": Case(
        prepare=lambda folder: _convert(folder, 30, 0),
        write=lambda folder: _convert(folder, 20, 2, append=True),
        again=_append_again,
        resumes=True,
    ),
    "a column": Case(
        prepare=lambda folder: _convert(folder, 30, 0),
        write=_add_column,
        again=_add_column_again,
    ),
    "merging": Case(
        prepare=_two_files,
        write=lambda folder: mmds.merge([folder / "1.mmds", folder / "2.mmds"], folder / NAME),
        again=lambda folder: mmds.merge([folder / "1.mmds", folder / "2.mmds"], folder / NAME, overwrite=True),
    ),
    "a folder of arrays": _store("npy", ".npyd", overwrite=False),
    "overwriting a folder of arrays": _store("npy", ".npyd", overwrite=True),
    "a cache in memory": _shared(keep=False),
    "a cache on a disk": _shared(keep=True),
}
