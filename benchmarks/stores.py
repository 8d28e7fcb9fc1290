"""The same samples in every store: mmds, HDF5, LMDB, Zarr, TileDB, Arrow, Parquet, ``.npy`` files.

    python -m benchmarks.stores [--quick] [--json] [--workloads images,jpegs,tokens] [--stores hdf5,lmdb,...] [--folder PATH]

All stores are written by mmds. They are read through mmds (`mmds.open`, `MemoryMappedDataset`), and single samples and
batches by the best loop that the library itself offers too (`store_native.py`); the faster of the two stands in the table,
with an ``n`` where it is the library's own. Every process holds one store; they take turns.

single read     ``reader[i]`` at random i, all bytes copied; warm: this process has read all samples before
batch of 256    ``reader[indices]``, random, warm
epoch           a DataLoader with 2 living workers and ``shuffle=True``: default collation of images; files and tokens are
                joined to one tensor per batch. Of the slow ones a part, from which the whole is reckoned
cold batch      open the store and read a batch, after the kernel has dropped the page cache, in a process that has read a
                small store of the same sort before, so that no library has to be loaded
size            bytes of all files
write           ``write_batch`` and close, with fsync; making the samples does not count
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.conversion import DROP_CACHES
from benchmarks.machine import describe
from benchmarks.store_contenders import (
    SUFFIXES,
    Contender,
    Failed,
    available,
    drop_caches,
    in_turns,
    load_libraries,
    size_of,
)
from benchmarks.store_native import NATIVE, WAYS
from benchmarks.store_workloads import BATCH, WORKLOADS, pictures
from mmds.converters.stores import STORES

METRICS = {"single": "single read", "batch": f"batch of {BATCH}", "epoch": "epoch", "cold": "cold batch"}
METRICS |= {"size": "size", "write": "write"}
CHECKED = 16  # samples whose bytes are compared between stores before anything is measured
LEVEL = 0.95  # what counts as level: within 5 %
SLICE = 0.03  # seconds that a turn of single reads takes
Key = tuple[str, str]  # of a store, and through what: "mmds" or "native"


class Effort(NamedTuple):
    """How much is measured."""

    rounds: int = 9
    epochs: int = 4
    cold: int = 3
    writes: int = 5
    budget: float = 2.0  # seconds per contender and metric, after which it is not measured again


QUICK = Effort(rounds=1, epochs=1, cold=1, writes=1, budget=0.1)


def picks(samples: int, seed: int, count: int) -> list[int]:
    """Return random rows."""
    return random.Random(seed).choices(range(samples), k=count)


def write_all(name: str, stores: list[str], folder: Path, samples: int, effort: Effort, failures: Any) -> Any:
    """Write all stores, and small ones beside; return seconds."""

    def write(store: str, number: int) -> float:
        path, small = folder / f"{number}{SUFFIXES[store]}", folder / f"small{SUFFIXES[store]}"
        with Contender(name, store, "mmds", path) as contender:
            return contender.seconds("write", count=samples, small=str(small))

    tasks: dict[Key, Callable[[int], float]] = {(store, "mmds"): partial(write, store) for store in stores}
    return in_turns(tasks, effort.writes, effort.budget * 3, failures)


def warm(name: str, stores: list[str], folder: Path, samples: int, effort: Effort, failures: Any) -> Any:
    """Measure single reads, batches and epochs; return metric -> contender -> seconds."""
    with ExitStack() as stack:
        keys: list[Key] = [(store, way) for store in stores for way in WAYS if way == "mmds" or store in NATIVE]
        contenders = {
            (store, way): stack.enter_context(Contender(name, store, way, folder / f"0{SUFFIXES[store]}"))
            for store, way in keys
        }
        counts: dict[Key, int] = {}
        sums: dict[Key, Any] = {}
        for key in keys:
            try:
                sums[key] = contenders[key].ask("check", rows=picks(samples, 1, CHECKED))["bytes"]
                contenders[key].ask("touch", samples=samples, limit=effort.budget)
                one = contenders[key].seconds("single", rows=picks(samples, 2, 20)) / 20
                counts[key] = min(max(int(SLICE / one), 3), 2000)
            except Failed as failure:
                failures[key] = str(failure)
        if len({str(found) for found in sums.values()}) > 1:
            raise AssertionError(f"{name}: the stores hold different samples: {sums}")

        def single(key: Key, number: int) -> float:
            rows = picks(samples, number, counts[key])
            return contenders[key].seconds("single", rows=rows) / len(rows)

        def batch(key: Key, number: int) -> float:
            return contenders[key].seconds("batch", rows=picks(samples, number, BATCH))

        def epoch(key: Key, number: int) -> float:
            return contenders[key].seconds("epoch", limit=2 * effort.budget)

        alive = [key for key in keys if key in counts]
        found: dict[str, Any] = {}
        for metric, function in (("single", single), ("batch", batch)):
            found[metric] = in_turns(
                {key: partial(function, key) for key in alive}, effort.rounds, effort.budget, failures
            )
        epochs = {key: partial(epoch, key) for key in alive if key[1] == "mmds"}
        found["epoch"] = in_turns(epochs, effort.epochs, effort.budget, failures)
        for key, seconds in found["epoch"].items():
            found["epoch"][key] = seconds[1:] or seconds  # the first one starts the workers
        return found


def cold(name: str, keys: list[Key], folder: Path, samples: int, effort: Effort, failures: Any) -> Any:
    """Measure batches from disk; return seconds."""

    def read(key: Key, number: int) -> float:
        store, via = key
        with Contender(name, store, via, folder / f"small{SUFFIXES[store]}") as contender:
            contender.ask("batch", rows=picks(BATCH, 0, CHECKED))
            drop_caches()
            path = str(folder / f"0{SUFFIXES[store]}")
            return contender.seconds("other", path=path, rows=picks(samples, 100 + number, BATCH))

    return in_turns({key: partial(read, key) for key in keys}, effort.cold, effort.budget * 3, failures)


def measure(
    name: str, stores: list[str], folder: Path, effort: Effort, samples: int, with_cold: bool
) -> dict[str, Any]:
    """Return the figures of one workload: metric -> store -> through what -> seconds (or bytes), and failures."""
    failures: dict[Any, str] = {}
    folder.mkdir()
    found = {"write": write_all(name, stores, folder, samples, effort, failures)}
    stores = [store for store in stores if (store, "mmds") in found["write"]]
    found |= warm(name, stores, folder, samples, effort, failures)
    if with_cold:  # what was faster while warm is measured, for the others would take minutes
        batches = found["batch"]
        best = [min((k for k in batches if k[0] == s), key=lambda k: statistics.median(batches[k])) for s in stores]
        found["cold"] = cold(name, best, folder, samples, effort, failures)
    found["size"] = {(store, "mmds"): [size_of(folder / f"0{SUFFIXES[store]}")] for store in stores}
    figures: dict[str, Any] = {}
    for metric, values in found.items():
        for (store, via), each in values.items():
            figures.setdefault(metric, {}).setdefault(store, {})[via] = statistics.median(each)
    return {
        "samples": samples,
        "figures": {metric: figures[metric] for metric in METRICS if metric in figures},
        "failures": {f"{store} ({via})": reason for (store, via), reason in failures.items()},
    }


def amount(metric: str, value: float) -> str:
    """Return a figure with its unit.

    >>> amount("single", 3.21e-6), amount("cold", 0.5), amount("size", 113_246_208)
    ('3.21 µs', '500 ms', '113 MB')
    """
    if metric == "size":
        return f"{value / 1e6:.3g} MB"
    factor, unit = next(pair for pair in ((1e6, "µs"), (1e3, "ms"), (1, "s")) if value * pair[0] < 1000 or pair[0] == 1)
    return f"{value * factor:.3g} {unit}"


def rows_of(results: dict[str, Any], stores: list[str]) -> tuple[list[str], list[str]]:
    """Return the table's lines, and a line for each row in which mmds is neither fastest nor level."""
    lines, behind = [], []
    for name, result in results.items():
        for metric, by_store in result["figures"].items():
            own = min(by_store["mmds"].values())
            cells = []
            for store in stores:
                ways = by_store.get(store)
                if not ways:
                    cells.append("–")
                    continue
                via = min(ways, key=ways.__getitem__)
                mark = " n" if via == "native" else ""
                cells.append(f"**{ways[via] / own:.2f}** {amount(metric, ways[via])}{mark}")
                if ways[via] < LEVEL * own:
                    behind.append(f"{name}, {METRICS[metric]}: {store}{mark} takes {ways[via] / own:.2f} of mmds")
            lines.append(f"| {name} | {METRICS[metric]} | {' | '.join(cells)} |")
    return lines, behind


def report(results: dict[str, Any], about: dict[str, Any]) -> str:
    """Return the figures as a markdown table."""
    stores = about["stores"]
    lines, behind = rows_of(results, stores)
    head = [f"| workload | | {' | '.join(stores)} |", f"|---|---|{'---:|' * len(stores)}"]
    sorts = [f"{name}: {each['samples']:,} samples, {WORKLOADS[name].title}" for name, each in results.items()]
    failed = [f"{name}: {who}: {why}" for name, each in results.items() for who, why in each["failures"].items()]
    return "\n".join(
        [
            *head,
            *lines,
            "",
            "Bold: how much more than mmds (time or bytes); n: by the library's own best loop, else through mmds.",
            *(f"mmds is behind: {line}" for line in behind),
            "; ".join(sorts) + f". Medians of {about['rounds']} rounds in turns.",
            *about["notes"],
            *(f"not measured: {line}" for line in failed),
            about["machine"],
        ]
    )


def main(command_line: Sequence[str] | None = None) -> int:
    """Run the command line."""
    names = [store.name for store in STORES]
    parser = argparse.ArgumentParser(description="The same samples in every store, read and written.")
    parser.add_argument("--workloads", default=",".join(WORKLOADS), help=f"of these (default: {','.join(WORKLOADS)})")
    parser.add_argument("--stores", default=",".join(names), help=f"beside mmds (default: {','.join(names)})")
    parser.add_argument("--quick", action="store_true", help="few samples and rounds: shows that it works, no more")
    parser.add_argument(
        "--folder", type=Path, help="where to work, on the disk in question (default: the system's /tmp)"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    chosen = parser.parse_args(command_line)
    workloads, wanted = chosen.workloads.split(","), chosen.stores.split(",")
    if not {*workloads} <= {*WORKLOADS} or not {*wanted} <= {*names}:
        parser.error(f"--workloads of {','.join(WORKLOADS)}; --stores of {','.join(names)}")
    effort = QUICK if chosen.quick else Effort()
    stores, notes = available(wanted)
    load_libraries(stores)
    if "jpegs" in workloads:
        pictures()
    with_cold = os.access(DROP_CACHES, os.W_OK)
    if not with_cold:
        notes.append("Not measured with a cold cache: dropping the page cache takes root.")
    results = {}
    with tempfile.TemporaryDirectory(prefix="mmds-stores-", dir=chosen.folder) as folder:
        for name in workloads:
            samples = WORKLOADS[name].quick if chosen.quick else WORKLOADS[name].samples
            results[name] = measure(name, stores, Path(folder) / name, effort, samples, with_cold)
    packages = dict.fromkeys(store.package for store in STORES if store.name in stores)
    about = {
        "stores": stores, "rounds": effort.rounds, "notes": notes, "machine": describe("torch", *packages),
    }  # fmt: skip
    print(json.dumps({"results": results, **about}, indent=2) if chosen.json else report(results, about))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
