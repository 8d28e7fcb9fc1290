"""Contenders that take turns: what disturbs one round disturbs all of them alike."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping

from benchmarks.progress import progress


def medians(contenders: Mapping[str, Callable[[int], object]], rounds: int, *, warm_up: int = 2) -> dict[str, float]:
    """Return the median seconds of each contender, called once per round with the round's number, in random order.

    The first `warm_up` rounds do not count: they fault pages in and fill caches of the interpreter.
    """
    order = random.Random(0)
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in progress(range(warm_up + rounds), "rounds"):
        order.shuffle(names)
        for name in names:
            start = time.perf_counter()
            contenders[name](number)
            taken = time.perf_counter() - start
            if number >= warm_up:
                seconds[name].append(taken)
    return {name: statistics.median(values) for name, values in seconds.items()}
