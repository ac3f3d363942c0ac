"""Choose the settings for MNIST by pixels on a part of the training set: rates and initial values, by halving.

Twelve settings are trained for half an epoch on 55,000 of the 60,000 training images, the better six of them for a
whole epoch, and the better three for two. The other 5,000 training images compare them. The test images are not read.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import mgu_jax as mgu
from experiments.datasets import data
from experiments.harness import cells
from experiments.run import Bound, Common, Run, damage_refused
from experiments.tasks.mnist_pixels import pixels
from mgu_jax.training.data import Data

HELD_OUT = 5_000
EPOCHS = (0.5, 1, 2)  # after which settings are dropped, and the last
RATES = (2e-3, 4e-3, 8e-3)
# Initial biases of the gate, and initial W. One pixel is read at a time, so LeCun's W is seven times Glorot's.
STARTS = (("chrono", "orthogonal"), ("uniform", "orthogonal"), ("chrono", "lecun"), (-1.0, "orthogonal"))
FLAX_STARTS = (("chrono", "lecun"), ("uniform", "lecun"), (-1.0, "lecun"), (-3.0, "lecun"))


@dataclass(frozen=True)
class Config(Common):
    """The flags of tune."""

    cell: Literal["mgu", "gru", "diagonal-mgu", "reset-after-mgu", "ugrnn", "lstm"] = "mgu"
    """The recurrent cell: one of ours, or Flax's gru and lstm."""
    permuted: bool = False
    """Read the pixels of all images in one random order, that of mnist-pixels."""
    hidden_size: int = 100
    """H, the width of the layer."""
    batch_size: Annotated[int, Bound("at most 1000", lambda size: 0 < size <= 1000)] = 100
    """Samples per optimiser step."""


@dataclass(frozen=True)
class Starts:
    """A model with several ways to start: the number that ``init`` is given as forget_bias is the place of one."""

    models: tuple[Any, ...]  # equal except for init
    biases: tuple[float | None, ...]

    def init(self, key: Array, *, forget_bias: Any = 0, initial_scale: Any = 1.0) -> Any:
        def of(model: Any, bias: float | None) -> Any:
            return lambda: model.init(key, forget_bias=bias, initial_scale=initial_scale)

        ways = [of(model, bias) for model, bias in zip(self.models, self.biases, strict=True)]
        return jax.lax.switch(jnp.asarray(forget_bias, jnp.int32), ways)

    def apply(self, params: Any, xs: Any, **options: Any) -> Any:
        return self.models[0].apply(params, xs, **options)

    @property
    def readout(self) -> str:
        return "last"


def model_of(config: Config, steps: int) -> tuple[Any, tuple[Any, ...]]:
    """The model, and its starts."""
    starts = STARTS if config.cell in cells.FAMILY else FLAX_STARTS
    models, biases = [], []
    for bias, initializer in starts:
        own = {"initializer": initializer} if config.cell in cells.FAMILY else {}
        drawn = cells.biases(bias, steps)
        models.append(cells.build(config.cell, 1, config.hidden_size, 10, drawn, readout="last", **own))
        biases.append(None if drawn else bias)
    return Starts(tuple(models), tuple(biases)), starts


def main(config: Config) -> None:
    """Halve the settings, and write what was learned of each."""
    mnist = pixels(data.mnist(config.data_dir, config.download), config.permuted, every=28 if config.quick else 1)
    xs, targets = mnist.train.xs, mnist.train.targets
    train, valid = Data(xs[:-HELD_OUT], targets[:-HELD_OUT]), Data(xs[-HELD_OUT:], targets[-HELD_OUT:])
    model, starts = model_of(config, train.xs.shape[1])
    epoch = len(train.xs) // config.batch_size
    rungs = (10, 20, 40) if config.quick else tuple(int(epochs * epoch) for epochs in EPOCHS)
    hyper = mgu.grid(learning_rate=RATES, forget_bias=tuple(range(len(starts))))._replace(clip_norm=1.0)
    recipe = mgu.Recipe(model, schedule="cosine", total_steps=rungs[-1], batch_size=config.batch_size)
    per_call = max(1, rungs[0] // 5)
    validation = mgu.Validation(valid, (mgu.losses.accuracy,), every=5, batch_size=500)
    run = Run("tune", config, mnist.sources, {"rungs": [*rungs], "held_out": HELD_OUT})
    rows = [
        {"learning_rate": float(rate), "forget_bias": starts[int(place)][0], "initializer": starts[int(place)][1]}
        for rate, place in zip(hyper.learning_rate, hyper.forget_bias, strict=True)
    ]
    for row in rows:
        row["accuracy"] = {}

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
    run.finish({"cell": config.cell, "permuted": config.permuted, "rungs": rungs, "settings": rows})
    for row in rows:
        step, score = max((int(step), score) for step, score in row["accuracy"].items())
        start = f"{row['forget_bias']}, {row['initializer']}"
        print(f"  rate {row['learning_rate']:.4f}  {start:22} {score:.2%} after {step} steps")
    run.close()


def table(result: dict[str, Any]) -> str:
    """One row per setting, the best first: the accuracy on the held-out images at the end of each rung it reached."""
    ends = [str(step) for step in result["rungs"]]
    heads = (f"after {int(step):,} steps" for step in ends)
    lines = [
        f"| learning rate | initial forget biases | initial W | {' | '.join(heads)} |",
        "|---|---|---|" + "---|" * len(ends),
    ]
    for row in result["settings"]:
        bias, start = row["forget_bias"], {"orthogonal": "Glorot", "lecun": "LeCun"}[row["initializer"]]
        scores = (f"{row['accuracy'][step]:.2%}" if step in row["accuracy"] else "" for step in ends)
        named = bias if isinstance(bias, str) else f"b_f = {bias:g}"
        lines.append(f"| {row['learning_rate']:.3g} | {named} | {start} | {' | '.join(scores)} |")
    return "\n".join(lines)
