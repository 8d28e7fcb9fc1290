"""What happens at 1 TB, 100 TB and 10**10 samples.

    python -m benchmarks.scale [--cache GB] [--quick] [--json] [--latency S] [--connections N] ...

measured   The shards are made, of files with holes: full length, whole header, footer and trailer, zeros between. A folder of
           them is opened in a fresh process with ``ulimit -n`` 1024, as most systems have it (opened.py).
simulated  An epoch of one host with the data in object storage: real orders (`BlockShuffle`, `Permutation`), the rule by which
           `mmds.shardcache` removes shards, and a store with a fake clock, whose terms are options (store.py, epochs.py).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from benchmarks.progress import progress, say
from benchmarks.scale.epochs import Epoch, mixed, ways
from benchmarks.scale.opened import Opened
from benchmarks.scale.plans import PLANS, Plan, write_folder
from benchmarks.scale.report import report
from benchmarks.scale.store import Terms

DESCRIPTORS = 1024
CACHES = (16, 64, 256, 1024)  # GB, for how well they mix


def opened(plan: Plan) -> Opened:
    """Make a dataset and measure it in a fresh process."""
    with tempfile.TemporaryDirectory(prefix="mmds-scale-") as name:
        folder = Path(name) / "sparse"
        write_folder(folder, plan)
        command = [sys.executable, "-m", "benchmarks.scale.opened", str(folder), str(DESCRIPTORS)]
        return Opened(**json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout))


def room_for(plan: Plan, gb: float) -> int:
    """Return how many shards a cache of `gb` GB has."""
    return max(2, int(gb * 1e9 // plan.shard_bytes))


def epochs(plan: Plan, gb: float, terms: Terms) -> list[Epoch]:
    """Simulate."""
    say(f"epochs over {plan.name}")
    found = ways(plan, room_for(plan, gb), terms)
    say("")
    return found


def mixing(plan: Plan) -> dict[int, tuple[float, float]]:
    """Return for caches of so many GB from how many shards a batch comes, and how many labels it has."""
    return {gb: mixed(plan, max(1, min(room_for(plan, gb) // 2, plan.shards))) for gb in CACHES}


def main(command_line: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="What happens at 1 TB, 100 TB and 10^10 samples.")
    parser.add_argument(
        "--cache", type=float, default=64, metavar="GB", help="local cache of a host (default: %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="small shards, and few: shows that it works, no more")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    for term in fields(Terms):
        parser.add_argument(f"--{term.name.replace('_', '-')}", type=type(term.default), default=term.default)
    arguments = vars(parser.parse_args(command_line))
    terms = Terms(**{term.name: arguments[term.name] for term in fields(Terms)})
    plans: list[Plan] = list(PLANS)
    if arguments["quick"]:
        plans = [replace(plan, shards=plan.shards // 100, shard_items=plan.shard_items // 10) for plan in plans]
    measured = {plan.name: opened(plan) for plan in progress(plans, "datasets")}
    gb = arguments["cache"] / (1000 if arguments["quick"] else 1)
    simulated = {plan.name: epochs(plan, gb, terms) for plan in plans}
    mixes = {plan.name: mixing(plan) for plan in plans}
    machine = describe("numpy")
    if arguments["json"]:
        figures: dict[str, Any] = {
            "machine": machine,
            "terms": asdict(terms),
            "measured": {name: asdict(found) for name, found in measured.items()},
            "simulated": {name: [asdict(epoch) for epoch in found] for name, found in simulated.items()},
            "mixed": mixes,
        }
        print(json.dumps(figures, indent=2))
    else:
        print(report(plans, measured, simulated, mixes, f"{machine}; ulimit -n {DESCRIPTORS}; {terms}"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
