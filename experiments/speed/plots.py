"""The pictures of the benchmark: the time of other layers relative to ours, and of all relative to the arithmetic."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.harness.plots import CELLS, WIDTH, digest_of, figure_of, save
from experiments.speed.tables import Times
from mgu_jax.extras import require

LIBRARIES = {"flax": "o", "equinox": "s", "haiku": "D", "keras": "^", "torch": "v"}  # and their marks


def _label(name: str) -> str:
    """Library and cell, such as "Flax GRU"."""
    return "mgu_jax MGU" if name == "MGU" else (name[0].upper() + name[1:]).replace("Torch", "PyTorch")


def _by_size(axes: Any, sizes: list[tuple[int, ...]], text: str) -> None:
    axes.set(yscale="log", ylabel=text, xlabel="B, T, D, H (batch, time steps, features, units)")
    labels = [", ".join(map(str, size)) for size in sizes]
    axes.set_xticks(range(len(labels)), labels, rotation=25, ha="right")
    axes.yaxis.set_minor_locator(require("matplotlib.ticker", "experiments").LogLocator(subs=(2, 3, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.tick_params(axis="y", which="both", labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def _quartiles(rows: list[dict[str, Any]]) -> np.ndarray:
    """How far the quartiles of the rounds lie below and above their median, relative to it, [2, N]."""
    return np.array([[(row["ms"] - row["low"]) / row["ms"], (row["high"] - row["ms"]) / row["ms"]] for row in rows]).T


def ratios(path: Path, rows: list[dict[str, Any]]) -> bool:
    """The time of each peer relative to our MGU's, by size; the bars are the quartiles of the rounds.

    Returns whether there is a picture; there is none if no peer was measured.
    """
    times = Times(rows)
    names = [name for name, devices in times.columns if devices == 1 and name.split()[0] in LIBRARIES]
    if not names:
        return False
    figure, axes = figure_of(1, 2, figsize=(WIDTH, 3.4), sharey=True)
    titles = {"forward": "forward pass", "both": "training step (forward and backward)"}
    for panel, (which, title) in zip(axes, titles.items(), strict=True):
        for i, name in enumerate(names):
            library, cell = name.split()
            colour = CELLS["flax-mgu" if cell == "MGU" else cell.lower()][0]
            marker = LIBRARIES[library]
            points = [(j, times.row(size, name, which)) for j, size in enumerate(times.sizes)]
            points = [(j + 0.08 * (i - len(names) / 2), row) for j, row in points if row]
            x, y = [j for j, _ in points], np.array([row["times_ours"] for _, row in points])
            bars = y * _quartiles([row for _, row in points])
            panel.errorbar(
                x,
                y,
                bars,
                color=colour,
                marker=marker,
                linestyle="none",
                label=_label(name),
                markersize=4,
                elinewidth=0.8,
            )
        panel.axhline(1, color="black", linewidth=0.8)
        _by_size(panel, times.sizes, "time relative to mgu_jax's MGU" if which == "forward" else "")
        panel.set(title=title)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    save(figure, path, digest(rows))
    return True


def arithmetic(path: Path, rows: list[dict[str, Any]]) -> bool:
    """The time of a training step divided by that of the MGU's multiply-adds, by size and devices.

    The multiply-adds are taken at the best rate of the run; the bars are the quartiles of the rounds. The marks of two
    devices are hollow and beside those of one. Returns true, since our own layer is always measured.
    """
    times = Times(rows)
    figure, axes = figure_of(figsize=(WIDTH, 3.6))
    for name, cell in (("MGU", "mgu"), ("flax MGU", "flax-mgu"), ("flax GRU", "gru")):
        colour, marker = CELLS[cell]
        for devices, line in ((1, "-"), (2, ":")):
            found = [(j, times.row(size, name, "both", devices)) for j, size in enumerate(times.sizes)]
            if points := [(j, row) for j, row in found if row]:
                text = f"{_label(name)}, {devices} device{'s' if devices > 1 else ''}"
                ratios = np.array([times.beside_arithmetic(times.sizes[j], devices, name) for j, _ in points])
                bars = ratios * _quartiles([row for _, row in points])
                fill = colour if devices == 1 else "white"
                look = {"color": colour, "marker": marker, "markersize": 4, "elinewidth": 0.8, "label": text}
                x = [j + 0.06 * (devices - 1) for j, _ in points]
                axes.errorbar(x, ratios, bars, linestyle=line, markerfacecolor=fill, **look)
    axes.axhline(1, color="black", linewidth=0.8)
    _by_size(axes, times.sizes, "training step ÷ the MGU's multiply-adds\nat the machine's best rate")
    axes.legend(frameon=False, ncols=2)
    save(figure, path, digest(rows))
    return True


# Name of the file, after "benchmark_" -> what draws it.
PICTURES: dict[str, Callable[[Path, list[dict[str, Any]]], bool]] = {"ratios": ratios, "arithmetic": arithmetic}


def digest(rows: list[dict[str, Any]]) -> str:
    """Of all that the pictures show; each holds it, so that an outdated picture is noticed."""
    return digest_of([row for row in rows if row["part"] == "time"])
