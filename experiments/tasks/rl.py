"""Train agents with and without memory by PPO, on memory chains and on CartPole without velocities.

An MGU, Flax's GRU, Flax's MGU and an agent without memory are trained with several seeds, at equal width and at equal
parameter count, and then play new episodes. Half an hour on one core; --tasks and --agents choose a part of it, and a
run that resumes continues with the first agent that was not finished. The algorithm is in harness/ppo.py.
"""

import dataclasses
import math
import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import mgu_jax as mgu
from experiments.harness import plots, ppo
from experiments.harness.environments import Environment, hidden_cartpole, memory_chain
from experiments.run import BadRequest, Bound, Common, Diverged, Run

TaskName = Literal["memory-8", "memory-32", "cartpole", "memory-128"]
AgentName = Literal["mgu", "gru", "flax-mgu", "feed-forward"]
TITLES = {"mgu": "MGU", "gru": "GRU", "flax-mgu": "Flax's MGU", "feed-forward": "no memory"}
EPISODES, POINTS = 128, 25  # in which an agent is measured; of its curve


class Task(NamedTuple):
    """An environment, how long all agents learn it, and each agent's (learning rate, forget bias)."""

    world: Callable[[], Environment]
    sizes: ppo.Sizes
    chosen: dict[str, tuple[float, float]]


# Chosen by rl-tuning, on seeds that rl does not use. Each agent had the same choice.
CHAIN = dict.fromkeys(TITLES, (3e-3, -3.0)) | {"mgu": (3e-3, -5.0)}
LONG_CHAIN = CHAIN | {"gru": (3e-3, -5.0)}
POLE = dict.fromkeys(TITLES, (3e-3, 0.0))
TASKS: dict[str, Task] = {
    "memory-8": Task(lambda: memory_chain(8), ppo.Sizes(window=32, updates=40), CHAIN),
    "memory-32": Task(lambda: memory_chain(32), ppo.Sizes(updates=60), CHAIN),
    "cartpole": Task(hidden_cartpole, ppo.Sizes(updates=200), POLE),
    "memory-128": Task(lambda: memory_chain(128), ppo.Sizes(window=256, updates=40, minibatches=8), LONG_CHAIN),
}


@dataclass(frozen=True)
class Config(Common):
    """The flags of rl."""

    tasks: tuple[TaskName, ...] = ("memory-8", "memory-32", "cartpole", "memory-128")
    """The environments to learn."""
    agents: tuple[AgentName, ...] = ("mgu", "gru", "flax-mgu", "feed-forward")
    """The agents: gru and flax-mgu have Flax's cells, and feed-forward has no memory."""
    seeds: int = 5
    """Number of trainings of each agent, with the seeds --seed, --seed + 1, ..."""
    hidden_size: int = 64
    """H, the width of the layer that remembers."""
    equal_parameters: bool = True
    """Train gru and feed-forward also at the widths at which they have as many parameters as the MGU's agent."""
    updates: int | None = None
    """Updates of PPO; each task has its own default."""
    learning_rate: float | None = None
    """Learning rate at the start; each agent has its own default."""
    forget_bias: Annotated[float | None, Bound("a number", math.isfinite)] = None
    """Initial forget bias in the paper's sign (negative remembers); each agent has its own default."""
    at_once: int | None = None
    """Number of seeds computed together under vmap; by default one on a CPU, and all on other devices."""


class Part(NamedTuple):
    """What is trained with all seeds by one program."""

    task: str
    agent: str
    width: int
    match: str | None  # the agent whose number of parameters the width gives

    def sizes(self, updates: int | None) -> ppo.Sizes:
        sizes = TASKS[self.task].sizes._replace(width=self.width)
        return sizes if updates is None else sizes._replace(updates=updates)


def parameters(agent: str, world: Environment, width: int) -> dict[str, int]:
    """The number of parameters of an agent ("all"), and of the layer that remembers ("recurrent")."""
    memory, sizes = ppo.AGENTS[agent](), ppo.Sizes(width=width)
    params = jax.eval_shape(lambda key: ppo.init(memory, world, sizes, ppo.Hyper(), key), jax.random.key(0))
    return {"all": mgu.count(params), "recurrent": mgu.count(params.memory)}


def width_of(agent: str, world: Environment, wanted: int) -> int:
    """The H at which an agent comes nearest to a number of parameters."""

    def count(width: int) -> int:
        return parameters(agent, world, width)["all"]

    above = 1 + bisect_left(range(1, wanted), wanted, key=count)
    return min((max(1, above - 1), above), key=lambda width: abs(count(width) - wanted))


def parts(config: Config) -> list[Part]:
    """What the flags ask for: the longest task last, and in the others equal widths first."""
    found = []
    for task in dict.fromkeys(config.tasks):
        agents, world = dict.fromkeys(config.agents), TASKS[task].world()
        found += [Part(task, agent, config.hidden_size, None) for agent in agents]
        wanted = parameters("mgu", world, config.hidden_size)["all"]
        for agent in agents if config.equal_parameters else ():
            if agent in ("gru", "feed-forward"):  # Flax's MGU has only H parameters more than ours
                found.append(Part(task, agent, width_of(agent, world, wanted), "mgu"))
    return sorted(
        found, key=lambda part: (part.task == "memory-128", part.match is not None, list(TITLES).index(part.agent))
    )


class Learned(NamedTuple):
    """What a training leaves, for each seed [S]."""

    totals: np.ndarray  # [S, updates]: the sum of the returns of the episodes that ended
    episodes: np.ndarray  # [S, updates]: their number
    returns: np.ndarray  # [S]: the mean over new episodes, or NaN if the parameters are not finite
    seconds: float  # of the processor, without compilation


def learner(agent: str, world: Environment, sizes: ppo.Sizes, at_once: int) -> Callable[..., Learned]:
    """A compiled function of (hyperparameters, seeds): every seed is trained, and then plays new episodes."""
    memory = ppo.AGENTS[agent]()

    def one(hyper: ppo.Hyper, key: Array) -> tuple[Array, ...]:
        train_key, play_key = jax.random.split(key)
        params, totals, episodes = ppo.train(memory, world, sizes, hyper, train_key)
        returns = ppo.evaluate(memory, world, sizes.width, params, play_key, EPISODES)
        finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]).all()
        return totals, episodes, jnp.where(finite, returns.mean(), jnp.nan)

    together, compiled = jax.jit(jax.vmap(one, (None, 0))), {}  # by the number of seeds

    def learn(hyper: ppo.Hyper, seeds: list[int]) -> Learned:
        hyper = ppo.Hyper(*(jnp.float32(value) for value in hyper))
        keys = jnp.stack([jax.random.key(seed) for seed in seeds])
        keys = [keys[i : i + at_once] for i in range(0, len(seeds), at_once)]
        for some in keys:
            if len(some) not in compiled:
                compiled[len(some)] = together.lower(hyper, some).compile()
        began = time.process_time()
        found = [jax.device_get(compiled[len(some)](hyper, some)) for some in keys]
        seconds = time.process_time() - began
        totals, episodes, returns = map(np.concatenate, zip(*found, strict=True))
        return Learned(totals, episodes, returns, seconds)

    return learn


def curve(learned: Learned, steps: int) -> dict[str, Any]:
    """The mean return over the steps of all environments, ``steps`` per update; None where no episode ended."""
    chunks = np.array_split(np.arange(learned.totals.shape[1]), min(POINTS, learned.totals.shape[1]))
    per_seed = [
        [float(total[chunk].sum() / count[chunk].sum()) if count[chunk].sum() else None for chunk in chunks]
        for total, count in zip(learned.totals, learned.episodes, strict=True)
    ]
    return {"steps": [steps * (int(chunk[-1]) + 1) for chunk in chunks], "return_per_seed": per_seed}


def train(part: Part, config: Config) -> dict[str, Any]:
    """The row of a part: what was trained, and how it learned."""
    task, sizes = TASKS[part.task], part.sizes(config.updates)
    world, (rate, bias) = task.world(), task.chosen[part.agent]
    rate, bias = config.learning_rate or rate, bias if config.forget_bias is None else config.forget_bias
    at_once = config.at_once or (1 if jax.default_backend() == "cpu" else config.seeds)
    seeds = [config.seed + i for i in range(config.seeds)]
    learned = learner(part.agent, world, sizes, at_once)(ppo.Hyper(rate, bias), seeds)
    if gone := [seed for seed, value in zip(seeds, learned.returns, strict=True) if not np.isfinite(value)]:
        raise Diverged(dict.fromkeys(gone, sizes.updates), [])
    steps = sizes.environments * sizes.window
    spread = float(learned.returns.std(ddof=1)) if len(seeds) > 1 else None
    return {
        **part._asdict(),
        "title": world.title,
        "parameters": parameters(part.agent, world, part.width),
        "learning_rate": rate,
        "forget_bias": bias if part.agent != "feed-forward" else None,
        "steps": steps * sizes.updates,
        "seeds": seeds,
        "return": float(learned.returns.mean()),
        "return_std": spread,
        "return_per_seed": learned.returns.tolist(),
        "solved_at": world.solved,
        "curve": curve(learned, steps),
        "seconds": learned.seconds,
    }


def main(config: Config) -> None:
    """Train every agent on every task; write the curves and draw them."""
    if config.steps is not None:
        raise BadRequest("--steps has no meaning for rl; --updates is the number of updates.")
    if config.quick:
        config = dataclasses.replace(config, updates=config.updates or 2, seeds=min(2, config.seeds), hidden_size=8)
    chosen = parts(config)
    if not chosen:
        raise BadRequest("--tasks and --agents must name at least one each; got none.")
    run = Run("rl", config, {})
    run.rewind(0)
    rows = []
    for part in chosen:
        name = f"{part.task}-{part.agent}" + ("-matched" if part.match else "")
        rows.append(row := run.once(name, lambda part=part: train(part, config)))
        run.log(len(rows), "play", **{name: row[name] for name in ("task", "agent", "return", "return_per_seed")})
        print(f"{row['title']}, {label(row)}, H = {part.width}: return {shown(row)}", flush=True)
    run.finish({"settings": run.record["settings"], "rows": rows})
    plots.returns(run.path("returns.png"), rows, label)
    print(f"\n{table(rows)}\n")
    run.close()


def label(row: dict[str, Any]) -> str:
    """The name of the agent, and whether its width was matched."""
    return TITLES[row["agent"]] + (", same parameter count" if row["match"] else "")


def shown(row: dict[str, Any]) -> str:
    """The mean return ± its standard deviation (number of seeds that solve the task of all seeds)."""
    digits = 0 if row["solved_at"] > 10 else 2
    spread = "" if row["return_std"] is None else f" ± {row['return_std']:.{digits}f}"
    solved = sum(value >= row["solved_at"] for value in row["return_per_seed"])
    return f"{row['return']:.{digits}f}{spread} ({solved} of {len(row['seeds'])})"


def table(rows: list[dict[str, Any]]) -> str:
    """One row per task, one column per agent; then widths, parameters and settings."""
    by_task: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        by_task.setdefault(row["title"], {})[label(row)] = row
    labels = list(dict.fromkeys(map(label, rows)))
    lines = [f"| task | steps | {' | '.join(labels)} |", "|---|---|" + "---|" * len(labels)]
    for title, of_task in by_task.items():
        steps = next(iter(of_task.values()))["steps"]
        cells = (shown(of_task[name]) if name in of_task else "" for name in labels)
        lines.append(f"| {title} | {steps:,} | {' | '.join(cells)} |")
    first = next(iter(by_task.values()))
    for name, text in {
        "width": lambda row: f"{row['width']}",
        "parameters": lambda row: f"{row['parameters']['all']:,}",
    }.items():
        cells = (text(first[name]) if name in first else "" for name in labels)
        lines.append(f"| {name} | | {' | '.join(cells)} |")
    count, seconds = sum(len(row["seeds"]) for row in rows), sum(row["seconds"] for row in rows)
    return "\n".join([*lines, "", f"{count} trainings, {seconds / 60:.0f} minutes on one core."])
