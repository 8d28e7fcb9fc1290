"""What tests of every module share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mmds

Write = Callable[..., Path]
Cases = Callable[[int], None]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Note which rows of docs/reliability.md a test shows, for `tests.faults`."""
    item.user_properties += [("fault", row) for mark in item.iter_markers("fault") for row in mark.args]


@pytest.fixture
def cases(record_property: Callable[[str, object], None]) -> Cases:
    """Return the function that a test tells how many cases it went through, once or several times; one, if it does not."""
    return lambda number: record_property("cases", number)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return the function that writes samples to a new file and returns its path."""

    def write_samples(fields: Any = None, samples: Any = (), **options: Any) -> Path:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.mmds"
        with mmds.Writer(path, fields, **options) as writer:
            writer.extend(samples)
        return path

    return write_samples
