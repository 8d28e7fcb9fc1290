"""Two pictures of memory: what is a process's own, and its part of what processes share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.memory.list_epochs import Measurement
from benchmarks.memory.list_report import MIB, by_key, mean_of, order

OWN, SHARED = "#D55E00", "#56B4E9"  # Okabe and Ito's, which colour-blind people can tell apart
PALE_OWN, PALE_SHARED = "#F2C4A3", "#C9E6F8"
FLOOR = "#000000"
LABELS = {
    "list": "list",
    "deepcopy": "list, deep copy\nper access",
    "pickled": "pickled bytes\nper sample",
    "numpy": "flat\nnumpy",
    "torch": "flat\ntorch",
    "share": "mmds\n.share",
    "mmds": ".mmds\nfile",
}


def plot_holders(measurements: Sequence[Measurement], path: Path) -> None:
    """Draw the mean worker of each way to hold the samples, at both moments: its own memory, and its part of the shared."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    measured = [one for one in measurements if one.configuration.holder != "empty"]
    [empty] = [one for one in measurements if one.configuration.holder == "empty"]
    figure, axes = plt.subplots(figsize=(7.6, 4), layout="constrained")
    for place, one in enumerate(measured):
        moments = (-0.2, one.first, PALE_OWN, PALE_SHARED), (0.2, one.last, OWN, SHARED)
        for shift, moment, own, shared in moments:
            uss, pss = mean_of(moment, "uss"), mean_of(moment, "pss")
            axes.bar(place + shift, uss, 0.36, color=own)
            axes.bar(place + shift, pss - uss, 0.36, bottom=uss, color=shared)
            axes.annotate(f"{pss:.0f}", (place + shift, pss), (0, 2), textcoords="offset points", ha="center", size=8)
    axes.axhline(mean_of(empty.last, "pss"), color=FLOOR, linestyle=":", linewidth=1.2)
    _legend(axes, "a worker that holds nothing")
    axes.set_xticks(range(len(measured)), [LABELS[one.configuration.holder] for one in measured])
    axes.tick_params(axis="x", length=0)
    _bare(axes)
    about = measured[0].configuration
    axes.set_ylabel("memory of a worker (PSS, MiB)")
    axes.set_title(
        f"{about.samples:,} annotations, a DataLoader with {about.workers} workers ({about.method})\n"
        "left, pale: at the first batch; right: after two epochs",
        size=10,
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)


def plot_methods(measurements: Sequence[Measurement], path: Path) -> None:
    """Draw all processes together, a panel per start method: each way to hold the samples, with 1 rank and with 2."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    found = by_key(measurements)
    methods = sorted({method for _, method, _ in found}, key=lambda method: order((method, 0)))
    ranks = sorted({count for _, _, count in found})
    holders = [holder for holder in dict.fromkeys(holder for holder, _, _ in found) if holder != "empty"]
    figure, panels = plt.subplots(
        1, len(methods), figsize=(4 * len(methods), 4.2), sharey=True, squeeze=False, layout="constrained"
    )
    for axes, method in zip(panels[0], methods, strict=True):
        ticks: dict[float, str] = {}
        for place, holder in enumerate(holders):
            for position, count in enumerate(ranks):
                at = place + 0.4 * (position - (len(ranks) - 1) / 2)
                ticks[at] = str(count)
                if (holder, method, count) not in found:
                    continue
                last = found[holder, method, count].last
                uss = sum(process.uss for process in (*last.mains, *last.workers)) / MIB
                axes.bar(at, uss, 0.36, color=OWN)
                axes.bar(at, last.total / MIB - uss, 0.36, bottom=uss, color=SHARED)
                empty = found.get(("empty", method, count))
                if empty:
                    axes.hlines(empty.last.total / MIB, at - 0.2, at + 0.2, FLOOR, ":", linewidth=1.2)
            below = axes.get_xaxis_transform()
            axes.text(place, -0.075, LABELS[holder], transform=below, ha="center", va="top", size=9)
        axes.set_xticks(list(ticks), list(ticks.values()), size=8)
        axes.tick_params(axis="x", length=0)
        axes.set_title(method, size=11)
        _bare(axes)
    panels[0][0].text(-0.015, -0.02, "ranks", transform=panels[0][0].transAxes, ha="right", va="top", size=8)
    panels[0][0].set_ylabel("memory of all processes (PSS, MiB)")
    _legend(panels[0][0], "the same processes, holding nothing")
    about = measurements[0].configuration
    figure.suptitle(
        f"{about.samples:,} annotations after two epochs, in 1 rank and in 2, with {about.workers} workers each",
        size=11,
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _legend(axes: Any, floor: str) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    marks = [
        Patch(color=SHARED, label="part of what processes share (PSS − USS)"),
        Patch(color=OWN, label="own memory (USS)"),
        Line2D([], [], color=FLOOR, linestyle=":", label=floor),
    ]
    axes.legend(handles=marks, fontsize=8, frameon=False, loc="upper left" if "same" in floor else "upper right")


def _bare(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    axes.margins(y=0.12)
