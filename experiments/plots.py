"""The pictures that experiments draw, with matplotlib and without a screen."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import lax

import mgu_jax as mgu
from experiments.tables import Times
from mgu_jax.extras import require

# Okabe and Ito's palette, safe for the colour-blind.
BLUE, ORANGE = "#0072B2", "#D55E00"
LIBRARIES = {"flax": "o", "equinox": "s", "haiku": "D", "keras": "^", "torch": "v"}  # and their marks


def _figure(*shape: int, **options: Any) -> Any:
    require("matplotlib", "experiments").use("Agg")
    return require("matplotlib.pyplot", "experiments").subplots(*shape, layout="constrained", **options)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=150)
    require("matplotlib.pyplot", "experiments").close(figure)


def _over_steps(axes: Any, rows: list[dict[str, Any]], name: str, factor: float, **look: Any) -> None:
    """The mean over the seeds by step, and the range between the seeds where there are several."""
    steps = [row["step"] for row in rows]
    axes.plot(steps, factor * np.array([row[name] for row in rows], float), marker=".", **look)  # None is NaN
    each = factor * np.array([row[f"{name}_per_seed"] for row in rows], float)
    if rows and each.shape[1] > 1:
        low, high = np.nanmin(each, 1), np.nanmax(each, 1)
        axes.fill_between(steps, low, high, color=look["color"], alpha=0.2, linewidth=0)


def _factor(measure: Any) -> int:
    return 100 if measure.name == "accuracy" else 1


def _scale(axes: Any, measure: Any, of: str, split: str = "test") -> None:
    """Label and scale of the axis "x" or "y" that shows a measure, times its factor."""
    percent = " (%)" if measure.name == "accuracy" else ""
    scale = "log" if measure.name == "squared_error" else "linear"
    axes.set(**{f"{of}label": f"{split} {measure.label}{percent}", f"{of}scale": scale})
    axes.spines[["top", "right"]].set_visible(False)


def learning_curve(path: Path, metrics: list[dict[str, Any]], title: str, measure: Any) -> None:
    """Loss, and a ``Measure`` of what was watched, over the optimiser's steps, from the lines of metrics.jsonl."""
    figure, (left, right) = _figure(1, 2, figsize=(8, 3))
    watched = [row for row in metrics if row["split"] != "train"]
    split = watched[-1]["split"] if watched else "test"
    for name, colour in (("train", BLUE), (split, ORANGE)):
        _over_steps(left, [row for row in metrics if row["split"] == name], "loss", 1, color=colour, label=name)
    loss = "squared error" if measure.name == "squared_error" else "cross entropy (nats)"
    left.set(xlabel="optimiser step", ylabel=loss, yscale="log")
    left.legend(frameon=False)
    left.spines[["top", "right"]].set_visible(False)
    _over_steps(right, watched, measure.name, _factor(measure), color=ORANGE)
    right.set(xlabel="optimiser step")
    _scale(right, measure, "y", split)
    if watched:
        right.set_title(f"{measure.shown.format(watched[-1][measure.name])} at the end", fontsize=10)
    figure.suptitle(title)
    _save(figure, path)


# The same cell in the same colour and mark everywhere: (colour, mark).
CELLS = {
    "mgu": (ORANGE, "o"),
    "gru": (BLUE, "s"),
    "lstm": ("#009E73", "D"),
    "flax-mgu": ("#CC79A7", "^"),
    "reset-after-mgu": ("#E69F00", "v"),
    "ugrnn": ("#56B4E9", "P"),
    "mgu1": (ORANGE, "X"),
    "mgu2": (ORANGE, "*"),
    "mgu3": (ORANGE, "d"),
    "diagonal-mgu": ("#000000", "o"),
    "min-gru": ("#000000", "s"),
    "linen-mgu": ("#CC79A7", "s"),
}


def _seeds(axes: Any, row: dict[str, Any], i: int, measure: Any, across: bool) -> None:
    """A mark for each seed of a run, and a line at their mean; runs are rows, or columns where ``across``."""
    colour, mark = CELLS[row["cell"]]
    each = _factor(measure) * np.array(row[f"{measure.name}_per_seed"], float)
    points = (each, np.full(len(each), i))
    mean = ([_factor(measure) * row[measure.name]] * 2, [i - 0.3, i + 0.3])
    turn = -1 if across else 1
    axes.plot(*points[::turn], mark, color=colour, alpha=0.6, markersize=5, linestyle="none")
    axes.plot(*mean[::turn], color=colour, linewidth=2)


def seeds_of_cells(path: Path, results: dict[str, list[dict[str, Any]]], measure_of: Any, label: Any) -> None:
    """A panel an experiment of several runs, a row a run with its label: a mark for each seed, a line at their mean."""
    results = {name: rows for name, rows in results.items() if len(rows) > 1} or results
    count = len(results)
    columns = min(2, count)
    shape = (-(-count // columns), columns)
    runs = list(map(len, results.values()))
    heights = [0.22 * max(runs[i : i + columns]) + 1.2 for i in range(0, count, columns)]
    size = (5.6 * columns, sum(heights))
    figure, panels = _figure(*shape, figsize=size, height_ratios=heights, squeeze=False)
    for axes, (name, rows) in zip(panels.flat, results.items(), strict=False):
        measure = measure_of(rows[0])
        for i, row in enumerate(rows):
            _seeds(axes, row, i, measure, across=False)
        axes.set_yticks(range(len(rows)), map(label, rows), fontsize=8)
        axes.set(ylim=(len(rows) - 0.5, -0.5), title=name)
        axes.title.set_fontsize(10)
        _scale(axes, measure, "x")
    for axes in list(panels.flat)[count:]:
        axes.set_visible(False)
    _save(figure, path)


def seeds_of_ways(path: Path, found: dict[str, dict[Any, dict[str, Any]]], ways: Any, measure_of: Any) -> None:
    """A panel a task, a column a way to do it: a mark for each seed, a line at their mean."""
    figure, panels = _figure(1, len(found), figsize=(2.6 * len(found), 2.8), squeeze=False)
    for axes, (task, of_task) in zip(panels[0], found.items(), strict=True):
        measure = measure_of(next(iter(of_task.values())))
        for i, way in enumerate(ways):
            if way in of_task:
                _seeds(axes, of_task[way], i, measure, across=True)
        axes.set_xticks(range(len(ways)), [way.label for way in ways], rotation=45, ha="right", fontsize=8)
        axes.set(xlim=(-0.5, len(ways) - 0.5), title=task.replace(" --", "\n"))
        axes.title.set_fontsize(9)
        _scale(axes, measure, "y")
    _save(figure, path)


def sentence_and_gates(path: Path, gates: np.ndarray, symbols: list[str]) -> None:
    """How much each unit overwrites while a sentence is read, gates [T, H], and the mean over the units above it."""
    order = gates.mean(0).argsort()
    width = max(4.0, 0.16 * len(symbols))
    figure, (top, bottom) = _figure(2, 1, figsize=(width, 4.2), height_ratios=(1, 2.5), sharex=True)
    top.bar(range(len(symbols)), gates.mean(1), color=ORANGE)
    top.set(ylabel="mean gate", ylim=(0, None))
    top.spines[["top", "right"]].set_visible(False)
    image = bottom.imshow(gates[:, order].T, cmap="viridis", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    bottom.set_xticks(range(len(symbols)), [{"\n": "\\n", " ": "_"}.get(s, s) for s in symbols], fontsize=8)
    bottom.set(xlabel="character read", ylabel="hidden unit, sorted")
    figure.colorbar(image, ax=bottom, label="gate f (1 overwrites)", location="bottom", fraction=0.08)
    _save(figure, path)


def loss_per_time_step(path: Path, curves: dict[int, np.ndarray]) -> None:
    """The loss of every time step, one line an iteration (iteration -> [T])."""
    figure, axes = _figure(figsize=(4.5, 3))
    for (iteration, curve), colour in zip(curves.items(), (ORANGE, BLUE), strict=False):
        axes.plot(range(1, len(curve) + 1), curve, color=colour, marker=".", label=f"iteration {iteration}")
    axes.set(xlabel="time step", ylabel="squared error, mean over the batch", ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    _save(figure, path)


def gate_activity(params: mgu.Params, xs: Any, cell: mgu.Cell = mgu.MGU) -> np.ndarray:
    """How much every step overwrites the state, [T, ..., H]: f, or 1 - f of a cell with Flax's sign."""
    h0 = jax.numpy.zeros((*xs.shape[1:-1], params.b_h.shape[0]), params.W_h.dtype)

    def body(h: Any, x: Any) -> Any:
        h, residuals = mgu.step_forward(params, h, x, cell=cell)
        return h, residuals.gates.f

    f = np.asarray(lax.scan(body, h0, xs)[1])
    return f if cell.update == "f" else 1 - f


def digits_and_gates(
    path: Path, model: mgu.Model, params: mgu.ModelParams, data: mgu.Data, cell: mgu.Cell = mgu.MGU, count: int = 6
) -> None:
    """Some digits beside the model's prediction and its forget gate, row of pixels by row of pixels.

    The last two are wrong predictions, where there are any. Units are sorted by how open their gate is on average.
    """
    xs = np.asarray(data.xs[:1000])
    logits = np.asarray(jax.jit(model.apply)(params, xs.swapaxes(0, 1)))
    guesses, targets = logits.argmax(-1), np.asarray(data.targets[: len(xs)])
    right, wrong = np.flatnonzero(guesses == targets), np.flatnonzero(guesses != targets)[:2]
    shown = [*right[: count - len(wrong)], *wrong][:count]
    gates = gate_activity(params.layers[0], xs[shown].swapaxes(0, 1), cell)
    order = gates.mean((0, 1)).argsort()

    figure, axes = _figure(2, len(shown), figsize=(1.6 * len(shown), 4.2), height_ratios=(1, 1.3), squeeze=False)
    image = None
    for i, sample in enumerate(shown):
        top, bottom = axes[:, i]
        top.imshow(xs[sample], cmap="gray_r", vmin=0, vmax=1)
        good = guesses[sample] == targets[sample]
        top.set_title(f"says {guesses[sample]}, is {targets[sample]}", fontsize=9, color=BLUE if good else ORANGE)
        top.set(xticks=[], yticks=[])
        image = bottom.imshow(
            gates[:, i, order], cmap="viridis", vmin=0, vmax=1, aspect="auto", interpolation="nearest"
        )
        bottom.set(yticks=[] if i else range(0, len(gates), max(1, len(gates) // 4)))
    axes[0, 0].set_ylabel("row of pixels")
    axes[1, 0].set_ylabel("time step (row read)")
    figure.supxlabel("hidden unit, sorted by the mean of its gate", fontsize=10)
    if image is not None:
        figure.colorbar(image, ax=axes[1], label="gate f (1 overwrites)")
    _save(figure, path)


def _by_size(axes: Any, sizes: list[tuple[int, ...]], text: str) -> None:
    axes.set(yscale="log", ylabel=text, xlabel="B, T, D, H")
    labels = [", ".join(map(str, size)) for size in sizes]
    axes.set_xticks(range(len(labels)), labels, rotation=20, ha="right", fontsize=8)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.tick_params(axis="y", which="both", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def ratios(path: Path, rows: list[dict[str, Any]]) -> None:
    """How many times as long as our MGU each peer takes, by size; the quartiles of the rounds as bars."""
    times = Times(rows)
    names = [name for name, devices in times.columns if devices == 1 and name.split()[0] in LIBRARIES]
    figure, axes = _figure(1, 2, figsize=(10, 4), sharey=True)
    titles = {"forward": "forward", "both": "forward and backward"}
    for panel, (which, title) in zip(axes, titles.items(), strict=True):
        for i, name in enumerate(names):
            library, cell = name.split()
            colour = CELLS["flax-mgu" if cell == "MGU" else cell.lower()][0]
            marker = LIBRARIES[library]
            points = [(j, times.row(size, name, which)) for j, size in enumerate(times.sizes)]
            points = [(j + 0.08 * (i - len(names) / 2), row) for j, row in points if row]
            x, y = [j for j, _ in points], np.array([row["times_ours"] for _, row in points])
            bars = (
                np.array([[(r["ms"] - r["low"]) / r["ms"], (r["high"] - r["ms"]) / r["ms"]] for _, r in points]).T * y
            )
            panel.errorbar(
                x, y, bars, color=colour, marker=marker, linestyle="none", label=name, markersize=5, elinewidth=1
            )
        panel.axhline(1, color="black", linewidth=0.8)
        _by_size(panel, times.sizes, "time, in that of mgu_jax's MGU" if which == "forward" else "")
        panel.set(title=title)
    if names:
        axes[0].legend(frameon=False, fontsize=8, ncols=2)
    _save(figure, path)


def distance_to_the_floor(path: Path, rows: list[dict[str, Any]]) -> None:
    """Forward and backward in units of the arithmetic's own time at the best rate of the run, by size and devices."""
    times = Times(rows)
    figure, axes = _figure(figsize=(6.5, 4))
    for name, cell in (("MGU", "mgu"), ("flax MGU", "flax-mgu"), ("flax GRU", "gru")):
        colour, marker = CELLS[cell]
        for devices, line in ((1, "-"), (2, ":")):
            floors = [times.floors(size, devices, name) for size in times.sizes]
            points = [(j, floor) for j, floor in enumerate(floors) if not np.isnan(floor)]
            if points:
                text = f"{'mgu_jax ' if name == 'MGU' else ''}{name}, {devices} device{'s' if devices > 1 else ''}"
                axes.plot(*zip(*points, strict=True), line, color=colour, marker=marker, markersize=5, label=text)
    axes.axhline(1, color="black", linewidth=0.8)
    _by_size(axes, times.sizes, "time, in that of the MGU's multiply-adds")
    axes.legend(frameon=False, fontsize=8)
    _save(figure, path)


def surface(path: Path, scores: np.ndarray, rates: np.ndarray, biases: np.ndarray) -> None:
    """Accuracy over learning rate and forget bias, scores [rates, biases, seeds]: mean and range."""
    figure, axes = _figure(figsize=(1.4 * len(biases) + 2, 0.8 * len(rates) + 1.4))
    means = 100 * scores.mean(-1)
    image = axes.imshow(means, cmap="viridis", aspect="auto")
    for i, j in np.ndindex(means.shape):
        low, high = 100 * scores[i, j].min(), 100 * scores[i, j].max()
        dark = means[i, j] < (means.min() + means.max()) / 2
        text = f"{means[i, j]:.1f}\n{low:.1f} to {high:.1f}"
        axes.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
    axes.set_xticks(range(len(biases)), [f"{bias:g}" for bias in biases])
    axes.set_yticks(range(len(rates)), [f"{rate:g}" for rate in rates])
    axes.set(xlabel="forget bias, at the start", ylabel="learning rate")
    figure.colorbar(image, ax=axes, label="test accuracy (%)")
    _save(figure, path)
