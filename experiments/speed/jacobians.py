"""Measure the Jacobian in closed form beside those of jax.jacrev and jax.jacfwd, for H = 64 and batches of states.

All three give dh'/dh and dh'/dx of one step under jit, in one process and in turn. ``jacrev`` and ``jacfwd``
differentiate ``mgu.step`` under ``vmap``. A minute on one core.
"""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

import mgu_jax as mgu
from experiments.run import BadRequest, Common, Run
from experiments.speed import timing

CELLS = {
    "MGU": mgu.MGU,
    "RESET_AFTER_MGU": mgu.RESET_AFTER_MGU,
    "UGRNN": mgu.UGRNN,
    "DIAGONAL_MGU": mgu.DIAGONAL_MGU,
}
BATCHES = (10, 100, 1000)


@dataclass(frozen=True)
class Config(Common):
    """The flags of jacobians."""

    hidden_size: int = 64
    """H, the width of the layer; D is an eighth of it."""
    budget: float = 5.0
    """Seconds for each comparison."""


def measure(cell: mgu.Cell, states: int, H: int, budget: float) -> dict[str, Any]:
    """The milliseconds of the closed form, and the time of the other two relative to it."""
    keys = jax.random.split(jax.random.key(0), 3)
    D = max(1, H // 8)
    params = mgu.init(keys[0], D, H, cell)
    rows = jax.random.normal(keys[1], (states, H)), jax.random.normal(keys[2], (states, D))

    def step(h: jax.Array, x: jax.Array) -> jax.Array:
        return mgu.step(params, h, x, cell)

    contestants = {
        "closed form": jax.jit(lambda h, x: mgu.dynamics.jacobian(params, h, x, cell)),
        "jacrev": jax.jit(jax.vmap(jax.jacrev(step, (0, 1)))),
        "jacfwd": jax.jit(jax.vmap(jax.jacfwd(step, (0, 1)))),
    }
    times = timing.alternate({name: (f, rows) for name, f in contestants.items()}, budget)
    ours = times["closed form"]
    relative = {name: timing.ratio(times[name], ours) for name in ("jacrev", "jacfwd")}
    return timing.spread(ours) | relative


def main(config: Config) -> None:
    """Compare for each cell and batch, and print the table."""
    if config.steps is not None:
        raise BadRequest("--steps has no meaning for jacobians, which takes no optimiser step.")
    run = Run("jacobians", config, {})
    run.rewind(0)
    H, batches = (8, (4,)) if config.quick else (config.hidden_size, BATCHES)
    rows = []
    for name, cell in CELLS.items():
        for states in batches:
            found = measure(cell, states, H, 0.05 if config.quick else config.budget)
            rows.append({"cell": name, "states": states, "hidden_size": H} | found)
            run.log(len(rows), name, **found)
    run.finish({"rows": rows, "geometric_mean": float(np.exp(np.mean([np.log(row["jacrev"]) for row in rows])))})
    print(table(rows))
    run.close()


def table(rows: list[dict[str, Any]]) -> str:
    """One row per cell and batch."""
    lines = ["| cell | H | states | closed form, ms | `jax.jacrev` | `jax.jacfwd` |", "|---|---|---|---|---|---|"]
    for row in rows:
        shown = (row["cell"], row["hidden_size"], f"{row['states']:,}", f"{row['ms']:.2f}")
        relative = (f"{row[name]:.1f} times" for name in ("jacrev", "jacfwd"))
        lines.append(f"| {' | '.join(map(str, (*shown, *relative)))} |")
    return "\n".join(lines)
