"""Functions of samples, in a module that worker processes can import at once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

Sample = dict[str, Any]


def even(sample: Sample) -> bool:
    return bool(sample["n"] % 2 == 0)


def double(sample: Sample) -> Sample:
    """Change an array in place, as users do."""
    sample["x"] *= 2
    return sample


def as_often_as_n(sample: Sample) -> Iterator[Sample]:
    """Give n % 4 samples, with one array that is filled again for each."""
    array = np.empty(2000, np.int64)
    for k in range(sample["n"] % 4):
        array[:] = 1000 * sample["n"] + k
        yield {"n": sample["n"], "k": k, "array": array}


def sum_of(samples: list[Sample]) -> list[Sample]:
    return [{"first": samples[0]["n"], "sum": sum(sample["n"] for sample in samples), "count": len(samples)}]


def refuse_fives(sample: Sample) -> Sample:
    if sample["n"] % 10 == 5:
        raise ValueError(f"five in {sample['n']}\x1b")
    return sample


def refuse_batch_of_13(samples: list[Sample]) -> list[Sample]:
    if any(sample["n"] == 13 for sample in samples):
        raise KeyError("thirteen")
    return samples


def drop_odd(sample: Sample) -> Sample | None:
    return sample if sample["n"] % 2 == 0 else None


def die_at_7(sample: Sample) -> Sample:
    """End the process whenever sample 7 comes."""
    if sample["n"] == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return sample


class DieOnce:
    """Ends the process the first time that each of some samples comes, for which it leaves files in a folder."""

    def __init__(self, folder: Path, *numbers: int) -> None:
        self.folder, self.numbers = folder, numbers

    def __call__(self, sample: Sample) -> Sample:
        mark = self.folder / str(sample["n"])
        if sample["n"] in self.numbers and not mark.exists():
            mark.touch()
            os._exit(3)
        return sample


def pid(sample: Sample) -> Sample:
    time.sleep(0.01)
    return {**sample, "pid": os.getpid()}


def large(sample: Sample) -> Sample:
    """Give 3 MiB, so that a slot holds two, and now and then more than a slot holds."""
    size = 2**20 * (11 if sample["n"] % 10 == 3 else 3)
    return {"n": sample["n"], "data": np.full(size, sample["n"] % 251, np.uint8), "text": "ü" * sample["n"]}


class Slow:
    """A map-style dataset that can be pickled, and says how often it was asked."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.length:
            raise IndexError(index)
        return {"n": index, "x": np.full(3, index, np.float32)}


def die_at_once(*_: Any) -> None:
    """In place of a worker's main function."""
    os._exit(4)


def slow_change(sample: Sample) -> Sample:
    """Compute for two milliseconds."""
    end = time.perf_counter() + 0.002
    while time.perf_counter() < end:
        pass
    sample["x"] ^= 255
    return sample


def lambda_at_3(sample: Sample) -> Sample:
    """Give one sample with a value that neither pickles nor can be stored."""
    return {**sample, "x": lambda: 3} if sample["n"] == 3 else sample


def values_of_many_kinds(sample: Sample) -> Sample:
    import torch
    from PIL import Image

    n = sample["n"]
    return {
        "view": memoryview(b"abc" * n),
        "array": bytearray(b"xyz" * n),
        "tensor": torch.full((5000,), float(n)),
        "bf16": torch.full((3,), float(n), dtype=torch.bfloat16),
        "scalar": np.int16(n),
        "flag": np.bool_(n % 2),
        "picture": Image.new("RGB", (8, 8), (n, 0, 0)),
        "nested": ({"deep": [n, None, "ü"]}, (np.float32(n),)),
    }


def number_of(item: tuple[int]) -> Sample:
    return {"n": item[0]}


class Flood:
    """Item 0 waits for a file; the others give small samples without end, and write a byte for each to another file."""

    def __init__(self, count: Path, stop: Path) -> None:
        self.count, self.stop = count, stop

    def __call__(self, sample: Sample) -> Iterator[Sample]:
        while sample["n"] == 0 and not self.stop.exists():
            time.sleep(0.05)
        yield sample
        with self.count.open("ab", buffering=0) as file:
            while sample["n"] > 0:
                yield sample
                file.write(b".")


def add(sample: Sample, amount: int, fail_at: int = -1) -> Sample:
    if sample["n"] == fail_at:
        raise RuntimeError("stop here")
    return {**sample, "x": sample["x"] + amount}


def data_of_n(sample: Sample) -> Sample:
    """Change an array in place."""
    sample["data"] *= 10
    return sample


def reversed_batch(samples: list[Sample]) -> Iterator[Sample]:
    return reversed(samples)
