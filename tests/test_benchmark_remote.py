from __future__ import annotations

import pytest

from benchmarks.remote import SHARDS, measure_downloads, measure_epochs, report


def test_downloads_are_measured() -> None:
    found = measure_downloads(2, 1)
    assert set(found) == {"synced", "not synced"} and min(found.values()) > 0


@pytest.mark.stress
def test_epochs_are_measured() -> None:
    found = measure_epochs(SHARDS, 1)
    assert len(found) == 8
    assert report(found, SHARDS).count("\n| cache, ") == 4
