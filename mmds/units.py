"""A conversion in units: what is fixed before it begins, who does what, and what is done.

Unit k of a plan is items ``k * shard_items`` to ``(k + 1) * shard_items`` of the source, and its shard is always called
``{k:05d}.mmds``: whoever does it, and how often, the bytes are the same. Of W ranks, rank r does the units with k mod W = r.
As long as the dataset has no manifest, a folder ``unfinished`` beside the shards holds small objects that say what is done:

    plan.json         what is converted, how, and by how many ranks; the fields
    rank-00003.json   who does the units of rank 3: the id of that run, its host, its process, when it began
    00012.json        unit 12 is done: its shard, how many items, what went wrong, in which run
    done-00003.json   rank 3 is done: how many items the source has, in which run

Each is created by one process and then left as it is, so nothing has to be locked, and all of this works on object storage.
`commit` checks that everything is there, writes the manifest in the order of the units, and removes the folder.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import socket
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mmds.conversion import quarantine
from mmds.errors import ExistsError, FormatError, OptionError, SourceError, StorageError, printable
from mmds.format import schema_id
from mmds.journal import difference
from mmds.manifest import NAME, Manifest, Shard, open_listed, parse_entry
from mmds.place import AT_ONCE, Folder, Place, place
from mmds.remote import at_once, is_url
from mmds.schema import Schema

FOLDER = "unfinished"
DEFAULT_ITEMS = 8192  # per unit: of 100 KB pictures a shard of 0.8 GB
LIMIT = 2**30  # bytes of an object in the folder: a unit may have many bad samples
REASON = 1000  # characters that are kept of why a sample is bad

_is_unit = re.compile(r"([0-9]{5,})\.json").fullmatch


Errors = tuple[tuple[str, str], ...]  # (name, reason)


@dataclass(frozen=True)
class Record:
    """A unit that is done."""

    unit: int
    shard: Shard
    items: int
    errors: Errors


@dataclass(frozen=True)
class Committed:
    """A dataset that is complete."""

    where: str
    samples: int
    shards: int
    content_id: str
    errors: Errors  # of all units: bad samples, by names as they are


class Units:
    """The units of one rank: which are to be done, and saying that they are."""

    def __init__(
        self,
        where: str | os.PathLike[str],
        conversion: Mapping[str, Any],
        *,
        shard_items: int,
        rank: int = 0,
        world_size: int = 1,
        resume: bool = False,
    ) -> None:
        """Look at what is there. Of a dataset that is complete, what commit has left is removed; nothing else changes.

        Raises `ExistsError` if that is a dataset, or if this rank has begun and `resume` is false, and `OptionError` if it was
        begun differently.
        """
        self.place = place(where)
        self.shown = printable(self.place.where, 4096)
        self.rank, self.world_size, self.shard_items = rank, world_size, shard_items
        self.is_complete = False  # by an earlier run
        self.fields: Schema | None = None  # as the plan says, if there is one
        self.done: dict[int, Record] = {}
        self._run = secrets.token_hex(8)
        self._conversion = json.loads(_dump(dict(conversion)))
        self._has_plan = self._again = False
        names = self.place.sizes()
        if NAME in names:
            if not resume:
                raise self._exists(
                    "exists already", "another name, or overwrite=True to replace a folder of this machine"
                )
            self.is_complete = True
            _clear(self.place)
            return
        plan = self._load("plan.json")
        if plan is None and set(names) - {FOLDER}:
            raise self._exists("has other things in it", "another name")
        if plan is not None:
            self._take(plan)
        before = self._load(_rank(rank))
        if before is not None and not resume:
            how = "begun" if self._load(_done(rank)) is None else "done"
            what = "holds an unfinished conversion" if world_size == 1 else f"rank {rank} of {world_size} was {how}"
            raise self._exists(
                f"{what} by {_who(before)}",
                "resume=True to go on once that has ended; each rank is done by one process",
            )
        self._again = before is not None

    def begin(self, fields: Schema) -> None:
        """Say what is being done, and that this process does the units of its rank. Afterwards `done` is known."""
        self.place.prepare(FOLDER)
        plan = {
            "conversion": self._conversion,
            "fields": fields.to_json(),
            "shard_items": self.shard_items,
            "world_size": self.world_size,
        }
        if not self._has_plan:
            try:
                self._create("plan.json", plan)
            except ExistsError:  # another rank was faster
                self._take(self._load("plan.json"))
        claim = {
            "run": self._run,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "began": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        if self._again:
            self.place.replace(f"{FOLDER}/{_rank(self.rank)}", _dump(claim))
        else:
            try:
                self._create(_rank(self.rank), claim)
            except ExistsError:
                other = _who(self._load(_rank(self.rank)))
                raise self._exists(
                    f"rank {self.rank} of {self.world_size} is being done by {other}",
                    "a rank of its own to each process",
                ) from None
        sizes = self.place.sizes()
        units = [unit for unit in _units(self.place) if unit % self.world_size == self.rank]
        found = _records(self.place, units)
        self.done = {record.unit: record for record in found if not _problem(self.place, record.shard, sizes)}
        self._damaged = {record.unit for record in found} - set(self.done)

    def add(self, record: Record) -> None:
        """Say that a unit is done; `ExistsError` if another process has said so meanwhile."""
        name = f"{record.unit:05d}.json"
        data = {
            "shard": asdict(record.shard),
            "items": record.items,
            "errors": [[name, reason[:REASON]] for name, reason in record.errors],
            "run": self._run,
        }
        if record.unit in self._damaged:
            self.place.replace(f"{FOLDER}/{name}", _dump(data))
        else:
            try:
                self._create(name, data)
            except ExistsError:
                claim = self._load(_rank(self.rank))
                if not isinstance(claim, dict) or claim.get("run") != self._run:
                    raise self._exists(
                        f"unit {record.unit} was written by another process while this one did; rank {self.rank} of "
                        f"{self.world_size} is now with {_who(claim)}",
                        "a rank of its own to each process",
                    ) from None
                record = _record(self.place, record.unit)  # of the one that had this rank before, and will end now
        self.done[record.unit] = record

    def end(self, items: int, on_error: str, problems: Sequence[tuple[str, str]]) -> None:
        """Say that this rank is done: how many items the source has, what is wrong with it, what was to happen to bad ones."""
        done = {"items": items, "on_error": on_error, "problems": [list(each) for each in problems], "run": self._run}
        self.place.replace(f"{FOLDER}/{_done(self.rank)}", _dump(done))

    def _take(self, plan: Any) -> None:
        """Check that a plan is the one of this process."""
        self._has_plan = True
        now = {**self._conversion, "shard_items": self.shard_items, "world_size": self.world_size}
        try:
            self.fields = Schema.from_json(plan["fields"])
            before = {**plan["conversion"], "shard_items": plan["shard_items"], "world_size": plan["world_size"]}
        except (LookupError, TypeError, ValueError) as error:
            raise _damaged(self.place, "plan.json", error) from None
        if before != now:
            raise OptionError(f"{self.shown} was begun differently: {difference(before, now)}")

    def _load(self, name: str) -> Any:
        return _load(self.place, name)

    def _create(self, name: str, data: Any) -> None:
        self.place.create(f"{FOLDER}/{name}", _dump(data))

    def _exists(self, what: str, instead: str) -> ExistsError:
        return ExistsError(errno.EEXIST, f"{self.shown} {what}; pass {instead}")


def commit(path: str | os.PathLike[str]) -> Committed:
    """Complete a dataset that was converted by ranks: write its manifest, when all of them are done.

    `path` is a folder, or a URL. If the ranks were told to quarantine bad samples, their list is written beside it, too.

    Raises `ExistsError` if that has been done already, `SourceError` if a rank or a unit is missing (the message names them),
    `FormatError` if there is nothing to commit or a shard is not the one that was written.
    """
    destination = str(path) if is_url(path) else Path(path).absolute()
    return complete(path, lambda errors: quarantine(destination, errors))


def complete(where: str | os.PathLike[str], report: Callable[[Errors], object] | None = None) -> Committed:
    """Do what `commit` does; `report` gets all bad samples, if they were to be listed, before there is a dataset."""
    at = place(where)
    shown = printable(at.where, 4096)
    try:
        if NAME not in at.sizes():
            return _complete(at, shown, report)
    except (ExistsError, FormatError, SourceError):
        if NAME not in at.sizes():
            raise  # and if it is: somebody else was faster, and has removed what this one was reading
    _clear(at)
    raise ExistsError(errno.EEXIST, f"{shown} was committed already; there is nothing left to do")


def _complete(at: Place, shown: str, report: Callable[[Errors], object] | None) -> Committed:
    plan = _load(at, "plan.json")
    if plan is None:
        raise FormatError(f"{shown}: no unfinished conversion, so nothing to commit")
    try:
        fields, world_size, step = Schema.from_json(plan["fields"]), plan["world_size"], plan["shard_items"]
        if type(world_size) is not int or type(step) is not int or world_size < 1 or step < 1:
            raise ValueError(f"world_size {world_size!r}, shard_items {step!r}")
    except (LookupError, TypeError, ValueError) as error:
        raise _damaged(at, "plan.json", error) from None
    units = set(_units(at))
    items, wanted, problems = _check_ranks(at, shown, world_size, units)
    number = max(1, -(-items // step))
    missing = [unit for unit in range(number) if unit not in units]
    if missing:
        raise SourceError(
            f"{shown}: {len(missing)} units are missing, though their ranks are done: "
            + ", ".join(f"{unit} (rank {unit % world_size})" for unit in missing[:8])
            + "; run these ranks again with resume"
        )
    records = _records(at, sorted(units))
    found = sum(record.items for record in records)
    if found != items or len(units) > number:
        raise SourceError(
            f"{shown}: the source has {items} items, and had {found} when its units were done; start anew, with another name"
        )
    sizes = at.sizes()
    for record in records:
        problem = _problem(at, record.shard, sizes)
        if problem:
            rank = record.unit % world_size
            raise FormatError(f"{shown}: {problem}; run rank {rank} of {world_size} again with resume")
    errors = (*problems, *(error for record in records for error in record.errors))
    manifest = Manifest(schema_id(fields).hex(), tuple(record.shard for record in records))
    if errors and not manifest.n:
        raise SourceError(f"{shown}: none of the {items} samples can be used; {printable(': '.join(errors[0]), 1000)}")
    if wanted and report is not None:
        report(errors)
    at.create(NAME, manifest.text)
    _clear(at)
    return Committed(at.where, manifest.n, len(records), manifest.content_id, errors)


def _clear(at: Place) -> None:
    """Remove what a dataset that is complete has no use for."""
    at.remove(FOLDER)
    at.reclaim(NAME)


def _check_ranks(at: Place, shown: str, world_size: int, units: Collection[int]) -> tuple[int, bool, Errors]:
    """Return how many items the source has, as all ranks say; whether bad ones are to be listed; what else is wrong with it.

    Raises `SourceError` if ranks are not done, or do not say the same.
    """
    items: dict[int, list[int]] = {}
    wanted, problems = False, list[tuple[str, str]]()
    for rank in range(world_size):
        done = _load(at, _done(rank))
        if done is None:
            begun = _load(at, _rank(rank))
            how = "has not begun" if begun is None else f"is not done: begun by {_who(begun)}"
            count = sum(unit % world_size == rank for unit in units)
            more = "" if begun is None else f", {count} of its units are done"
            raise SourceError(f"{shown}: rank {rank} of {world_size} {how}{more}")
        try:
            items.setdefault(int(done["items"]), []).append(rank)
            wanted |= done["on_error"] == "quarantine"
            problems += [(str(name), str(reason)) for name, reason in done["problems"]]
        except (LookupError, TypeError, ValueError) as error:
            raise _damaged(at, _done(rank), error) from None
    if len(items) > 1:
        found = "; ".join(f"{number} for ranks {ranks[:8]}" for number, ranks in items.items())
        raise SourceError(f"{shown}: the source had not the same number of items for all ranks: {found}")
    return next(iter(items)), wanted, tuple(problems)


def _units(at: Place) -> list[int]:
    return [int(found[1]) for name in at.sizes(FOLDER) if (found := _is_unit(name))]


def _records(at: Place, units: Iterable[int]) -> list[Record]:
    """Return what is known of units that are done."""
    if isinstance(at, Folder):
        return [_record(at, unit) for unit in units]
    return list(at_once(lambda unit: _record(at, unit), units, AT_ONCE))


def _record(at: Place, unit: int) -> Record:
    name = f"{unit:05d}.json"
    found = _load(at, name)
    try:
        errors = tuple((str(each), str(reason)) for each, reason in found["errors"])
        shard = parse_entry(found["shard"], "its shard")
        if shard.path != shard_name(unit):
            raise ValueError(f"its shard is {shard.path}")
        return Record(unit, shard, int(found["items"]), errors)
    except (LookupError, TypeError, ValueError) as error:
        raise _damaged(at, name, error) from None


def shard_name(unit: int) -> str:
    """Return the name of the shard of a unit."""
    return f"{unit:05d}.mmds"


def _problem(at: Place, shard: Shard, sizes: Mapping[str, int]) -> str:
    """Return in words why a shard is not the one that was written, or an empty text."""
    if shard.path not in sizes:
        return f"{shard.path} is missing"
    if sizes[shard.path] != shard.bytes:
        return f"{shard.path} has {sizes[shard.path]} bytes, expected {shard.bytes}"
    if isinstance(at, Folder):
        try:
            open_listed(at.path, shard)
        except (FormatError, StorageError) as error:
            return str(error)
    return ""


def _rank(rank: int) -> str:
    return f"rank-{rank:05d}.json"


def _done(rank: int) -> str:
    return f"done-{rank:05d}.json"


def _who(claim: Any) -> str:
    """Return in words whose rank it is."""
    if not isinstance(claim, dict):
        return "another process"
    return printable(f"process {claim.get('pid')} on {claim.get('host')} ({claim.get('began')})", 200)


def _dump(data: Any) -> bytes:
    return json.dumps(data, sort_keys=True).encode()  # ASCII only: a name need not be Unicode


def _load(at: Place, name: str) -> Any:
    """Return what a small object holds, None if there is none."""
    try:
        return json.loads(at.load(f"{FOLDER}/{name}", LIMIT))
    except FileNotFoundError:
        return None
    except FormatError:
        raise
    except (ValueError, RecursionError) as error:
        raise _damaged(at, name, error) from None


def _damaged(at: Place, name: str, error: Exception) -> FormatError:
    where = printable(f"{at.where}/{FOLDER}/{name}", 4096)
    return FormatError(f"{where}: damaged ({printable(error)}); remove the dataset and start anew")
