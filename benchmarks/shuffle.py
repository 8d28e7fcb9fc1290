"""How well orders shuffle a file that is sorted by label, which is the worst case, and what they cost.

``python -m benchmarks.shuffle``: the table and the picture of docs/shuffling.md. Of an epoch of 1,000,000 samples in 1000
classes, in the order of the classes:

- the mean length of a run of equal labels, 1.001 if the order is random;
- how far samples get: |position in the order - position in the file| / number of samples, mean and percentiles;
- distinct labels in a batch of 256, of 1000, mean and the worst hundredth;
- how many samples are in use at a time, which is what has to stay in memory, and how many come from the disk in one piece;
- time per index, of slices of 16,384.

A shuffle buffer (WebDataset, tf.data) is simulated: samples arrive in the order of the file, or of its shards in random
order, and each step gives away a random sample of the buffer and puts the next one into its place. It gets as much memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import describe
from benchmarks.progress import progress
from benchmarks.rounds import medians
from mmds.permutation import Permutation
from mmds.samplers import BlockShuffle

Indices = NDArray[np.int64]

CLASSES, BATCH, SLICE, ROUNDS = 1000, 256, 2**14, 30
IN_USE = 2**14  # samples in a window or in a buffer
SHARD = 1000  # samples in a shard, of about 100 MB if they are photographs of ImageNet
BLOCKS = ((8, 2048), (16, 1024), (32, 512), (64, 256), (256, 64), (16, 256), (64, 64))  # block size, window
SAMPLE_BYTES = 20_000
DOTS, DRAWN = 2500, 0.05  # per panel of the picture, and the share of the epoch that they are from


@dataclasses.dataclass(frozen=True)
class Order:
    """One way to go through a file."""

    name: str
    make: Callable[[int], Indices]  # the whole epoch, of the number of samples
    in_use: int | None  # samples; None: all
    together: int | None  # samples that are neighbours in the file and come from the disk together
    lazy: Callable[[int], Sequence[int]] | None = None  # what is timed


@dataclasses.dataclass(frozen=True)
class Quality:
    """How well an order shuffles a sorted file. Distances are shares of its length."""

    label_run: float
    distance: float
    distance_10: float  # percentile
    distance_50: float
    labels: float
    labels_1: float  # percentile


def quality(order: Indices, classes: int = CLASSES) -> Quality:
    """Return the figures of a whole epoch, for a file in which equally large classes follow each other."""
    n = len(order)
    labels = order * classes // n
    distances = np.abs(order - np.arange(n)) / n
    batches = np.sort(labels[: n // BATCH * BATCH].reshape(-1, BATCH), axis=1)
    distinct = 1 + np.count_nonzero(batches[:, 1:] != batches[:, :-1], axis=1)
    return Quality(
        label_run=n / (1 + np.count_nonzero(labels[1:] != labels[:-1])),
        distance=float(distances.mean()),
        distance_10=float(np.percentile(distances, 10)),
        distance_50=float(np.percentile(distances, 50)),
        labels=float(distinct.mean()),
        labels_1=float(np.percentile(distinct, 1)),
    )


def buffered(samples: Iterable[int], size: int, seed: int) -> Indices:
    """Return `samples` as they leave a shuffle buffer of `size`, which is filled before the first one leaves."""
    rng = random.Random(seed)
    arriving = iter(samples)
    buffer = list(itertools.islice(arriving, size))
    order = []
    for sample in arriving:
        place = int(rng.random() * len(buffer))
        order.append(buffer[place])
        buffer[place] = sample
    rng.shuffle(buffer)
    return np.array(order + buffer, np.int64)


def shards(n: int, seed: int) -> Indices:
    """Return range(n) with its shards in random order."""
    starts = np.random.default_rng(seed).permutation(-(-n // SHARD)) * SHARD
    order: Indices = (starts[:, None] + np.arange(SHARD)).reshape(-1)
    return order[order < n]


def orders() -> list[Order]:
    """Return the contenders, from the order of the file to a full shuffle."""

    def blocks(size: int, window: int) -> Order:
        def lazy(n: int) -> BlockShuffle:
            return BlockShuffle(n, 0, block_size=size, window=window)

        return Order(f"BlockShuffle, {size} x {window}", lambda n: lazy(n)[:], size * window, size, lazy)

    return [
        Order("order of the file", np.arange, 1, None),
        Order(f"buffer of {IN_USE}", lambda n: buffered(range(n), IN_USE, 0), IN_USE, None),
        Order(f"shards, buffer of {SHARD}", lambda n: buffered(shards(n, 0).tolist(), SHARD, 0), SHARD, SHARD),
        Order(f"shards, buffer of {IN_USE}", lambda n: buffered(shards(n, 0).tolist(), IN_USE, 0), IN_USE, SHARD),
        *(blocks(size, window) for size, window in BLOCKS),
        Order("full shuffle, Permutation", lambda n: Permutation(n, 0)[:], None, 1, lambda n: Permutation(n, 0)),
    ]


def nanoseconds(contenders: Sequence[Order], n: int, rounds: int) -> dict[str, float]:
    """Return the median time per index of the orders that are computed as they are used."""

    def slices(order: Sequence[int]) -> Callable[[int], object]:
        def one(number: int) -> object:
            start = number * SLICE % (n - SLICE + 1)
            return order[start : start + SLICE]

        return one

    timed = {order.name: slices(order.lazy(n)) for order in contenders if order.lazy is not None}
    return {name: seconds / SLICE * 1e9 for name, seconds in medians(timed, rounds).items()}


def table(contenders: Sequence[Order], figures: dict[str, Quality], times: dict[str, float]) -> str:
    """Return the figures as a Markdown table."""
    lines = [
        "| order | run of a label | distance: mean | 10 % | 50 % | labels per batch: mean | 1 % | samples in use | "
        "MB, of 20 kB each | read together | ns per index |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for order in contenders:
        found = figures[order.name]
        in_use = ("all", "all") if order.in_use is None else (order.in_use, round(order.in_use * SAMPLE_BYTES / 1e6, 1))
        cells = [
            order.name,
            f"{found.label_run:.3f}" if found.label_run < 10 else f"{found.label_run:.0f}",
            *(f"{value:.3f}" for value in (found.distance, found.distance_10, found.distance_50)),
            f"{found.labels:.0f}",
            f"{found.labels_1:.0f}",
            *map(str, in_use),
            str(order.together or "all"),
            f"{times[order.name]:.0f}" if order.name in times else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(path: Path, epochs: dict[str, Indices], figures: dict[str, Quality]) -> None:
    """Save a picture of where in the file the first samples of an epoch come from: one panel per order."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(9, 5.6), dpi=90, sharex=True, sharey=True, layout="constrained")
    for axis, (name, order) in zip(axes.flat, epochs.items(), strict=True):
        at = np.linspace(0, DRAWN * len(order) - 1, DOTS).astype(np.int64)
        axis.plot(at / len(order) * 100, order[at] / len(order) * 100, ",", color="#1f4e79")
        axis.set_title(f"{name}\n{figures[name].labels:.0f} labels in a batch of {BATCH}", fontsize=9)
        axis.set_xlim(0, DRAWN * 100)
        axis.set_ylim(0, 100)
    figure.supxlabel("position in the epoch, %", fontsize=9)
    figure.supylabel("position in the file, %", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, and save the picture if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--quick", action="store_true", help="50,000 samples and 3 rounds: whether it runs")
    parser.add_argument("--picture", type=Path, help="where to save a picture, such as docs/pictures/shuffle.png")
    options: Any = parser.parse_args(arguments)
    n, rounds = (50_000, 3) if options.quick else (options.samples, ROUNDS)
    if n < 2 * IN_USE:
        parser.error(f"--samples {n}: expected at least {2 * IN_USE}")
    contenders = orders()
    figures, epochs = {}, {}
    for order in progress(contenders, "orders"):
        epoch = order.make(n)
        figures[order.name] = quality(epoch)
        epochs[order.name] = epoch
    times = nanoseconds(contenders, n, rounds)
    print(f"{n} samples in {CLASSES} classes, sorted by class\n")
    print(table(contenders, figures, times))
    print(f"\n{describe('numpy', 'torch')}")
    if options.picture is not None:
        shown = [contenders[i].name for i in (1, 2, 3, 8, 5, len(contenders) - 1)]
        draw(options.picture, {name: epochs[name] for name in shown}, figures)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
