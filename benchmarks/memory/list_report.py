"""What the measurements of held lists say: tables, and whether `mmds.share` keeps its promises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import mean
from typing import Any

from benchmarks.memory.list_epochs import Configuration, Measurement, Moment

MIB = 2**20
NAMES = {
    "list": "list of dicts",
    "deepcopy": "list, deep copy per access",
    "pickled": "list of pickled bytes",
    "numpy": "flat numpy bytes",
    "torch": "flat torch bytes",
    "share": "`mmds.share`",
    "mmds": "`.mmds` file",
    "empty": "*nothing*",
}
# What `share` has to keep within; of USS, bytes that a worker gains over both epochs
LIMITS = {"total": 1.1, "growth": 2 * 10**6, "pack": 1.5, "read": 1.5}


def holders_table(measurements: Sequence[Measurement]) -> str:
    """Return a row per way to hold the samples: a worker's memory and everybody's."""
    share = next(one for one in measurements if one.configuration.holder == "share").last.total
    lines = [
        "| held as | in one piece | USS of a worker: first batch → end | shared | PSS | all processes | : `share` |",
        "|:---|---:|---:|---:|---:|---:|---:|",
    ]
    for one in measurements:
        packed = "" if one.packed is None else f"{one.packed / MIB:.0f}"
        uss = f"{mean_of(one.first, 'uss'):.0f} → {mean_of(one.last, 'uss'):.0f}"
        lines.append(
            f"| {NAMES[one.configuration.holder]} | {packed} | {uss} "
            f"| {mean_of(one.last, 'shared'):.0f} | {mean_of(one.last, 'pss'):.0f} | {one.last.total / MIB:,.0f} "
            f"| {one.last.total / share:.2f} |"
        )
    return "\n".join(lines)


def methods_table(measurements: Sequence[Measurement]) -> str:
    """Return a row per way to hold the samples, and a column per start method and number of ranks."""
    found = by_key(measurements)
    columns = sorted({(method, ranks) for _, method, ranks in found}, key=order)
    rows = list(dict.fromkeys(holder for holder, _, _ in found))
    heads = [f"{method}, {ranks} rank{'s' * (ranks > 1)}" for method, ranks in columns]
    lines = [
        f"| held as | {' | '.join(heads)} |",
        f"|:---|{'---:|' * len(columns)}",
    ]
    for holder in rows:
        cells = []
        for column in columns:
            one, share = found.get((holder, *column)), found.get(("share", *column))
            ratio = f" ({one.last.total / share.last.total:.2f})" if one and share else ""
            cells.append(f"{one.last.total / MIB:,.0f}{ratio}" if one else "")
        lines.append(f"| {NAMES[holder]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def acceptance(measurements: Sequence[Measurement], times: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Return what of `share` has a limit, each as a figure and whether it is kept.

    "total" is everybody's memory, divided by the packed size and what all processes take that hold nothing, once the packed
    size counts 1.1 times: so the limit that it is compared with is 1. "growth" is by how much more the USS of a worker grows
    than that of a worker that holds nothing; "private", the same without pages that others will map as well.
    """
    found = {one.configuration: one for one in measurements}
    methods: dict[str, Any] = {}
    for configuration, one in found.items():
        if configuration.holder != "share":
            continue
        empty = found[replace(configuration, holder="empty")]
        assert one.packed is not None
        allowed = LIMITS["total"] * one.packed + empty.last.total
        uss, private = one.growth("uss"), one.growth("private")
        methods[_name(configuration)] = {
            "total": one.last.total,
            "packed": one.packed,
            "baseline_worker_pss": round(mean(worker.pss for worker in empty.last.workers)),
            "baseline_main_pss": empty.last.mains[0].pss,
            "total_by_allowed": one.last.total / allowed,
            "uss_growth": uss,
            "uss_growth_beyond_baseline": uss - empty.growth("uss"),
            "private_growth": private,
            "private_growth_beyond_baseline": private - empty.growth("private"),
            "kept": one.last.total <= allowed
            and max(uss - empty.growth("uss"), private - empty.growth("private")) < LIMITS["growth"],
        }
    pack, read = (times["pack"]["share"] / times["pack"]["pickle"], times["read"]["share"] / times["read"]["pickled"])
    return {
        "methods": methods,
        "pack": {"ratio": pack, "kept": pack <= LIMITS["pack"]},
        "read": {"ratio": read, "kept": read <= LIMITS["read"]},
    }


def acceptance_table(found: dict[str, Any]) -> str:
    """Return a row per start method, and a line about time."""
    lines = [
        "| `share`, started by | all processes | packed | a worker of nothing, PSS | : allowed | USS of a worker grows by "
        "| beyond one of nothing | copies of its own, beyond one of nothing | |",
        "|:---|---:|---:|---:|---:|---:|---:|---:|:---|",
    ]
    for name, one in found["methods"].items():
        lines.append(
            f"| {name} | {one['total'] / MIB:,.0f} | {one['packed'] / MIB:.0f} | {one['baseline_worker_pss'] / MIB:.0f} "
            f"| {one['total_by_allowed']:.3f} | {one['uss_growth'] / MIB:+.1f} "
            f"| {one['uss_growth_beyond_baseline'] / MIB:+.1f} "
            f"| {one['private_growth_beyond_baseline'] / MIB:+.1f} | {_kept(one)} |"
        )
    return "\n".join(lines)


def times_table(times: dict[str, dict[str, float]], found: dict[str, Any]) -> str:
    """Return packing and reading, and what they are of `pickle`'s time."""
    pack, read = times["pack"], times["read"]
    lines = [
        "| | pack all, s | : `pickle.dumps(list)` | read one, µs | : `pickle.loads` |",
        "|:---|---:|---:|---:|---:|",
        f"| `pickle` | {pack['pickle']:.2f} | 1.00 | {read['pickled'] * 1e6:.1f} | 1.00 |",
    ]
    for name in ("deepcopy", "numpy", "torch", "share", "mmds"):
        packed = f"{pack[name]:.2f} | {pack[name] / pack['pickle']:.2f}" if name in pack else " | "
        lines.append(
            f"| {NAMES[name]} | {packed} | {read[name] * 1e6:.1f} | {read[name] / read['pickled']:.2f} |",
        )
    return "\n".join([*lines, "", f"`share`: packing {_kept(found['pack'])}, reading {_kept(found['read'])}."])


def by_key(measurements: Sequence[Measurement]) -> dict[tuple[str, str, int], Measurement]:
    """Return measurements by holder, start method and number of ranks."""
    return {(one.configuration.holder, one.configuration.method, one.configuration.ranks): one for one in measurements}


def order(column: tuple[str, int]) -> tuple[int, int]:
    """Return where a start method and a number of ranks belong."""
    return ("fork", "spawn", "forkserver").index(column[0]), column[1]


def _name(configuration: Configuration) -> str:
    return configuration.method + ", after `gc.freeze()`" * configuration.frozen


def _kept(found: dict[str, Any]) -> str:
    return "kept" if found["kept"] else "**missed**"


def mean_of(moment: Moment, what: str) -> float:
    """Return the mean of the workers' "uss", "shared" or "pss" in MiB."""
    return float(mean(getattr(worker, what) for worker in moment.workers)) / MIB
