"""Many processes that write to one path at once: who wins, what the others are told, and what is there in the end.

``python -m tests.faults.racing "a file" ROUNDS``.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import select
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import mmds
from mmds.errors import MmdsError
from tests.faults import writers
from tests.faults.writers import NAME, NOTHING, listing, look, spill

RACERS = 6
TOLD = 4096


@dataclass(frozen=True)
class Race:
    """What racer number k does, how many may win, and what may be left, given who won."""

    act: Callable[[Path, int], object]
    prepare: Callable[[Path], object] = lambda _: None
    winners: Callable[[int], bool] = lambda count: count == 1
    losers: tuple[int | str, ...] = (errno.EEXIST,)
    path: str = NAME


def _appended(folder: Path, _: int) -> None:
    mmds.convert(writers.rows(20, 2000, 2), folder / NAME, append=True, shard_size=20_000)


def _shards(folder: Path, racer: int) -> None:
    mmds.convert(writers.rows(20, 2000, racer), folder / NAME, shard_size=20_000)


def _old(folder: Path) -> None:
    mmds.convert(writers.rows(30, 2000), folder / NAME, shard_size=20_000)


RACES = {
    "a file": Race(lambda folder, racer: writers.write_file(folder, 40, 3000, seed=racer)),
    "overwriting a file": Race(
        lambda folder, racer: writers.write_file(folder, 40, 3000, seed=racer, overwrite=True),
        winners=lambda count: count == RACERS,
    ),
    "a folder of arrays": Race(lambda folder, racer: writers.write_store(folder, "npy", racer), path="d.npyd"),
    "overwriting a folder of arrays": Race(
        lambda folder, racer: writers.write_store(folder, "npy", racer, overwrite=True),
        prepare=lambda folder: writers.write_store(folder, "npy", 99),
        winners=lambda count: count == RACERS,
        path="d.npyd",
    ),
    "shards": Race(_shards, losers=(errno.EEXIST, errno.EWOULDBLOCK)),
    "appending": Race(
        _appended, prepare=_old, winners=lambda count: count >= 1, losers=(errno.EEXIST, errno.EWOULDBLOCK)
    ),
    "a column": Race(
        lambda folder, racer: mmds.add_column(folder / NAME, "score", np.arange(30.0) + racer),
        prepare=_old,
        losers=(errno.EWOULDBLOCK, "SchemaError"),  # there is one already
    ),
}


def race(act: Callable[[int], object]) -> list[tuple[bool, int | str, str]]:
    """Let all racers go at once. Return of each whether it was done, the errno or class of mmds' exception, or what else."""
    gate, opener = os.pipe()
    memory = mmap.mmap(-1, TOLD * RACERS)
    pids = []
    for racer in range(RACERS):
        pid = os.fork()
        if pid == 0:
            try:
                os.close(opener)
                waiting = select.poll()
                waiting.register(gate, 0)  # until the other end is closed
                waiting.poll()
                told: list[object] = [True, 0, ""]
                try:
                    act(racer)
                except MmdsError as error:
                    told = [False, getattr(error, "errno", None) or type(error).__name__, ""]
                except BaseException as error:  # noqa: BLE001 (told to the parent)
                    told = [False, 0, "".join(traceback.format_exception(error))[-1500:]]
                data = json.dumps(told).encode()
                memory[racer * TOLD : racer * TOLD + len(data)] = data
            finally:
                os._exit(0)
        pids.append(pid)
    os.close(gate)
    os.close(opener)
    for pid in pids:
        os.waitpid(pid, 0)
    found = [json.loads(memory[k * TOLD : (k + 1) * TOLD].rstrip(b"\0")) for k in range(RACERS)]
    memory.close()
    return [(done, number, wrong) for done, number, wrong in found]


def one_round(name: str, folder: Path, told: Counter[str]) -> None:
    """Run one race, and see that what is there is the dataset of one who won, and nothing else."""
    each = RACES[name]
    each.prepare(folder)
    results = race(lambda racer: each.act(folder, racer))
    for done, number, wrong in results:
        assert not wrong, wrong
        assert done or number in each.losers, results
        told["done" if done else str(number)] += 1
    won = [racer for racer, result in enumerate(results) if result[0]]
    assert each.winners(len(won)), results
    found = look(folder / each.path)
    assert found != NOTHING
    hidden = [path for path in listing(folder) if any(part.startswith(".") for part in path.split("/"))]
    assert not hidden, hidden
    if name == "appending":
        assert found.startswith(f"{30 + 20 * len(won)} ")
    elif name == "a column":
        assert mmds.open(folder / NAME)[0]["score"] == won[0]
    else:
        with tempfile.TemporaryDirectory() as alone:
            wanted = []
            for racer in won:
                place = Path(alone) / str(racer)
                place.mkdir()
                each.act(place, racer)
                wanted.append(look(place / each.path))
        assert found in wanted


def main(name: str, rounds: str) -> None:
    """Run so many races."""
    spill()
    told: Counter[str] = Counter()
    for _ in range(int(rounds)):
        with tempfile.TemporaryDirectory() as folder:
            one_round(name, Path(folder), told)
    print(json.dumps({"cases": int(rounds) * RACERS, "told": told}))


if __name__ == "__main__":
    main(*sys.argv[1:])
