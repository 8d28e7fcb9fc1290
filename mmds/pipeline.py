"""Converting: any source or store that mmds knows to any store, in parallel where samples have to be loaded or changed.

The bytes of the output depend on the source and the options that change samples, and on nothing else: not on the number
of workers, the time, the host, or where the source lies; nor on how often the conversion was interrupted and resumed.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from mmds.batchcopy import BATCH_BYTES, copy_rows
from mmds.conversion import Conversion, Output, Progress, RemoteOutput, Run
from mmds.converters import Ignored
from mmds.errors import OptionError, SourceError, printable
from mmds.objects import Iterated, Opened, Stored
from mmds.opening import open as open_reader
from mmds.ordered import DONE, in_order
from mmds.origin import (
    AnySource,
    all_ignored,
    as_reader,
    as_sources,
    ignored_in_words,
    items_of,
    left_out,
    length_of,
    narrow,
    opener_of,
    shown_as,
)
from mmds.planned import Content, Manner, write_units
from mmds.reader import Reader
from mmds.remote import is_url
from mmds.schema import Schema
from mmds.sharded import ShardedWriter
from mmds.staging import Staging
from mmds.target import AnyWriter, Target
from mmds.unitjob import append as append_sample
from mmds.units import Units, complete
from mmds.work import Function, Steps, Work, function, named, renamed

ON_ERROR = ("raise", "skip", "quarantine")


def convert(
    source: Any,
    destination: str | os.PathLike[str],
    *,
    source_format: str | None = None,
    destination_format: str | None = None,
    fields: Any = None,
    rename: Mapping[str, str] | None = None,
    filter: Function | str | None = None,
    map: Function | str | None = None,
    batch_map: Function | str | None = None,
    batch_size: int = 32,
    output_fields: Any = None,
    compression: str | None = None,
    shard_size: int | None = None,
    append: bool = False,
    resume: bool = False,
    shard_items: int | None = None,
    engine: str = "local",
    rank: int | None = None,
    world_size: int | None = None,
    num_workers: int | None = None,
    limit: int | None = None,
    on_error: str = "raise",
    overwrite: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> Conversion:
    """Write the samples of `source` to `destination`, in the order of the source.

    The source is a path of any known format (a folder of pictures, an archive, a table, a dataset in any store), a
    `datasets.Dataset`, a map-style dataset, or any iterable of samples; the destination an ``.mmds`` file or any other
    store. Formats are recognised by suffix and content, or named. Between stores, without functions, samples travel as columns.

    Samples can be changed on the way, in this order:

    - `fields` selects, as in `mmds.open`: a list of names, or a structure of names. `rename` (old name to new) renames keys.
    - `filter` returns whether to keep a sample.
    - `map` returns one sample, None to drop it, or many: a list or an iterator of them.
    - `batch_map` gets a list of samples, and returns a list or an iterator of them. Whatever comes of `batch_size` neighbouring
      samples of the source is handed over in lists of at most that many.

    Functions are given themselves or as "module:function". They run in `num_workers` spawned processes, which have to be
    able to import them; a worker that dies is replaced, and a sample that ends two of them fails. `num_workers` is the number
    of CPUs by default; 1, which is the calling process, if the source or a function is a Python object. What is written is the
    same for any number. A field that the functions leave in place, and whose first value fits, keeps its kind; others are
    inferred, or given as `output_fields`: kinds, as for `Writer`, or a function that gets those of the source and returns them.

    With `shard_size` (bytes), the destination is a folder of shards with a manifest. If a conversion is ended, by whatever,
    `resume` goes on after the last whole shard, and gives the same bytes; the source and the options must be the same. `append`
    adds shards to such a folder. `compression` ("zstd", "zstd:LEVEL", "zstd:LEVEL:dict") is for ``.mmds`` files.

    With `shard_items`, the destination is a folder of shards too, each with what so many items of the source give. Who writes
    a shard, and when, makes no difference to its bytes: ``engine="ray"`` has them written on a Ray cluster, with `num_workers`
    tasks at the same time (by default two per CPU, of which one waits); with `rank` and `world_size`, this process writes its
    part of them, and `mmds.commit` completes the dataset when all ranks are done. The destination may be a URL (``s3://...``),
    to which shards are uploaded one by one. For these three, `shard_items` is 8192 by default. All of them can be resumed.

    A folder with splits gives one dataset each: ``out-train.mmds``, ``out-val.mmds`` for ``out.mmds``; they are published
    when all of them are complete. `limit` takes only the first samples of each. `options` are those of the source's format:
    ``resize=``, ``crop=``, ``encode=``, ``check=``, ``splits=`` for a folder of pictures.

    `on_error` says what happens to a sample that cannot be used, or whose function fails: "raise" ends the conversion with
    `SourceError`, and nothing is published; "skip" goes on and lists it in `Conversion.errors`; "quarantine" also writes
    the list to ``DESTINATION.quarantine.jsonl``. The source is never changed.

    `progress` is called with (samples done, samples in all or None, errors), at most ten times a second and at the end.
    """
    if on_error not in ON_ERROR:
        raise ValueError(f"on_error={on_error!r}: expected one of {', '.join(repr(each) for each in ON_ERROR)}")
    for name, number, least in (("num_workers", num_workers, 1), ("limit", limit, 0), ("batch_size", batch_size, 1)):
        if number is not None and number < least:
            raise ValueError(f"{name}={number!r}: expected at least {least}")
    steps = Steps(function(filter), function(map), function(batch_map), batch_size)
    target = Target(
        str(destination) if is_url(destination) else Path(destination),
        destination_format,
        compression,
        shard_size,
        append,
        resume,
        overwrite,
        shard_items,
        engine,
        rank,
        world_size,
    )
    conversion: dict[str, Any] = {
        "source": shown_as(source),
        "source_format": source_format,
        "options": {name: repr(value) for name, value in sorted(options.items())},
        "fields": repr(fields),
        "rename": rename,
        "steps": steps.to_json(),
        "limit": limit,
    }
    reader = None if steps else as_reader(source, source_format, fields, rename, options)
    if reader is not None:
        if output_fields is not None:
            raise OptionError("output_fields= are the kinds of what functions return; fields= selects")
        if target.by_units:
            opens = opener_of(source, source_format)
            assert opens is not None
            opened = Opened(opens, renamed(fields, rename or {}, opens().fields))
            details = {**conversion, "items": len(reader), "content": reader.content_id}
            rows = Content("", reader.metadata, details, len(reader), reader.fields, opens=opened.open)
            total = target.share(len(range(len(reader))[:limit]), 1)
            run = Run(conversion["source"], on_error, progress, total, target.kept)
            return _by_units(
                run,
                [rows],
                target,
                1,
                _manner(conversion["source"], target, num_workers, limit, on_error),
                left_out(reader),
            )
        return _copy(reader, target, conversion, limit, on_error, progress)
    found = as_sources(source, source_format, fields, rename, options)
    tasks = num_workers  # of Ray, which has CPUs of its own, and sends objects anywhere
    if num_workers is None:
        is_object = not isinstance(source, (str, os.PathLike)) or any(
            callable(each) for each in (filter, map, batch_map)
        )
        num_workers = 1 if is_object else len(os.sched_getaffinity(0))
    total = _total([length_of(each) for each in found], limit)
    batch = steps.batch_size if steps.batch_map else 1
    lengths = [_total([length_of(each)], limit) for each in found]
    mine = _total([target.share(length, batch) for length in lengths], None)
    run = Run(conversion["source"], on_error, progress, mine, target.kept)
    for each in found:
        for name, reason in each.problems:
            run.fail(name, reason)
    if total == 0 and limit != 0 and output_fields is None and not isinstance(found[0], Stored):
        raise SourceError(f"{run.shown}: no samples found{run.first_failure}{ignored_in_words(found)}")
    contents: list[Content] = []
    for each in found if target.by_units else ():
        select, narrowed = narrow(each, fields, rename)
        given = _output_fields(named(output_fields), narrowed, steps)
        details = {**conversion, "output_fields": repr(given), "split": each.split, "items": length_of(each)}
        if isinstance(each, Stored):
            details["content"] = each.content_id
        contents.append(
            Content(
                split=each.split,
                metadata=each.metadata,
                details=details,
                length=length_of(each),
                fields=None if given is None else Schema(given),
                like=narrowed,
                cpu_bound=each.cpu_bound,
                work=Work(each.load, select, steps),
                items=partial(items_of, each, several=True),
                is_stream=isinstance(each, Iterated),
                problems=each.problems,
            )
        )
    if contents:
        number = num_workers if engine == "local" else tasks
        manner = _manner(conversion["source"], target, number, limit, on_error)
        return _by_units(run, contents, target, batch, manner, all_ignored(found))
    with ExitStack() as stack:  # all are opened first and published last
        outputs: list[tuple[AnySource, Work, AnyWriter]] = []
        for each in found:
            select, narrowed = narrow(each, fields, rename)
            given = _output_fields(named(output_fields), narrowed, steps)
            details = {**conversion, "output_fields": repr(given), "split": each.split, "items": length_of(each)}
            writer = target.writer(each.split, given, each.metadata, details)
            stack.enter_context(writer)
            writer.like = narrowed
            outputs.append((each, Work(each.load, select, steps), writer))
        for each, work, writer in outputs:
            _write(run, each, work, writer, num_workers, limit)
        total_written = sum(len(writer) for _, _, writer in outputs)
        if (total_written or not run.bad) and any(writer.fields is None for _, _, writer in outputs):
            raise SourceError(f"{run.shown}: no sample is left; an empty dataset needs output_fields=")
        is_complete = all(isinstance(writer, ShardedWriter) and writer.is_complete for _, _, writer in outputs)
        report = _end(run, target, total_written, is_complete)
    written = tuple(_output(target, each.split, len(writer)) for each, _, writer in outputs)
    return Conversion(written, run.shown_errors, all_ignored(found), report)


def _output_fields(wanted: Any, narrowed: Schema | None, steps: Steps) -> Any:
    """Return the fields to write; None if they are to be inferred from the first sample."""
    if wanted is None:
        return None if steps.may_change_fields else narrowed
    if isinstance(wanted, Schema) or not callable(wanted):
        return wanted
    return wanted(None if narrowed is None else narrowed.structure)


def _write(run: Run, source: AnySource, work: Work, writer: AnyWriter, num_workers: int, limit: int | None) -> None:
    """Write all that `source` gives."""
    sharded = writer if isinstance(writer, ShardedWriter) else None
    first, skip = _resumed(run, sharded, _total([length_of(source)], limit))
    if sharded is not None and sharded.is_complete:
        return
    prefix = source.split and f"{source.split}/"
    items = islice(items_of(source, num_workers > 1 or work.batch_size > 1), first, limit)
    processes = source.cpu_bound or not work.is_plain
    current = end = first
    outputs = 0  # of item `current`
    with closing(in_order(work, items, first=first, num_workers=num_workers, processes=processes)) as results:
        for number, item, sample in results:  # closing ends the workers at once if this loop ends early
            if sample is DONE:
                run.count(1)
                end = number + 1
                continue
            current, outputs = number, outputs + 1 if number == current else 1
            if number == first and outputs <= skip:
                continue
            reason = append_sample(writer, sample)
            if reason is not None:
                run.fail(prefix + item[0], reason.reason, reason.trace)
                if sharded is not None:
                    sharded.errors.append((prefix + item[0], reason.reason))
            if sharded is not None:
                sharded.mark(number, outputs)
    if sharded is not None:
        sharded.end(end)


def _manner(source: str, target: Target, num_workers: int | None, limit: int | None, on_error: str) -> Manner:
    options = {} if target.compression is None else {"compression": target.compression}
    return Manner(source, options, on_error, target.kept, target.engine, num_workers, limit)


def _by_units(
    run: Run,
    contents: Sequence[Content],
    target: Target,
    batch_size: int,
    manner: Manner,
    ignored: Mapping[str, Ignored],
) -> Conversion:
    """Write shards that anybody may write; all datasets are published when all shards of all of them are there."""
    with ExitStack() as stack:
        if manner.engine == "ray":
            stack.enter_context(importlib.import_module("mmds.rayengine").cluster())
        written: list[tuple[Units, Staging | None, int]] = []
        lacking: list[str] = []  # splits without any sample
        for content in contents:
            where = target.part(content.split)
            staging = target.staging(content.split)
            if staging is not None:
                stack.callback(staging.discard)
                where = staging.content
            units = target.units(where, content.details, batch_size)
            if units.is_complete:
                samples: int | None = len(open_reader(where))
            else:
                samples = write_units(run, content, units, manner)
            written.append((units, staging, samples or 0))
            if samples is None:
                lacking.append(content.split)
        total = sum(samples for _, _, samples in written)
        if lacking and (total or not run.bad):
            which = f" in {printable(lacking[0])}" if lacking[0] else ""
            raise SourceError(
                f"{run.shown}: no sample is left{which}{run.first_failure}; an empty dataset needs output_fields="
            )
        is_complete = all(units.is_complete for units, _, _ in written)
        report = _end(run, target, total, is_complete or (target.rank is not None and not lacking))
        if target.rank is None:
            for units, staging, _ in written:
                if not units.is_complete:
                    complete(units.place.where)
                if staging is not None:
                    staging.publish()
    outputs = [
        _output(target, content.split, samples) for content, (_, _, samples) in zip(contents, written, strict=True)
    ]
    return Conversion(tuple(outputs), run.shown_errors, ignored, report)


def _end(run: Run, target: Target, written: int, elsewhere: bool) -> Path | str | None:
    """Tell that all is done, and return where the list of bad samples is; if it is written `elsewhere`, it is left alone."""
    if elsewhere:
        run.tell()
        return None
    return run.end(target.path, written)


def _output(target: Target, split: str, samples: int) -> Output | RemoteOutput:
    path = target.part(split)
    return RemoteOutput(path, samples) if isinstance(path, str) else Output(path, samples)


def _resumed(run: Run, writer: ShardedWriter | None, items: int | None) -> tuple[int, int]:
    """Return with which item to go on, and after how many samples of it; note what an earlier run has done."""
    if writer is None:
        return 0, 0
    run.bad += writer.errors
    first, skip = (items or 0, 0) if writer.is_complete else writer.position
    run.count(first)
    return first, skip


def _copy(
    reader: Reader,
    target: Target,
    conversion: Mapping[str, Any],
    limit: int | None,
    on_error: str,
    progress: Progress | None,
) -> Conversion:
    """Copy a dataset from one store to another, in columns of about `BATCH_BYTES`."""
    rows = range(len(reader))[:limit]
    run = Run(reader.store.path, on_error, progress, len(rows), target.kept)
    details = {**conversion, "items": len(reader), "content": reader.content_id}
    with target.writer("", reader.fields, reader.metadata, details) as writer:
        sharded = writer if isinstance(writer, ShardedWriter) else None
        rows = rows[_resumed(run, sharded, len(rows))[0] :]
        most = BATCH_BYTES if sharded is None else min(BATCH_BYTES, sharded.shard_size // 8)
        while rows:
            for batch, failures in copy_rows(reader, rows, writer, most):
                for name, reason in failures:
                    run.fail(name, reason)
                run.count(len(batch))
                rows = rows[len(batch) :]
                if sharded is not None:
                    sharded.errors += failures
                    if sharded.mark(batch.stop, 0):
                        break  # the batches of a shard do not depend on those before it
        if sharded is not None:
            sharded.end(len(reader))
        report = _end(run, target, len(writer), sharded is not None and sharded.is_complete)
    return Conversion((_output(target, "", len(writer)),), run.shown_errors, left_out(reader), report)


def _total(lengths: list[int | None], limit: int | None) -> int | None:
    known = [length for length in lengths if length is not None]
    if len(known) < len(lengths):
        return None
    return sum(length if limit is None else min(limit, length) for length in known)
