"""Look-up by key: `reader.get(key)` among many keys, against reading by number and against a dict of all keys.

    python -m benchmarks.keys [--count N] [--json]

The keys are paths such as ``n00000123/n00000123_4567.JPEG``. Keys to look up are random; the file is in the page cache.
Private memory is what the process has of its own (not pages of files) before and after all look-ups.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import mmds
from benchmarks.machine import describe

ASKED, LOOKUPS, BATCH = 20e-6, 20_000, 2**16  # seconds per look-up, what the issue asks for


def key(number: int) -> str:
    """Return the key of a sample."""
    return f"n{number // 1300:08d}/n{number // 1300:08d}_{number}.JPEG"


def write(path: Path, count: int) -> float:
    """Write samples with keys, and return how many seconds that took."""
    start = time.perf_counter()
    with mmds.Writer(path, {"path": mmds.Text(key=True), "label": mmds.Scalar("int64")}) as writer:
        for first in range(0, count, BATCH):
            numbers = range(first, min(first + BATCH, count))
            writer.write_batch({"path": [key(number) for number in numbers], "label": np.array(numbers)})
    return time.perf_counter() - start


def private_bytes() -> int:
    """Return the bytes of private memory of this process."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Private_Dirty:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("no Private_Dirty in /proc/self/smaps_rollup")


def per_call(function: Callable[[int], object], numbers: list[int]) -> float:
    """Return the median seconds per call, of ten parts of the calls."""
    times = []
    for part in np.array_split(np.array(numbers), 10):
        values = part.tolist()
        start = time.perf_counter()
        for number in values:
            function(number)
        times.append((time.perf_counter() - start) / len(values))
    return statistics.median(times)


def measure(count: int) -> dict[str, float]:
    """Return all figures."""
    with tempfile.TemporaryDirectory(prefix="mmds-keys-") as folder:
        path = Path(folder) / "keys.mmds"
        found = {"write": write(path, count), "bytes": float(path.stat().st_size)}
        reader = mmds.open(path)
        numbers = np.random.default_rng(0).integers(0, count, LOOKUPS).tolist()
        for number in numbers[:100]:
            if reader.get(key(number))["label"] != number:
                raise AssertionError(f"get({key(number)!r}) gives another sample")
        per_call(lambda number: reader.get(key(number)), numbers)  # into the page cache
        before = private_bytes()
        found["key"] = per_call(key, numbers)
        found["get"] = per_call(lambda number: reader.get(key(number)), numbers) - found["key"]
        found["row_of"] = per_call(lambda number: reader.row_of(key(number)), numbers) - found["key"]
        found["read"] = per_call(reader.__getitem__, numbers)
        found["private"] = private_bytes() - before
        before = private_bytes()
        rows = {name: row for row, name in enumerate(reader.column("path"))}
        found["dict"] = per_call(lambda number: reader[rows[key(number)]], numbers) - found["key"]
        found["dict_private"] = private_bytes() - before
    return found


def report(found: dict[str, float], count: int) -> str:
    """Return the figures as a markdown table."""
    lines = [
        f"| {count:,} keys | per look-up | private memory |",
        "|---|---:|---:|",
        f"| `reader.get(key)` (≤ {ASKED * 1e6:.0f} µs) | {found['get'] * 1e6:.1f} µs | {found['private'] / 2**20:.1f} MiB |",
        f"| `reader.row_of(key)` | {found['row_of'] * 1e6:.1f} µs | |",
        f"| `reader[number]` | {found['read'] * 1e6:.1f} µs | |",
        f"| dict of all keys, then `reader[number]` | {found['dict'] * 1e6:.1f} µs | {found['dict_private'] / 2**20:.0f} MiB |",
        "",
        f"Written in {found['write']:.1f} s, {found['bytes'] / 1e6:.0f} MB. {describe('numpy', 'xxhash')}",
    ]
    return "\n".join(lines)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Look-up by key.")
    parser.add_argument("--count", type=int, default=10**7, help="keys (default: 10,000,000)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args()
    found = measure(arguments.count)
    print(json.dumps(found, indent=2) if arguments.json else report(found, arguments.count))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
