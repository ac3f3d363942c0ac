"""The picture of ``python -m experiments subjects``: what each model lacks; a network and its subject in motion."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

import mgu_jax as mgu
from experiments.harness.bandit import INPUTS, QParams, learn, logits_of
from experiments.harness.plots import CELLS, WIDTH, digest_of, figure_of, save

STYLES = ("solid", "dashed", "dotted", "dashdot")
SHADE = {"cmap": "PuOr", "vmin": 0, "vmax": 1, "shading": "auto", "rasterized": True, "alpha": 0.6}


def digest(result: dict[str, Any]) -> str:
    return digest_of([result["rows"], result["winner"]])


def subjects(path: Path, result: dict[str, Any]) -> None:
    """What each network lacks, by kind of subject; beside it the states of a winner and the values of its subject.

    In the two panels on the right, arrows show the motion while the left arm is chosen and rewarded. Colour is the
    probability of choosing left next.
    """
    x = jnp.array(INPUTS["left, reward"])
    figure, (left, middle, right) = figure_of(1, 3, figsize=(WIDTH, 2.9), width_ratios=(1.25, 1, 1))
    _gaps(left, result["rows"])
    winner = result["winner"]
    layer = mgu.Params(**{name: jnp.asarray(a, jnp.float32) for name, a in winner["layer"].items()})
    states = _grid(-1, 1, 81)
    points = mgu.dynamics.fixed_points(layer, x, states[::10, ::10].reshape(-1, 2))
    logits = states @ jnp.asarray(winner["W_y"], jnp.float32) + jnp.asarray(winner["b_y"], jnp.float32)
    middle.pcolormesh(states[0, :, 0], states[0, :, 0], _left(logits), **SHADE)
    mgu.dynamics.plots.phase_portrait(layer, x, points, axes=middle)
    middle.legend(frameon=False, fontsize=6, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)

    own, values = QParams(**{name: jnp.float32(a) for name, a in winner["own"].items()}), _grid(0, 1, 41)
    xs = jnp.broadcast_to(x, (*values.shape[:-1], 3))
    image = right.pcolormesh(values[0, :, 0], values[0, :, 0], _left(logits_of(own, values, xs)), **SHADE)
    few = (slice(None, None, 4),) * 2
    move = (learn(own, values, xs) - values)[few]
    right.quiver(*np.moveaxis(values[few], -1, 0), *np.moveaxis(move, -1, 0), color="#444444", scale=8, width=0.004)
    right.plot(1, 0.5, "o", color="black", clip_on=False, zorder=3)
    right.set(xlabel="value of left", ylabel="value of right", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    figure.colorbar(image, ax=right, label="probability of left", shrink=0.7)
    save(figure, path, digest(result))


def _gaps(axes: Any, rows: list[dict[str, Any]]) -> None:
    of = {
        name: sorted((r for r in rows if r["model"] == name), key=lambda r: r["width"] or 0) for name in ("mgu", "gru")
    }
    own = next(row for row in rows if row["model"] == "subject")["kinds"]
    for kind, style in zip(own, STYLES, strict=True):
        for name, found in of.items():
            colour, mark = CELLS[name]
            gaps = [row["kinds"][kind] - own[kind] for row in found]
            axes.plot(range(len(gaps)), gaps, mark, linestyle=style, color=colour, markersize=3, linewidth=1)
        axes.plot([], [], color="black", linewidth=1, linestyle=style, label=kind)
    for name in of:
        colour, mark = CELLS[name]
        axes.plot([], [], mark, color=colour, markersize=3, linestyle="none", label=name.upper())
    true = next(row for row in rows if row["model"] == "true")
    axes.axhline(true["gap"], color="#009E73", linewidth=1, label="Q-learning of the kind")
    axes.set_xticks(range(len(of["mgu"])), [f"{row['width']}" for row in of["mgu"]])
    axes.set(xlabel="units H", ylabel="nats per held-out trial above\nthe subject's own", ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=6)


def _grid(low: float, high: float, count: int) -> Any:
    line = np.linspace(low, high, count, dtype=np.float32)
    return jnp.asarray(np.stack(np.meshgrid(line, line), -1))


def _left(logits: Any) -> np.ndarray:
    """The probability of the left arm."""
    return np.asarray(1 / (1 + jnp.exp(logits[..., 1] - logits[..., 0])))
