"""Measure how fast agents with memory train: the recurrent layer forward and back, and whole updates of PPO, per agent.

The layer is our MGU by ``mgu.scan``, and Flax's GRU and MGU by ``nn.scan``, with resets inside the window, at the sizes
of the training pass of rl. All run in one process and in turn. Two minutes on two cores.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from experiments.harness import ppo
from experiments.run import BadRequest, Common, Run
from experiments.speed import timing
from experiments.tasks import rl

AGENTS = ("mgu", "gru", "flax-mgu")


@dataclass(frozen=True)
class Config(Common):
    """The flags of rl-speed."""

    budget: float = 10.0
    """Seconds for each comparison."""


def layer(agent: str, T: int, B: int, H: int) -> timing.Timed:
    """The layer forward and back, D = H: the gradients of params, carry and inputs [T, B, D] from given cotangents."""
    memory, keys = ppo.AGENTS[agent](), jax.random.split(jax.random.key(0), 4)
    params = memory.init(keys[0], H, H, -1.0)
    inputs, cotangents = (jax.random.normal(key, (T, B, H)) for key in keys[1:3])
    resets = jax.random.bernoulli(keys[3], 1 / T, (T, B))

    def back(params: Any, carry: jax.Array, inputs: jax.Array) -> Any:
        _, pull = jax.vjp(lambda *args: memory.scan(args[0], args[1], (args[2], resets))[1], params, carry, inputs)
        return pull(cotangents)

    return jax.jit(back), (params, jnp.zeros((B, H)), inputs)


def training(agent: str, sizes: ppo.Sizes) -> timing.Timed:
    """A whole training of a few updates."""
    memory, world = ppo.AGENTS[agent](), rl.TASKS["memory-32"].world()
    return jax.jit(lambda key: ppo.train(memory, world, sizes, ppo.Hyper(), key)), (jax.random.key(0),)


def main(config: Config) -> None:
    """Compare the agents, and print the table."""
    if config.steps is not None:
        raise BadRequest("--steps has no meaning for rl-speed, which measures a few updates.")
    run = Run("rl-speed", config, {})
    run.rewind(0)
    rows, budget = [], 0.05 if config.quick else config.budget
    names = ("memory-32",) if config.quick else ("memory-32", "memory-128")
    for name in names:
        sizes = rl.TASKS[name].sizes
        T, B, H = sizes.window, sizes.environments // sizes.minibatches, 8 if config.quick else sizes.width
        times = timing.alternate({agent: layer(agent, T, B, H) for agent in AGENTS}, budget)
        for agent in AGENTS:
            rows.append({"part": "layer", "agent": agent, "size": [T, B, H]} | timing.spread(times[agent]))
            rows[-1]["relative"] = timing.ratio(times[agent], times["mgu"])
            run.log(len(rows), "layer", **timing.spread(times[agent]))
    sizes = rl.TASKS["memory-32"].sizes._replace(updates=1 if config.quick else 4)
    times = timing.alternate({agent: training(agent, sizes) for agent in AGENTS}, 2 * budget)
    for agent in AGENTS:
        size = [sizes.window, sizes.environments, sizes.width]
        found = timing.spread(times[agent])
        steps = 1e3 * sizes.updates * sizes.window * sizes.environments / found["ms"]
        rows.append({"part": "training", "agent": agent, "size": size, "steps_per_second": steps} | found)
        rows[-1]["relative"] = timing.ratio(times[agent], times["mgu"])
        run.log(len(rows), "training", steps_per_second=steps, **found)
    run.finish({"rows": rows})
    print(f"\n{table(rows)}\n")
    run.close()


def table(rows: list[dict[str, Any]]) -> str:
    """One row per comparison, one column per agent."""
    heads = " | ".join(rl.TITLES[agent] for agent in AGENTS)
    lines = [f"| what is timed | {heads} |", "|---|" + "---|" * len(AGENTS)]
    for part, size in dict.fromkeys((row["part"], tuple(row["size"])) for row in rows):
        T, B, H = size
        what = {
            "layer": f"the layer forward and back, T = {T}, B = {B}, D = H = {H}",
            "training": f"the whole training, windows of {T} steps, {B} environments",
        }[part]
        cells = []
        for row in (row for row in rows if (row["part"], tuple(row["size"])) == (part, size)):
            shown = f"{row['steps_per_second']:,.0f} steps a second" if part == "training" else f"{row['ms']:.2f} ms"
            cells.append(shown if row["agent"] == "mgu" else f"{shown}, {row['relative']:.2f} times the time")
        lines.append(f"| {what} | {' | '.join(cells)} |")
    return "\n".join(lines)
