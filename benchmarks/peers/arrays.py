"""Values of different length in libraries that keep arrays: all values in one, and where each begins in another."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.suite_workloads import Samples

NdArray = np.ndarray[Any, Any]


def as_columns(samples: Samples) -> dict[str, NdArray]:
    """Return the arrays to write: x, and for values of different length its offsets."""
    return {"x": samples.values} if samples.offsets is None else {"x": samples.values, "offsets": samples.offsets}


def pieces(values: Any, offsets: NdArray, indices: NdArray) -> tuple[NdArray, NdArray]:
    """Return the values of rows in one array, each read with one slice, and where each begins."""
    starts, ends = offsets[indices], offsets[indices + 1]
    bounds = np.concatenate(([0], np.cumsum(ends - starts)))
    joined = np.empty(bounds[-1], values.dtype)
    for start, end, low, high in zip(starts.tolist(), ends.tolist(), bounds, bounds[1:], strict=False):
        joined[low:high] = values[start:end]
    return joined, bounds
