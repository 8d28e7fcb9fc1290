"""Reading in one process, warm page cache: opening a huge file, one sample, a batch.

    python -m benchmarks.reading [--samples N] [--rounds N] [--quick] [--json]

(a) `mmds.open` of 10**9 samples (a sparse file) against 10 samples: time, and private memory (USS) while it is open.
(b) ``reader[i]`` at random i, samples ``{"image": uint8 (3, 96, 96), "label": int}``; the arrays that numpy gets are views,
    so their bytes are not touched here.
(c) ``reader[indices]``, 256 random samples of (b), against `numpy.copyto` of as many bytes from one contiguous block into
    one buffer that is used again and again. Both read the same mapped file, whose size exceeds the processor's caches,
    at random places, so sources are equally cold; mmds may use a second thread for the gather, `copyto` is one thread.
    The same copy from ordinary memory is given as well.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

import mmds
from benchmarks.machine import describe
from benchmarks.progress import say
from benchmarks.rounds import medians
from benchmarks.sparse import write_sparse

HUGE, SMALL = 10**9, 10
SHAPE = (3, 96, 96)
BATCH = 256
HELD = 16  # readers held open at once to measure their memory: one alone is smaller than the measurement's own noise
OPEN_MS, OPEN_MIB, SAMPLE_US, BATCH_RATIO = 1.0, 1.0, 3.0, 0.7  # what mmds promises


def write_images(path: Path, samples: int) -> None:
    """Write the file of (b) and (c), with seeded random pixels."""
    rng = np.random.default_rng(0)
    with mmds.Writer(path, {"image": mmds.Array("uint8", SHAPE), "label": mmds.Scalar("int64")}) as writer:
        for start in range(0, samples, BATCH):
            say(f"writing sample {start} of {samples}")
            count = min(BATCH, samples - start)
            images = rng.integers(0, 256, (count, *SHAPE), np.uint8)
            writer.write_batch({"image": images, "label": rng.integers(0, 1000, count)})
    say("")


def opening(folder: Path, rounds: int) -> dict[str, float]:
    """Measure (a)."""
    huge, small = folder / "huge.mmds", folder / "small.mmds"
    write_sparse(huge, HUGE)
    write_sparse(small, SMALL)
    seconds = medians({"huge": lambda _: mmds.open(huge), "small": lambda _: mmds.open(small)}, rounds)
    process = psutil.Process()
    before = process.memory_full_info().uss
    held = [mmds.open(huge) for _ in range(HELD)]
    grown = process.memory_full_info().uss - before
    if any(len(reader) != HUGE or reader[-1]["label"] != 0 for reader in held):
        raise AssertionError("the sparse file does not read as zeros")
    return {
        "ratio_to_10_samples": seconds["huge"] / seconds["small"],
        "ms": seconds["huge"] * 1e3,
        "private_mib": grown / HELD / 2**20,
        "file_gb": huge.stat().st_size / 1e9,
        "on_disk_kib": huge.stat().st_blocks * 512 / 1024,
    }


def single_samples(path: Path, rounds: int, samples: int) -> dict[str, float]:
    """Measure (b): microseconds per sample of the reader and of the Dataset in two formats."""
    reader = mmds.open(path)
    count = min(2000, samples)
    picks = [random.Random(number).choices(range(samples), k=count) for number in range(8)]

    def loop(sequence: Any) -> Callable[[int], None]:
        def run(number: int) -> None:
            for index in picks[number % len(picks)]:
                sequence[index]

        return run

    def dataset(format: str) -> mmds.MemoryMappedDataset:
        return mmds.MemoryMappedDataset(path, format=format)

    contenders = {
        "reader": loop(reader),
        "dataset_numpy": loop(dataset("numpy")),
        "dataset_torch": loop(dataset("torch")),
    }
    return {f"{name}_us": value / count * 1e6 for name, value in medians(contenders, rounds).items()}


def batches(path: Path, rounds: int, samples: int) -> dict[str, float]:
    """Measure (c)."""
    reader = mmds.open(path)
    rows = reader.column("image")
    picks = [np.random.default_rng(number).integers(0, samples, BATCH) for number in range(64)]
    memory = np.array(rows)  # the same bytes in ordinary memory; also faults in all of the mapped file
    starts = np.random.default_rng(0).permutation(samples - BATCH + 1)[:256].tolist()
    size = BATCH * int(np.prod(SHAPE))

    def copy(source: Any) -> Callable[[int], None]:
        buffer = np.empty((BATCH, *SHAPE), np.uint8)  # its own, as the gather has: no contender finds it warmer

        def run(number: int) -> None:
            start = starts[number % len(starts)]
            np.copyto(buffer, source[start : start + BATCH])

        return run

    expected, batch = rows[picks[0]], reader[picks[0]]
    if not np.array_equal(batch["image"], expected) or batch["label"].shape != (BATCH,):
        raise AssertionError("the batch differs from its samples")
    del expected, batch
    contenders = {
        "gather": lambda number: reader[picks[number % len(picks)]],
        "copy": copy(rows),
        "copy_memory": copy(memory),
    }
    seconds = medians(contenders, rounds)
    return {
        "ratio_to_copyto": seconds["copy"] / seconds["gather"],
        "ratio_to_copyto_in_memory": seconds["copy_memory"] / seconds["gather"],
        "gb_per_s": size / seconds["gather"] / 1e9,
        "copyto_gb_per_s": size / seconds["copy"] / 1e9,
        "us_per_batch": seconds["gather"] * 1e6,
    }


def measure(samples: int, rounds: int) -> dict[str, dict[str, float]]:
    """Return all figures; temporary files are removed again."""
    with tempfile.TemporaryDirectory(prefix="mmds-reading-") as name:
        folder = Path(name)
        path = folder / "images.mmds"
        write_images(path, samples)
        return {
            "open": opening(folder, rounds),
            "sample": single_samples(path, rounds, samples),
            "batch": batches(path, rounds, samples),
        }


def report(figures: dict[str, dict[str, float]], samples: int, rounds: int) -> str:
    """Return the figures as a markdown table, with targets."""
    a, b, c = figures["open"], figures["sample"], figures["batch"]
    size = samples * int(np.prod(SHAPE)) / 1e6
    rows = [
        ("open 10⁹ samples : open 10 samples, time", f"{a['ratio_to_10_samples']:.2f}", "about 1"),
        ("batch of 256 : `np.copyto` of as many bytes, speed", f"{c['ratio_to_copyto']:.2f}", f"≥ {BATCH_RATIO}"),
        ("batch of 256 : the same from ordinary memory", f"{c['ratio_to_copyto_in_memory']:.2f}", ""),
        ("open 10⁹ samples", f"{a['ms']:.3f} ms", f"< {OPEN_MS:g} ms"),
        ("private memory per open file of 10⁹ samples", f"{a['private_mib']:.3f} MiB", f"< {OPEN_MIB:g} MiB"),
        ("`reader[i]`", f"{b['reader_us']:.2f} µs", f"< {SAMPLE_US:g} µs"),
        ('`MemoryMappedDataset(..., format="numpy")[i]`', f"{b['dataset_numpy_us']:.2f} µs", f"< {SAMPLE_US:g} µs"),
        ('`MemoryMappedDataset(..., format="torch")[i]`, a copy', f"{b['dataset_torch_us']:.2f} µs", ""),
        ("batch of 256", f"{c['us_per_batch']:.0f} µs, {c['gb_per_s']:.1f} GB/s", ""),
        ("`np.copyto`", f"{c['copyto_gb_per_s']:.1f} GB/s", ""),
    ]
    lines = ["| reading | measured | target |", "|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    lines += [
        "",
        f"Warm page cache, no decoding, one process, medians of {rounds} rounds in turns. Samples: image uint8 {SHAPE} and "
        f"label int64, {samples} of them ({size:.0f} MB); the 10⁹ samples are a sparse file of {a['file_gb']:.0f} GB that "
        f"takes {a['on_disk_kib']:.0f} KiB of disk.",
        describe("numpy", "torch"),
    ]
    return "\n".join(lines)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Opening, single samples and batches against plain copies in memory.")
    parser.add_argument("--samples", type=int, default=16384, help="samples of 27 KB to read (default: 16384, 453 MB)")
    parser.add_argument("--rounds", type=int, default=200, help="measured rounds (default: 200)")
    parser.add_argument("--quick", action="store_true", help="512 samples and 5 rounds: shows that it works, no more")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args()
    samples, rounds = (512, 5) if arguments.quick else (arguments.samples, arguments.rounds)
    if samples < 2 * BATCH or rounds < 1:
        parser.error(f"at least {2 * BATCH} samples and 1 round are needed")
    figures = measure(samples, rounds)
    if arguments.json:
        print(
            json.dumps(
                {**figures, "samples": samples, "rounds": rounds, "machine": describe("numpy", "torch")}, indent=2
            )
        )
    else:
        print(report(figures, samples, rounds))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
