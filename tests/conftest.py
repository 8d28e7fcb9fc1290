"""What tests of every module share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mmds

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return the function that writes samples to a new file and returns its path."""

    def write_samples(fields: Any = None, samples: Any = (), **options: Any) -> Path:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.mmds"
        with mmds.Writer(path, fields, **options) as writer:
            writer.extend(samples)
        return path

    return write_samples
