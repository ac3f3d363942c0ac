"""Measure what trained MGUs remember: digits, sums, characters and pixels, from three initial forget biases.

Each network is trained once, and ``mgu.dynamics.memory`` measures before and after how much its output at the last step
depends on each earlier state. A quarter of an hour on one core.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

import mgu_jax as mgu
from experiments.datasets import data, text
from experiments.harness import cells, plots
from experiments.harness.measures import ACCURACY, BITS, ERROR, Measure
from experiments.run import BadRequest, Common, Run
from experiments.tasks import mnist_pixels
from experiments.tasks.adding import sequences

BIASES = ("1", "-1", "chrono")


@dataclass(frozen=True)
class Config(Common):
    """The flags of memory."""

    tasks: tuple[Literal["digits", "adding", "chars", "pixels"], ...] = ("digits", "adding", "chars", "pixels")
    """The tasks to train on."""


class Task(NamedTuple):
    """What is learned, and the sequences whose memory is measured."""

    title: str
    sizes: tuple[int, int, int]  # D or the number of different tokens, H, K
    options: dict[str, Any]  # of the model
    recipe: dict[str, Any]  # options of the recipe
    train: Any
    test: Any
    measure: Measure
    steps: int
    longest: int  # for chrono
    sequences: Any  # [T, N, D], or tokens [T, N]
    sources: dict[str, str]
    evaluation: dict[str, Any] = {}  # noqa: RUF012 (read only)
    learning_rate: float = 3e-3


def digits(config: Config) -> Task:
    found = data.digits()
    return Task(
        title="Digits by rows",
        sizes=(8, 64, 10),
        options={"readout": "last"},
        recipe={"batch_size": 32},
        train=found.train,
        test=found.test,
        measure=ACCURACY,
        steps=42 if config.quick else 840,
        longest=8,
        sequences=np.swapaxes(found.test.xs[:64], 0, 1),
        sources=found.sources,
    )


def adding(config: Config) -> Task:
    length = 10 if config.quick else 100
    test = sequences(np.random.default_rng(0), 1000, length)
    return Task(
        title=f"Adding, {length} numbers",
        sizes=(2, 64, 1),
        options={"readout": "last"},
        recipe={"batch_size": 50, "loss": mgu.losses.squared_error},
        train=lambda step: sequences(np.random.default_rng((1, step)), 50, length),
        test=test,
        measure=ERROR,
        steps=20 if config.quick else 2000,
        longest=length,
        sequences=np.swapaxes(test.xs[:64], 0, 1),
        sources={"the adding problem": f"made by numpy {np.__version__}"},
    )


def chars(config: Config) -> Task:
    found, T = text.shakespeare(config.data_dir, config.download), 10 if config.quick else 100
    tokens = found.test.xs[: 64 * T].reshape(64, T)
    return Task(
        title="Tiny Shakespeare",
        sizes=(len(found.symbols), 128, len(found.symbols)),
        options={"embedding_size": 32},
        recipe={"batch_size": 32, "window": 64},
        train=found.train,
        test=found.test,
        measure=BITS,
        steps=10 if config.quick else 1500,
        longest=100,
        sequences=tokens.T,
        sources=found.sources,
        evaluation={"batch_size": 8, "window": 64},
    )


def by_pixels(config: Config) -> Task:
    """One epoch with the settings of the best run of mnist-pixels, which has ten."""
    asked, found = mnist_pixels.Config(), data.mnist(config.data_dir, config.download)
    mnist = mnist_pixels.pixels(found, False, 28 if config.quick else 1, asked.input_scale)
    steps = 20 if config.quick else len(mnist.train.xs) // 100
    return Task(
        title="MNIST by pixels, one epoch",
        sizes=(1, 100, 10),
        options={"readout": "last", "initializer": asked.initializer},
        recipe={"batch_size": 100, "warmup_steps": 2 if config.quick else mnist_pixels.WARMUP},
        train=mnist.train,
        test=mnist.test,
        measure=ACCURACY,
        steps=steps,
        longest=mnist.test.xs.shape[1],
        sequences=np.swapaxes(mnist.test.xs[:64], 0, 1),
        sources=mnist.sources,
        evaluation={"batch_size": 500},
        learning_rate=asked.learning_rate,
    )


TASKS: dict[str, Callable[[Config], Task]] = {
    "digits": digits,
    "adding": adding,
    "chars": chars,
    "pixels": by_pixels,
}


def curve_of(params: Any, task: Task) -> dict[str, Any]:
    """How much the outputs of the last step depend on each earlier state: relative to the last, and the time to 1/e."""
    xs = task.sequences if params.embedding is None else params.embedding[task.sequences]
    memory = mgu.dynamics.memory(params.layers[0], xs, probe=params.W_y.T)
    norms = np.exp(np.log(np.maximum(memory.states, 1e-38)).mean(1))
    curve = (norms / norms[-1])[::-1]
    below = np.flatnonzero(curve < np.exp(-1))
    return {
        "curve": curve.tolist(),  # of 0, 1, ... steps before the last
        "steps_to_1/e": int(below[0]) if below.size else None,
        "time_constant": float(np.median(memory.time_constants)),
    }


def main(config: Config) -> None:
    """Train each task from each bias; write the curves and draw them."""
    if config.steps is not None:
        raise BadRequest("--steps has no meaning for memory, whose tasks have steps of their own.")
    chosen = {name: TASKS[name](config) for name in dict.fromkeys(config.tasks)}
    if not chosen:
        raise BadRequest("--tasks must name at least one task; got none.")
    sources = {source: digest for task in chosen.values() for source, digest in task.sources.items()}
    run = Run("memory", config, sources)
    run.rewind(0)  # a run that resumes starts again and repeats the same bits
    rows = []
    for name, task in chosen.items():
        for bias in BIASES:
            biases = cells.biases(bias, task.longest)
            model = cells.build("mgu", *task.sizes, biases, **task.options)
            hyper = mgu.Hyper(learning_rate=task.learning_rate, clip_norm=1.0)
            hyper = hyper if biases else hyper._replace(forget_bias=float(bias))
            recipe = mgu.Recipe(model, schedule="cosine", total_steps=task.steps, **task.recipe)
            key, began = jax.random.key(config.seed), time.perf_counter()
            start = mgu.start(recipe, key, hyper)
            before = curve_of(start.params, task)
            state, losses = mgu.fit(
                recipe, task.train, steps=task.steps, key=key, hyper=hyper, state=start, progress=True
            )
            (mean,) = mgu.evaluate(model, state.params, task.test, (task.measure.metric,), **task.evaluation)
            score = float(task.measure.score(mean))
            after, seconds = curve_of(state.params, task), time.perf_counter() - began
            rows.append({"task": name, "title": task.title, "forget_bias": bias, "before": before, "after": after})
            rows[-1] |= {"measure": task.measure.name, "score": score, "seconds": seconds}
            run.log(len(rows), name, loss=losses[-1], score=score)
            print(f"{task.title}, b_f {bias}: {task.measure.label} {task.measure.shown.format(score)}", flush=True)
    run.finish({"settings": run.record["settings"], "rows": rows})
    plots.memory_curves(run.path("memory.png"), rows)
    print(f"\n{table(rows)}\n")
    run.close()


def table(rows: list[dict[str, Any]]) -> str:
    """One row per task and bias: the score, and the memory before and after the training."""
    measures = {measure.name: measure for measure in (ACCURACY, ERROR, BITS)}
    longest = {row["task"]: len(row["before"]["curve"]) - 1 for row in rows}
    lines = [
        "| task | initial forget bias | test score | steps to 1/e, before training | after training "
        "| median time constant of the gates, before | after |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        measure = measures[row["measure"]]
        bias = "chrono" if row["forget_bias"] == "chrono" else f"b_f = {row['forget_bias']}"
        cells = [row["title"], bias, f"{measure.label} {measure.shown.format(row['score'])}"]
        reached = (row[when]["steps_to_1/e"] for when in ("before", "after"))
        cells += [f"over {longest[row['task']]}" if steps is None else f"{steps}" for steps in reached]
        cells += [f"{row[when]['time_constant']:.1f}" for when in ("before", "after")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"{len(rows)} runs, {sum(row['seconds'] for row in rows) / 60:.0f} minutes."])
