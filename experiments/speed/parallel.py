"""Measure "parallel" beside the loop: iterations before and after training, and time on one device and on two.

DIAGONAL_MGU with H = 64 is trained briefly on sums among 100 numbers and on MNIST by pixels. Before and after, Newton's
method finds the states of sequences of up to 100,000 steps at once, in float32. The largest Lyapunov exponent is given
beside its iterations. The longer sequences of pixels are images one after another. Then "parallel" and
"parallel_backward" are timed beside "manual", and "parallel" also for small layers of the MGU. A few minutes on two
cores; on a GPU, longer sequences are timed.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import mgu_jax as mgu
from experiments.datasets import data
from experiments.harness import cells
from experiments.harness.plots import BLUE, ORANGE, WIDTH, digest_of, figure_of, save
from experiments.run import BadRequest, Common, Run, use_devices
from experiments.speed import peers, timing
from experiments.speed.timing import Size
from experiments.tasks.adding import sequences
from experiments.tasks.mnist_pixels import pixels

CELL = mgu.DIAGONAL_MGU
IMPLEMENTATIONS = ("manual", "parallel", "parallel_backward")
LENGTHS = (100, 1_000, 10_000, 100_000)
DENSE: tuple[Size, ...] = ((1, 1_000, 16, 16), (16, 1_000, 16, 16), (16, 1_000, 16, 32))  # for the MGU itself
SAMPLES = 2  # of the sequences on which Newton's method is measured
Rows = Iterator[dict[str, Any]]


@dataclass(frozen=True)
class Config(Common):
    """The flags of parallel."""

    tasks: tuple[Literal["adding", "pixels"], ...] = ("adding", "pixels")
    """The tasks to train on."""
    budget: float = 1.0
    """Seconds for each size and number of devices, after compilation."""


@dataclass(frozen=True)
class Task:
    """What is learned, in how many steps, and the sequences [T, B, D] of any length that are like it."""

    title: str
    model: Any
    recipe: dict[str, Any]
    train: Any
    steps: int
    of_length: Callable[[int], np.ndarray]
    sources: dict[str, str]


def model(config: Config, input_size: int, output_size: int, longest: int) -> Any:
    """A layer under a readout, with chrono initialisation for memories of up to ``longest`` steps."""
    sizes = input_size, 4 if config.quick else 64, output_size
    return cells.build("diagonal-mgu", *sizes, cells.biases("chrono", longest), readout="last")


def adding(config: Config) -> Task:
    length = 10 if config.quick else 100
    return Task(
        title=f"Adding, {length} numbers",
        model=model(config, 2, 1, length),
        recipe={"batch_size": 50, "loss": mgu.losses.squared_error},
        train=lambda step: sequences(np.random.default_rng((1, step)), 50, length),
        steps=5 if config.quick else 8000,
        of_length=lambda T: np.swapaxes(sequences(np.random.default_rng(0), SAMPLES, T).xs, 0, 1),
        sources={"the adding problem": f"made by numpy {np.__version__}"},
    )


def by_pixels(config: Config) -> Task:
    mnist = pixels(data.mnist(config.data_dir, config.download), False, every=28 if config.quick else 1)
    xs = mnist.test.xs

    def of_length(T: int) -> np.ndarray:
        images = -(-T // xs.shape[1])
        return np.swapaxes(xs[: SAMPLES * images].reshape(SAMPLES, -1, 1)[:, :T], 0, 1)

    return Task(
        title="MNIST by pixels",
        model=model(config, 1, 10, xs.shape[1]),
        recipe={"batch_size": 50},
        train=mnist.train,
        steps=5 if config.quick else 1200,
        of_length=of_length,
        sources=mnist.sources,
    )


TASKS: dict[str, Callable[[Config], Task]] = {"adding": adding, "pixels": by_pixels}


def iterations(config: Config, name: str, task: Task) -> Rows:
    """How Newton's method ends for each length, before the training and after it."""
    hyper = mgu.Hyper(learning_rate=3e-3, clip_norm=1.0)
    recipe = mgu.Recipe(task.model, schedule="cosine", total_steps=task.steps, **task.recipe)
    key = jax.random.key(config.seed)
    start = mgu.start(recipe, key, hyper)
    before = start.params.layers[0]
    state, losses = mgu.fit(recipe, task.train, steps=task.steps, key=key, hyper=hyper, state=start, progress=True)
    kept = {"part": "iterations", "task": name, "title": task.title, "optimiser_steps": task.steps}
    for when, params in (("before", before), ("after", state.params.layers[0])):
        for T in (10, 20) if config.quick else LENGTHS:
            xs = jnp.asarray(task.of_length(T))
            found = jax.device_get(mgu.convergence(params, xs, cell=CELL, segment=T))
            exponent = mgu.dynamics.lyapunov(params, xs, k=1, cell=CELL)
            row = {"when": when, "T": T, "loss": float(np.mean(losses[-10:])), "exponent": float(jnp.max(exponent))}
            row |= {"iterations": int(found.iterations[0]), "residual": float(found.residual[0])}
            yield kept | row | {"correction": float(found.correction[0]), "fell_back": bool(found.fell_back[0])}


def work(function: Callable[..., Any], arguments: tuple[Any, ...]) -> float:
    """The milliseconds that a call takes on all cores together, the median of three."""
    found = []
    for _ in range(3):
        began = time.process_time()
        jax.block_until_ready(function(*arguments))
        found.append(time.process_time() - began)
    return 1e3 * float(np.median(found))


def times(cell: str, sizes: tuple[Size, ...], devices: int, budget: float) -> Rows:
    """The times of a cell's implementations at each size, the batch split over the devices if they divide it."""
    names = [name for name in IMPLEMENTATIONS if cells.FAMILY[cell].elementwise or name != "parallel_backward"]
    for size in sizes:
        for count in (1, 2) if devices > 1 and size[0] % 2 == 0 else (1,):
            layers = {
                name: peers.Layer("mgu_jax", partial(peers.ours, cell=cells.FAMILY[cell], implementation=name))
                for name in names
            }
            made = {
                name: peers.on_one_device(layer, size) if count == 1 else peers.on_devices(layer, size, count)
                for name, layer in layers.items()
            }
            for which in ("forward", "both"):
                contestants = {name: pair[which] for name, pair in made.items()}
                found = timing.alternate(contestants, budget / 2, 3)
                for name, seconds in found.items():
                    row = {
                        "part": "time",
                        "cell": cell,
                        "size": list(size),
                        "devices": count,
                        "which": which,
                        "name": name,
                    }
                    row |= timing.spread(seconds) | {"times_loop": timing.ratio(seconds, found["manual"])}
                    yield row | {"cpu_ms": work(*contestants[name]), "rounds": len(seconds)}
        jax.clear_caches()


def main(config: Config) -> None:
    """Run both parts, draw the picture, and print the tables last."""
    if config.steps is not None:
        raise BadRequest("--steps has no meaning for parallel, whose tasks have steps of their own.")
    devices = use_devices(None)
    tasks = {name: TASKS[name](config) for name in dict.fromkeys(config.tasks)}
    if not tasks:
        raise BadRequest("--tasks must name at least one task; got none.")
    run = Run(
        "parallel", config, {source: digest for task in tasks.values() for source, digest in task.sources.items()}
    )
    run.rewind(0)
    sizes: tuple[Size, ...] = tuple((B, T, 16, 64) for B, T in ((1, 10_000), (16, 1_000), (16, 10_000)))
    if jax.default_backend() == "gpu":
        sizes, devices = tuple((16, T, 16, 64) for T in (1_000, 10_000, 100_000)), 1
    parts = [iterations(config, name, task) for name, task in tasks.items()]
    budget = 0.02 if config.quick else config.budget
    for cell, of_cell in (("diagonal-mgu", sizes), ("mgu", DENSE)):
        parts.append(times(cell, ((2, 6, 3, 4),) if config.quick else of_cell, devices, budget))
    rows: list[dict[str, Any]] = []
    for part in parts:
        for row in part:
            rows.append(row)
            run.log(len(rows), row["part"], **{k: v for k, v in row.items() if k not in ("part", "size")})
    run.finish({"settings": run.record["settings"], "rows": rows})
    picture(run.path("parallel.png"), rows)
    for made in (table_of_iterations(rows), table_of_times(rows)):
        print(f"\n{made}\n")
    run.close()


def of_part(rows: list[dict[str, Any]], part: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["part"] == part]


def table_of_iterations(rows: list[dict[str, Any]]) -> str:
    """One row per task, time of measurement and length."""
    lines = [
        "| task | weights | T | iterations | last correction | residual | largest exponent, nats per step |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in of_part(rows, "iterations"):
        weights = "initial" if row["when"] == "before" else f"after {row['optimiser_steps']:,} steps"
        ended = f"{row['iterations']}, then the loop" if row["fell_back"] else f"{row['iterations']}"
        exponent = f"{row['exponent']:.4f}"
        parts = (row["title"], weights, f"{row['T']:,}", ended, f"{row['correction']:.0e}", f"{row['residual']:.0e}")
        lines.append(f"| {' | '.join((*parts, exponent))} |")
    return "\n".join(lines)


def table_of_times(rows: list[dict[str, Any]]) -> str:
    """One row per cell, size, number of devices and pass."""
    lines = [
        '| cell | B, T, D, H | devices | pass | "manual", ms | time of "parallel" relative to it '
        '| of "parallel_backward" | work of all cores, "parallel" relative to "manual" |',
        "|---|---|---|---|---|---|---|---|",
    ]
    found = {
        (row["cell"], tuple(row["size"]), row["devices"], row["which"], row["name"]): row
        for row in of_part(rows, "time")
    }
    for cell, size, devices, which in dict.fromkeys(key[:4] for key in found):
        loop, parallel = (found[cell, size, devices, which, name] for name in ("manual", "parallel"))
        backward = found.get((cell, size, devices, which, "parallel_backward"))
        name = "DIAGONAL_MGU" if cell == "diagonal-mgu" else "MGU"
        what = "forward" if which == "forward" else "training step"
        shown = [
            f"{loop['ms']:.2f}",
            f"{parallel['times_loop']:.2f}",
            f"{backward['times_loop']:.2f}" if backward else "",
        ]
        cores = f"{parallel['cpu_ms'] / loop['cpu_ms']:.1f}"
        lines.append(f"| {' | '.join((name, ', '.join(map(str, size)), str(devices), what, *shown, cores))} |")
    return "\n".join(lines)


def picture(path: Path, rows: list[dict[str, Any]]) -> None:
    """Iterations and largest exponent over the length, before and after training."""
    figure, axes = figure_of(1, 2, figsize=(WIDTH, 2.4))
    measured = of_part(rows, "iterations")
    for title, mark in zip(dict.fromkeys(row["title"] for row in measured), "os", strict=False):
        for when, colour in (("before", BLUE), ("after", ORANGE)):
            of_task = [row for row in measured if (row["title"], row["when"]) == (title, when)]
            label = f"{title}, {when} training"
            for panel, value in zip(axes, ("iterations", "exponent"), strict=True):
                x, y = [row["T"] for row in of_task], [row[value] for row in of_task]
                panel.plot(x, y, marker=mark, color=colour, label=label, linewidth=1)
    axes[0].set(ylabel="iterations", ylim=(0, 1 + max(row["iterations"] for row in measured)))
    axes[1].set(ylabel="largest exponent (nats per step)")
    axes[1].axhline(0, color="0.7", linewidth=0.8, zorder=0)
    for panel in axes:
        panel.set(xscale="log", xlabel="T, steps found at once")
        panel.spines[["top", "right"]].set_visible(False)
    axes[0].legend(fontsize=6, frameon=False)
    save(figure, path, digest_of(rows))
