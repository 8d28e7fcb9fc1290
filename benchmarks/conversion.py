"""Converting a folder of pictures with ``mmds convert`` against copying it with ``cp -r``.

    python -m benchmarks.conversion [--count N] [--real N] [--rounds N] [--cache warm,cold] [--folder PATH]

Contenders take turns: ``cp -r``; ``cp -r`` and then ``sync -f``; ``mmds convert -j2``, which always makes its file
durable with fsync before it appears, and checks that every picture is whole. Each is a fresh process; its start
counts. Warm: all sources have just been read. Cold: the kernel has just been told to drop the page cache, which takes root.
Afterwards every picture in the mmds file is compared with its file, byte by byte.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mmds
from benchmarks.machine import describe
from benchmarks.picture_folder import write_pictures
from benchmarks.processes import Run, run
from benchmarks.progress import progress

RATIO, PEAK = 1.3, 200 * 10**6  # what mmds promises: time against cp -r, bytes of memory
ROOM = 1.5  # small files take whole blocks
DROP_CACHES = Path("/proc/sys/vm/drop_caches")


def convert(source: Path, target: Path) -> Run:
    """Convert `source` to ``target.mmds``."""
    return run([sys.executable, "-m", "mmds", "convert", str(source), f"{target}.mmds", "-j2", "--no-progress"])


def copy(source: Path, target: Path) -> Run:
    """Copy `source`; much of the copy is in memory only when this returns."""
    return run(["cp", "-r", str(source), str(target)])


def copy_and_sync(source: Path, target: Path) -> Run:
    """Copy `source` to the disk."""
    return run(["sh", "-c", 'cp -r "$0" "$1" && sync -f "$1"', str(source), str(target)])


CONTENDERS: dict[str, Callable[[Path, Path], Run]] = {"cp": copy, "cp_sync": copy_and_sync, "mmds": convert}


def measure(source: Path, folder: Path, rounds: int, cold: bool) -> dict[str, list[Run]]:
    """Run each contender `rounds` times, after one round that does not count; the last file is then ``last.mmds``.

    Nothing is removed before the end: discarding the blocks of removed files keeps some disks busy for seconds.
    """
    order = random.Random(0)
    names = list(CONTENDERS)
    runs: dict[str, list[Run]] = {name: [] for name in names}
    work = folder / "work"
    work.mkdir()
    for number in progress(range(rounds + 1), "cold rounds" if cold else "warm rounds"):
        order.shuffle(names)
        for name in names:
            os.sync()  # so that nobody writes back what another one has left behind
            if cold:
                DROP_CACHES.write_text("1")
            else:
                run(["grep", "-rqF", "a text that no picture has", str(source)], expected=1)  # reads every byte
            result = CONTENDERS[name](source, work / f"{name}-{number}")
            if number:
                runs[name].append(result)
    (work / f"mmds-{rounds}.mmds").replace(folder / "last.mmds")
    shutil.rmtree(work)
    os.sync()
    return runs


def compare(source: Path, file: Path) -> int:
    """Compare every sample of `file` with the picture that it was made of; return how many there are."""
    reader = mmds.open(file, fields=("image", "label", "path"))
    classes = sorted(entry.name for entry in source.iterdir())
    expected = sorted(str(path.relative_to(source)) for path in source.rglob("*.jpg"))
    for (image, label, path), name in zip(progress(reader, "comparing"), expected, strict=True):
        if path != name or classes[label] != Path(name).parts[0] or image != (source / name).read_bytes():
            raise AssertionError(f"{file}: the sample for {name} is {path}, class {label}, or other bytes")
    return len(expected)


def summarize(runs: dict[str, list[Run]]) -> dict[str, float]:
    """Return the best and the median time of each, and ratios of the best: what else goes on only ever adds to a time."""
    best = {name: min(one.seconds for one in each) for name, each in runs.items()}
    return {
        "ratio_to_cp": best["mmds"] / best["cp"],
        "ratio_to_cp_sync": best["mmds"] / best["cp_sync"],
        **{f"{name}_seconds": value for name, value in best.items()},
        **{f"{name}_median_seconds": statistics.median(one.seconds for one in each) for name, each in runs.items()},
        "mmds_peak_bytes": max(one.peak_rss for one in runs["mmds"]),
    }


def report(figures: dict[str, dict[str, float]], about: dict[str, Any]) -> str:
    """Return the figures as a markdown table."""
    lines = [
        "| page cache | mmds : `cp -r` | mmds : `cp -r && sync` | `cp -r` | with sync | mmds | mmds, peak memory |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for cache, one in figures.items():
        times = [f"{one[f'{name}_seconds']:.2f} s ({one[f'{name}_median_seconds']:.2f})" for name in CONTENDERS]
        lines.append(
            f"| {cache} | {one['ratio_to_cp']:.2f} | {one['ratio_to_cp_sync']:.2f} | {' | '.join(times)} "
            f"| {one['mmds_peak_bytes'] / 10**6:.0f} MB |"
        )
    lines += [
        f"| target | ≤ {RATIO} | | | | | < {PEAK // 10**6} MB |",
        "",
        f"{about['pictures']:,} JPEG files, {about['bytes'] / 10**6:,.0f} MB in {about['folders']} class folders, "
        f"{about['real']:,} of them crops of photographs. Times: the best of {about['rounds']} rounds in turns, in brackets "
        f"the median; ratios are of the best. `mmds convert -j2` syncs its file. "
        f"All {about['compared']:,} pictures came out byte for byte.",
        *about["notes"],
        about["machine"],
    ]
    return "\n".join(lines)


def main(command_line: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="`mmds convert` of a folder of pictures against `cp -r`.")
    parser.add_argument("--count", type=int, default=20_000, help="generated pictures (default: 20000)")
    parser.add_argument("--real", type=int, default=1_000, help="crops of photographs beside them (default: 1000)")
    parser.add_argument("--classes", type=int, default=100, help="folders for the generated ones (default: 100)")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds (default: 3)")
    parser.add_argument("--cache", default="warm,cold", help="of these (default: warm,cold)")
    parser.add_argument(
        "--folder", type=Path, help="where to work, on the disk in question (default: the system's /tmp)"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    chosen = parser.parse_args(command_line)
    caches = chosen.cache.split(",")
    if (
        not set(caches) <= {"warm", "cold"}
        or min(chosen.count, chosen.real) < 0
        or min(chosen.rounds, chosen.classes) < 1
    ):
        parser.error("--cache warm,cold; --rounds and --classes from 1")
    notes = []
    if "cold" in caches and not os.access(DROP_CACHES, os.W_OK):
        caches.remove("cold")
        notes.append("Not measured with a cold cache: dropping the page cache takes root.")

    with tempfile.TemporaryDirectory(prefix="mmds-conversion-", dir=chosen.folder) as name:
        folder = Path(name)
        source = folder / "pictures"
        size = write_pictures(source, generated=chosen.count, real=chosen.real, classes=chosen.classes)
        room = ROOM * size * len(CONTENDERS) * (chosen.rounds + 1)
        if room > shutil.disk_usage(folder).free:
            parser.error(f"{folder} needs room for {room / 10**9:.1f} GB; use fewer --rounds or another --folder")
        figures = {}
        for cache in caches:
            figures[cache] = summarize(measure(source, folder, chosen.rounds, cache == "cold"))
        compared = compare(source, folder / "last.mmds") if figures else 0
        folders = sum(1 for _ in source.iterdir())
    about = {
        "pictures": chosen.count + chosen.real,
        "bytes": size,
        "folders": folders,
        "real": chosen.real,
        "rounds": chosen.rounds,
        "compared": compared,
        "notes": notes,
        "machine": describe("numpy", "simplejpeg"),
    }
    print(json.dumps({"figures": figures, **about}, indent=2) if chosen.json else report(figures, about))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
