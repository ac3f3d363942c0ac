"""Losses and metrics of a batch: what each is called with, what its targets and its result must be."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mgu_jax import checks
from mgu_jax.training.data import Data
from mgu_jax.training.losses import Loss, called, of_labels, of_numbers, share_of, widened

# What a loss or metric may take by name, as keyword arguments.
OPTIONS = ("mask", "weights", "hs", "params")


def measure(
    functions: tuple[Loss, ...], ys: Any, batch: Data, every_step: bool, hs: Any = None, params: Any = None
) -> list[tuple[Any, dict[str, Any]]]:
    """The losses or metrics of a batch, each with the auxiliary values that it returns beside.

    Args:
        functions: of (ys, targets) and, by name, of what is in ``OPTIONS``.
        ys: [T, B, ...] of a model that reads out every step, otherwise [B, ...].
        batch: with the targets and what says how much each entry counts.
        every_step: whether the model reads out every step.
        hs, params: the hidden states [T, B, F] and the parameters, for functions that take them. Like ys, a function
            gets them in float32 at least.

    Raises:
        TypeError, ValueError: targets that do not fit, or a function that does not return one number.
    """
    ys, targets = widened(ys), batch.targets
    if every_step:
        targets = jax.tree.map(lambda a: _time_first(a, batch.xs.shape[1]), targets)
    given = {"mask": mask_of(batch) if every_step else None, "weights": weights_of(batch, every_step)}
    given |= {"hs": widened(hs), "params": widened(params)}
    values = []
    for function in functions:
        _check_targets(function, ys, batch.targets, every_step)
        values.append(_call(function, ys, targets, given))
    return values


def takes(functions: tuple[Loss, ...], option: str) -> bool:
    """Whether any of the functions has an argument of this name."""
    return any(parameter.name == option for function in functions for parameter in _parameters(function))


def _time_first(targets: Any, steps: int) -> Any:
    """Targets of a model that reads out every step, [T, B, ...] from [B, T, ...]; one per sample, [B], stays."""
    if targets.ndim == 1:
        return targets
    if targets.shape[1] != steps:
        rule = f"[N, {steps}, ...], one per step, or [N] for a model that reads out every step"
        raise ValueError(f"data.targets must have shape {rule}; got {_as_samples(targets.shape)}.")
    return targets.swapaxes(0, 1)


def _as_samples(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(['N', *map(str, shape[1:])])}]"


def _check_targets(function: Any, ys: Any, targets: Any, every_step: bool) -> None:
    """Check the targets [B, ...] of our own losses, in the words of the data."""
    if not (of_labels(function) or of_numbers(function)):
        return
    name = checks.name_of(called(function))
    if not isinstance(ys, jax.Array) or not isinstance(targets, jax.Array | np.ndarray):
        what = "one array of outputs and one of targets (a model of several needs a loss of your own)"
        came = checks.describe(targets if isinstance(ys, jax.Array) else ys)
        raise TypeError(f"{name} must be given {what}; got {came}.")
    shape = (ys.shape[1], ys.shape[0], *ys.shape[2:]) if every_step else ys.shape
    wanted = shape[:-1] if of_labels(function) else shape
    whole = jnp.issubdtype(targets.dtype, jnp.integer)
    if targets.shape != wanted or (of_labels(function) and not whole):
        kind = "whole numbers" if of_labels(function) else "numbers"
        rule = f"{kind} {_as_samples(wanted)} for {name} (the model returns {_as_samples(shape)})"
        raise ValueError(f"data.targets must be {rule}; got {targets.dtype} {_as_samples(targets.shape)}.")


def _call(function: Loss, ys: Any, targets: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """What a function returns for a batch: one number, and a dictionary of others, which may be empty."""
    arguments, options = _arguments(function, given)
    name, known = checks.name_of(function), of_labels(function) or of_numbers(function)

    def call() -> Any:
        return function(ys, targets, *arguments, **options)

    came = f"ys {_described(ys)} and targets {_described(targets)}"
    value = call() if known else checks.tried(name, came, call)
    others: dict[str, Any] = {}
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], dict):
        value, others = value
    if not checks.is_number(value):
        rule = f"what {name} returns must be a number, or a number and a dictionary of others"
        raise TypeError(f"{rule}; got {checks.describe(value)}.")
    for key, other in others.items():
        checks.check_number(f"what {name} returns as {key!r}", other)
    return value, {str(key): widened(jnp.asarray(other)) for key, other in others.items()}


def _described(tree: Any) -> str:
    return checks.describe(tree) if isinstance(tree, jax.Array | np.ndarray) else f"in a {type(tree).__name__}"


def _parameters(function: Loss) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # a callable without a signature
        return []


def _arguments(function: Loss, given: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """What a function takes after ys and targets, by position and by name.

    The mask is its argument of that name or, without one, its third. What is ``None`` leaves a default as it is.

    Raises:
        TypeError: it does not take the mask or the weights, which it has to know.
    """
    parameters = _parameters(function)
    named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    any_name = {"mask", "weights"} if any(p.kind == p.VAR_KEYWORD for p in parameters) else set()
    options = {
        name: value
        for name, value in given.items()
        if (value is not None and name in any_name)
        or (name in named and (value is not None or _is_needed(named[name])))
    }
    mask, arguments = given["mask"], []
    third = next((p for p in _after_two(parameters) if p.name not in OPTIONS), None)
    if "mask" not in named and third is not None and (mask is not None or _is_needed(third)):
        options.pop("mask", None)
        arguments = [mask]
    elif mask is not None and "mask" not in options:
        rule = "take a mask as its third argument, where the data have lengths and the model reads out every step"
        raise TypeError(f"{checks.name_of(function)} must {rule}; got {_signature(function)}.")
    if given["weights"] is not None and "weights" not in options:
        raise TypeError(f"{checks.name_of(function)} must take weights, which data has; got {_signature(function)}.")
    return arguments, options


def _is_needed(parameter: inspect.Parameter) -> bool:
    return parameter.default is parameter.empty and parameter.kind != parameter.VAR_POSITIONAL


def _after_two(parameters: list[inspect.Parameter]) -> list[inspect.Parameter]:
    """The parameters that can take a third argument by position, without those that have a default of their own."""
    at_will = [p for p in parameters[:2] if p.kind == p.VAR_POSITIONAL]
    others = [p for p in parameters[2:] if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL)]
    return [p for p in at_will + others[:1] if p.default is p.empty or p.default is None]


def _signature(function: Loss) -> str:
    return f"{checks.name_of(function)}{inspect.signature(function)}"


def check_function(name: str, function: Any) -> None:
    """Raise TypeError unless a loss or metric can be called with outputs and targets, and be hashed."""
    if not callable(function):
        example = "mgu_jax.losses.cross_entropy"
        raise TypeError(f"{name} must be a function, such as {example}; got {checks.describe(function)}.")
    checks.check_hashable(name, function)
    arguments, options = _arguments(function, dict.fromkeys(OPTIONS))
    checks.check_takes(name, function, "loss(ys, targets)", None, None, *arguments, **options)


def check_loss(function: Loss, value: Any) -> Array:
    """The loss, in float32 at least; TypeError if it has no gradient."""
    if not jnp.issubdtype(jnp.result_type(value), jnp.floating):
        raise TypeError(
            f"what {checks.name_of(function)} returns must be a floating number; got {checks.describe(value)}."
        )
    return widened(jnp.asarray(value))


def mask_of(batch: Data) -> Any:
    """bool [T, B], true at the steps that count; ``None`` if the batch has neither lengths nor a mask."""
    mask = None if batch.mask is None else batch.mask.swapaxes(0, 1)
    if batch.lengths is None:
        return mask
    within = jnp.arange(batch.xs.shape[1], dtype=jnp.int32)[:, None] < jnp.asarray(batch.lengths, jnp.int32)[None]
    return within if mask is None else within & mask


def weights_of(batch: Data, every_step: bool) -> Any:
    """The weights [B] or, of the steps, [T, B]; ``None`` if the batch has none.

    Raises:
        ValueError: the batch has weights of the steps, and the model reads out once.
    """
    if batch.weights is None or batch.weights.ndim == 1:
        return batch.weights
    if not every_step:
        rule = "[N], one per sample, for a model that reads out once"
        raise ValueError(f"data.weights must have shape {rule}; got {_as_samples(batch.weights.shape)}.")
    return batch.weights.swapaxes(0, 1)


def weight_of(batch: Data, every_step: bool) -> Array:
    """How much a batch counts in a mean over batches: its samples or, if the model reads out every step, its steps."""
    size = (batch.xs.shape[1], len(batch.xs)) if every_step else (len(batch.xs),)
    share = share_of(size, mask_of(batch) if every_step else None, weights_of(batch, every_step))
    if share is None:
        return jnp.int32(len(batch.xs))
    return jnp.sum(share, dtype=jnp.int32 if share.dtype == bool else None)
