"""The figures of ``python -m benchmarks.scale`` as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.scale.epochs import BATCH, Epoch
from benchmarks.scale.opened import Opened
from benchmarks.scale.plans import Plan


def report(
    plans: Sequence[Plan],
    measured: Mapping[str, Opened],
    simulated: Mapping[str, Sequence[Epoch]],
    mixes: Mapping[str, Mapping[int, tuple[float, float]]],
    circumstances: str,
) -> str:
    """Return markdown."""
    head = [f"| | {' | '.join(plan.name for plan in plans)} |", "|---|" + "---:|" * len(plans)]
    opened = [measured[plan.name] for plan in plans]
    rows: dict[str, list[str]] = {
        "samples": [f"{plan.n:,}" for plan in plans],
        "shards": [f"{plan.shards:,} of {plan.shard_bytes / 1e9:.2f} GB" for plan in plans],
        "`dataset.json`": [f"{found.manifest_bytes / 1e6:.2f} MB" for found in opened],
        "open it, and read a sample": [f"{found.open_seconds:.3f} s" for found in opened],
        "private memory of that": [f"{found.open_private / 1e6:.1f} MB" for found in opened],
        "at most, while it opens": [f"{found.open_peak / 1e6:.1f} MB" for found in opened],
        "open one more shard": [f"{found.shard_seconds * 1e6:.0f} µs" for found in opened],
        "private memory of an open shard": [f"{found.shard_private / 1e3:.1f} kB" for found in opened],
        "shards mapped, at most": [f"{found.most_maps}" for found in opened],
        "file descriptors, at most": [f"{found.most_descriptors}" for found in opened],
        "index, in the page cache only": [f"{found.index_per_sample:.1f} B per sample" for found in opened],
        f"{BATCH} samples of all shards": [f"{found.scattered_seconds * 1e3:.0f} ms" for found in opened],
        f"{BATCH} samples of 32 open shards": [f"{found.near_seconds * 1e3:.0f} ms" for found in opened],
        "read per byte, asked ahead": [f"{found.asked_share:.2f}" for found in opened],
        "read per byte, not asked": [f"{found.plain_share:.1f}" for found in opened],
    }
    lines = ["Measured, on files with holes:", "", *head]
    lines += [f"| {what} | {' | '.join(found)} |" for what, found in rows.items()]
    lines += ["", "Simulated, an epoch of one host:", ""]
    lines += ["| | | GETs | TB | first batch | hours | GETs cost |", "|---|---|---:|---:|---:|---:|---:|"]
    for plan in plans:
        for epoch in simulated[plan.name]:
            lines.append(
                f"| {plan.name} | {epoch.way} | {_count(epoch.requests)} | {_round(epoch.bytes / 1e12)} | "
                f"{_round(epoch.first_batch)} s | {_round(epoch.hours)} | ${epoch.cost:,.2f} |"
            )
    lines += [
        "",
        f"How well it mixes: shards in a batch of {BATCH}, and of 1,000 labels in a dataset sorted by label:",
        "",
    ]
    caches = list(next(iter(mixes.values())))
    lines += ["| cache | " + " | ".join(f"{gb} GB" for gb in caches) + " |", "|---|" + "---:|" * len(caches)]
    for plan in plans:
        found = mixes[plan.name].values()
        lines.append(f"| {plan.name} | " + " | ".join(f"{shards:.0f}, {labels:.0f}" for shards, labels in found) + " |")
    return "\n".join([*lines, "", circumstances])


def _round(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _count(value: float) -> str:
    return f"{value:,.0f}" if value < 1e7 else f"{value / 1e6:,.0f} million"
