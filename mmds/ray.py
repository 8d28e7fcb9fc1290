"""Ray Data: a dataset as a `ray.data.Dataset`, and any `ray.data.Dataset` as a folder of shards.

Read: each task opens the dataset on its own node, and yields blocks of neighbouring samples (`raycolumns.py` says as which
columns).

Written: each task writes its rows to a shard of its own, under a name that no other attempt of that task has, and returns what
is in it. When all tasks are done, the driver gives the files that tasks have returned their names, in the order of the tasks,
lists them in the manifest, and publishes the folder. What else is there, of workers that died or that still run though Ray
has given them up, goes with the temporary folder. So each row is there once, and no attempt touches what another has written.
"""

from __future__ import annotations

import copy
import errno
import os
import secrets
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from mmds.errors import ChangedError, ExistsError, MmdsError, SchemaError, StorageError, missing, printable
from mmds.fields import Fixed
from mmds.format import schema_id
from mmds.manifest import NAME, Manifest, Shard, describe_shard, publish_manifest
from mmds.openfile import open_file
from mmds.opening import Source, located
from mmds.opening import open as open_reader
from mmds.publish import storage_errors
from mmds.reader import Reader
from mmds.remote import Remote, is_url
from mmds.schema import Schema
from mmds.staging import Staging
from mmds.writer import Writer

try:
    import pyarrow as pa
    import ray.data
    from ray.data.block import BlockAccessor, BlockMetadata
    from ray.data.datasource import Datasink, Datasource, ReadTask
except ModuleNotFoundError as error:
    if str(error.name).split(".")[0] not in ("ray", "pyarrow", "pandas"):
        raise
    raise missing("ray[data]", "ray", "mmds.ray") from None

from mmds.raycolumns import check_columns, infer, ray_schema, to_block, to_leaf

BATCH_ROWS = 1024  # written at once: enough for the speed of columns
BLOCK_BYTES = 128 * 2**20  # where Ray does not say how large a block may be


def read_mmds(
    path: Source, *, fields: Any = None, override_num_blocks: int | None = None, concurrency: int | None = None
) -> ray.data.Dataset:
    """Return the samples of a dataset as a `ray.data.Dataset`, a row for each, in order.

    `path` and `fields` are as for `mmds.open`; all nodes must see the dataset at the same path. Arrays are tensors, labels
    their class indices, encoded pictures bytes. `override_num_blocks` and `concurrency` are as for `ray.data.read_parquet`.

    Raises `SchemaError` for complex numbers, and what `mmds.open` does. If the dataset is replaced before it is read, the tasks
    raise `ChangedError`.
    """
    source = MmdsDatasource(path, fields)
    dataset: ray.data.Dataset = ray.data.read_datasource(
        source, override_num_blocks=override_num_blocks, concurrency=concurrency
    )
    return dataset


def write_mmds(
    dataset: ray.data.Dataset,
    path: str | os.PathLike[str],
    *,
    fields: Any = None,
    metadata: Mapping[str, Any] | None = None,
    compression: str | None = None,
    overwrite: bool = False,
    concurrency: int | None = None,
) -> None:
    """Write the rows of a `ray.data.Dataset` to a folder of shards, in order: one shard for each write task that has rows.

    All nodes must see the folder that `path` is in. Nothing is at `path`, or what was there before stays, until all rows are
    written; a task that Ray repeats, since its worker or its node died, neither repeats nor loses a row.

    `fields` is as for `mmds.Writer`. Without it, the fields are inferred from the first row, for which the steps of the dataset
    run once more as far as that row. A column has the name of its field, as in ``"target.boxes"``, or is a struct.

    Raises `ExistsError` if there is something at `path` and `overwrite` is false, `SchemaError` for columns that mmds cannot
    hold, `SampleError`, `StorageError`, and what the steps of the dataset raise, as Ray wraps it.
    """
    if is_url(path):
        raise StorageError(
            errno.EINVAL, f"{printable(Remote(str(path)).url)}: write_mmds writes to a file system that all nodes share"
        )
    staging = _stage(Path(path), overwrite)
    try:
        with _in_order(dataset):
            schema = _first_fields(dataset, path) if fields is None else Schema(fields)
            attempts = staging.content.parent / "attempts"
            sink = MmdsDatasink(attempts, schema.to_json(), dict(metadata or {}), compression)
            with storage_errors(staging.path):
                attempts.mkdir()
                staging.content.mkdir()
            empty = sink.write_shard("empty.mmds", [])  # before the work, if these fields or metadata cannot be written
            with _own_errors():
                dataset.write_datasink(sink, concurrency=concurrency)
        _gather(staging, attempts, sink.written or [empty])
        staging.publish()
    finally:
        staging.discard()


def _stage(path: Path, overwrite: bool) -> Staging:
    if overwrite and path.is_dir() and any(path.iterdir()) and not (path / NAME).exists():
        what = "is a folder with other things in it, which stay; pass another name"
        raise ExistsError(errno.EEXIST, f"{printable(path)} {what}")
    return Staging(path, overwrite=overwrite)


@contextmanager
def _in_order(dataset: ray.data.Dataset) -> Iterator[None]:
    """Let Ray keep the order of rows, as long as this lasts."""
    context = dataset.context
    before, context.execution_options = context.execution_options, copy.copy(context.execution_options)
    context.execution_options.preserve_order = True
    try:
        yield
    finally:
        context.execution_options = before


@contextmanager
def _own_errors() -> Iterator[None]:
    """Raise an error that mmds has raised in a task as itself; Ray's, which tells where, becomes its cause."""
    try:
        yield
    except Exception as error:
        inner: BaseException | None = error
        while inner is not None and type(inner).__module__ != "mmds.errors":
            inner = getattr(inner, "cause", None) or inner.__cause__
        if isinstance(inner, MmdsError):
            raise inner from error
        raise


def _first_fields(dataset: ray.data.Dataset, path: str | os.PathLike[str]) -> Schema:
    table: Any
    for table in dataset.limit(1).iter_batches(batch_size=1, batch_format="pyarrow"):
        return infer(table.schema)
    raise SchemaError(f"{printable(path)}: no samples and no fields; pass fields= to write an empty dataset")


def _gather(staging: Staging, attempts: Path, written: list[Shard]) -> None:
    """Give the shards that tasks have returned the names that they keep, and list them."""
    fields = open_file(attempts / "empty.mmds").schema  # with the compression
    shards = [Shard(f"{number:05d}.mmds", each.n, each.bytes, each.content_id) for number, each in enumerate(written)]
    with storage_errors(staging.path):
        for each, shard in zip(written, shards, strict=True):
            (attempts / each.path).rename(staging.content / shard.path)
    publish_manifest(staging.content, Manifest(schema_id(fields).hex(), tuple(shards)), overwrite=False)


@dataclass
class MmdsDatasink(Datasink[tuple[int, Shard | None]]):
    """Write each task's rows to a shard in `folder`; `written` has the shards of all tasks, in order, when they are done."""

    folder: Path
    fields: list[dict[str, Any]]
    metadata: dict[str, Any]
    compression: str | None
    written: list[Shard] = field(default_factory=list)

    def write(self, blocks: Iterable[Any], ctx: Any) -> tuple[int, Shard | None]:
        """Write the rows of one task, and return its number and what was written; called by Ray, on any node."""
        tables = (BlockAccessor.for_block(block).to_arrow() for block in blocks)
        tables = (table for table in tables if len(table))
        first = next(tables, None)
        if first is None:
            return ctx.task_idx, None
        name = f"{ctx.task_idx:05d}-{secrets.token_hex(8)}.mmds"
        return ctx.task_idx, self.write_shard(name, _chain(first, tables))

    def write_shard(self, name: str, tables: Iterable[pa.Table]) -> Shard:
        """Write all rows of `tables` to the file `name`, and return what is in it."""
        if not self.folder.is_dir():
            raise StorageError(
                errno.ENOENT,
                f"{printable(self.folder)}: not there on the node {printable(socket.gethostname())}, but made by the driver; "
                "expected a path on a file system that all nodes of the Ray cluster share",
            )
        schema = Schema.from_json(self.fields)
        with Writer(self.folder / name, schema, metadata=self.metadata, compression=self.compression) as writer:
            for table in tables:
                check_columns(table, schema)
                for batch in table.to_batches(max_chunksize=BATCH_ROWS):
                    writer.write_batch(
                        schema.assembler([partial(to_leaf, field=each) for each in schema.fields])(batch)
                    )
        return describe_shard(self.folder / name, name)

    def on_write_complete(self, write_result: Any) -> None:
        """Put the shards in the order of the tasks; called by Ray in the driver."""
        returned = sorted(each for each in write_result.write_returns if each[1] is not None)
        self.written = [shard for _, shard in returned]


def _chain(first: pa.Table, tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    yield first
    yield from tables


class MmdsDatasource(Datasource):
    """Read a dataset in tasks of neighbouring samples."""

    def __init__(self, path: Source, fields: Any = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.path, self.fields = located(path), fields
        reader = open_reader(self.path, fields=fields)
        self.n, self.content_id = len(reader), reader.content_id
        self.schema = ray_schema(reader.fields, printable(reader.store.path))
        self.bytes = _size(reader)

    def estimate_inmemory_data_size(self) -> int:
        """Return about how many bytes all rows take in memory; of compressed fields, how many in the file."""
        return self.bytes

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """Return about `parallelism` tasks, each of which reads samples that are neighbours."""
        context = data_context or ray.data.DataContext.get_current()
        row_bytes = max(1, self.bytes // max(1, self.n))
        rows = max(1, (context.target_max_block_size or BLOCK_BYTES) // row_bytes)
        count = max(1, min(parallelism, self.n))
        bounds = [self.n * number // count for number in range(count + 1)]
        tasks = []
        for start, stop in pairwise(bounds):
            said = BlockMetadata(
                num_rows=stop - start, size_bytes=(stop - start) * row_bytes, exec_stats=None, input_files=None
            )
            read = partial(_read, self.path, self.fields, self.content_id, self.schema, range(start, stop), rows)
            tasks.append(ReadTask(read, said, schema=self.schema, per_task_row_limit=per_task_row_limit))
        return tasks


def _size(reader: Reader) -> int:
    """Return about how many bytes the fields of a reader take, without looking at samples."""
    kinds = [each.kind for each in reader.fields.fields]
    fixed = [kind.nbytes for kind in kinds if isinstance(kind, Fixed) and kind.nbytes is not None]
    if len(fixed) == len(kinds):
        return len(reader) * sum(fixed)
    manifest = getattr(reader.store, "manifest", None)
    if manifest is not None:
        return sum(each.bytes for each in (*manifest.shards, *manifest.columns))
    if hasattr(reader.store, "footer"):
        return int(reader.footer.file_length)
    if hasattr(reader.store, "files"):
        return sum(int(file.footer.file_length) for file in reader.store.files())
    path = Path(reader.path)
    return sum(each.stat().st_size for each in (path.rglob("*") if path.is_dir() else [path]) if each.is_file())


def _read(path: Source, fields: Any, content_id: str, schema: pa.Schema, rows: range, step: int) -> Iterator[pa.Table]:
    """Yield the samples `rows` as blocks of up to `step`; runs in a task."""
    try:
        reader = open_reader(path, fields=fields)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}, on the node {printable(socket.gethostname())}; all nodes of the Ray cluster must see it at the same path"
        ) from None
    if reader.content_id != content_id:
        raise ChangedError(f"{printable(reader.store.path)}: replaced since read_mmds was called; call it again")
    if not rows:
        yield schema.empty_table()
    for part in reader[rows.start : rows.stop].parts():
        for start in range(0, len(part), step):
            yield to_block(part[start : start + step], schema)
