"""The pictures that experiments draw, with matplotlib and without a screen.

One function per picture; it draws values and measures nothing. A new cell needs a colour and a mark in ``CELLS``. A
picture of result files holds a digest of what it shows, so that a test notices an outdated one; ``python -m experiments
report`` draws it again. The benchmark's pictures are in speed/plots.py.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import lax

import mgu_jax as mgu
from experiments.harness.cells import other_initializer
from mgu_jax.extras import require

# Okabe and Ito's palette, safe for the colour-blind.
BLUE, ORANGE = "#0072B2", "#D55E00"
WIDTH = 7.0  # inches, of a page of two columns; what is written is of 8 points, or of 7


def figure_of(*shape: int, **options: Any) -> Any:
    matplotlib = require("matplotlib", "experiments")
    matplotlib.use("Agg")
    matplotlib.rcParams.update({"font.size": 8, "axes.titlesize": 8, "xtick.labelsize": 7, "ytick.labelsize": 7})
    return require("matplotlib.pyplot", "experiments").subplots(*shape, layout="constrained", **options)


def save(figure: Any, path: Path, description: str | None = None) -> None:
    figure.savefig(path, dpi=200, metadata={"Description": description} if description else None)
    require("matplotlib.pyplot", "experiments").close(figure)


def _over_steps(axes: Any, rows: list[dict[str, Any]], name: str, factor: float, **look: Any) -> None:
    """The mean over the seeds by step, and the range of the seeds if there are several."""
    steps = [row["step"] for row in rows]
    axes.plot(steps, factor * np.array([row[name] for row in rows], float), marker=".", **look)  # None is NaN
    each = factor * np.array([row[f"{name}_per_seed"] for row in rows], float)
    if rows and each.shape[1] > 1:
        low, high = np.nanmin(each, 1), np.nanmax(each, 1)
        axes.fill_between(steps, low, high, color=look["color"], alpha=0.2, linewidth=0)


def _factor(measure: Any) -> int:
    return 100 if measure.name == "accuracy" else 1


def _scale(axes: Any, measure: Any, of: str, split: str = "test") -> None:
    """Set label and scale of the axis "x" or "y" that shows a measure."""
    percent = " (%)" if measure.name == "accuracy" else ""
    scale = "log" if measure.name == "squared_error" else "linear"
    axes.set(**{f"{of}label": f"{split} {measure.label}{percent}", f"{of}scale": scale})
    axes.spines[["top", "right"]].set_visible(False)


def learning_curve(path: Path, metrics: list[dict[str, Any]], title: str, measure: Any) -> None:
    """The loss, and the score that was measured during training, over the optimiser's steps (metrics.jsonl)."""
    figure, (left, right) = figure_of(1, 2, figsize=(WIDTH, 2.7))
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
    if watched and watched[-1][measure.name] is not None:
        right.set_title(f"{measure.shown.format(watched[-1][measure.name])} at the end")
    figure.suptitle(title)
    save(figure, path)


# The colour and mark of a cell, the same in all pictures.
CELLS = {
    "mgu": (ORANGE, "o"),
    "gru": (BLUE, "s"),
    "lstm": ("#009E73", "D"),
    "flax-mgu": ("#CC79A7", "^"),
    "reset-after-mgu": ("#E69F00", "v"),
    "ugrnn": ("#56B4E9", "P"),
    "mgu1": ("#7A3500", "X"),  # darker and lighter than the MGU
    "mgu2": ("#F4A582", "*"),
    "mgu3": ("#666666", "d"),
    "diagonal-mgu": ("#000000", "o"),
    "janet": ("#44AA99", "P"),
    "min-gru": ("#000000", "s"),
    "linen-mgu": ("#882255", "s"),
}


def _seeds(axes: Any, row: dict[str, Any], i: int, measure: Any) -> Any:
    """One mark per seed of a run, in one column, with a line at their middle.

    A mark is hollow where the width was matched, and half full where the initial W is not the cell's default. The
    middle is the mean, as in the tables; on a logarithmic axis it is the median.
    """
    colour, mark = CELLS[row["cell"]]
    each = _factor(measure) * np.array(row[f"{measure.name}_per_seed"], float)
    fill = "none" if row["settings"]["match"] else colour
    if len(each) > 1:
        middle = np.nanmedian(each) if measure.name == "squared_error" else np.nanmean(each)
        axes.plot([i - 0.35, i + 0.35], [middle] * 2, color=colour, linewidth=1.5)
    apart = i + 0.08 * (np.arange(len(each)) - (len(each) - 1) / 2)
    part = "left" if other_initializer(row) else "full"
    look = {"color": colour, "markerfacecolor": fill, "fillstyle": part, "markersize": 4, "alpha": 0.8}
    return axes.plot(apart, each, mark, linestyle="none", **look)[0]


def seeds_of_ways(path: Path, found: dict[Any, dict[Any, dict[str, Any]]], ways: Any, measure_of: Any) -> None:
    """One panel per task, one column per way to do it (report/questions.py); a legend, or ticks if ways are biases."""
    columns = min(3, len(found))
    shape, biases = (-(-len(found) // columns), columns), all(way.forget_bias is not None for way in ways)
    figure, panels = figure_of(*shape, figsize=(WIDTH, 1.75 * shape[0] + 0.4), squeeze=False)
    known: dict[str, Any] = {}
    for axes, (task, of_task) in zip(panels.flat, found.items(), strict=False):
        measure = measure_of(next(iter(of_task.values())))
        for i, way in enumerate(ways):
            if way in of_task:
                known.setdefault(way.label, _seeds(axes, of_task[way], i, measure))
        ticks = [way.label.removeprefix("b_f = ") for way in ways] if biases else []
        axes.set_xticks(range(len(ticks)), ticks, rotation=45)
        axes.set(xlim=(-0.7, len(ways) - 0.3), title=_in_lines(task.title))
        _scale(axes, measure, "y")
    for axes in list(panels.flat)[len(found) :]:
        axes.set_visible(False)
    if biases:
        figure.supxlabel("initial forget bias b_f", fontsize=8)
    else:
        shown = {way.label: known[way.label] for way in ways if way.label in known}
        longest = max(map(len, shown), default=0)
        columns = 3 if longest < 35 else 2
        figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=columns, frameon=False)
    save(figure, path, digest(found))


def _in_lines(title: str, width: int = 30) -> str:
    """A title of several lines, broken after its commas."""
    lines = [""]
    for part in title.split(", "):
        longer = f"{lines[-1]}, {part}" if lines[-1] else part
        lines[-1:] = [longer] if len(longer) <= width else [f"{lines[-1]},", part]
    return "\n".join(lines)


def digest_of(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def digest(found: dict[Any, dict[Any, dict[str, Any]]]) -> str:
    """Of all that ``seeds_of_ways`` shows; the picture holds it, so that an outdated one is noticed."""
    return digest_of(
        [
            (task.title, way.label, row["cell"], {k: v for k, v in row.items() if k.endswith("_per_seed")})
            for task, of_task in found.items()
            for way, row in of_task.items()
        ]
    )


def sentence_and_gates(path: Path, gates: np.ndarray, symbols: list[str]) -> None:
    """How much each unit overwrites while a sentence is read, gates [T, H]; above it the mean over the units."""
    order = gates.mean(0).argsort()
    figure, (top, bottom) = figure_of(2, 1, figsize=(WIDTH, 3.4), height_ratios=(1, 2.5), sharex=True)
    top.bar(range(len(symbols)), gates.mean(1), color=ORANGE)
    top.set(ylabel="mean gate", ylim=(0, None))
    top.tick_params(axis="x", length=0)
    top.spines[["top", "right"]].set_visible(False)
    image = bottom.imshow(gates[:, order].T, cmap="viridis", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    bottom.set_xticks(range(len(symbols)), [{"\n": "\\n", " ": "_"}.get(s, s) for s in symbols], fontsize=6)
    bottom.tick_params(axis="x", length=0)
    bottom.set(xlabel="character read", ylabel="hidden unit, sorted")
    figure.colorbar(image, ax=bottom, label="gate f (1 overwrites)", location="bottom", fraction=0.08)
    save(figure, path)


def loss_per_time_step(path: Path, curves: dict[int, np.ndarray]) -> None:
    """The loss of every time step, one line per iteration (iteration -> [T])."""
    figure, axes = figure_of(figsize=(WIDTH / 2, 2.5))
    for (iteration, curve), colour in zip(curves.items(), (ORANGE, BLUE), strict=False):
        axes.plot(range(1, len(curve) + 1), curve, color=colour, marker=".", label=f"iteration {iteration}")
    axes.set(xlabel="time step", ylabel="squared error, mean over the batch", ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    save(figure, path)


def gate_activity(params: mgu.Params, xs: Any, cell: mgu.Cell = mgu.MGU) -> np.ndarray:
    """How much every step overwrites the state, [T, ..., H]: f, or 1 - f for a cell with Flax's sign."""
    h0 = jax.numpy.zeros((*xs.shape[1:-1], params.b_h.shape[0]), params.W_h.dtype)

    def body(h: Any, x: Any) -> Any:
        h, residuals = mgu.step_forward(params, h, x, cell=cell)
        return h, residuals.gates.f

    f = np.asarray(lax.scan(body, h0, xs)[1])
    return f if cell.update == "f" else 1 - f


def digits_and_gates(
    path: Path, model: mgu.Model, params: mgu.ModelParams, data: mgu.Data, cell: mgu.Cell = mgu.MGU, count: int = 6
) -> None:
    """Some digits with their predictions, and below them the forget gate while their rows of pixels are read.

    The last two predictions are wrong, if there are such. Units are sorted by the mean of their gate.
    """
    xs = np.asarray(data.xs[:1000])
    logits = np.asarray(jax.jit(model.apply)(params, xs.swapaxes(0, 1)))
    guesses, targets = logits.argmax(-1), np.asarray(data.targets[: len(xs)])
    right, wrong = np.flatnonzero(guesses == targets), np.flatnonzero(guesses != targets)[:2]
    shown = [*right[: count - len(wrong)], *wrong][:count]
    gates = gate_activity(params.layers[0], xs[shown].swapaxes(0, 1), cell)
    order = gates.mean((0, 1)).argsort()

    figure, axes = figure_of(2, len(shown), figsize=(WIDTH, 3.2), height_ratios=(1, 1.3), squeeze=False)
    image = None
    for i, sample in enumerate(shown):
        top, bottom = axes[:, i]
        top.imshow(xs[sample], cmap="gray_r", vmin=0, vmax=1)
        good = guesses[sample] == targets[sample]
        top.set_title(f"says {guesses[sample]}, is {targets[sample]}", color=BLUE if good else ORANGE)
        top.set(xticks=[], yticks=[])
        image = bottom.imshow(
            gates[:, i, order], cmap="viridis", vmin=0, vmax=1, aspect="auto", interpolation="nearest"
        )
        bottom.set(yticks=[] if i else range(0, len(gates), max(1, len(gates) // 4)))
    axes[0, 0].set_ylabel("row of pixels")
    axes[1, 0].set_ylabel("time step (row read)")
    figure.supxlabel("hidden unit, sorted by the mean of its gate", fontsize=8)
    if image is not None:
        figure.colorbar(image, ax=axes[1], label="gate f (1 overwrites)")
    save(figure, path)


def surface(path: Path, scores: np.ndarray, rates: np.ndarray, biases: np.ndarray) -> None:
    """Accuracy by learning rate and forget bias, scores [rates, biases, seeds]: mean and range over the seeds."""
    figure, axes = figure_of(figsize=(WIDTH / 2 + 0.4, 0.5 * len(rates) + 0.9))
    means = 100 * scores.mean(-1)
    image = axes.imshow(means, cmap="viridis", aspect="auto")
    for i, j in np.ndindex(means.shape):
        low, high = 100 * scores[i, j].min(), 100 * scores[i, j].max()
        dark = means[i, j] < (means.min() + means.max()) / 2
        text = f"{means[i, j]:.1f}\n{low:.1f} to {high:.1f}"
        axes.text(j, i, text, ha="center", va="center", fontsize=6, color="white" if dark else "black")
    axes.set_xticks(range(len(biases)), [f"{bias:g}" for bias in biases])
    axes.set_yticks(range(len(rates)), [f"{rate:g}" for rate in rates])
    axes.set(xlabel="initial forget bias", ylabel="learning rate")
    figure.colorbar(image, ax=axes, label="best test accuracy (%)")
    save(figure, path)


def memory_curves(path: Path, rows: list[dict[str, Any]]) -> None:
    """How much the outputs depend on earlier states, one panel per task, before (dashed) and after training."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    colours = {"1": ORANGE, "-1": "#009E73", "chrono": BLUE}
    down = 2 if len(tasks) > 3 else 1
    figure, panels = figure_of(down, -(-len(tasks) // down), figsize=(WIDTH, 2.2 * down + 0.5), squeeze=False)
    for axes, task in zip(panels.flat, tasks, strict=False):
        for row in (row for row in rows if row["task"] == task):
            bias = row["forget_bias"]
            label = "chrono" if bias == "chrono" else f"b_f = {bias}"
            axes.plot(row["before"]["curve"], color=colours[bias], linestyle="dashed", linewidth=1)
            axes.plot(row["after"]["curve"], color=colours[bias], linewidth=1.5, label=label)
            axes.set(title=row["title"], xlabel="steps before the last", yscale="log", ylim=(1e-6, None))
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[:, 0]:
        axes.set_ylabel("derivative relative to\nthe last step")
    for axes in panels.flat[len(tasks) :]:
        axes.set_visible(False)
    shown, labels = panels[0, 0].get_legend_handles_labels()
    lines = require("matplotlib.lines", "experiments").Line2D
    shown += [lines([], [], color="black", linestyle=style) for style in ("dashed", "solid")]
    labels = [*labels, "before training", "after"]
    figure.legend(shown, labels, loc="outside lower center", ncols=5, frameon=False)
    save(figure, path, digest_of(rows))


# The agents of rl: colour and title.
AGENTS = {"mgu": ORANGE, "gru": BLUE, "flax-mgu": CELLS["linen-mgu"][0], "feed-forward": "#666666"}


def returns(path: Path, rows: list[dict[str, Any]], label: Any) -> None:
    """The return during training, one panel per task: mean and range of the seeds; dashed at equal parameter count."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    columns = min(2, len(tasks))
    shape = (-(-len(tasks) // columns), columns)
    figure, panels = figure_of(*shape, figsize=(WIDTH, 2.2 * shape[0] + 0.4), squeeze=False)
    known: dict[str, Any] = {}
    for axes, task in zip(panels.flat, tasks, strict=False):
        for row in (row for row in rows if row["task"] == task):
            steps, each = np.array(row["curve"]["steps"]) / 1000, np.array(row["curve"]["return_per_seed"], float)
            there = np.isfinite(each).any(0)
            steps, each = steps[there], each[:, there]
            colour, style = AGENTS[row["agent"]], "dashed" if row["match"] else "solid"
            (line,) = axes.plot(steps, np.nanmean(each, 0), color=colour, linestyle=style, linewidth=1.2)
            known.setdefault(label(row), line)
            if not row["match"]:
                axes.fill_between(steps, np.nanmin(each, 0), np.nanmax(each, 0), color=colour, alpha=0.15, linewidth=0)
            axes.set(title=row["title"])
        axes.set(xlabel="thousand steps of all environments", ylabel="return")
        axes.spines[["top", "right"]].set_visible(False)
    for axes in list(panels.flat)[len(tasks) :]:
        axes.set_visible(False)
    figure.legend(known.values(), known.keys(), loc="outside lower center", ncols=3, frameon=False)
    save(figure, path, digest_of(rows))
