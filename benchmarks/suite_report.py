"""What `python -m benchmarks` prints: one table of ratios per workload, and bar charts of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.suite_measure import FLOORS, METRICS

BYTES = {"size", "memory", "pickle"}
NONE = "–"


def amount(metric: str, value: float) -> str:
    """Return a figure with its unit.

    >>> amount("single", 3.21e-6), amount("cold", 0.5), amount("size", 113_246_208), amount("pickle", 309)
    ('3.2 µs', '500 ms', '113 MB', '309 B')
    """
    units: Iterable[tuple[float, str]] = (
        ((1, "B"), (1e-3, "KB"), (1e-6, "MB")) if metric in BYTES else ((1e6, "µs"), (1e3, "ms"), (1, "s"))
    )
    factor, unit = next(((f, u) for f, u in units if value * f < 999.5), (1e-9, "GB") if metric in BYTES else (1, "s"))
    scaled = value * factor
    return f"{scaled:.2g} {unit}" if scaled < 100 else f"{scaled:.0f} {unit}"


def ratio(value: float) -> str:
    """Return a ratio with no more digits than it deserves.

    >>> ratio(0.973), ratio(12.34), ratio(1234.5)
    ('0.97', '12.3', '1234')
    """
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def table(result: dict[str, Any], peers: list[str]) -> list[str]:
    """Return the lines of one workload: mmds with its figures, then each peer's ratio to mmds (or to the best peer)."""
    figures, floors = result["figures"], result["floors"]
    metrics = [metric for metric in METRICS if figures.get(metric)]
    base = {
        metric: figures[metric].get("mmds") or min(value for value in figures[metric].values() if value)
        for metric in metrics
    }
    footnotes: dict[str, int] = {}

    def cell(name: str, metric: str) -> str:
        value = figures[metric].get(name)
        if value is not None:
            return ratio(value / base[metric])
        reasons = result["notes"].get(name, {})
        reason = reasons.get("write") or reasons.get(metric) or reasons.get("first" if metric == "memory" else "single")
        if not reason:
            return NONE
        return f"{NONE} [{footnotes.setdefault(reason, len(footnotes) + 1)}]"

    lines = [
        f"| | {' | '.join(METRICS[metric] for metric in metrics)} |",
        "|---|" + "---:|" * len(metrics),
        f"| *1.00 is* | {' | '.join(amount(metric, base[metric]) for metric in metrics)} |",
    ]
    lines += [f"| {name} | {' | '.join(cell(name, metric) for metric in metrics)} |" for name in peers]
    floor = [ratio(floors[metric] / base[metric]) if metric in floors else "" for metric in metrics]
    lines += [f"| *floor* | {' | '.join(floor)} |", ""]
    lines += [f"[{number}] {' '.join(reason.split())[:160]}  " for reason, number in footnotes.items()]
    return lines


def fastest(result: dict[str, Any]) -> list[str]:
    """Return a line for each metric in which somebody else is clearly ahead of mmds."""
    lines = []
    for metric, by_peer in result["figures"].items():
        own, best = by_peer.get("mmds"), min(by_peer, key=by_peer.__getitem__, default=None)
        if own and best is not None and by_peer[best] < 0.95 * own:
            lines.append(f"{METRICS[metric]}: {best} needs {ratio(by_peer[best] / own)} of what mmds does")
    return lines


def report(results: dict[str, Any], about: dict[str, Any]) -> str:
    """Return everything as markdown."""
    lines = []
    for name, result in results.items():
        lines += [f"### {name}: {result['samples']:,} x {result['title']}, {result['bytes'] / 1e6:.0f} MB", ""]
        lines += table(result, about["peers"])
        lines += ["", *(f"Ahead of mmds: {line}  " for line in fastest(result)), ""]
    workers = about["effort"]["workers"]
    lines += [
        "Ratios to mmds (where it has no figure, to the fastest): above 1, a library takes longer, or more bytes. Medians; "
        "each library in processes of its own, which take turns; seeded samples; every byte read and compared before.",
        "write: to the disk, with sync. size: of all files. open, single, batch: warm page cache, not decoded, into memory of "
        f"their own. DataLoader: an epoch, shuffled, 2 workers; own loader: an epoch of the library's own, 2 threads or "
        f"processes; jpeg is decoded (simplejpeg) and cropped to 224 x 224 in both. first batch: import, open and start 2 "
        f"workers; torch is loaded before. memory: PSS of all processes with {workers} workers. pickle: of the dataset. cold "
        "batch: open and read one, after the page cache was dropped.",
        "Floors: " + "; ".join(f"{METRICS[metric]}: {what}" for metric, what in FLOORS.items())
        + " (copies as many bytes in one piece; sends one constant tensor through a DataLoader; as many random reads past the "
        "page cache, 32 at a time).",
        *about["notes"], "", *(f"{name}: {how}  " for name, how in about["how"].items()), "", about["machine"],
    ]  # fmt: skip
    return "\n".join(lines)


def plot(results: dict[str, Any], about: dict[str, Any], folder: Path) -> list[Path]:
    """Draw a chart per workload, a panel per metric, with logarithmic axes; return the files."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for workload, result in results.items():
        metrics = [metric for metric in METRICS if result["figures"].get(metric)]
        if not metrics:
            continue
        rows = -(-len(metrics) // 4)
        figure, axes = plt.subplots(rows, 4, figsize=(14, 3.2 * rows), squeeze=False, layout="constrained")
        for axis in axes.flat[len(metrics) :]:
            axis.set_visible(False)
        for axis, metric in zip(axes.flat, metrics, strict=False):
            by_peer = result["figures"][metric]
            names = sorted(by_peer, key=by_peer.__getitem__, reverse=True)
            unit = 1e6 if metric in BYTES else 1e-3
            colours = ["#c0392b" if name == "mmds" else "#7f8c8d" for name in names]
            axis.barh(names, [by_peer[name] / unit for name in names], color=colours)
            axis.set_xscale("log")
            axis.xaxis.set_minor_formatter("")
            axis.set_title(f"{METRICS[metric]}, {'MB' if metric in BYTES else 'ms'}", fontsize=9)
            axis.tick_params(labelsize=7)
            if metric in result["floors"]:
                axis.axvline(result["floors"][metric] / unit, color="black", linestyle=":", linewidth=1)
        figure.suptitle(
            f"{workload}: {result['samples']:,} x {result['title']} (shorter is better; dotted: floor)", fontsize=10
        )
        path = folder / f"peers-{workload}.png"
        figure.savefig(path, dpi=110)
        plt.close(figure)
        written.append(path)
    return written
