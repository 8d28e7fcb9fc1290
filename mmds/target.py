"""Where a conversion writes to: a file, a folder of shards, or another store."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmds.converters.stores import find_store
from mmds.errors import ExistsError, OptionError, printable
from mmds.samplewriter import SampleWriter
from mmds.sharded import ShardedWriter
from mmds.writer import Writer

AnyWriter = SampleWriter | ShardedWriter

UNLIMITED = 2**62  # bytes of a shard


@dataclass(frozen=True)
class Target:
    """A destination, and how to write to it."""

    path: Path
    format: str | None = None
    compression: str | None = None
    shard_size: int | None = None  # bytes
    append: bool = False
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
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

    @property
    def is_sharded(self) -> bool:
        """Whether this is a folder of shards."""
        return self.shard_size is not None or self.append

    @property
    def kept(self) -> str:
        """What is there after an error, in words."""
        return "Whole shards are kept, for resume=True" if self.is_sharded else "Nothing was written"

    def part(self, split: str) -> Path:
        """Return the path for one split of the source: ``out-train.mmds`` for ``out.mmds``."""
        return self.path.with_name(f"{self.path.stem}-{split}{self.path.suffix}") if split else self.path

    def writer(self, split: str, fields: Any, metadata: Mapping[str, Any], conversion: Mapping[str, Any]) -> AnyWriter:
        """Return a new writer. `conversion` says what is being done, so that nothing else is resumed."""
        path = self.part(split)
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
