"""Choose the settings for MNIST by pixels on a part of the training set: rates, scales and initial values, by halving.

Nine or twelve settings are trained for half an epoch on 55,000 of the 60,000 training images, the better half of them
for a whole epoch, and the better quarter for two. The other 5,000 training images compare them. The test images are not
read.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import mgu_jax as mgu
from experiments.datasets import data
from experiments.harness import cells
from experiments.run import Bound, Common, Run, damage_refused
from experiments.tasks import mnist_pixels

EPOCHS = (0.5, 1, 2)  # after which settings are dropped, and the last
RATES = {"starts": (2e-3, 4e-3, 8e-3), "scales": (8e-3, 1.6e-2, 2.4e-2)}
WARMUP = {"starts": 0, "scales": mnist_pixels.WARMUP}  # steps in which the rate rises from zero


class Start(NamedTuple):
    """How a training may begin. One pixel is read at a time, so LeCun's W is seven times Glorot's ("orthogonal")."""

    bias: float | str  # of the gate
    initializer: str = "lecun"  # of W
    scale: float = 1.0  # factor on the pixels


OURS = (Start("chrono", "orthogonal"), Start("uniform", "orthogonal"), Start("chrono"), Start(-1.0, "orthogonal"))
FLAX = (Start("chrono"), Start("uniform"), Start(-1.0), Start(-3.0))
SCALES = tuple(Start("chrono", scale=scale) for scale in (1.0, 3.0, 10.0))


@dataclass(frozen=True)
class Config(Common):
    """The flags of tune."""

    cell: Literal["mgu", "gru", "diagonal-mgu", "reset-after-mgu", "ugrnn", "janet", "lstm"] = "mgu"
    """The recurrent cell: one of ours, or Flax's gru and lstm."""
    compare: Literal["scales", "starts"] = "scales"
    """Factors on the pixels, with chrono initialisation and LeCun's W, or ways to start, with a factor of 1."""
    permuted: bool = False
    """Read the pixels of all images in one random order, that of mnist-pixels."""
    hidden_size: int = 100
    """H, the width of the layer."""
    batch_size: Annotated[int, Bound("at most 1000", lambda size: 0 < size <= 1000)] = 100
    """Samples per optimiser step."""


class Scaled(NamedTuple):
    """Parameters of a model, and the factor on its inputs, which no optimiser step changes."""

    params: Any
    scale: Array


@dataclass(frozen=True)
class Starts:
    """A model with several ways to start: the number that ``init`` is given as forget_bias is the place of one."""

    models: tuple[Any, ...]  # equal except for init
    starts: tuple[Start, ...]

    def init(self, key: Array, *, forget_bias: Any = 0, initial_scale: Any = 1.0) -> Scaled:
        place = jnp.asarray(forget_bias, jnp.int32)

        def of(model: Any, bias: float | str) -> Any:
            number = None if isinstance(bias, str) else bias  # a model with other biases ignores it
            return lambda: model.init(key, forget_bias=number, initial_scale=initial_scale)

        ways = [of(model, start.bias) for model, start in zip(self.models, self.starts, strict=True)]
        scales = jnp.asarray([start.scale for start in self.starts], jnp.float32)
        return Scaled(jax.lax.switch(place, ways), scales[place])

    def apply(self, params: Scaled, xs: Any, **options: Any) -> Any:
        return self.models[0].apply(params.params, xs * jax.lax.stop_gradient(params.scale), **options)

    @property
    def readout(self) -> str:
        return "last"


def model_of(config: Config, steps: int) -> Starts:
    """The model with its ways to start."""
    ours = config.cell in cells.FAMILY
    starts = SCALES if config.compare == "scales" else OURS if ours else FLAX
    models = []
    for start in starts:
        own = {"initializer": start.initializer} if ours else {}
        drawn = cells.biases(start.bias, steps)
        models.append(cells.build(config.cell, 1, config.hidden_size, 10, drawn, readout="last", **own))
    return Starts(tuple(models), starts)


def main(config: Config) -> None:
    """Halve the settings, and write what was learned of each."""
    found = mnist_pixels.held_out(data.mnist(config.data_dir, config.download))
    mnist = mnist_pixels.pixels(found, config.permuted, every=28 if config.quick else 1)
    train, valid = mnist.train, mnist.test
    model: Any = model_of(config, train.xs.shape[1])
    rates = RATES[config.compare]
    epoch = len(train.xs) // config.batch_size
    rungs = (10, 20, 40) if config.quick else tuple(int(epochs * epoch) for epochs in EPOCHS)
    hyper = mgu.grid(learning_rate=rates, forget_bias=tuple(range(len(model.starts))))._replace(clip_norm=1.0)
    warmup = min(WARMUP[config.compare], rungs[0] // 2) if config.quick else WARMUP[config.compare]
    recipe = mgu.Recipe(
        model, schedule="cosine", total_steps=rungs[-1], warmup_steps=warmup, batch_size=config.batch_size
    )
    per_call = max(1, rungs[0] // 5)
    validation = mgu.Validation(valid, (mgu.losses.accuracy,), every=5, batch_size=500)
    run = Run("tune", config, mnist.sources, {"rungs": [*rungs], "held_out": mnist_pixels.HELD_OUT})
    rows = [
        {"learning_rate": float(rate), **model.starts[int(place)]._asdict(), "accuracy": {}}
        for rate, place in zip(hyper.learning_rate, hyper.forget_bias, strict=True)
    ]

    with mgu.Checkpoints(run.path("checkpoints")) as checkpoints, damage_refused(checkpoints):
        run.rewind(max(checkpoints.steps, default=0))

        def on_call(state: mgu.Halving, losses: np.ndarray, scores: dict[str, np.ndarray]) -> str:
            step = int(state.sweep.step)
            for member, place in enumerate(state.left):
                seen = {name: score[member] for name, score in scores.items()}
                run.log(step, "valid", setting=str(place), loss=losses[member].mean(), **seen)
            return f"best accuracy {np.nanmax(scores['accuracy']):.2%}" if scores else ""

        mgu.halving(
            recipe,
            train,
            hyper=hyper,
            keys=jax.random.key(config.seed)[None],
            rungs=rungs,
            validation=validation,
            checkpoints=checkpoints,
            steps_per_call=per_call,
            at_once=1 if jax.default_backend() == "cpu" else None,
            on_call=on_call,
            progress=True,
        )
    for line in run.metrics():
        if "accuracy" in line:
            rows[int(line["setting"])]["accuracy"][str(line["step"])] = line["accuracy"]
    rows.sort(key=lambda row: max((int(step), score) for step, score in row["accuracy"].items()), reverse=True)
    asked = {"cell": config.cell, "permuted": config.permuted, "compare": config.compare, "warmup": warmup}
    run.finish(asked | {"rungs": rungs, "settings": rows})
    for row in rows:
        step, score = max((int(step), score) for step, score in row["accuracy"].items())
        start = f"{row['bias']}, {row['initializer']}, pixels times {row['scale']:g}"
        print(f"  rate {row['learning_rate']:.4f}  {start:34} {score:.2%} after {step} steps")
    run.close()


def table(results: list[dict[str, Any]]) -> str:
    """One row per setting of some runs, the best first: the accuracy on the held-out images at the end of each rung."""
    ends = [str(step) for step in results[0]["rungs"]]
    heads = " | ".join(f"after {int(step):,} steps" for step in ends)
    lines = [
        f"| learning rate | steps of warm-up | pixels times | initial forget biases | initial W | {heads} |",
        "|---|---|---|---|---|" + "---|" * len(ends),
    ]
    reached = [row | {"warmup": result["warmup"]} for result in results for row in result["settings"]]

    def best(row: dict[str, Any]) -> list[float]:
        return [row["accuracy"].get(step, 0.0) for step in reversed(ends)]

    for row in sorted(reached, key=best, reverse=True):
        named = row["bias"] if isinstance(row["bias"], str) else f"b_f = {row['bias']:g}"
        parts = [f"{row['learning_rate']:.3g}", f"{row['warmup']}", f"{row['scale']:g}", named]
        parts.append({"orthogonal": "Glorot", "lecun": "LeCun"}[row["initializer"]])
        parts += [f"{row['accuracy'][step]:.2%}" if step in row["accuracy"] else "" for step in ends]
        lines.append(f"| {' | '.join(parts)} |")
    return "\n".join(lines)
