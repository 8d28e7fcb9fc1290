"""Footers mutated at random with every checksum made right again: mmds reads them or refuses them, and nothing else."""

from __future__ import annotations

import contextlib
import copy
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmds.errors import MmdsError
from tests.make_golden import GOLDEN
from tests.resealing import HUGE, dumped, golden, read_all, resealed, text_of

WORDS = (
    "",
    "x",
    "x.y",
    "array",
    "text",
    "bytes",
    "ends",
    "values",
    "<u8",
    "|u1",
    "bfloat16",
    "bool",
    "a" * 64,
    "\ud800",
)
NUMBERS = (*HUGE, *(-number for number in HUGE), -1, 0, 1, 2, 3, 7, 8, 31, 32, 33, 64, 255, 256, 257, 4096, 4097, 2**20)
SHAPES: list[list[int | None]] = [[], [0], [None], [None, None], [0, 2**32 - 1, 2**32 - 1], [2**32 - 1] * 3, [1] * 33]
VALUES: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from(NUMBERS),
    st.sampled_from(WORDS),
    st.sampled_from((None, True, False, 0.0, 1.0, 1.5, float("nan"), float("inf"), [], {}, [[]], {"": 0})),
    st.sampled_from(SHAPES),
    st.integers(-(2**70), 2**70),
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Return every (container, key) in a JSON value."""
    if not isinstance(value, (dict, list)):
        return []
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    return [(value, key) for key in keys] + [place for key in keys for place in places(value[key])]


def mutate(footer: Any, draw: st.DataObject) -> None:
    """Change one place of a footer."""
    container, key = draw.draw(st.sampled_from(places(footer)), label="place")
    how = draw.draw(st.sampled_from(("replace", "replace", "nudge", "drop", "copy", "swap")), label="how")
    value = container[key]
    if how == "nudge" and type(value) is int:
        container[key] = value + draw.draw(st.integers(-65, 65))
    elif how == "drop":
        del container[key]
    elif how == "copy":
        other, other_key = draw.draw(st.sampled_from(places(footer)))
        container[key] = copy.deepcopy(other[other_key])
    elif how == "swap" and isinstance(container, list):
        container.insert(0, container.pop())
    else:
        container[key] = copy.deepcopy(draw.draw(VALUES))


def read_mutated(name: str) -> None:
    """Read mutations of a golden file."""

    @settings(max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def search(draw: st.DataObject) -> None:
        footer = json.loads(text_of(golden(name)))
        for _ in range(draw.draw(st.integers(1, 3))):
            if places(footer):
                mutate(footer, draw)
        data = resealed(golden(name), text=dumped(footer))
        with contextlib.suppress(MmdsError):
            read_all(data, limit=5)

    search()


def test_mutated_footers_raise_nothing_but_errors_of_mmds() -> None:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:  # a signal breaks the pool
        assert list(pool.map(read_mutated, GOLDEN)) == [None] * len(GOLDEN)
