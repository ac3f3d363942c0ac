"""Optimisers and schedules of optax by name, built inside the compiled loop from numbers that may be traced.

What other optimisers need is in wrappers.py.
"""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mgu_jax import checks
from mgu_jax.training.hyper import Hyper
from mgu_jax.training.losses import widened

Optimizer = Callable[[Hyper], optax.GradientTransformation]

# Name -> (scaling of the gradient, whether weight decay comes after it: Loshchilov and Hutter 2019, arXiv 1711.05101).
OPTIMIZERS: dict[str, tuple[Optimizer, bool]] = {
    "sgd": (lambda hyper: optax.identity(), False),
    "momentum": (lambda hyper: optax.trace(hyper.momentum), False),
    "adam": (lambda hyper: optax.scale_by_adam(), False),
    "adamw": (lambda hyper: optax.scale_by_adam(), True),
    "rmsprop": (lambda hyper: optax.scale_by_rms(), False),
}
SCHEDULES = ("constant", "cosine", "linear")


def learning_rate_of(schedule: str, rate: Any, total_steps: int | None, warmup_steps: int) -> Any:
    """The learning rate, or a function of the step that returns it.

    It rises linearly from zero to ``rate`` during the warmup, then follows the schedule, which reaches zero at
    ``total_steps`` unless it is "constant".
    """
    remaining = (total_steps or 0) - warmup_steps
    after = {
        "constant": lambda: optax.constant_schedule(rate),
        "cosine": lambda: optax.cosine_decay_schedule(rate, remaining),
        "linear": lambda: optax.linear_schedule(rate, 0.0, remaining),
    }[schedule]()
    if not warmup_steps:
        return rate if schedule == "constant" else after
    return optax.join_schedules([optax.linear_schedule(0.0, rate, warmup_steps), after], [warmup_steps])


def optimizer_of(
    name: str, hyper: Hyper, schedule: str, total_steps: int | None, warmup_steps: int
) -> optax.GradientTransformation:
    """The optimiser of this name, after clipping of the gradient's norm, with weight decay and a schedule."""
    scaling, decoupled = OPTIMIZERS[name]
    decay = optax.add_decayed_weights(hyper.weight_decay)
    parts = (scaling(hyper), decay) if decoupled else (decay, scaling(hyper))
    rate = learning_rate_of(schedule, hyper.learning_rate, total_steps, warmup_steps)
    return optax.chain(_clip_by_global_norm(hyper.clip_norm), *parts, optax.scale_by_learning_rate(rate))


def _clip_by_global_norm(limit: Any) -> optax.GradientTransformation:
    """optax's, with the norm in float32 at least: a sum of squares in float16 overflows at a norm of 256."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        wide = widened(updates)
        clip = optax.clip_by_global_norm(limit if jax.typeof(limit).weak_type else widened(jnp.asarray(limit)))
        clipped, state = clip.update(wide, state, params)
        return jax.tree.map(lambda a, like: a.astype(like.dtype), clipped, updates), state

    return optax.GradientTransformation(optax.clip_by_global_norm(1.0).init, update)


def check_precision(name: str, params: Any) -> None:
    """Check that the epsilon that this optimiser adds to a square root is above zero in the dtype of the parameters.

    Raises:
        TypeError: it is zero, so that an update could be 0/0.
    """
    if name in ("adam", "adamw", "rmsprop") and any(jnp.result_type(a) == jnp.float16 for a in jax.tree.leaves(params)):
        raise TypeError(
            f"optimizer {name!r} needs params of float32, float64 or bfloat16, since its epsilon of 1e-8 is zero in "
            "float16; got float16."
        )


def check_optimizer(optimizer: Any, schedule: Any, total_steps: Any, warmup_steps: Any) -> None:
    """Check the names, and that the numbers of steps fit together.

    Raises:
        TypeError: optimizer is neither a name nor a function of ``Hyper`` that returns a transformation.
        ValueError: a name is unknown, or a schedule lacks its steps.
    """
    if not callable(optimizer):
        if not isinstance(optimizer, str):
            names = ", ".join(map(repr, OPTIMIZERS))
            came = checks.describe(optimizer)
            raise TypeError(f"optimizer must be one of {names} or a function of Hyper; got {came}.")
        checks.check_choice("optimizer", optimizer, tuple(OPTIMIZERS))
    checks.check_choice("schedule", schedule, SCHEDULES)
    checks.check_size("warmup_steps", warmup_steps, 0)
    if total_steps is not None:
        checks.check_size("total_steps", total_steps)
    if callable(optimizer):
        _check_function(optimizer)
        if schedule != "constant" or total_steps is not None or warmup_steps:
            came = f"{schedule!r}, {total_steps} and {warmup_steps}"
            rule = "must be left out where optimizer is a function, which brings its own schedule"
            raise ValueError(f"schedule, total_steps and warmup_steps {rule}; got {came}.")
    if schedule != "constant" and (total_steps or 0) <= warmup_steps:
        rule = f"total_steps must be given for schedule {schedule!r}, and be above warmup_steps, {warmup_steps}"
        raise ValueError(f"{rule}; got {total_steps}.")


def _check_function(optimizer: Callable[..., Any]) -> None:
    try:
        first = next(iter(inspect.signature(optimizer).parameters), None)
    except (TypeError, ValueError):  # a callable without a signature
        first = None
    if first == "learning_rate":  # optax's own functions, such as optax.adam
        example = "lambda hyper: optax.adam(hyper.learning_rate)"
        root = getattr(optimizer, "__module__", "").partition(".")[0]
        came = f"{root}.{checks.name_of(optimizer)} itself" if root == "optax" else "a function of a learning_rate"
        raise TypeError(f"optimizer must be a function of Hyper, such as {example}; got {came}.")
    try:
        made = optimizer(Hyper())
    except Exception:
        return  # it may need other numbers than the defaults
    if not callable(getattr(made, "init", None)) or not callable(getattr(made, "update", None)):
        raise TypeError(f"optimizer must return an optax.GradientTransformation; got {checks.describe(made)}.")
