"""Repeat the test of the notebook that this library began with: ten iterations of gradient descent.

The loss of a time step is the squared error summed over the batch and divided by its size, as in the notebook; the
gradient is that of the mean over the time steps. Prints the loss of every time step at the first and at the last
iteration, and checks the gradient.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

import mgu_jax as mgu
from experiments.harness import plots
from experiments.run import Common, Run


@dataclass(frozen=True)
class Config(Common):
    """The flags of notebook."""


HIDDEN, OUTPUT, BATCH, STEPS = 5, 1, 3, 10


def loss_per_step(ys: jax.Array, targets: jax.Array) -> jax.Array:
    """ys, targets [T, B, K] -> [T]: squared error summed over outputs and batch, divided by the batch."""
    return jnp.sum((ys - targets) ** 2, (1, 2)) / ys.shape[1]


def main(config: Config) -> None:
    """Train, print and check."""
    model = mgu.Model(1, (HIDDEN,), OUTPUT, initializer="notebook")
    recipe = mgu.Recipe(model, lambda ys, targets: loss_per_step(ys, targets).mean(), "sgd", batch_size=BATCH)
    hyper = mgu.Hyper(learning_rate=0.1, forget_bias=0.0)
    key, ones = jax.random.key(config.seed), np.ones((BATCH, STEPS, 1), np.float32)

    run = Run("notebook", config, {})
    run.rewind(0)  # too short for checkpoints: a run that resumes starts again and repeats the same bits
    state = mgu.start(recipe, key, hyper)
    visited = [state.params]
    state, losses = mgu.fit(
        recipe,
        mgu.Data(ones, ones),
        steps=config.steps or 10,
        key=key,
        state=state,
        hyper=hyper,
        steps_per_call=1,
        on_call=lambda state, *_: visited.append(state.params),
    )
    xs = jnp.ones((STEPS, BATCH, 1))
    curves = {}
    for iteration in (1, len(losses)):
        # The loss before the iteration's own update, as the notebook printed it.
        curves[iteration] = np.asarray(loss_per_step(model.apply(visited[iteration - 1], xs), xs))
        print(f"loss per time step, iteration {iteration:2}:  " + " ".join(f"{v:.6f}" for v in curves[iteration]))
    print(f"their mean falls from {losses[0]:.4f} to {losses[-1]:.4f} in {len(losses)} iterations")
    for iteration, loss in enumerate(losses, 1):
        run.log(iteration, "train", loss=loss)
    plots.loss_per_time_step(run.path("loss_per_time_step.png"), curves)
    report = mgu.check_gradients(state.params.layers[0], xs, key=key)
    print(f"\n{report}\n")
    run.finish(
        {
            "loss_per_time_step": {str(iteration): curve.tolist() for iteration, curve in curves.items()},
            "loss": losses.tolist(),
            "worst_gradient_error": {"autodiff": report.worst, "finite_differences": report.worst_differences},
        },
    )
    run.close()
