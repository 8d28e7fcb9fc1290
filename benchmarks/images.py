"""Training pictures from JPEG files in memory: decoded, RandomResizedCrop(224), one uint8 batch.

    python -m benchmarks.images [--rounds N] [--quick] [--json]

Contenders get the same files and cut out the same parts; every batch is checked once against the others.

* `mmds.images.ImageBatch` in one thread, and in two of one process, decoding in full (``reduced=False``) and reduced;
* Pillow in one thread: ``Image.open``, ``crop``, ``resize`` (antialiased bilinear), ``np.asarray``, ``np.stack``;
* a torch DataLoader with two worker processes over that, which are kept between rounds, and default collation.
  No contender moves the channels to the front, which would only cost the others time.
* SHA-256 of some memory, in one thread and in two: what two threads can reach at most, where other work is going on.

The files are photographs of scikit-image and scikit-learn, resized, quality 90, 4:2:0: of 500 x 375 pixels, where no crop
is large enough for reduced decoding, and of 1000 x 750. Nothing is read from disk.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks.machine import describe
from benchmarks.progress import say
from benchmarks.rounds import medians
from examples.pictures import PHOTOGRAPHS, photograph
from mmds.imageops import Plan, uniforms
from mmds.images import ImageBatch, RandomResizedCrop

NdArray = np.ndarray[Any, Any]

SIZES = ((500, 375), (1000, 750))  # width, height
QUALITY = 90
CROP = RandomResizedCrop(224)
BATCH = 64
BATCHES = 8  # per round
HASHED = 50_000_000  # bytes per batch: takes about as long as a batch
SCALING, SPEEDUP = 1.8, 1.1  # what mmds promises: of two threads to one, and to the DataLoader with two workers
CLOSE = 2.0  # mean difference between Pillow's pixels and ours: their libjpegs differ


def encoded(width: int, height: int) -> list[bytes]:
    """Return one JPEG file of each photograph."""
    files = []
    for name in sorted(PHOTOGRAPHS):
        file = io.BytesIO()
        photograph(name).resize((width, height), Image.Resampling.LANCZOS).save(file, "JPEG", quality=QUALITY)
        files.append(file.getvalue())
    return files


def with_pillow(data: bytes, numbers: list[float]) -> NdArray:
    """Return one picture, uint8 of shape (height, width, channels), as the usual pipeline makes it."""
    with Image.open(io.BytesIO(data)) as file:
        picture = file.convert("RGB")
    left, top, width, height = CROP.plan(Plan.whole(picture.height, picture.width), numbers).crop
    picture = picture.crop((left, top, left + width, top + height)).resize((224, 224), Image.Resampling.BILINEAR)
    return np.array(picture)


class Pictures(Dataset[NdArray]):
    """The pictures of a round, through Pillow."""

    def __init__(self, files: list[bytes], numbers: list[list[float]]) -> None:
        self._files, self._numbers = files, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> NdArray:
        return with_pillow(self._files[index % len(self._files)], self._numbers[index])


def measure(size: tuple[int, int], batches: int, rounds: int) -> dict[str, float]:
    """Return pictures per second of every contender, for files of `size`."""
    say(f"encoding pictures of {size[0]} x {size[1]}")
    distinct = encoded(*size)
    seeds = np.arange(batches * BATCH)
    files = [distinct[seed % len(distinct)] for seed in seeds.tolist()]
    pictures = Pictures(distinct, uniforms(seeds, CROP.draws).tolist())
    starts = range(0, len(files), BATCH)
    loader = DataLoader(pictures, batch_size=BATCH, num_workers=2, persistent_workers=True)

    def batches_in(threads: int, load: Callable[[int], object]) -> Callable[[int], None]:
        def run(_: int) -> None:
            if threads == 1:
                for start in starts:
                    load(start)
            else:
                with ThreadPoolExecutor(threads) as pool:
                    for _result in pool.map(load, starts):
                        pass

        return run

    def mmds(threads: int, reduced: bool) -> Callable[[int], None]:
        images = ImageBatch([CROP], reduced=reduced)

        def load(start: int) -> None:
            images(files[start : start + BATCH], seeds[start : start + BATCH])

        return batches_in(threads, load)

    memory = bytes(HASHED)

    def hashing(threads: int) -> Callable[[int], None]:
        return batches_in(threads, lambda _: hashlib.sha256(memory))

    def pillow(_: int) -> None:
        for start in starts:
            np.stack([pictures[index] for index in range(start, start + BATCH)])

    def workers(_: int) -> None:
        for _batch in loader:
            pass

    check(files, seeds, loader)
    seconds = medians(
        {
            "one": mmds(1, False),
            "two": mmds(2, False),
            "one_reduced": mmds(1, True),
            "two_reduced": mmds(2, True),
            "pillow": pillow,
            "workers": workers,
            "one_hash": hashing(1),
            "two_hash": hashing(2),
        },
        rounds,
        warm_up=1,
    )
    return {name: len(files) / value for name, value in seconds.items()}


def check(files: list[bytes], seeds: Any, loader: DataLoader[Any]) -> None:
    """Raise AssertionError where the DataLoader's pictures are not ours."""
    images = ImageBatch([CROP], reduced=False)
    for start, batch in zip(range(0, len(files), BATCH), loader, strict=True):
        ours = images(files[start : start + BATCH], seeds[start : start + BATCH])
        if (ours.float().permute(0, 2, 3, 1) - torch.as_tensor(batch).float()).abs().mean() > CLOSE:
            raise AssertionError(f"pictures {start} to {start + BATCH} differ")


def report(figures: dict[str, dict[str, float]], batches: int, rounds: int, load: float) -> str:
    """Return the figures as a markdown table, with targets."""
    rows = [
        ("two threads : one thread", "two", "one", f"≥ {SCALING}"),
        ("two threads : DataLoader, 2 workers, Pillow", "two", "workers", f"≥ {SPEEDUP}"),
        ("one thread : Pillow in one thread", "one", "pillow", ""),
        ("SHA-256, two threads : one thread", "two_hash", "one_hash", ""),
        ("two threads, reduced : one thread, reduced", "two_reduced", "one_reduced", ""),
        ("two threads, reduced : DataLoader", "two_reduced", "workers", ""),
    ]
    lines = [f"| pictures/s | {' | '.join(figures)} | target |", "|---|" + "---|" * (len(figures) + 1)]
    for title, a, b, target in rows:
        lines.append(
            f"| {title} | {' | '.join(f'{values[a] / values[b]:.2f}' for values in figures.values())} | {target} |"
        )
    for title, name in (
        ("one thread", "one"),
        ("two threads", "two"),
        ("one thread, reduced", "one_reduced"),
        ("two threads, reduced", "two_reduced"),
        ("Pillow in one thread", "pillow"),
        ("DataLoader, 2 workers, Pillow", "workers"),
    ):
        lines.append(f"| {title} | {' | '.join(f'{values[name]:,.0f}' for values in figures.values())} | |")
    lines += [
        "",
        f"JPEG files in memory, quality {QUALITY}, RandomResizedCrop(224), {batches} batches of {BATCH}, medians of {rounds} "
        f"rounds in turns; load average before: {load:.1f}.",
        describe("torch", "simplejpeg", "pillow"),
    ]
    return "\n".join(lines)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Decoding and cropping pictures in threads, Pillow, a DataLoader.")
    parser.add_argument("--rounds", type=int, default=15, help="measured rounds (default: 15)")
    parser.add_argument("--quick", action="store_true", help="2 batches and 1 round: shows that it works, no more")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args()
    batches, rounds = (2, 1) if arguments.quick else (BATCHES, arguments.rounds)
    if rounds < 1:
        parser.error("at least 1 round is needed")
    load = os.getloadavg()[0]
    figures = {f"{width} x {height}": measure((width, height), batches, rounds) for width, height in SIZES}
    if arguments.json:
        print(
            json.dumps(
                {**figures, "rounds": rounds, "load": load, "machine": describe("torch", "simplejpeg")}, indent=2
            )
        )
    else:
        print(report(figures, batches, rounds, load))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
