"""Memory of a training job against its number of DataLoader workers: an mmds file, and the same samples in a list.

    python -m benchmarks.memory.workers [--size BYTES] [--workers 0,1,2,4,8] [--plot FILE.png] [--check]

The standard DataLoader reads every sample of every epoch once, in random order, from `MemoryMappedDataset` and from a
list of dicts (contenders.py); every batch is delivered to the main process. Each configuration is a fresh process
(epoch.py, which says what is measured and when). The file was just written, so it is in the page cache.

In one epoch a worker reads its share of the list only, 1/8 of the samples with eight workers; with more ``--epochs``
its copy gets closer to a whole one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.machine import describe, memory_bytes
from benchmarks.memory.contenders import PAYLOAD, write_file
from benchmarks.memory.epoch import BATCH, Measurement
from benchmarks.memory.report import broken_promises, plot, table
from benchmarks.progress import progress, say

LIST_BYTES = 1400  # of a sample in the list: 1024 of pixels, 33 of their bytes object, a dict, and malloc's rounding
PER_PAGE = 5  # objects of such a sample that share a page with others, about: reading any of them copies the page


def measure(contender: str, file: Path, samples: int, workers: int, epochs: int) -> Measurement:
    """Measure one configuration in a fresh process."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.memory.epoch",
        contender,
        str(file),
        str(samples),
        str(workers),
        str(epochs),
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Measurement.from_json(done.stdout)


def list_bytes(samples: int, workers: int, epochs: int) -> int:
    """Return about how much memory the list needs: itself, and what of it the workers will have copied."""
    copied = workers * (1 - (1 - 1 / workers) ** (PER_PAGE * epochs)) if workers else 0
    return int(samples * LIST_BYTES * (1 + copied))


def measure_all(
    file: Path, samples: int, workers: Sequence[int], contenders: Sequence[str], epochs: int
) -> tuple[list[Measurement], list[str]]:
    """Measure all configurations; those that would not fit into memory are named instead."""
    measurements, skipped = [], []
    for count, contender in progress([(w, c) for w in workers for c in contenders], "configurations"):
        needed = list_bytes(samples, count, epochs)
        if contender == "list" and needed > memory_bytes("MemAvailable"):
            skipped.append(
                f"The list with {count} workers would take about {needed / 2**30:.0f} GiB, more than is free."
            )
        else:
            measurements.append(measure(contender, file, samples, count, epochs))
    return measurements, skipped


def main(command_line: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Memory against the number of DataLoader workers.")
    parser.add_argument("--size", type=int, default=256 * 10**6, help="bytes of pictures (default: 256 MB)")
    parser.add_argument("--workers", default="0,1,2,4,8", help="numbers of workers (default: 0,1,2,4,8)")
    parser.add_argument("--contenders", default="list,mmds", help="of these (default: list,mmds)")
    parser.add_argument("--epochs", type=int, default=1, help="how often all samples are read (default: 1)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the totals, e.g. into a .png")
    parser.add_argument("--check", action="store_true", help="exit 1 if mmds breaks what it promises about memory")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args(command_line)
    workers = sorted({int(count) for count in arguments.workers.split(",")})
    contenders = arguments.contenders.split(",")
    samples = arguments.size // PAYLOAD
    if not set(contenders) <= {"list", "mmds"} or workers[0] < 0 or arguments.epochs < 1:
        parser.error("--contenders list,mmds; --workers from 0; --epochs from 1")
    if samples <= BATCH * max(workers[-1], 1):
        parser.error(f"--size: every worker needs a batch, so at least {BATCH * (workers[-1] + 1) * PAYLOAD}")
    if arguments.check and ("mmds" not in contenders or not workers[-1]):
        parser.error("--check is about the workers of mmds")

    with tempfile.TemporaryDirectory(prefix="mmds-memory-") as folder:
        file = Path(folder).resolve() / "samples.mmds"  # as /proc/PID/smaps spells it
        say("writing the file")
        write_file(file, samples)
        file_size = file.stat().st_size
        measurements, skipped = measure_all(file, samples, workers, contenders, arguments.epochs)
    broken = broken_promises(measurements, file_size)
    machine = describe("torch", "numpy")
    if arguments.plot:
        plot(measurements, samples * PAYLOAD, arguments.plot)
    if arguments.json:
        print(
            json.dumps(
                {"file_bytes": file_size, "machine": machine, "runs": [asdict(one) for one in measurements]}, indent=2
            )
        )
    else:
        print(table(measurements))
        print(
            f"\n{samples:,} samples of 1 KiB of pixels and a class, {file_size / 10**6:,.0f} MB as an mmds file. Memory after "
            f"{arguments.epochs} epoch(s), read in random order by a DataLoader (batches of {BATCH}, workers forked, warm page "
            "cache). Total: PSS of all processes, the file's pages and about 0.2 GiB of torch included. Private: from each "
            "worker's first batch to the last batch, the mean, and in brackets the largest growth of one worker.",
        )
        print(*skipped, machine, sep="\n")
    if arguments.check:
        print("\n".join(broken) or "check: what mmds promises about memory holds", file=sys.stderr)
    return 1 if arguments.check and broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
