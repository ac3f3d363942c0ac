"""The pictures that experiments draw, with matplotlib and without a screen."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import lax

import mgu_jax as mgu
from mgu_jax.extras import require

# Okabe and Ito's palette, safe for the colour-blind.
BLUE, ORANGE = "#0072B2", "#D55E00"


def _figure(*shape: int, **options: Any) -> Any:
    require("matplotlib", "experiments").use("Agg")
    return require("matplotlib.pyplot", "experiments").subplots(*shape, layout="constrained", **options)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=150)
    require("matplotlib.pyplot", "experiments").close(figure)


def learning_curve(path: Path, metrics: list[dict[str, Any]], title: str) -> None:
    """Loss and test accuracy over the optimiser's steps, from the lines of metrics.jsonl."""
    figure, (left, right) = _figure(1, 2, figsize=(8, 3))
    for split, colour in (("train", BLUE), ("test", ORANGE)):
        rows = [row for row in metrics if row["split"] == split]
        left.plot([row["step"] for row in rows], [row["loss"] for row in rows], color=colour, label=split, marker=".")
    left.set(xlabel="optimiser step", ylabel="cross entropy (nats)", yscale="log")
    left.legend(frameon=False)
    rows = [row for row in metrics if row["split"] == "test"]
    right.plot([row["step"] for row in rows], [100 * row["accuracy"] for row in rows], color=ORANGE, marker=".")
    right.set(xlabel="optimiser step", ylabel="test accuracy (%)")
    if rows:
        right.set_title(f"{rows[-1]['accuracy']:.2%} at the end", fontsize=10)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
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


def gate_activity(params: mgu.Params, xs: Any) -> np.ndarray:
    """f of every step, [T, ..., H]: 1 overwrites the state, 0 keeps it."""
    h0 = jax.numpy.zeros((*xs.shape[1:-1], params.b_h.shape[0]), params.W_h.dtype)

    def body(h: Any, x: Any) -> Any:
        h, residuals = mgu.step_forward(params, h, x)
        return h, residuals.gates.f

    return np.asarray(lax.scan(body, h0, xs)[1])


def digits_and_gates(path: Path, model: mgu.Model, params: mgu.ModelParams, data: mgu.Data, count: int = 6) -> None:
    """Some digits beside the model's prediction and its forget gate, row of pixels by row of pixels.

    The last two are wrong predictions, where there are any. Units are sorted by how open their gate is on average.
    """
    xs = np.asarray(data.xs[:1000])
    logits = np.asarray(jax.jit(model.apply)(params, xs.swapaxes(0, 1)))
    guesses, targets = logits.argmax(-1), np.asarray(data.targets[: len(xs)])
    right, wrong = np.flatnonzero(guesses == targets), np.flatnonzero(guesses != targets)[:2]
    shown = [*right[: count - len(wrong)], *wrong][:count]
    gates = gate_activity(params.layers[0], xs[shown].swapaxes(0, 1))
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
