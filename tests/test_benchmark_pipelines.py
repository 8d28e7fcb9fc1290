"""The benchmarks of conversions, copies and look-ups run, and measure what they say. No test looks at a clock."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks import keys, pipeline
from tests.test_benchmarks import run


@pytest.mark.stress
def test_pipeline() -> None:
    done = run("pipeline", "--count", 30, "--rounds", 1, "--json")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    figures: dict[str, Any] = json.loads(done.stdout)
    assert figures["samples"] == {"nothing": 30, "compute": 60}
    for part in ("nothing", "compute"):
        assert set(figures["seconds"][part]) == {"plain", "-j1", "-j2", "start"}
    text = pipeline.report(figures["seconds"], figures["samples"])
    assert "-j1 : -j2" in text and "≤ 1.15" in text and "≥ 1.8" in text


@pytest.mark.stress
def test_copying() -> None:
    done = run("copying", "--size", "2MB", "--samples", "20000,1000", "--rounds", 1, "--json")
    assert done.returncode == 0, done.stderr
    figures: dict[str, Any] = json.loads(done.stdout)
    (operations, *_) = [each for each in figures.values() if isinstance(each, dict) and len(each) == 2]
    for each in operations.values():
        assert set(each) == {"select in order", "select shuffled", "merge", "split"}
        assert all(0 < found["peak_rss"] < 100e6 for found in each.values())


def test_keys() -> None:
    done = run("keys", "--count", 70_000, "--json")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    found: dict[str, float] = json.loads(done.stdout)
    assert found["private"] < 2**20 < found["dict_private"]  # nothing is loaded
    assert "`reader.get(key)` (≤ 20 µs)" in keys.report(found, 70_000)
