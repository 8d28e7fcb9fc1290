"""Worker processes: the same output as in one process, in spite of those that die; bounded, and none is left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmds import workers
from mmds.errors import OptionError, SourceError
from mmds.ordered import DONE, in_order
from mmds.work import Failure, Steps, Work
from tests import steps
from tests.likeness import assert_alike

COUNT = 60


def load(item: tuple[int]) -> dict[str, Any]:
    return {"n": item[0], "x": np.full(3, item[0], np.float32), "b": b"b" * (300 * item[0])}


def outputs(work: Work, num_workers: int, count: int = COUNT, first: int = 0) -> list[tuple[int, int, Any]]:
    """Return (number, item, value) for all that the items give."""
    items = ((number,) for number in range(first, first + count))
    found = []
    with closing(in_order(work, items, first=first, num_workers=num_workers, processes=True)) as results:
        for number, item, value in results:
            if value is not DONE:
                found.append((number, item[0], as_own(value)))
    return found


def as_own(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: as_own(each) for key, each in value.items()}
    return value.copy() if isinstance(value, np.ndarray) else value


def same(got: list[Any], want: list[Any]) -> None:
    assert len(got) == len(want)
    for one, other in zip(got, want, strict=True):
        if isinstance(other[2], Failure):
            assert one[:2] == other[:2] and (one[2].reason, one[2].item) == (other[2].reason, other[2].item)
        else:
            assert_alike(one, other)


@pytest.mark.parametrize(
    "chosen",
    [
        Steps(),
        Steps(filter=steps.even, map=steps.as_often_as_n),
        Steps(map=steps.refuse_fives, batch_map=steps.sum_of, batch_size=7),
        Steps(map=steps.large),
    ],
    ids=["plain", "many", "batches", "large"],
)
def test_output_does_not_depend_on_the_number_of_workers(chosen: Steps) -> None:
    work = Work(load, steps=chosen)
    want = outputs(work, 1)
    same(outputs(work, 2), want)
    same(outputs(work, 3, first=0), want)


def test_every_item_is_done_once_and_in_order() -> None:
    work = Work(load, steps=Steps(filter=steps.even, batch_map=steps.sum_of, batch_size=8))
    with closing(in_order(work, ((n,) for n in range(40)), num_workers=2, processes=True)) as results:
        seen = [(number, value is DONE) for number, _, value in results]
    assert [number for number, done in seen if done] == list(range(40))
    assert [number for number, done in seen if not done] == [0, 8, 16, 24, 32]
    assert all(seen.index((number, False)) < seen.index((number, True)) for number in (0, 8, 16, 24, 32))


@pytest.mark.fault(25)
def test_a_worker_that_dies_is_replaced_and_nothing_is_lost(tmp_path: Path) -> None:
    died = Steps(map=steps.DieOnce(tmp_path, 3, 4, 30, 59))
    same(outputs(Work(load, steps=died), 2), outputs(Work(load), 1))
    assert len(list(tmp_path.iterdir())) == 4


def test_a_batch_is_done_again(tmp_path: Path) -> None:
    chosen: dict[str, Any] = {"batch_map": steps.sum_of, "batch_size": 7}
    died = Steps(map=steps.DieOnce(tmp_path, 0, 20), **chosen)
    same(outputs(Work(load, steps=died), 2), outputs(Work(load, steps=Steps(**chosen)), 1))


@pytest.mark.fault(25)
def test_a_sample_that_ends_two_workers_fails_and_the_others_do_not() -> None:
    found = outputs(Work(load, steps=Steps(map=steps.die_at_7)), 2)
    assert [item for _, item, _ in found] == list(range(COUNT))
    (failure,) = [value for _, _, value in found if isinstance(value, Failure)]
    assert found[7][2] is failure
    assert failure.reason == "its worker process died of SIGKILL (out of memory?), 2 times"


def test_a_batch_that_ends_two_workers_fails_as_a_whole() -> None:
    found = outputs(Work(load, steps=Steps(map=steps.die_at_7, batch_map=steps.sum_of, batch_size=5)), 2, count=20)
    assert [item for _, item, value in found if isinstance(value, Failure)] == [5, 6, 7, 8, 9]
    assert [value["first"] for _, _, value in found if not isinstance(value, Failure)] == [0, 10, 15]


@pytest.mark.fault(25)
def test_workers_killed_from_outside_change_nothing() -> None:
    work = Work(load, steps=Steps(map=steps.pid))
    killed = 0
    found = []
    with closing(in_order(work, ((n,) for n in range(200)), num_workers=2, processes=True)) as results:
        for _, _, value in results:
            if value is DONE:
                continue
            found.append(value["n"])
            if len(found) % 40 == 20:
                victim = multiprocessing.active_children()[0].pid
                assert victim is not None
                os.kill(victim, signal.SIGKILL)
                killed += 1
    assert found == list(range(200)) and killed == 5


def test_results_come_only_as_fast_as_they_are_taken() -> None:
    taken = iter(range(10_000))
    work = Work(load, steps=Steps(map=steps.large))
    with closing(in_order(work, ((n,) for n in taken), num_workers=2, processes=True)) as results:
        next(results)
        time.sleep(0.5)
        assert next(taken) < 60  # 33 GB otherwise


def test_functions_that_cannot_be_sent_are_refused_at_once() -> None:
    with pytest.raises(OptionError, match=r"cannot be sent to worker processes.*or pass num_workers=1"):
        outputs(Work(lambda item: item), 2)
    assert not multiprocessing.active_children()


def test_functions_that_workers_cannot_import_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = type(os)("made_here")
    exec("def change(sample):\n    return sample", module.__dict__)
    monkeypatch.setitem(sys.modules, "made_here", module)
    with pytest.raises(
        OptionError, match="cannot load what it shall do: ModuleNotFoundError: No module named 'made_here'"
    ):
        outputs(Work(load, steps=Steps(map=module.change)), 2)
    assert not multiprocessing.active_children()


def test_workers_that_die_at_once_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_main", steps.die_at_once)
    with pytest.raises(SourceError, match="5 worker processes, one after the other, ended with exit code 4 before"):
        outputs(Work(load), 2)
    assert not multiprocessing.active_children()


def test_nothing_is_left_open() -> None:
    outputs(Work(load), 2)

    def state() -> tuple[int, int, int]:
        maps = Path("/proc/self/maps").read_text().count("mmds-samples")
        return len(list(Path("/proc/self/fd").iterdir())), maps, len(multiprocessing.active_children())

    before = state()
    outputs(Work(load, steps=Steps(map=steps.die_at_7)), 2)
    with closing(in_order(Work(load), ((n,) for n in range(1000)), num_workers=2, processes=True)) as results:
        next(results)
    after = state()
    assert all(now <= then for now, then in zip(after, before, strict=True)), (before, after)  # other tests' may go
