"""A slow dataset behind `SharedDataset`: what filling adds, what reading again costs, and that four processes share the work.

    python -m benchmarks.memory.cached [--samples N] [--rounds N] [--quick] [--json]

A sample is a tensor of uint8 (3, 96, 96) and a number, and takes 1 ms of computing to make. Its first epoch is compared with
an epoch without `SharedDataset`, the later ones with `MemoryMappedDataset` over an ``.mmds`` file of the same samples, sample
by sample in random order. All take turns; the page cache is warm.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import secrets
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import mmds
from benchmarks.machine import describe
from benchmarks.progress import say
from benchmarks.rounds import medians

SHAPE = (3, 96, 96)
WORK = 1e-3  # seconds that a sample takes to make
PROCESSES = 4


class Computed:
    """Samples that take a millisecond each; `made` counts those that this process has made."""

    def __init__(self, count: int) -> None:
        self.count, self.made = count, 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        self.made += 1
        until = time.perf_counter() + WORK
        sample = torch.full(SHAPE, index % 251, dtype=torch.uint8), index
        while time.perf_counter() < until:
            pass
        return sample


def epoch(dataset: Any, order: Sequence[int]) -> float:
    """Read samples one by one and return the seconds that took."""
    start = time.perf_counter()
    for index in order:
        dataset[index]
    return time.perf_counter() - start


def filling(count: int, rounds: int) -> dict[str, float]:
    """Return the seconds of an epoch without a cache, and of the first one with it."""
    order = np.random.default_rng(0).permutation(count).tolist()

    def first(_: int) -> None:
        shared = mmds.SharedDataset(Computed(count), f"benchmark-{secrets.token_hex(6)}")
        epoch(shared, order)
        shared.close()

    return medians({"plain": lambda _: epoch(Computed(count), order), "filling": first}, rounds)


def again(count: int, rounds: int, folder: Path) -> dict[str, float]:
    """Return the seconds of later epochs, and of the same from an ``.mmds`` file."""
    order = np.random.default_rng(1).permutation(count).tolist()
    shared = mmds.SharedDataset(Computed(count), f"benchmark-{secrets.token_hex(6)}")
    shared.persist(folder / "a.mmds")
    mapped = mmds.MemoryMappedDataset(folder / "a.mmds")
    found = medians({"shared": lambda _: epoch(shared, order), "mapped": lambda _: epoch(mapped, order)}, rounds)
    shared.close()
    return found


def _fill(shared: mmds.SharedDataset, seed: int, ready: Any, made: Any) -> None:
    order = np.random.default_rng(seed).permutation(len(shared)).tolist()
    ready.wait()
    epoch(shared, order)
    made.put(shared.dataset.made)


def together(count: int) -> list[int]:
    """Return how many samples each of the processes made that filled one cache at once."""
    shared = mmds.SharedDataset(Computed(count), f"benchmark-{secrets.token_hex(6)}")
    assert shared.filled == 0
    context = multiprocessing.get_context("fork")
    ready, made = context.Barrier(PROCESSES), context.Queue()
    processes = [context.Process(target=_fill, args=(shared, seed, ready, made)) for seed in range(PROCESSES)]
    for process in processes:
        process.start()
    counts = [made.get() for _ in processes]
    for process in processes:
        process.join()
    shared.close()
    return counts


def report(found: dict[str, Any]) -> str:
    """Return the figures as lines."""
    fill, later = found["filling"], found["again"]
    shared, mapped = (later[name] / found["samples"] * 1e6 for name in ("shared", "mapped"))
    return "\n".join(
        [
            f"filling adds {fill['filling'] / fill['plain'] - 1:.1%} to {found['samples']:,} samples of 1 ms",
            f"later epochs: {later['mapped'] / later['shared']:.2f} of the speed of MemoryMappedDataset, {shared:.1f} "
            f"against {mapped:.1f} µs a sample",
            f"{PROCESSES} processes that filled at once made {found['together']}: {sum(found['together']):,} in all",
            f"Medians of {found['rounds']} rounds in turns. {describe('numpy', 'torch')}",
        ]
    )


def main(command_line: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="What SharedDataset costs, and what it saves.")
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="few samples, one round: shows that it works, no more")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    chosen = parser.parse_args(command_line)
    count, rounds = (50, 1) if chosen.quick else (chosen.samples, chosen.rounds)
    found: dict[str, Any] = {"samples": count, "rounds": rounds}
    with tempfile.TemporaryDirectory(prefix="mmds-cached-") as folder:
        say("later epochs")
        found["again"] = again(count, 4 * rounds + 1, Path(folder))
        say("filling")
        found["filling"] = filling(count, rounds)
        say("filling together")
        found["together"] = together(count)
        say("")
    print(json.dumps(found, indent=2) if chosen.json else report(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
