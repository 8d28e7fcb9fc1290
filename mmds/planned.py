"""Converting by units: on this machine, as one of many ranks, or on a Ray cluster. `units.py` says what a unit is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from mmds.columns import encode
from mmds.compression import compressed
from mmds.conversion import Run
from mmds.converters import Item
from mmds.fields import Misfit
from mmds.ordered import DONE, in_order
from mmds.reader import Reader
from mmds.schema import Schema
from mmds.unitjob import Part, UnitJob, until_done
from mmds.units import Record, Units
from mmds.work import Failure, Work

Parts = Iterator[tuple[int, Part]]


@dataclass(frozen=True)
class Content:
    """What is converted: items that are worked on, or the rows of a store."""

    split: str
    metadata: Mapping[str, Any]
    details: Mapping[str, Any]  # what it is, in JSON: nothing else is gone on with
    length: int | None
    fields: Schema | None  # None: inferred from the first sample,
    like: Schema | None = None  # with the kinds of these
    cpu_bound: bool = True
    work: Work | None = None
    items: Callable[[], Iterator[Item]] = lambda: iter(())
    is_stream: bool = False  # whether items can be had only once
    problems: Sequence[tuple[str, str]] = ()  # with it as a whole: (name, reason)
    opens: Callable[[], Reader] | None = None


@dataclass(frozen=True)
class Manner:
    """How units are done."""

    source: str  # what to call it
    options: Mapping[str, Any]  # of `Writer`
    on_error: str
    kept: str
    engine: str
    num_workers: int | None
    limit: int | None


def write_units(run: Run, content: Content, units: Units, manner: Manner) -> int | None:
    """Do all units of a rank that are not done yet. Return how many samples they have; None if there is no sample at all."""
    items: Iterator[Item] = islice(content.items(), manner.limit)
    fields = units.fields or content.fields
    if fields is None:
        fields, taken = _first_fields(run, content, items)
        if fields is None:
            return None
        items = chain(taken, items) if content.is_stream else islice(content.items(), manner.limit)
    if "compression" in manner.options:  # as the writers of shards will have them
        fields = compressed(fields)
    units.begin(fields)
    known = len(run.bad)
    for record in units.done.values():
        _note(run, record)
    todo = _Todo(units)
    job = UnitJob(
        where=units.place.where,
        source=manner.source,
        prefix=content.split and f"{content.split}/",
        fields=fields,
        metadata=content.metadata,
        options=manner.options,
        on_error=manner.on_error,
        kept=manner.kept,
        work=content.work,
        opens=content.opens,
    )
    parts: Parts = todo.groups(items)
    if content.opens is not None:
        todo.items = len(range(content.length or 0)[: manner.limit])
        parts = todo.rows(todo.items)
    if manner.engine == "ray":
        from mmds.rayengine import in_ray

        for record in in_ray(job, parts, manner.num_workers):
            _note(run, record)
            units.add(record)
    elif content.work is None:
        assert content.opens is not None
        reader = content.opens()
        for unit, rows in parts:
            assert isinstance(rows, range)
            units.add(job.copy(run, unit, reader, rows))
    else:
        for record in _locally(run, job, todo, items, content.cpu_bound, manner.num_workers or 1):
            units.add(record)
    if not todo.items and not units.rank and 0 not in units.done:  # an empty dataset has a shard, too
        units.add(job.write(run, 0, ()))
    units.end(todo.items, manner.on_error, () if units.rank else content.problems)
    run.bad[known:] = [error for _, record in sorted(units.done.items()) for error in record.errors]
    return sum(record.shard.n for record in units.done.values())


def _note(run: Run, record: Record) -> None:
    run.bad += record.errors
    run.count(record.items)


def _locally(
    run: Run, job: UnitJob, todo: _Todo, items: Iterator[Item], cpu_bound: bool, num_workers: int
) -> Iterator[Record]:
    """Do units one after the other, with the same workers for all of them."""
    work = job.work
    assert work is not None
    processes = cpu_bound or not work.is_plain
    with closing(in_order(work, todo.mine(items), num_workers=num_workers, processes=processes)) as results:
        for unit in todo.units():
            first = next(results, None)
            if first is None:
                return
            yield job.write(run, unit, until_done(chain([first], results), todo.step))


class _Todo:
    """Which items are to be worked on. `items` is how many the source has, as far as it has been read."""

    def __init__(self, units: Units) -> None:
        self._done, self.step = set(units.done), units.shard_items
        self._rank, self._world_size = units.rank, units.world_size
        self.items = 0

    def _is_mine(self, unit: int) -> bool:
        return unit % self._world_size == self._rank and unit not in self._done

    def units(self) -> Iterator[int]:
        """Yield the numbers of all units to do, without end."""
        unit = self._rank
        while True:
            if self._is_mine(unit):
                yield unit
            unit += self._world_size

    def mine(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the items of all units to do."""
        for number, item in enumerate(items):
            self.items = number + 1
            if self._is_mine(number // self.step):
                yield item

    def groups(self, items: Iterator[Item]) -> Parts:
        """Yield the units to do with their items."""
        unit = 0
        while group := list(islice(items, self.step)):
            self.items += len(group)
            if self._is_mine(unit):
                yield unit, group
            unit += 1

    def rows(self, total: int) -> Parts:
        """Yield the units to do of a store with `total` rows."""
        for unit in self.units():
            if unit * self.step >= total:
                return
            yield unit, range(unit * self.step, min((unit + 1) * self.step, total))


def _first_fields(run: Run, content: Content, items: Iterator[Item]) -> tuple[Schema | None, list[Item]]:
    """Return the fields of the first sample that can be written, and the items that were taken for that, of a stream.

    If there is no such sample, returns None, and `run` has been told of all items why.
    """
    assert content.work is not None
    taken: list[Item] = []
    count = 0
    failures: list[tuple[Item, Failure]] = []

    def noted() -> Iterator[Item]:
        nonlocal count
        for item in items:
            count += 1
            if content.is_stream:
                taken.append(item)
            yield item

    for _, item, sample in in_order(content.work, noted(), num_workers=1, processes=False):
        if isinstance(sample, Failure):
            failures.append((item, sample))
        elif sample is not DONE:
            try:
                fields = Schema.infer(sample, content.like)
                for field, leaf in zip(fields, fields.leaves(sample), strict=True):
                    encode(field.kind, leaf)
            except Misfit as misfit:
                failures.append((item, Failure(f"expected {misfit.expected}, got {misfit.got}")))
                continue
            return fields, taken
    run.count(count)
    for item, failure in failures:
        run.fail((content.split and f"{content.split}/") + item[0], failure.reason, failure.trace)
    return None, []
