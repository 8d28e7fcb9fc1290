"""Copying rows of a store to a writer in columns, so many at once as about `BATCH_BYTES` hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from mmds.errors import FormatError, SampleError
from mmds.reader import Reader
from mmds.work import nbytes

BATCH_BYTES = 8 * 2**20  # that travel from store to store at once
FIRST_BATCH, MAX_BATCH = 16, 2**16  # samples: a small batch tells how large they are

Failures = list[tuple[str, str]]


def copy_rows(reader: Reader, rows: range, writer: Any, most: int = BATCH_BYTES) -> Iterator[tuple[range, Failures]]:
    """Copy rows; yield for each batch which they were, and (name, reason) of those that could not be copied."""
    size = FIRST_BATCH
    while rows:
        batch, rows = rows[:size], rows[size:]
        copied, failures = _copy(reader, batch, writer)
        size = max(1, min(MAX_BATCH, int(len(batch) * most / max(copied, 1)), 4 * size))
        yield batch, failures


def _copy(reader: Reader, rows: range, writer: Any) -> tuple[int, Failures]:
    """Copy samples of a store; one by one, if they fail together. Return about how many bytes they had, and failures."""
    failures = []
    try:
        batch = reader[np.arange(rows.start, rows.stop)]
        writer.write_batch(batch)
    except (FormatError, SampleError):
        batch = ()
        for row in rows:
            try:
                writer.write(reader[row])
            except SampleError as error:
                failures.append((f"sample {row}", error.reason))
            except FormatError as error:
                failures.append((f"sample {row}", str(error)))
    return nbytes(batch), failures
