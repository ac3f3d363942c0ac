"""Optimisers and schedules of optax by name, built inside of the compiled chunk from numbers that may be traced."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mgu_jax import checks


class Hyper(NamedTuple):
    """What a run can be swept over: scalars, each of which may be traced."""

    learning_rate: Any = 1e-3
    weight_decay: Any = 0.0
    clip_norm: Any = jnp.inf  # largest global norm of a gradient
    forget_bias: Any = -1.0  # initial, in the paper's sign
    initial_scale: Any = 1.0  # factor on the initial W, U and W_y
    momentum: Any = 0.9  # of the optimiser of that name
    dropout: Any = None  # this and the rest: the model's own rate where None
    recurrent_dropout: Any = None
    zoneout: Any = None
    dropconnect: Any = None

    def rates(self) -> dict[str, Any]:
        """The rates of noise that are given here, as ``model.apply`` takes them."""
        named = {name: getattr(self, name) for name in ("dropout", "recurrent_dropout", "zoneout", "dropconnect")}
        return {name: rate for name, rate in named.items() if rate is not None}


def in_dtype_of(params: Any, hyper: Hyper) -> Hyper:
    """Its numbers as the parameters are, or what optax multiplies by them would become as wide as they are.

    Python's numbers adapt by themselves.
    """
    dtype = jnp.result_type(*jax.tree.leaves(params))
    return jax.tree.map(lambda a: a if jax.typeof(a).weak_type else jnp.asarray(a, dtype), hyper)


Optimizer = Callable[[Hyper], optax.GradientTransformation]

# Name -> (scaling of the gradient, whether weight decay comes after it: Loshchilov and Hutter 2019, arXiv 1711.05101).
OPTIMIZERS: dict[str, tuple[Callable[[Hyper], optax.GradientTransformation], bool]] = {
    "sgd": (lambda hyper: optax.identity(), False),
    "momentum": (lambda hyper: optax.trace(hyper.momentum), False),
    "adam": (lambda hyper: optax.scale_by_adam(), False),
    "adamw": (lambda hyper: optax.scale_by_adam(), True),
    "rmsprop": (lambda hyper: optax.scale_by_rms(), False),
}
SCHEDULES = ("constant", "cosine", "linear")


def schedule(name: str, rate: Any, total_steps: int | None, warmup_steps: int) -> Any:
    """A learning rate, or a function of the step: up to rate in a line, then as the name says, to zero at the end."""
    left = (total_steps or 0) - warmup_steps
    after = {
        "constant": lambda: optax.constant_schedule(rate),
        "cosine": lambda: optax.cosine_decay_schedule(rate, left),
        "linear": lambda: optax.linear_schedule(rate, 0.0, left),
    }[name]()
    if not warmup_steps:
        return rate if name == "constant" else after
    return optax.join_schedules([optax.linear_schedule(0.0, rate, warmup_steps), after], [warmup_steps])


def named(name: str, schedule_name: str, total_steps: int | None, warmup_steps: int) -> Optimizer:
    """Clipping of the gradient's norm, then the optimiser of this name, with weight decay and a schedule."""
    scaling, decoupled = OPTIMIZERS[name]

    def build(hyper: Hyper) -> optax.GradientTransformation:
        decay = optax.add_decayed_weights(hyper.weight_decay)
        parts = (scaling(hyper), decay) if decoupled else (decay, scaling(hyper))
        rate = schedule(schedule_name, hyper.learning_rate, total_steps, warmup_steps)
        return optax.chain(optax.clip_by_global_norm(hyper.clip_norm), *parts, optax.scale_by_learning_rate(rate))

    return build


class _HyperForANumber(TypeError):
    """What optax's own functions do to a ``Hyper``: they want the learning rate."""


class _Probe(Hyper):
    """What a function of one number takes for that number."""

    def __mul__(self, other: Any) -> Any:
        raise _HyperForANumber(
            "optimizer must be a function of Hyper, such as lambda hyper: optax.adam(hyper.learning_rate); "
            "got one that takes a Hyper for a number."
        )

    __rmul__ = __neg__ = __mul__


def _check_function(optimizer: Any) -> None:
    try:
        made = optimizer(_Probe())
    except _HyperForANumber:
        raise
    except Exception:
        return  # it may need other numbers than these
    if not callable(getattr(made, "init", None)) or not callable(getattr(made, "update", None)):
        raise TypeError(f"optimizer must return an optax.GradientTransformation; got {checks.describe(made)}.")


_RATE = ("lie in [0, 1)", lambda numbers: (numbers >= 0) & (numbers < 1))
_AT_LEAST_0 = ("be at least 0", lambda numbers: numbers >= 0)
_BOUNDS = {
    "learning_rate": _AT_LEAST_0,
    "weight_decay": _AT_LEAST_0,
    "clip_norm": ("be above 0 (inf does not clip)", lambda numbers: numbers > 0),
    "initial_scale": _AT_LEAST_0,
    "forget_bias": ("be a number", lambda numbers: ~np.isnan(numbers)),
}


def check_hyper(hyper: Hyper) -> None:
    """Numbers within their bounds, where they can be looked at: one, or a row of them.

    Raises:
        TypeError, ValueError: something else.
    """
    for name, value in hyper._asdict().items():
        if value is None and Hyper._field_defaults[name] is not None:
            raise TypeError(f"hyper.{name} must be a number or an array of them; got None.")
        if value is None or not checks.is_numeric(value):
            continue
        numbers = np.asarray(value)
        if not numbers.size:
            raise ValueError(f"hyper.{name} must hold at least one number; got shape {list(numbers.shape)}.")
        rule, is_good = _BOUNDS.get(name, _RATE)
        if not (good := is_good(numbers)).all():
            raise ValueError(f"hyper.{name} must {rule}; got {numbers[~good].flat[0]}.")


def check_precision(name: str, params: Any) -> None:
    """What the optimiser of this name adds to the square root of the second moment is above zero for these params.

    Raises:
        TypeError: it is not, and an update would be 0/0.
    """
    if name in ("adam", "adamw", "rmsprop") and any(jnp.result_type(a) == jnp.float16 for a in jax.tree.leaves(params)):
        raise TypeError(
            f"optimizer {name!r} needs params of float32, float64 or bfloat16, since its epsilon of 1e-8 is zero in "
            "float16; got float16."
        )


def check_optimizer(optimizer: Any, schedule_name: Any, total_steps: Any, warmup_steps: Any) -> None:
    """Names that are known, and numbers of steps that belong together.

    Raises:
        TypeError: an optimizer that is neither a name nor a function of Hyper that makes one.
        ValueError: an unknown name, or a schedule without its steps.
    """
    if not callable(optimizer):
        if not isinstance(optimizer, str):
            names = ", ".join(map(repr, OPTIMIZERS))
            raise TypeError(
                f"optimizer must be one of {names} or a function of Hyper; got {checks.describe(optimizer)}."
            )
        checks.check_choice("optimizer", optimizer, tuple(OPTIMIZERS))
    checks.check_choice("schedule", schedule_name, SCHEDULES)
    checks.check_size("warmup_steps", warmup_steps, 0)
    if total_steps is not None:
        checks.check_size("total_steps", total_steps)
    if callable(optimizer):
        _check_function(optimizer)
    if callable(optimizer) and (schedule_name != "constant" or total_steps is not None or warmup_steps):
        raise ValueError(
            "schedule, total_steps and warmup_steps must be left out where optimizer is a function; they are not."
        )
    if schedule_name != "constant" and (total_steps or 0) <= warmup_steps:
        raise ValueError(
            f"total_steps must be given for schedule {schedule_name!r}, and above warmup_steps, {warmup_steps}; "
            f"got {total_steps}."
        )
