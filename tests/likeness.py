"""Deep equality of samples: values, container types, dtypes, shapes and every bit of floats."""

from __future__ import annotations

from typing import Any

import numpy as np


def alike(got: Any, want: Any) -> bool:
    """Return whether two samples are the same in every respect that a user can see."""
    if type(got) is not type(want):
        return False
    if isinstance(want, dict):
        return list(got) == list(want) and all(alike(got[key], want[key]) for key in want)
    if isinstance(want, (list, tuple)):
        return len(got) == len(want) and all(map(alike, got, want))
    if isinstance(want, np.ndarray):
        return bool(got.dtype == want.dtype and got.shape == want.shape and got.tobytes() == want.tobytes())
    return repr(got) == repr(want)  # tells -0.0 from 0.0, and lets NaN be NaN


def assert_alike(got: Any, want: Any) -> None:
    """Fail with both values where they are not alike."""
    assert alike(got, want), f"got {got!r}\nwant {want!r}"
