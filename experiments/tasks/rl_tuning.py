"""Choose a learning rate and a forget bias for each agent of rl, from the same grid and on seeds that rl does not use.

What counts is the mean return of all episodes of the training, so that fast and steady learning wins. Agents of equal
width, two seeds per setting. A quarter of an hour on one core.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from experiments.harness import ppo
from experiments.run import BadRequest, Common, Run
from experiments.tasks import rl

RATES, BIASES = (1e-3, 3e-3), (0.0, -1.0, -3.0, -5.0)
TUNED = {"memory-32": 30, "cartpole": 100, "memory-128": 40}  # task -> updates
AGENTS: tuple[rl.AgentName, ...] = ("mgu", "gru", "flax-mgu")


@dataclass(frozen=True)
class Config(Common):
    """The flags of rl-tuning."""

    seed: int = 1000
    """The first seed."""
    seeds: int = 2
    """Seeds of each setting."""
    hidden_size: int = 64
    """H, the width of the layer that remembers."""


def main(config: Config) -> None:
    """Train every agent with every setting; print the best ones."""
    if config.steps is not None:
        raise BadRequest("--steps has no meaning for rl-tuning, whose tasks have numbers of updates of their own.")
    run = Run("rl-tuning", config, {})
    run.rewind(0)
    rows = []
    for name, agent in itertools.product(TUNED, AGENTS):
        rows += run.once(f"{name}-{agent}", lambda name=name, agent=agent: tried(name, agent, config))
    run.finish({"settings": run.record["settings"], "rows": rows})
    print(f"\n{table(rows)}\n")
    run.close()


def tried(name: str, agent: str, config: Config) -> list[dict[str, Any]]:
    """One row per setting, for an agent on a task."""
    task, updates, rows = rl.TASKS[name], 1 if config.quick else TUNED[name], []
    learn = rl.learner(agent, task.world(), task.sizes._replace(width=config.hidden_size, updates=updates), at_once=1)
    seeds = [config.seed + i for i in range(config.seeds)]
    for rate, bias in itertools.product(RATES, BIASES):
        learned = learn(ppo.Hyper(rate, bias), seeds)
        means = learned.totals.sum(1) / learned.episodes.sum(1).clip(1)
        rows.append({"task": name, "title": task.world().title, "agent": agent, "updates": updates})
        rows[-1] |= {"learning_rate": rate, "forget_bias": bias, "seeds": seeds, "seconds": learned.seconds}
        rows[-1] |= {"mean_per_seed": means.tolist(), "return_per_seed": learned.returns.tolist()}
        print(f"{rows[-1]['title']}, {rl.TITLES[agent]}, learning rate {rate:g}, b_f {bias:g}: {means}", flush=True)
    return rows


def mean(row: dict[str, Any]) -> float:
    return sum(row["mean_per_seed"]) / len(row["mean_per_seed"])


def best(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    return max(rows, key=mean)


def table(rows: list[dict[str, Any]]) -> str:
    """One row per task and agent, one column per setting; the best one is bold."""
    settings = list(itertools.product(RATES, BIASES))
    heads = (f"learning rate {rate:g}, b_f = {bias:g}" for rate, bias in settings)
    lines = [f"| task | agent | {' | '.join(heads)} |", "|---|---|" + "---|" * len(settings)]
    for title, agent in dict.fromkeys((row["title"], row["agent"]) for row in rows):
        those = {(r["learning_rate"], r["forget_bias"]): r for r in rows if (r["title"], r["agent"]) == (title, agent)}
        cells = [f"{mean(those[setting]):.2f}" for setting in settings]
        cells = [
            f"**{text}**" if those[setting] is best(those.values()) else text
            for text, setting in zip(cells, settings, strict=True)
        ]
        lines.append(f"| {title} | {rl.TITLES[agent]} | {' | '.join(cells)} |")
    return "\n".join(lines)
