"""Figures of a layer's dynamics, with matplotlib (extra experiments); the colours are safe for the colour-blind.

Each function draws into ``axes``, or into a new figure, and returns the axes: ``axes.figure.savefig("figure.png")``.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from mgu_jax import checks
from mgu_jax.dynamics.points import FixedPoints
from mgu_jax.dynamics.remembering import Memory
from mgu_jax.extras import require
from mgu_jax.layer.family import MGU, Cell
from mgu_jax.layer.params import Params
from mgu_jax.layer.step import step

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#999999"  # Okabe and Ito's palette


def new_axes(width: float = 4.0, height: float = 3.2) -> Any:
    """The axes of a new figure of this size, in inches."""
    return require("matplotlib.pyplot", "experiments").subplots(figsize=(width, height), layout="constrained")[1]


def phase_portrait(
    params: Params,
    x: Array,
    points: FixedPoints | None = None,
    cell: Cell = MGU,
    *,
    limit: float | None = None,
    axes: Any = None,
) -> Any:
    """The axes with the motion h' - h of a layer of two units at a constant input, its nullclines and its fixed points.

    On a nullcline one of the two units stays as it is; fixed points lie where both do. A disc is a stable fixed point,
    a circle an unstable one, and a square a slow point.

    Args:
        params: of a layer with H = 2.
        x: [D], the input.
        points: as ``fixed_points`` returns them; ``None`` shows none.
        cell: the member of the family that params belongs to.
        limit: both units are shown from -limit to limit; ``None`` takes the bound of the cell's states, or 1.
        axes: of matplotlib; ``None`` makes a new figure.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: params has not two units, or as ``mgu_jax.step``.
        TypeError: as ``mgu_jax.step``.
    """
    limit = limit or cell.bound or 1.0
    grid = np.linspace(-limit, limit, 81)
    states = np.stack(np.meshgrid(grid, grid), -1)
    if params.b_h.shape != (2,):
        raise ValueError(f"params must have 2 units, which the two axes show; got {params.b_h.shape[0]}.")
    dtype = checks.dtype_of(params.W_h)
    h = jnp.asarray(states, dtype)
    move = np.asarray(step(params, h, jnp.broadcast_to(jnp.asarray(x), (*h.shape[:-1], *jnp.shape(x))), cell) - h)
    axes = new_axes(4.0, 4.0) if axes is None else axes
    few = slice(None, None, 4)
    shown, along = states[few, few], move[few, few]
    lengths = np.linalg.norm(along, axis=-1, keepdims=True)
    along = along / np.maximum(lengths, 1e-12) * np.sqrt(lengths / max(lengths.max(), 1e-12))
    axes.quiver(*np.moveaxis(shown, -1, 0), *np.moveaxis(along, -1, 0), color=GREY, scale=24, width=0.004)
    for unit, (colour, style) in enumerate(((BLUE, "solid"), (ORANGE, "dashed"))):
        if move[..., unit].min() < 0 < move[..., unit].max():
            axes.contour(grid, grid, move[..., unit], [0], colors=colour, linestyles=style)
        axes.plot([], [], color=colour, linestyle=style, label=f"unit {unit + 1} stays")
    if points is not None:
        kinds = (("stable", points.stable, "o", "black"), ("unstable", points.fixed & ~points.stable, "o", "white"))
        for label, kind, mark, fill in (*kinds, ("slow", ~points.fixed, "s", GREY)):
            if kind.any():
                look = {"markerfacecolor": fill, "markeredgecolor": "black", "linestyle": "none", "zorder": 3}
                axes.plot(*points.states[kind].T, mark, label=label, **look)
    axes.set(xlabel="unit 1", ylabel="unit 2", xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False, fontsize=8)
    return axes


def spectrum(eigenvalues: Any, axes: Any = None, **look: Any) -> Any:
    """The axes with eigenvalues [...] in the complex plane and the unit circle, inside which they are stable.

    Args:
        eigenvalues: of one or more Jacobians, such as ``points.eigenvalues``.
        axes: of matplotlib; ``None`` makes a new figure.
        look: of the marks, as ``axes.plot`` takes them, such as label or color.

    Raises:
        ImportError: matplotlib is not installed.
    """
    axes = new_axes(4.0, 3.6) if axes is None else axes
    values, angle = np.ravel(np.asarray(eigenvalues)), np.linspace(0, 2 * np.pi, 200)
    axes.plot(np.cos(angle), np.sin(angle), color=GREY, linewidth=1)
    axes.plot(np.real(values), np.imag(values), **({"color": BLUE, "marker": ".", "linestyle": "none"} | look))
    axes.set(xlabel="real part", ylabel="imaginary part", aspect="equal")
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def exponents(values: Any, axes: Any = None, **look: Any) -> Any:
    """The axes with Lyapunov exponents [k], from the largest to the smallest, and the line at 0 where chaos begins.

    Args:
        values: as ``lyapunov`` returns them.
        axes, look: as in ``spectrum``.

    Raises:
        ImportError: matplotlib is not installed.
    """
    axes = new_axes() if axes is None else axes
    values = np.asarray(values)
    axes.axhline(0, color=GREY, linewidth=1)
    axes.plot(np.arange(1, len(values) + 1), values, **({"color": BLUE, "marker": ".", "linewidth": 1} | look))
    axes.set(xlabel="index of the exponent", ylabel="Lyapunov exponent (nats per step)")
    axes.xaxis.set_major_locator(require("matplotlib.ticker", "experiments").MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def memory_over_time(memory: Memory, of: str = "states", axes: Any = None, **look: Any) -> Any:
    """The axes with how much the last state depends on the state, or the input, of every step before it.

    The norms are averaged over all sequences (the mean of their logarithms) and shown relative to the last step.

    Args:
        memory: as ``mgu_jax.dynamics.memory`` returns it.
        of: "states" or "inputs".
        axes, look: as in ``spectrum``.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: of is another name.
    """
    checks.check_choice("of", of, ("states", "inputs"))
    axes = new_axes() if axes is None else axes
    norms = np.asarray(getattr(memory, of))
    curve = np.log(np.maximum(norms, np.finfo(norms.dtype).tiny)).reshape(len(norms), -1).mean(1)
    axes.plot(np.arange(len(curve))[::-1], np.exp(curve - curve[-1]), **({"color": BLUE} | look))
    axes.set(xlabel="steps before the last", ylabel="derivative relative to the last step", yscale="log")
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def meeting(distances: Any, bound: Any, axes: Any = None, **look: Any) -> Any:
    """The axes with the distances [T, N] of N pairs of states over time, and a bound [T] that they must not exceed.

    Args:
        distances: in the norm of ``Stability``.
        bound: such as the first distance times ``rate ** t``.
        axes, look: as in ``spectrum``; look applies to the distances.

    Raises:
        ImportError: matplotlib is not installed.
    """
    axes = new_axes() if axes is None else axes
    lines = axes.plot(np.asarray(distances), **({"color": BLUE, "linewidth": 0.7, "alpha": 0.6} | look))
    lines[0].set_label("pairs of states")
    axes.plot(np.asarray(bound), color=ORANGE, linestyle="dashed", label="certified")
    axes.set(xlabel="step", ylabel="distance", yscale="log")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return axes
