"""What happens to one sample: steps in their order, and failures in place of samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mmds.errors import OptionError, SchemaError, SourceError
from mmds.fields import Scalar
from mmds.schema import Schema
from mmds.work import Failure, Select, Steps, Work, function, renamed
from tests import steps


def load(item: tuple[int]) -> dict[str, Any]:
    if item[0] < 0:
        raise SourceError("negative")
    return {"n": item[0], "x": np.full(3, item[0], np.float32)}


def run(work: Work, *numbers: int, first: int = 0) -> list[tuple[int, Any]]:
    return list(work.run(first, [(number,) for number in numbers]))


def test_each_item_gives_its_sample() -> None:
    assert [(number, sample["n"]) for number, sample in run(Work(load), 5, 6, first=40)] == [(40, 5), (41, 6)]


def test_a_map_gives_one_none_or_many() -> None:
    assert [number for number, _ in run(Work(load, steps=Steps(map=steps.drop_odd)), 0, 1, 2)] == [0, 2]
    many = run(Work(load, steps=Steps(map=steps.as_often_as_n)), 0, 1, 2, 3)
    assert [(number, sample["k"]) for number, sample in many] == [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)]
    two = run(Work(load, steps=Steps(map=lambda sample: [sample, None, sample])), 9)
    assert [sample["n"] for _, sample in two] == [9, 9]
    pair = run(Work(load, steps=Steps(map=lambda sample: (sample["n"], "a"))), 9)
    assert pair == [(0, (9, "a"))]  # a tuple is one sample


def test_steps_come_in_order() -> None:
    seen: list[str] = []

    def keep(sample: Any) -> bool:
        seen.append("filter")
        return bool(sample["n"] > 1)

    def change(sample: Any) -> Any:
        seen.append("map")
        return {"n": sample["n"] + 10}

    found = run(
        Work(load, Select(["n"]), Steps(keep, change, lambda samples: [{"all": samples}], batch_size=3)), 1, 2, 3, 4
    )
    assert seen == ["filter", "filter", "map", "filter", "map", "filter", "map"]
    assert found == [(0, {"all": [{"n": 12}, {"n": 13}]}), (3, {"all": [{"n": 14}]})]


def test_failures_say_what_and_where() -> None:
    failed = [value for _, value in run(Work(load, steps=Steps(map=steps.refuse_fives)), 4, 5, -1)]
    assert failed[0]["n"] == 4
    assert failed[1].reason == r"map failed: ValueError: five in 5\x1b"
    assert "in refuse_fives" in failed[1].trace and "raise ValueError" in failed[1].trace
    assert failed[2] == Failure("negative")
    ((_, loading),) = run(Work(lambda item: 1 / item[0]), 0)
    assert loading.reason == "loading failed: ZeroDivisionError: division by zero"


def test_a_generator_that_fails_has_given_what_it_gave() -> None:
    def two_and_a_failure(sample: Any) -> Any:
        yield sample
        yield sample
        raise RuntimeError("torn film")

    values = [value for _, value in run(Work(load, steps=Steps(map=two_and_a_failure)), 3)]
    assert [type(value) for value in values] == [dict, dict, Failure]


def test_failures_in_a_batch_have_the_number_of_their_item() -> None:
    work = Work(load, steps=Steps(map=steps.refuse_fives, batch_map=steps.sum_of, batch_size=3))
    found = run(work, 4, 5, 6, 7, 8, 15, first=30)
    assert [(number, value.item) for number, value in found if isinstance(value, Failure)] == [(30, 31), (33, 35)]
    assert [value["sum"] for _, value in found if not isinstance(value, Failure)] == [10, 15]
    whole = run(Work(load, steps=Steps(batch_map=steps.refuse_batch_of_13, batch_size=2)), 11, 12, 13, 14)
    assert [value.item if isinstance(value, Failure) else value["n"] for _, value in whole] == [11, 12, 2, 3]


def test_a_batch_is_never_larger_than_asked_for() -> None:
    """One film has many frames, and none of them may wait for the last."""
    seen: list[int] = []

    def count(samples: list[Any]) -> Any:
        seen.append(len(samples))
        yield from samples

    def many(sample: Any) -> Any:
        for k in range(sample["n"]):
            if k == 7:
                raise RuntimeError("torn")
            yield {"n": 10 * sample["n"] + k}

    work = Work(load, steps=Steps(map=many, batch_map=count, batch_size=4))
    found = run(work, 3, 9, 0, 2, 5, first=20)
    assert seen == [4, 4, 4, 4, 1]
    values = [(number, value.item if isinstance(value, Failure) else value["n"]) for number, value in found]
    assert [value for _, value in values] == [30, 31, 32, 90, 91, 92, 93, 94, 21, 95, 96, 20, 21, 50, 51, 52, 53, 54]
    assert {number for number, _ in values[:13]} == {20} and {number for number, _ in values[13:]} == {24}


def test_what_was_lost_is_not_tried_again() -> None:
    begun: list[int] = []
    items = [(number,) for number in range(4)]
    found = list(Work(load).run(10, items, begun.append, {12: "it died"}))
    assert begun == [10, 11, 12, 13]
    assert found[2] == (12, Failure("it died", item=12))
    batches = Work(load, steps=Steps(batch_map=steps.sum_of, batch_size=2))
    assert [value for _, value in batches.run(10, items, lost={12: "it died"})][1:] == [
        Failure("it died", item=12),
        Failure("it died", item=13),
    ]


def test_functions_by_name() -> None:
    assert function("tests.steps:even") is steps.even
    assert function("tests.steps:Slow.__len__") is steps.Slow.__len__
    assert function(None) is None and function(len) is len
    for bad, message in (
        ("tests.steps", "expected module:name"),
        ("tests.steps:missing", "has no attribute 'missing'"),
        ("no_such_module:x", "No module named 'no_such_module'"),
        ("tests.steps:Sample.x", "no 'tests.steps:Sample.x'"),
        (":x", "no ':x'"),
        ("tests.steps:np", "is a module; expected a function"),
        (3, "3 is a int; expected a function or 'module:function'"),
    ):
        with pytest.raises(OptionError, match=message):
            function(bad)  # type: ignore[arg-type]


def test_renaming() -> None:
    fields = Schema({"a": Scalar("int8"), "b": {"c": Scalar("int8"), "d": Scalar("int8")}})
    assert renamed(None, {}, fields) is None
    assert renamed(None, {"a": "x"}, fields) == {"x": "a", "b": "b"}
    assert renamed(["b"], {"b": "y"}, fields) == {"y": "b"}
    sample = {"a": 1, "b": {"c": 2, "d": 3}}
    assert Select(None, names=(("b", "y"),))(sample) == {"a": 1, "y": {"c": 2, "d": 3}}
    assert Select({"z": "b.d"}, fields)(sample) == {"z": 3}
    for wanted, names, error, message in (
        (None, {"q": "x"}, OptionError, "no field 'q'; there are: a, b"),
        (["a"], {"b": "x"}, OptionError, "no field 'b'; there are: a"),
        (None, {"a": "b"}, OptionError, "the same name"),
        ({"x": "a"}, {"a": "x"}, OptionError, "a list of keys"),
        (["b.c"], {"a": "x"}, OptionError, "a list of keys"),
    ):
        with pytest.raises(error, match=message):
            renamed(wanted, names, fields)
    with pytest.raises(SchemaError, match="are no dicts"):
        renamed(None, {"a": "b"}, Schema((Scalar("int8"), Scalar("int8"))))


def test_what_identifies_steps() -> None:
    assert Steps(map=steps.double, filter=steps.DieOnce).to_json() == {
        "batch_size": 1,
        "filter": "tests.steps:DieOnce",
        "map": "tests.steps:double",
        "batch_map": None,
    }
    assert not Steps() and Steps(batch_map=steps.sum_of)
