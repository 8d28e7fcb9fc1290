"""Writing one unit of a plan: the same bytes, whoever does it. A `UnitJob` pickles, so that any process of any host can."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmds.batchcopy import copy_rows
from mmds.conversion import Run
from mmds.converters import Item
from mmds.errors import SampleError
from mmds.manifest import Shard, describe_shard
from mmds.ordered import DONE, in_order
from mmds.place import place
from mmds.reader import Reader
from mmds.schema import Schema
from mmds.units import Record, shard_name
from mmds.work import Failure, Work
from mmds.writer import Writer

Part = Sequence[Item] | range  # of a source: items, or rows of a store
Results = Iterable[tuple[int, Item, Any]]  # as of `in_order`


@dataclass(frozen=True)
class UnitJob:
    """All that has to be known to write units: where to, what, and from what."""

    where: str  # a path or a URL
    source: str  # what to call it
    prefix: str  # of the names of its items
    fields: Schema
    metadata: Mapping[str, Any]
    options: Mapping[str, Any]  # of `Writer`
    on_error: str
    kept: str
    work: Work | None = None  # of items,
    opens: Callable[[], Reader] | None = None  # or what opens the dataset whose rows are copied

    def do(self, unit: int, part: Part) -> Record:
        """Write a unit in this process, alone."""
        run = Run(self.source, self.on_error, None, None, self.kept)
        if isinstance(part, range):
            assert self.opens is not None
            return self.copy(run, unit, self.opens(), part)
        assert self.work is not None
        return self.write(run, unit, in_order(self.work, part, num_workers=1, processes=False))

    def copy(self, run: Run, unit: int, reader: Reader, rows: range) -> Record:
        """Write the rows of a store that are a unit."""
        known = len(run.bad)

        def write(writer: Writer) -> None:
            for batch, failures in copy_rows(reader, rows, writer):
                for name, reason in failures:
                    run.fail(name, reason)
                run.count(len(batch))

        shard = self._shard(unit, write)
        return Record(unit, shard, len(rows), tuple(run.bad[known:]))

    def write(self, run: Run, unit: int, results: Results) -> Record:
        """Write what the items of a unit give. `results` may go on behind its end, and is not read further."""
        known, items = len(run.bad), 0

        def write(writer: Writer) -> None:
            nonlocal items
            for _, item, sample in results:
                if sample is DONE:
                    items += 1
                    run.count(1)
                    continue
                failure = append(writer, sample)
                if failure is not None:
                    run.fail(self.prefix + item[0], failure.reason, failure.trace)

        shard = self._shard(unit, write)
        return Record(unit, shard, items, tuple(run.bad[known:]))

    def _shard(self, unit: int, write: Callable[[Writer], None]) -> Shard:
        found: list[Shard] = []
        name = shard_name(unit)

        def make(path: Path) -> None:
            # One that is there already is of somebody who did the same, and did not come to say so.
            with Writer(path, self.fields, metadata=self.metadata, overwrite=True, **self.options) as writer:
                write(writer)
            found.append(describe_shard(path, name))

        place(self.where).put(name, make)
        return found[0]


def append(writer: Any, sample: Any) -> Failure | None:
    """Write a sample, or return why that cannot be."""
    if isinstance(sample, Failure):
        return sample
    try:
        writer.write(sample)
    except SampleError as error:
        return Failure(error.reason)
    return None


def until_done(results: Iterator[tuple[int, Item, Any]], items: int) -> Iterator[tuple[int, Item, Any]]:
    """Yield results up to the end of so many items."""
    for result in results:
        yield result
        items -= result[2] is DONE
        if not items:
            return
