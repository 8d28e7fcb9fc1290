"""Ways to hold a list of samples in a Dataset, and what each costs in memory and time: the experiments that people know.

    python -m benchmarks.memory.lists [--samples N] [--workers N] [--quick] [--json FILE] [--plots FOLDER]

The samples are annotations of COCO's kind (list_holders.py, which says how they are held). A DataLoader reads all of them
twice, in random order; each configuration is a fresh process (list_epochs.py, which says what is measured and when).

holders      three ways that are recommended, beside `mmds.share` and an ``.mmds`` file: 4 workers, started by fork
methods      a list, the same as flat bytes of numpy and of torch, and `mmds.share`: started by fork, spawn and forkserver, in
             1 rank and in 2. Half as many samples, and half as many workers per rank
acceptance   `mmds.share`, three times the samples and twice the workers, against loaders of nothing: does it cost what it
             holds once? With time to pack and to read, in turns with `pickle` (list_times.py)

`gc.freeze` is called before a fork, so that what workers copy is what they read; the acceptance is measured without, too.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks.machine import describe
from benchmarks.memory import list_plots, list_report
from benchmarks.memory.list_epochs import Configuration, Measurement
from benchmarks.memory.list_holders import write_file
from benchmarks.memory.list_times import times
from benchmarks.progress import progress, say

BATCH = 1024
HOLDERS = ("empty", "deepcopy", "pickled", "numpy", "share", "mmds")
METHOD_HOLDERS = ("empty", "list", "numpy", "torch", "share")
METHODS = ("fork", "spawn", "forkserver")
PICTURES = {"holders": "memory-lists.png", "methods": "memory-start-methods.png"}
Plan = dict[str, list[Configuration]]


def plan(samples: int, workers: int, *, batch: int = BATCH) -> Plan:
    """Return what is measured, by experiment."""
    half = max(workers // 2, 1)
    accepted = [
        Configuration(holder, method, 1, 2 * workers, 3 * samples, batch, frozen)
        for method, frozen in (("fork", False), ("fork", True), ("spawn", False), ("forkserver", False))
        for holder in ("empty", "share")
    ]
    return {
        "holders": [Configuration(holder, "fork", 1, workers, samples, batch, True) for holder in HOLDERS],
        "methods": [
            Configuration(holder, method, ranks, half, samples // 2, batch, method == "fork")
            for method in METHODS
            for ranks in (1, 2)
            for holder in METHOD_HOLDERS
        ],
        "acceptance": accepted,
    }


def quick_plan(samples: int, workers: int) -> Plan:
    """Return a part of it that takes half a minute: nearly everything forks, which spares importing torch again."""
    holders = plan(samples, workers, batch=128)["holders"]
    alike = {one.holder: one for one in holders}
    ranks = [replace(one, ranks=2, workers=1) for one in (alike["empty"], alike["share"])]
    return {
        "holders": holders,
        "methods": [alike["empty"], replace(alike["empty"], holder="list"), alike["share"], *ranks],
        "acceptance": [alike["empty"], alike["share"]],
    }


def measure(configuration: Configuration, file: Path) -> Measurement:
    """Measure one configuration in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.memory.list_epochs", json.dumps(asdict(configuration)), str(file)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Measurement.from_dict(json.loads(done.stdout))


def main(command_line: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="What ways to hold a list of samples cost.")
    parser.add_argument("--samples", type=int, help="of the first experiment (default: 100,000)")
    parser.add_argument("--workers", type=int, help="of the first experiment (default: 4)")
    parser.add_argument("--quick", action="store_true", help="half a minute, to see whether it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="draw two pictures into it")
    arguments = parser.parse_args(command_line)
    samples = arguments.samples or (8192 if arguments.quick else 100_000)
    workers = arguments.workers or (2 if arguments.quick else 4)
    if workers < 1 or samples < (1024 if arguments.quick else 4 * BATCH) * workers:
        parser.error("--workers from 1; --samples: every worker of every configuration needs a few batches")
    planned = quick_plan(samples, workers) if arguments.quick else plan(samples, workers)

    with tempfile.TemporaryDirectory(prefix="mmds-lists-") as folder:
        file = Path(folder) / "annotations.mmds"
        say("writing the file")
        write_file(file, samples)
        distinct = list(dict.fromkeys(one for configurations in planned.values() for one in configurations))
        measured = {one: measure(one, file) for one in progress(distinct, "configurations")}
        timed = planned["acceptance"][0].samples
        say("packing and reading")
        if timed != samples:
            write_file(file.with_name("all.mmds"), timed)
            file = file.with_name("all.mmds")
        seconds = times(timed, 1 if arguments.quick else 5, file)
    results = {name: [measured[one] for one in configurations] for name, configurations in planned.items()}
    accepted = list_report.acceptance(results["acceptance"], seconds)
    machine = describe("torch", "numpy")
    if arguments.json:
        experiments = {name: [asdict(one) for one in found] for name, found in results.items()}
        figures = {"machine": machine, **experiments, "times": seconds, "accepted": accepted}
        arguments.json.write_text(json.dumps(figures, indent=1))
    if arguments.plots:
        arguments.plots.mkdir(parents=True, exist_ok=True)
        list_plots.plot_holders(results["holders"], arguments.plots / PICTURES["holders"])
        list_plots.plot_methods(results["methods"], arguments.plots / PICTURES["methods"])
    print(f"### {samples:,} annotations, {workers} workers, fork; MiB after two epochs\n")
    print(list_report.holders_table(results["holders"]))
    about = results["methods"][-1].configuration
    print(
        f"\n### {about.samples:,} annotations, {about.workers} worker(s) per rank; MiB of all processes (: `share`)\n"
    )
    print(list_report.methods_table(results["methods"]))
    print(f"\n### {timed:,} annotations, {planned['acceptance'][0].workers} workers, 1 rank; MiB\n")
    print(list_report.acceptance_table(accepted), list_report.times_table(seconds, accepted), sep="\n\n")
    print(
        "\nUSS: pages of a worker alone, the mean of all; shared: pages that others have as well; PSS: USS and its part of "
        "them. All processes: the sum of PSS, of the main ones too. Allowed: 1.1 times the packed size, and what as many "
        "processes take that hold nothing. `gc.freeze()` before forks, but for one row: without, as soon as the "
        "garbage collector of a worker looks at everything, it copies 37 MiB of torch's objects, whatever the dataset holds.\n"
        + machine
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
