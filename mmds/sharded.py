"""Writing a dataset as a folder of shards: each published when it is full, all together when their manifest is.

Readers see the dataset when ``dataset.json`` is there (`manifest.py`). Until then, a journal beside the shards says how far
this has come, so that a conversion can be resumed after the last shard that is whole. Where a shard ends depends on the
samples alone: a resumed conversion gives the same bytes.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mmds import journal, manifest
from mmds.errors import ExistsError, FormatError, SchemaError, printable
from mmds.format import schema_id
from mmds.journal import Entry, Journal
from mmds.manifest import Manifest, Shard, describe_shard, open_listed, publish_manifest, read_manifest
from mmds.publish import exists_error, reclaim, storage_errors, sync_folder
from mmds.schema import Schema
from mmds.staging import Staging
from mmds.writer import Writer


class ShardedWriter:
    """Write samples to shards of at least `shard_size` bytes each, but for the last one.

    After each sample, the caller says with `mark` where in its source that is. `conversion` says in JSON what is being done, so
    that nothing else is resumed. With `append`, the shards are added to a dataset that exists; with `overwrite`, they replace
    what is there, when all of them are complete; with `resume`, `position` is where to go on.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        fields: Any = None,
        *,
        metadata: Mapping[str, Any] | None = None,
        shard_size: int,
        conversion: Mapping[str, Any],
        append: bool = False,
        resume: bool = False,
        overwrite: bool = False,
        **options: Any,
    ) -> None:
        self.path = Path(path).absolute()
        self.shard_size = shard_size
        self._folder, self._metadata, self._options = self.path, metadata, options
        self._schema = None if fields is None else Schema(fields)
        self._writer: Writer | None = None
        self._staging: Staging | None = None
        self._journal: Journal | None = None
        self._base: tuple[Shard, ...] = ()
        self._shards: list[Shard] = []
        self._errors = 0  # how many the journal knows of
        self.position = (0, 0)
        self.errors: list[tuple[str, str]] = []  # of samples: whoever writes adds to them
        self.like: Schema | None = None
        self.is_complete = False  # by an earlier run
        self._locks = ExitStack()
        try:
            self._begin(dict(conversion), append, resume, overwrite)
        except BaseException:
            self.abort()
            raise

    def _begin(self, conversion: dict[str, Any], append: bool, resume: bool, overwrite: bool) -> None:
        if overwrite:
            if self.path.is_dir() and any(self.path.iterdir()) and not self._is_dataset:
                raise self._exists("is a folder with other things in it, which stay", "another name")
            self._staging = Staging(self.path, overwrite=True)
            self._folder = self._staging.content
            with storage_errors(self.path):
                self._folder.mkdir()
            return
        if append and not (self.path / manifest.NAME).exists():
            raise FormatError(f"{printable(self.path)}: no folder of shards with {manifest.NAME}: nothing to append to")
        if os.path.lexists(self.path) and not self.path.is_dir():
            raise exists_error(self.path)
        with storage_errors(self.path):
            if not self.path.is_dir():
                self.path.mkdir(exist_ok=True)
                sync_folder(self.path.parent)
            self._locks.enter_context(manifest.locked(self.path))
            is_begun = (self.path / journal.NAME).exists()
        if is_begun and not resume:
            raise self._exists(
                "holds an unfinished conversion", "resume=True to go on with it, overwrite=True to start anew"
            )
        existing = read_manifest(self.path) if (self.path / manifest.NAME).exists() else None
        if existing is not None and not append:
            if not resume:
                raise self._exists("exists already", "append=True to add to it, overwrite=True to replace it")
            self._complete(existing.shards)
            return
        if existing is None and not is_begun and any(self.path.iterdir()):
            raise self._exists("is a folder with other things in it", "another name")
        self._journal = Journal(self.path)
        self._shards = done = [entry.shard for entry in self._journal.entries]
        if existing is not None:
            base = len(existing.shards)
            if is_begun and done and existing.shards[-len(done) :] == tuple(done):  # it ended in the last moment
                self._complete(tuple(done))
                return
            self._add_to(existing)
            conversion["added_to"] = base
        self._journal.begin(conversion)
        for entry in self._journal.entries:
            self.position = entry.item, entry.outputs
            self.errors += entry.errors
        for shard in done:  # one that is gone is better noticed before hours of work than after
            self._schema = open_listed(self.path, shard).schema
        self._errors = len(self.errors)

    @property
    def _is_dataset(self) -> bool:
        return any((self.path / name).exists() for name in (manifest.NAME, journal.NAME))

    def _exists(self, what: str, instead: str) -> ExistsError:
        return ExistsError(errno.EEXIST, f"{printable(self.path)} {what}; pass {instead}")

    def _complete(self, shards: tuple[Shard, ...]) -> None:
        """Note that an earlier run has done everything, but perhaps for the journal."""
        self.is_complete = True
        self._shards = list(shards)
        self._schema = open_listed(self.path, shards[0]).schema
        with storage_errors(self.path):
            reclaim(self.path / manifest.NAME)
            (self.path / journal.NAME).unlink(missing_ok=True)

    def _add_to(self, existing: Manifest) -> None:
        if existing.columns:
            raise SchemaError(
                f"{printable(self.path)} has columns that were added to it, which have no values for more samples; "
                "convert it to a new dataset, and append to that"
            )
        schema = open_listed(self.path, existing.shards[0]).schema
        if self._schema is not None and self._schema.to_json() != schema.to_json():
            raise SchemaError(
                f"{printable(self.path)} has the fields {printable(repr(schema), 1000)}; the samples to append have "
                f"{printable(repr(self._schema), 1000)}"
            )
        self._schema, self._base = schema, existing.shards

    @property
    def fields(self) -> Schema | None:
        """The fields, or None before the first sample if they are to be inferred."""
        return self._schema

    def __len__(self) -> int:
        return sum(shard.n for shard in self._shards) + (0 if self._writer is None else len(self._writer))

    def write(self, sample: Any) -> None:
        """Append one sample."""
        self._open().write(sample)

    def write_batch(self, columns: Any) -> None:
        """Append many samples, as `Writer.write_batch` does."""
        self._open().write_batch(columns)

    def mark(self, item: int, outputs: int) -> bool:
        """Note where the sample that was written last comes from; end the shard if it is full, and return whether it was.

        The next sample is the one that follows the first `outputs` samples of item `item`.
        """
        if self._writer is None or self._writer.nbytes < self.shard_size:
            return False
        self._end_shard(item, outputs)
        return True

    def end(self, items: int) -> None:
        """Note that the source has no more than so many items."""
        if self._writer is None and not self._shards and not self._base and self._schema is not None:
            self._open()  # a dataset without samples has a shard, too: it says which fields
        if self._writer is not None:
            self._end_shard(items, 0)

    def _open(self) -> Writer:
        if self._writer is None:
            # A file of that name is one that the journal does not know of: it was published in the moment of a crash.
            self._writer = Writer(
                self._folder / self._free_name(), self._schema, metadata=self._metadata, overwrite=True, **self._options
            )
            self._writer.like = self.like
        return self._writer

    def _free_name(self) -> str:
        """Return the name of the next shard. The manifest of another program may list shards by any names."""
        taken = {shard.path for shard in (*self._base, *self._shards)}
        names = (f"{number:05d}.mmds" for number in itertools.count(len(taken)))
        return next(name for name in names if name not in taken)

    def _end_shard(self, item: int, outputs: int) -> None:
        assert self._writer is not None
        self._writer.close()
        path = self._writer.path
        with storage_errors(path):
            shard = describe_shard(path, path.name)
        self._schema, self._writer = self._writer.fields, None
        self._shards.append(shard)
        if self._journal is not None:
            self._journal.add(Entry(self._shards[-1], item, outputs, self.errors[self._errors :]))
        self._errors = len(self.errors)

    def close(self) -> None:
        """Publish the manifest, after `end`."""
        try:
            if not self.is_complete:
                assert self._schema is not None
                found = Manifest(schema_id(self._schema).hex(), (*self._base, *self._shards))
                publish_manifest(self._folder, found, overwrite=bool(self._base))
                if self._staging is not None:
                    self._staging.publish()
                if self._journal is not None:
                    self._journal.remove()
        finally:
            self._free()

    def abort(self) -> None:
        """Give up: shards that are whole stay, to be resumed, but with `overwrite`."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.abort()
            with contextlib.suppress(OSError):  # published, perhaps, but not in the journal: it is written anew anyway
                writer.path.unlink()
        if self._journal is not None and not self._shards:
            with contextlib.suppress(OSError):  # it stays, then, for resume
                names = {each.name for each in self.path.iterdir()}
                if manifest.NAME in names:  # samples were to be added
                    self._journal.remove()
                elif names == {journal.NAME}:  # nothing temporary, for resume to remove
                    self._journal.remove()
                    self.path.rmdir()
        self._free()

    def _free(self) -> None:
        if self._journal is not None:
            self._journal.close()
        if self._staging is not None:
            self._staging.discard()
        self._locks.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()
