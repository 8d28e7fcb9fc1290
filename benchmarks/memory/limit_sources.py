"""What is read: a text file of long lines, and a table of rows in an Arrow file and in an mmds file. And by whom.

A source is a function of a file and of whether rows are to be copies. It opens the file, and returns a function that reads
row i into a buffer. Lines are read one after the other, whatever i is.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 10  # rows that are made at once

Get = Callable[[int], Any]


def write_lines(path: Path, lines: int, size: int) -> None:
    """Write a text file of lines of `size` bytes."""
    with open(path, "wb") as file:
        for number in range(lines):
            file.write(bytes([65 + number % 26]) * (size - 1) + b"\n")


def write_tables(arrow: Path, ours: Path, rows: int, size: int) -> None:
    """Write rows of `size` random bytes to an Arrow stream, which pyarrow and datasets map, and to an mmds file."""
    import pyarrow as pa

    import mmds

    rng = np.random.default_rng(0)
    schema = pa.schema({"x": pa.binary()})
    with (
        pa.OSFile(str(arrow), "wb") as sink,
        pa.ipc.new_stream(sink, schema) as stream,
        mmds.Writer(ours, {"x": mmds.Array("uint8", (size,))}) as writer,
    ):
        for start in range(0, rows, BATCH):
            values = rng.integers(0, 256, (min(BATCH, rows - start), size), np.uint8)
            for row in values:  # a record batch for each, or views would be of ten of them
                stream.write_batch(pa.record_batch([pa.array([row.tobytes()], pa.binary())], schema=schema))
            writer.write_batch({"x": values})


def plain(path: Path, copies: bool) -> Get:
    """``readline`` of an open file."""
    file = open(path, "rb")  # noqa: SIM115 (as long as the process lasts)
    return lambda number: file.readline()


def mapped(path: Path, copies: bool) -> Get:
    """``readline`` of a memory map: it returns copies as well."""
    with open(path, "rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return lambda number: content.readline()


def pyarrow(path: Path, copies: bool) -> Get:
    """Rows of a mapped table: the bytes as a Python object, or the buffer in the map. (A scalar's buffer is a copy.)"""
    import pyarrow as pa

    column = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()["x"]
    return lambda number: column[number].as_py() if copies else column.chunk(number).buffers()[2]


def datasets(path: Path, copies: bool) -> Get:
    """Rows of a Hugging Face dataset: as it returns them, or in its format "arrow", which leaves them in the map."""
    import datasets as huggingface

    dataset = huggingface.Dataset.from_file(str(path))
    if copies:
        return lambda number: dataset[number]["x"]
    in_map = dataset.with_format("arrow")
    return lambda number: in_map[number]["x"].chunk(0).buffers()[2]


def ours(path: Path, copies: bool) -> Get:
    """Samples of an mmds file: copies of the arrays, or the arrays that lie in the map."""
    import mmds

    reader = mmds.open(path)
    return lambda number: reader[number]["x"].copy() if copies else reader[number]["x"]


SOURCES: dict[str, Callable[[Path, bool], Get]] = {
    "plain": plain,
    "mmap": mapped,
    "pyarrow": pyarrow,
    "datasets": datasets,
    "mmds": ours,
}
LIBRARIES = {"pyarrow": "pyarrow", "datasets": "datasets", "mmds": "mmds.opening"}
