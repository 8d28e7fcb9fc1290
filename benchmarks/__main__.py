"""mmds beside other libraries: the same samples in each, read in the way that each one's documentation recommends.

    python -m benchmarks [--quick] [--scale S] [--workloads fixed,jpeg] [--peers mmds,lmdb] [--metrics batch,epoch]
                         [--json PATH] [--plots FOLDER] [--folder PATH]

All that is installed is measured, and what is missing is named with its command; `benchmarks/requirements.txt` lists it.
`benchmarks/peers` has an adapter of about 30 lines per library, `benchmarks/suite_workloads.py` the samples, and
`benchmarks/suite_measure.py` what is measured. The defaults take about 15 minutes, and --quick about 2.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import importlib.metadata
import json
import os
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.conversion import DROP_CACHES
from benchmarks.machine import describe
from benchmarks.peers import PEERS, available
from benchmarks.progress import say
from benchmarks.suite_measure import METRICS, QUICK, Bench, Effort
from benchmarks.suite_report import plot, report
from benchmarks.suite_workloads import WORKLOADS

SLOW = ("first", "memory")  # metrics that --quick leaves out, unless they are asked for


def installed_packages(peers: list[str]) -> list[str]:
    """Return the distributions of the peers that have metadata, torch and numpy first."""
    names = dict.fromkeys(("numpy", "torch", *(package for peer in peers for package in PEERS[peer].packages)))
    known = {distribution.name.lower().replace("_", "-") for distribution in importlib.metadata.distributions()}
    return [name for name in names if name != "mmds" and name.lower().replace("_", "-") in known]


def load(peers: list[str]) -> tuple[list[str], list[str]]:
    """Import torch and all libraries, so that no process has to; return those that load, and a line for each other."""
    import torch.utils.data  # noqa: F401

    found, notes = [], []
    for name in peers:
        say(f"loading {name}")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                PEERS[name].prepare()
            found.append(name)
        except Exception as error:  # noqa: BLE001 (a library that does not load is named, and the others are measured)
            notes.append(f"{name} is not measured: {type(error).__name__}: {error}. Run: {PEERS[name].install}")
    say("")
    gc.collect()
    gc.freeze()  # or every process would copy all of this as soon as it collects garbage
    return found, notes


def parse(command_line: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="mmds beside other libraries.")
    for name, known in (("workloads", WORKLOADS), ("peers", PEERS), ("metrics", METRICS)):
        parser.add_argument(f"--{name}", default=",".join(known), help=f"of {','.join(known)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="few samples, few rounds: shows that it works, no more")
    parser.add_argument(
        "--scale", type=float, help=f"1: 40,960 pictures, 2 million vectors, ... (default: {Effort().scale:g})"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write all figures to this file")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="draw bar charts into this folder")
    parser.add_argument("--folder", type=Path, help="where to write the samples (default: a temporary folder)")
    chosen = parser.parse_args(command_line)
    if chosen.quick and chosen.metrics == ",".join(METRICS):  # these load every library again
        chosen.metrics = ",".join(metric for metric in METRICS if metric not in SLOW)
    for name, known in (("workloads", WORKLOADS), ("peers", PEERS), ("metrics", METRICS)):
        wanted = getattr(chosen, name).split(",")
        unknown = set(wanted) - set(known)
        if unknown:
            parser.error(f"--{name}: no {', '.join(sorted(unknown))}; there are {', '.join(known)}")
        setattr(chosen, name, [each for each in known if each in wanted])
    if chosen.scale is not None and chosen.scale <= 0:
        parser.error("--scale: expected a number above 0")
    return chosen


def main(command_line: Sequence[str] | None = None) -> int:
    """Run the command line."""
    chosen = parse(command_line)
    effort = QUICK if chosen.quick else Effort()
    effort = effort if chosen.scale is None else dataclasses.replace(effort, scale=chosen.scale)
    peers, notes = available(chosen.peers)
    if "cold" in chosen.metrics and not os.access(DROP_CACHES, os.W_OK):
        notes.append("Not measured with a cold cache: dropping the page cache takes root.")
    peers, failed = load(peers)
    notes += failed
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="mmds-peers-", dir=chosen.folder) as folder:
        for name in chosen.workloads:
            bench = Bench(WORKLOADS[name], list(peers), Path(folder) / name, effort, set(chosen.metrics))
            results[name] = bench.run()
    about = {
        "peers": peers, "notes": notes, "how": {name: PEERS[name].how for name in peers},
        "effort": dataclasses.asdict(effort), "machine": describe(*installed_packages(peers)),
    }  # fmt: skip
    print(report(results, about))
    if chosen.json is not None:
        chosen.json.write_text(json.dumps({"results": results, **about}, indent=2) + "\n")
    if chosen.plots is not None:
        for path in plot(results, about, chosen.plots):
            print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
