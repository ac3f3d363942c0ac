"""Train 64 MGUs at once on digits: learning rates x forget biases x seeds, in one compiled program.

Every member is trained as ``digits`` trains one, with H = 32. The time of the sweep is compared with 64 times the time
of one member alone. A minute on a laptop.
"""

from dataclasses import dataclass

import jax
import numpy as np

import mgu_jax as mgu
from experiments.datasets import data
from experiments.harness import plots
from experiments.run import BadRequest, Common, Run, damage_refused, use_devices
from experiments.speed import timing
from mgu_jax.training.hyper import as_settings, per_member
from mgu_jax.training.sweep import member_rows

RATES, BIASES = (3e-4, 1e-3, 3e-3, 1e-2), (-2.0, -1.0, 0.0, 1.0)
EPOCH = 42  # steps


@dataclass(frozen=True)
class Config(Common):
    """The flags of sweep."""

    seeds: int = 4
    """Seeds of each setting."""
    hidden_size: int = 32
    """H, the width of the layer."""
    devices: int | None = None
    """Number of devices to split the members over; by default two, if there are two."""


def main(config: Config) -> None:
    """Train all members; show the surface of scores, the best member, and the time."""
    devices = use_devices(config.devices)
    digits = data.digits()
    steps = config.steps or (2 * EPOCH if config.quick else 20 * EPOCH)
    hyper = mgu.grid(
        learning_rate=RATES[1:3] if config.quick else RATES, forget_bias=BIASES[:2] if config.quick else BIASES
    )
    count = len(hyper.learning_rate) * config.seeds
    if count % devices:
        raise BadRequest(f"--devices must divide the {count} members; got {devices}.")
    keys = jax.random.split(jax.random.key(config.seed), config.seeds)
    run = Run("sweep", config, digits.sources, {"members": count, "total_steps": steps, "devices": devices})
    model = mgu.Model(8, (config.hidden_size,), 10, readout="last")
    recipe = mgu.Recipe(model, schedule="cosine", total_steps=steps, batch_size=32)
    hyper = hyper._replace(clip_norm=1.0)
    validation = mgu.Validation(digits.test, (mgu.losses.accuracy,))

    with mgu.Checkpoints(run.path("checkpoints")) as checkpoints, damage_refused(checkpoints):
        run.rewind(max(checkpoints.steps, default=0))

        def on_call(state: mgu.Sweep, losses: np.ndarray, scores: dict[str, np.ndarray]) -> str:
            for i, row in enumerate(member_rows(state, hyper)):
                seen = {name: score[i] for name, score in scores.items()}
                run.log(int(state.step), "test", setting=row["setting"], seed=row["seed"], loss=losses[i, -1], **seen)
            return f"best accuracy {np.nanmax(scores['accuracy']):.2%}" if scores else ""

        state, _ = mgu.sweep(
            recipe,
            digits.train,
            hyper=hyper,
            keys=keys,
            steps=steps,
            checkpoints=checkpoints,
            steps_per_call=EPOCH,
            validation=validation,
            devices=devices,
            on_call=on_call,
            progress=True,
        )

    members, best = member_rows(state, hyper), mgu.best_member(state, hyper, validation)
    each, budget = per_member(as_settings(hyper)[0], config.seeds), 0.1 if config.quick else 5.0
    times = timing.members_beside_one(recipe, state, each, digits.train, steps=EPOCH, devices=devices, budget=budget)
    surface = np.array([row["score"] for row in members], float).reshape(
        -1, len(BIASES[:2] if config.quick else BIASES), config.seeds
    )
    numbers = {
        "members": members,
        "best": {"learning_rate": float(best.hyper.learning_rate), "forget_bias": float(best.hyper.forget_bias)}
        | {"seed": best.seed, "accuracy": best.score},
        "accuracy_of_settings": surface.mean(-1).tolist(),
        **times,
    }
    run.finish(numbers)
    plots.surface(run.path("surface.png"), surface, np.unique(hyper.learning_rate), np.unique(hyper.forget_bias))
    print(f"\n  best of {count}: {best.score:.2%} with learning rate {best.hyper.learning_rate:g}, ", end="")
    print(f"forget bias {best.hyper.forget_bias:g}, seed {best.seed}")
    print(f"  an epoch of all {count} members: {times['seconds']:.2f} s; of one, times {count}: ", end="")
    print(f"{times['seconds_one_by_one']:.2f} s; the sweep takes {times['share']:.2f} of that")
    run.close()
