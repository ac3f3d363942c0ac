"""One batch: made by the host or taken from the data, run through the model, and measured."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh, PartitionSpec

from mgu_jax import checks
from mgu_jax.model import Model
from mgu_jax.training.data import Data, Source, Stacked, check_data
from mgu_jax.training.devices import AXIS
from mgu_jax.training.losses import Loss, accuracy, cross_entropy


class Limits(NamedTuple):
    """The number of tokens and of classes that a model knows; ``None`` if it has no embedding or takes no labels."""

    tokens: int | None = None
    classes: int | None = None


def limits_of(functions: tuple[Loss, ...], params: Any) -> Limits:
    """The limits of a model with these parameters, if these functions measure it."""
    embedding, W_y = (getattr(getattr(params, name, None), "shape", ()) for name in ("embedding", "W_y"))
    labels = any(function in (accuracy, cross_entropy) for function in functions)
    return Limits(embedding[-2] if len(embedding) > 1 else None, W_y[-1] if labels and len(W_y) > 1 else None)


def check_limits(data: Any, limits: Limits) -> None:
    """Check that tokens and labels lie below their limits.

    Raises:
        ValueError: a number is out of range. JAX would read nan in its place or, below zero, another number.
    """
    lengths, as_samples = getattr(data, "lengths", None), isinstance(data, Data)
    for name, limit, of in (("xs", limits.tokens, "tokens"), ("targets", limits.classes, "outputs")):
        numbers = getattr(data, name)
        if limit is not None and jnp.issubdtype(numbers.dtype, jnp.integer):
            ends = lengths if as_samples and numbers.ndim == 2 else None
            checks.check_below(f"data.{name}", numbers, limit, f"the model's {of}", ends, time_axis=1)


def stack(source: Source, first: int, steps: int, batch_size: int, limits: Limits = Limits()) -> Stacked:
    """The batches of the next steps, made by the host.

    Raises:
        TypeError, ValueError: the source returns something other than ``Data`` of batch_size samples, all alike.
    """
    batches = [source(step) for step in range(first, first + steps)]
    for step, batch in enumerate(batches, first):
        check_data(batch, batch_size)
        if len(batch.xs) != batch_size:
            count = len(batch.xs)
            raise ValueError(f"data must return {batch_size} samples, one batch, for step {step}; got {count}.")
        check_limits(batch, limits)
    for step, batch in enumerate(batches, first):
        for name, one, other in zip(Data._fields, batches[0], batch, strict=True):
            if np.shape(one) != np.shape(other) or (one is None) != (other is None):
                came = f"{checks.describe(one)} for step {first} and {checks.describe(other)} for step {step}"
                raise ValueError(f"data must return batches of one shape; got data.{name} {came}.")
    return Stacked(jax.tree.map(lambda *parts: np.stack(parts), *batches))


def run_model(
    model: Model, params: Any, batch: Data, carry: Any, noise: dict[str, Any] | None = None, mesh: Mesh | None = None
) -> tuple[Array, Any]:
    """The outputs ys of a batch, and the state after it if ``carry`` is the state before it.

    ``noise`` holds the rates and, for training, the key. On a mesh, each device runs its own part of the batch.
    """
    arguments = (params, batch.xs.swapaxes(0, 1), batch.lengths, carry, noise)

    def run(params: Any, xs: Any, lengths: Any, carry: Any, noise: Any) -> tuple[Array, Any]:
        options = dict(noise or {})
        if "key" in options:
            options["training"] = True
        if lengths is not None:
            options["lengths"] = lengths
        if carry is None:
            return model.apply(params, xs, **options), None
        return model.apply(params, xs, state=carry, return_state=True, **options)

    def run_part(params: Any, xs: Any, lengths: Any, carry: Any, noise: Any) -> tuple[Array, Any]:
        if noise and "key" in noise:  # each part of a batch draws its own noise
            noise = noise | {"key": jax.random.fold_in(noise["key"], lax.axis_index(AXIS))}
        return run(params, xs, lengths, carry, noise)

    if mesh is None:
        return run(*arguments)
    # Without shard_map, XLA gathers the steps of all samples before it multiplies, which takes 1.4 times as long.
    every_step = jax.eval_shape(run, *arguments)[0].ndim == 3
    samples, steps, whole = PartitionSpec(AXIS), PartitionSpec(None, AXIS), PartitionSpec()
    in_specs = (whole, steps, samples, samples, whole)
    out_specs = (steps if every_step else samples, samples)
    return jax.shard_map(run_part, mesh=mesh, check_vma=False, in_specs=in_specs, out_specs=out_specs)(*arguments)


def measure(functions: tuple[Loss, ...], ys: Array, batch: Data) -> list[Array]:
    """The losses or metrics of a batch: ys [T, B, K] of a model that reads out every step, otherwise [B, K]."""
    every_step = ys.ndim == 3
    targets = batch.targets.swapaxes(0, 1) if every_step and batch.targets.ndim > 1 else batch.targets
    mask = mask_of(batch) if every_step else None
    values = [function(ys, targets) if mask is None else function(ys, targets, mask) for function in functions]
    for function, value in zip(functions, values, strict=True):
        name = getattr(function, "__name__", "a loss or metric")
        checks.check_number(f"what {name} returns", value)
    return values


def mask_of(batch: Data) -> Any:
    """bool [T, B], true at the steps within the lengths; ``None`` if the batch has no lengths."""
    if batch.lengths is None:
        return None
    return jnp.arange(batch.xs.shape[1], dtype=jnp.int32)[:, None] < jnp.asarray(batch.lengths, jnp.int32)[None]
