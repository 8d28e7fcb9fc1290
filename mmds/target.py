"""Where a conversion writes to: a file, a folder of shards, another store, or object storage."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmds import journal, manifest
from mmds.converters.stores import find_store
from mmds.errors import ExistsError, OptionError, printable
from mmds.samplewriter import SampleWriter
from mmds.sharded import ShardedWriter
from mmds.staging import Staging
from mmds.units import DEFAULT_ITEMS, FOLDER, Units
from mmds.writer import Writer

AnyWriter = SampleWriter | ShardedWriter

ENGINES = ("local", "ray")
UNLIMITED = 2**62  # bytes of a shard


@dataclass(frozen=True)
class Target:
    """A destination, and how to write to it."""

    path: Path | str  # text: a URL
    format: str | None = None
    compression: str | None = None
    shard_size: int | None = None  # bytes
    append: bool = False
    resume: bool = False
    overwrite: bool = False
    shard_items: int | None = None
    engine: str = "local"
    rank: int | None = None
    world_size: int | None = None

    def __post_init__(self) -> None:
        if self.by_units:
            self._check_units()
            return
        if self.shard_size is not None and self.shard_size < 1:
            raise ValueError(f"shard_size={self.shard_size!r}: expected a number of bytes, at least 1")
        if self.resume and not self.is_sharded:
            raise OptionError(
                "resume=True goes on after the last whole shard: it needs shard_size=, in the first run as well"
            )
        if self.overwrite and (self.append or self.resume):
            raise OptionError("overwrite=True replaces what append=True and resume=True keep: expected one of them")
        store = self._store()
        if store is not None and (self.is_sharded or self.compression is not None):
            raise OptionError(f"{printable(self.path)} is {store.name}: shards and compression are for .mmds files")

    def _check_units(self) -> None:
        """Raise the error for options that do not go with units."""
        if self.engine not in ENGINES:
            raise ValueError(f"engine={self.engine!r}: expected one of {', '.join(map(repr, ENGINES))}")
        if self.shard_items is not None and self.shard_items < 1:
            raise ValueError(f"shard_items={self.shard_items!r}: expected a number of items, at least 1")
        if (self.rank is None) != (self.world_size is None):
            raise ValueError(f"rank={self.rank!r}, world_size={self.world_size!r}: give both, or none of them")
        if self.rank is not None and self.world_size is not None and not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank={self.rank!r}, world_size={self.world_size!r}: expected 0 <= rank < world_size")
        if self.rank is not None and self.engine != "local":
            raise OptionError(f"rank= and engine='{self.engine}' are two ways to share the work: expected one of them")
        if self.shard_size is not None:
            raise OptionError(
                "shard_size= ends a shard where so many bytes are written, which nobody knows before: ranks, engine='ray' "
                "and URLs need shards of as many items each: shard_items="
            )
        if self.append:
            raise OptionError("append=True adds shards on this machine, with shard_size=; convert to a new dataset")
        if self.overwrite and (self.resume or self.rank is not None or self._is_url):
            other = "resume=True" if self.resume else "rank=" if self.rank is not None else "a URL"
            raise OptionError(
                f"overwrite=True replaces a dataset in one step, and does not go with {other}; use a new name"
            )
        if self.format not in (None, "mmds") or (not self._is_url and self._store() is not None):
            raise OptionError(f"{printable(self.path)}: shards are for .mmds files")

    @property
    def _is_url(self) -> bool:
        return isinstance(self.path, str)

    @property
    def by_units(self) -> bool:
        """Whether this is a folder of shards that are written one by one, by anybody (`planned.py`)."""
        given = self.shard_items, self.rank, self.world_size
        return any(each is not None for each in given) or self.engine != "local" or self._is_url

    def units(self, where: str | os.PathLike[str], details: Mapping[str, Any], batch_size: int) -> Units:
        """Return the units of this process, written to `where`; each has whole batches."""
        step = self._step(batch_size)
        if step % batch_size:
            raise OptionError(
                f"shard_items={step}: expected a multiple of batch_size={batch_size}, so that no batch is cut in two"
            )
        return Units(
            where,
            {**details, "compression": self.compression},
            shard_items=step,
            rank=self.rank or 0,
            world_size=self.world_size or 1,
            resume=self.resume,
        )

    def _step(self, batch_size: int) -> int:
        return self.shard_items or -(-DEFAULT_ITEMS // batch_size) * batch_size

    def share(self, items: int | None, batch_size: int) -> int | None:
        """Return how many of the items of a source this process has to do."""
        if items is None or self.rank is None or self.world_size is None:
            return items
        starts = range(self.rank * (step := self._step(batch_size)), items, self.world_size * step)
        return sum(min(step, items - start) for start in starts)

    def staging(self, split: str) -> Staging | None:
        """Return where the folder that replaces another one is written, None without `overwrite`."""
        if not self.overwrite:
            return None
        path = Path(self.part(split))
        names = {each.name for each in path.iterdir()} if path.is_dir() else set()
        if names and not names & {manifest.NAME, journal.NAME, FOLDER}:
            raise ExistsError(
                errno.EEXIST, f"{printable(path)} is a folder with other things in it, which stay; use another name"
            )
        return Staging(path, overwrite=True)

    @property
    def is_sharded(self) -> bool:
        """Whether this is a folder of shards."""
        return self.shard_size is not None or self.append

    @property
    def kept(self) -> str:
        """What is there after an error, in words."""
        kept = self.is_sharded or (self.by_units and not self.overwrite)
        return "Whole shards are kept, for resume=True" if kept else "Nothing was written"

    def part(self, split: str) -> Path | str:
        """Return the path for one split of the source: ``out-train.mmds`` for ``out.mmds``."""
        path = Path(self.path)
        name = f"{path.stem}-{split}{path.suffix}" if split else path.name
        if isinstance(self.path, str):
            return self.path.rstrip("/")[: -len(path.name)] + name
        return path.with_name(name)

    def writer(self, split: str, fields: Any, metadata: Mapping[str, Any], conversion: Mapping[str, Any]) -> AnyWriter:
        """Return a new writer. `conversion` says what is being done, so that nothing else is resumed."""
        path = Path(self.part(split))
        options: dict[str, Any] = {"metadata": metadata, "overwrite": self.overwrite}
        if self.compression is not None:
            options["compression"] = self.compression
        if self.is_sharded:
            return ShardedWriter(
                path,
                fields,
                shard_size=self.shard_size or UNLIMITED,
                conversion={**conversion, "shard_size": self.shard_size, "compression": self.compression},
                append=self.append,
                resume=self.resume,
                **options,
            )
        store = self._store()
        if store is not None and self.overwrite and path.is_dir() and any(path.iterdir()) and not store.recognise(path):
            raise ExistsError(
                errno.EEXIST, f"{printable(path)} is a folder, but no {store.name}: it stays; choose another name"
            )
        return (Writer if store is None else store.writer)(path, fields, **options)

    def _store(self) -> Any:
        return None if self.format == "mmds" else find_store(self.path, self.format)
