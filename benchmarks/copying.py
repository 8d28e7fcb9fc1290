"""Cutting and joining datasets with ``mmds select``, ``merge`` and ``split`` against copying as many bytes with ``cp``.

    python -m benchmarks.copying [--size BYTES] [--samples BYTES,BYTES] [--rounds N] [--folder PATH] [--json]

For each size of samples: a random half of the samples in the order of the file, the same half shuffled, two halves merged,
and a split in four. Each is a fresh process that calls the function, whose start counts, and whose memory is measured inside,
pages of files included. ``cp`` copies files of the same content, once without and once with a sync of what it has
written; mmds syncs. All take turns, with everything in the page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import mmds
from benchmarks.machine import describe
from benchmarks.progress import progress, say
from mmds.options import size as parsed_size

RATIO, PEAK = 1.3, 100 * 10**6  # what mmds promises: time against cp, bytes of memory
OPERATIONS = ("select in order", "select shuffled", "merge", "split")
CHILD = """
import json, sys, threading, time
import mmds
from pathlib import Path

def look():
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return [1024 * int(lines[name].split()[0]) for name in ("VmRSS", "RssAnon")]

def watch(peaks, done):
    while True:
        peaks[:] = map(max, peaks, look())
        if done.wait(0.005):
            return

operation, sources, target, indices = json.loads(sys.argv[1])
peaks, done = [0, 0], threading.Event()
watcher = threading.Thread(target=watch, args=(peaks, done))
watcher.start()
start = time.perf_counter()
if operation == "merge":
    mmds.merge(sources, target)
elif operation == "split":
    mmds.split(sources[0], target, fractions=[0.25] * 4)
else:
    import numpy
    mmds.select(sources[0], target, numpy.load(indices, mmap_mode="r"))
seconds = time.perf_counter() - start
done.set()
watcher.join()
print(json.dumps([*peaks, seconds]))
"""


@dataclass(frozen=True)
class Copied:
    """One copy that was made: seconds of the process, and peaks of memory with and without pages of files."""

    seconds: float
    rss: int = 0
    private: int = 0
    inside: float = 0.0  # seconds without the start of Python


def write_source(path: Path, size: int, sample: int) -> int:
    """Write a dataset of about `size` bytes with samples of about `sample` bytes each, of random content and length."""
    rng = np.random.default_rng(0)
    count = size // sample
    lengths = rng.integers(sample * 3 // 4, sample * 5 // 4, count).tolist()
    noise = rng.bytes(2 * max(lengths))
    fields = {"data": mmds.Bytes(), "key": mmds.Text(column=True), "label": mmds.Label(("a", "b"))}
    with mmds.Writer(path, fields) as writer:
        for k, length in enumerate(lengths):
            start = k % len(noise) // 2
            writer.write({"data": noise[start : start + length], "key": f"sample-{k}", "label": k % 2})
    return count


def run(operation: str, sources: list[Path], target: Path, indices: Path) -> Copied:
    """Run one operation of mmds in a process of its own."""
    job = json.dumps([operation, [*map(str, sources)], str(target), str(indices)])
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", CHILD, job], check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    rss, private, inside = json.loads(done.stdout)
    return Copied(seconds, rss, private, inside)


def copy(sources: list[Path], target: Path, synced: bool) -> Copied:
    """Copy files to a new folder with ``cp``."""
    target.mkdir()
    start = time.perf_counter()
    subprocess.run(["cp", *map(str, sources), str(target)], check=True)
    if synced:
        subprocess.run(["sync", *map(str, target.iterdir())], check=True)
    return Copied(time.perf_counter() - start)


def measure(folder: Path, size: int, sample: int, rounds: int) -> dict[str, dict[str, list[Copied]]]:
    """Return all copies that were made of each operation, by contender; the first round does not count."""
    source, indices = folder / "source.mmds", {name: folder / f"{name}.npy" for name in OPERATIONS}
    say(f"writing samples of {sample} bytes")
    count = write_source(source, size, sample)
    half = np.random.default_rng(1).permutation(count)[: count // 2]
    np.save(indices["select in order"], np.sort(half))
    np.save(indices["select shuffled"], half)
    halves = [part.path for part in mmds.split(source, folder / "half.mmds", count=-(-count // 2))]
    order = random.Random(0)
    copies: dict[str, dict[str, list[Copied]]] = {name: {"mmds": [], "cp": [], "cp_sync": []} for name in OPERATIONS}
    turns = [(operation, contender) for operation in OPERATIONS for contender in ("mmds", "cp", "cp_sync")]
    for number in progress(range(rounds + 1), f"samples of {sample} bytes"):
        order.shuffle(turns)
        for operation, contender in turns:
            sources = halves if operation == "merge" else [source]
            kept = halves if operation in ("merge", "split") else halves[:1]  # files with as many bytes as the result
            for path in [*sources, *kept]:
                subprocess.run(["grep", "-qF", "a text that no sample has", str(path)])  # reads every byte
            work = folder / "work"
            work.mkdir()
            os.sync()
            if contender == "mmds":
                copied = run(operation, sources, work / "out.mmds", indices[operation])
            else:
                copied = copy(kept, work / "out", contender == "cp_sync")
            shutil.rmtree(work)
            if number:
                copies[operation][contender].append(copied)
    return copies


def summarize(copies: dict[str, list[Copied]]) -> dict[str, float]:
    """Return best and median times, and ratios of medians: the best of `cp` is that of memory that was just in use."""
    best = {name: min(copied.seconds for copied in each) for name, each in copies.items()}
    usual = {name: statistics.median(copied.seconds for copied in each) for name, each in copies.items()}
    return {
        "ratio_to_cp": usual["mmds"] / usual["cp"],
        "ratio_to_cp_sync": usual["mmds"] / usual["cp_sync"],
        **{f"{name}_seconds": value for name, value in best.items()},
        **{f"{name}_median_seconds": value for name, value in usual.items()},
        "mmds_inside_seconds": min(copied.inside for copied in copies["mmds"]),
        "peak_rss": max(copied.rss for copied in copies["mmds"]),
        "peak_private": max(copied.private for copied in copies["mmds"]),
    }


def report(figures: dict[str, dict[str, dict[str, float]]], about: dict[str, Any]) -> str:
    """Return the figures as a markdown table."""
    lines = [
        "| samples | operation | mmds : cp | mmds : cp + sync | cp | cp + sync | mmds | without start | memory | private |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for sample, operations in figures.items():
        for operation, one in operations.items():
            times = [
                f"{one[f'{name}_seconds']:.2f} s ({one[f'{name}_median_seconds']:.2f})"
                for name in ("cp", "cp_sync", "mmds")
            ]
            memory = [f"{one[name] / 10**6:.0f} MB" for name in ("peak_rss", "peak_private")]
            cells = [sample, operation, f"{one['ratio_to_cp']:.2f}", f"{one['ratio_to_cp_sync']:.2f}", *times]
            lines.append("| " + " | ".join([*cells, f"{one['mmds_inside_seconds']:.2f} s", *memory]) + " |")
    lines += [
        f"| target | | | ≤ {RATIO} | | | | | < {PEAK // 10**6} MB | |",
        "",
        f"{about['bytes'] / 10**9:.1f} GB of samples; the selections keep half of them, merge and split all. Times: the best "
        f"of {about['rounds']} rounds in turns, in brackets the median; ratios are of medians. mmds syncs what it writes. "
        "Memory: the resident set with pages of files, and what of it is private.",
        about["machine"],
    ]
    return "\n".join(lines)


def main(command_line: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="select, merge and split against cp.")
    parser.add_argument("--size", type=parsed_size, default=2 * 10**9, help="bytes of samples (default: 2GB)")
    parser.add_argument("--samples", default="100000,4000", help="sizes of samples, in bytes (default: 100000,4000)")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds (default: 3)")
    parser.add_argument(
        "--folder", type=Path, help="where to work, on the disk in question (default: the system's /tmp)"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    chosen = parser.parse_args(command_line)
    samples = [int(sample) for sample in chosen.samples.split(",")]
    if chosen.rounds < 1 or not all(0 < 4 * sample <= chosen.size for sample in samples):
        parser.error("--rounds from 1; at least four samples in --size")
    figures = {}
    for sample in samples:
        with tempfile.TemporaryDirectory(prefix="mmds-copying-", dir=chosen.folder) as name:
            if 4 * chosen.size > shutil.disk_usage(name).free:
                parser.error(
                    f"{name} needs room for {4 * chosen.size / 10**9:.1f} GB; use a smaller --size or another --folder"
                )
            copies = measure(Path(name), chosen.size, sample, chosen.rounds)
            figures[f"{sample / 1000:g} kB"] = {operation: summarize(each) for operation, each in copies.items()}
    about = {"bytes": chosen.size, "rounds": chosen.rounds, "machine": describe("numpy", "xxhash")}
    print(json.dumps({"figures": figures, **about}, indent=2) if chosen.json else report(figures, about))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
