"""One batch: made by the host or taken from the data, and run through the model."""

from contextlib import suppress
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from mgu_jax import checks
from mgu_jax.model import Model
from mgu_jax.training.data import Data, Source, Stacked, check_data
from mgu_jax.training.devices import AXIS
from mgu_jax.training.losses import Loss, binary_cross_entropy, called, of_labels, of_numbers


class Limits(NamedTuple):
    """What the numbers of the data must lie below; ``None`` and false where there is no rule."""

    tokens: int | None = None  # of a model with an embedding
    classes: int | None = None  # of a loss or metric of labels
    finite: bool = False  # targets, of a loss or metric of numbers
    share: bool = False  # targets between 0 and 1


def limits_of(functions: tuple[Loss, ...], params: Any) -> Limits:
    """The limits of a model with these parameters, if these functions measure it."""

    def shape(name: str) -> tuple[int, ...]:
        def part(params: Any) -> Any:
            found = getattr(params, name, None)
            return found if hasattr(found, "shape") else jnp.zeros(())

        return jax.eval_shape(part, params).shape  # what is tied is computed, also of shapes alone

    embedding, W_y = shape("embedding"), shape("readout")
    labels, numbers = any(map(of_labels, functions)), any(map(of_numbers, functions))
    share = any(called(function) == binary_cross_entropy for function in functions)
    tokens = embedding[-2] if len(embedding) > 1 else None
    return Limits(tokens, W_y[-1] if labels and len(W_y) > 1 else None, numbers, share)


def check_limits(data: Any, limits: Limits) -> None:
    """Check that tokens and labels lie below their limits, and that targets of our own losses are finite.

    Raises:
        ValueError: a number is out of range. JAX would read nan in its place or, below zero, another number.
    """
    axes = 2 if isinstance(data, Data) else 1  # those of the steps: N and T, or L
    steps = _counted(data)
    for name, limit, of in (("xs", limits.tokens, "tokens"), ("targets", limits.classes, "outputs")):
        numbers = getattr(data, name)
        if limit is not None and hasattr(numbers, "dtype") and jnp.issubdtype(numbers.dtype, jnp.integer):
            counted = steps if name == "targets" or data.weights is None else _counted(data._replace(weights=None))
            checks.check_below(f"data.{name}", numbers, limit, f"the model's {of}", _of(counted, numbers.ndim, axes))
    targets: Any = data.targets
    if limits.finite and hasattr(targets, "dtype") and checks.is_concrete(targets):
        numbers = np.asarray(targets)
        counted = _of(steps, numbers.ndim - 1, axes)
        numbers = numbers if counted is None else numbers[counted]
        low, high = (0, 1) if limits.share else (-np.inf, np.inf)
        odd = numbers[~((numbers >= low) & (numbers <= high) & np.isfinite(numbers))]
        if odd.size:
            rule = "lie in [0, 1]" if limits.share else "be finite (a mask leaves steps out)"
            raise ValueError(f"data.targets must {rule}; got {odd.flat[0]}.")


def _counted(data: Any) -> Any:
    """Which steps count, [N, T] or [L], for their lengths, mask and weights; ``None`` if all do."""
    time_axis = 1 if isinstance(data, Data) else 0
    T = data.xs.shape[time_axis]
    steps = checks.steps_within(T, getattr(data, "lengths", None), data.mask, time_axis)
    if data.weights is None or not checks.is_concrete(data.weights):
        return steps
    weighted = np.asarray(data.weights) > 0
    weighted = weighted if weighted.ndim == time_axis + 1 else np.broadcast_to(weighted[:, None], (len(weighted), T))
    return weighted if steps is None else steps & weighted


def _of(steps: Any, entries: int, axes: int) -> Any:
    """Which entries count: of targets with one entry per step, the steps; of those with one per sample, all."""
    return steps if entries == axes else None


def stack(source: Source, first: int, steps: int, batch_size: int, limits: Limits = Limits()) -> Any:
    """The batches of the next steps, made by the host: ``Stacked``, or one ``Stacked`` per step in a list.

    It is a list if the batches differ in the number of time steps, or the source has an attribute ``ragged`` that says
    that they may. Each is then a call of its own, compiled once for every number of time steps.

    Raises:
        TypeError, ValueError: the source returns something other than ``Data`` of batch_size samples, all alike.
    """
    batches = [check_data(source(step), batch_size) for step in range(first, first + steps)]
    ragged = getattr(source, "ragged", False)
    for step, batch in enumerate(batches, first):
        if len(batch.xs) != batch_size:
            count = len(batch.xs)
            raise ValueError(f"data must return {batch_size} samples, one batch, for step {step}; got {count}.")
        check_limits(batch, limits._replace(finite=False))  # an optimiser may pass over batches that are not finite
        ends = [b.xs.shape[1] for b in (batches[0], batch)]
        ragged = ragged or ends[0] != ends[1]
        for name, one, other in zip(Data._fields, batches[0], batch, strict=True):
            if _shapes_beside(one, ends[0]) != _shapes_beside(other, ends[1]):
                came = f"{checks.describe(one)} for step {first} and {checks.describe(other)} for step {step}"
                rule = "data must return batches of one shape, apart from the number of time steps"
                raise ValueError(f"{rule}; got data.{name} {came}.")
    if ragged:
        return [Stacked(jax.tree.map(lambda a: np.asarray(a)[None], batch)) for batch in batches]
    return Stacked(jax.tree.map(lambda *parts: np.stack(parts), *batches))


def _shapes_beside(tree: Any, steps: int) -> Any:
    """The shapes of a tree of arrays, with the number of time steps left out where the second axis may be it."""
    return jax.tree.map(
        lambda a: tuple("T" if i == 1 and size == steps else size for i, size in enumerate(np.shape(a))), tree
    )


def parts_of(data: Any, steps: int) -> list[tuple[Any, int]]:
    """The data of each call of the compiled loop, and its number of steps, for what ``stack`` made or other data."""
    return [(part, 1) for part in data] if isinstance(data, list) else [(data, steps)]


def joined_parts(seen: list[Any]) -> Any:
    """The arrays [..., steps] of all parts of a call as those of one."""
    return jax.tree.map(lambda *arrays: np.concatenate(arrays, -1), *seen)


def reads_every_step(model: Any) -> bool:
    """Whether a model gives one output per step: its attribute ``readout`` is "all".

    Raises:
        ValueError: the attribute is something else than what ``Model`` has, or ``None``.
    """
    readout = getattr(model, "readout", None)
    checks.check_choice("model.readout", readout, (None, "all", "last", "mean"))
    return readout == "all"


class Outputs(NamedTuple):
    """What a model gives for a batch."""

    ys: Any  # [T, B, ...] of a model that reads out every step, otherwise [B, ...]; any pytree of such arrays
    hs: Any  # the hidden states [T, B, F], those of all layers side by side; None unless asked for
    carry: Any  # the state after the batch; None without one before it


def run_model(
    model: Model,
    params: Any,
    batch: Data,
    carry: Any,
    noise: dict[str, Any] | None = None,
    mesh: Mesh | None = None,
    hidden: bool = False,
) -> Outputs:
    """What a model gives for a batch, if ``carry`` is the state before it.

    ``noise`` holds the rates and, for training, the key. On a mesh, each device runs its own part of the batch.

    Raises:
        TypeError, ValueError: the inputs do not fit the model, or it gives something else than it declares.
    """
    _check_inputs(model, params, batch, carry)
    samples, steps, whole = PartitionSpec(AXIS), PartitionSpec(None, AXIS), PartitionSpec()
    marks = {"lengths": batch.lengths, "mask": _time_first(batch.mask), "resets": _time_first(batch.resets)}
    marks = {name: mark for name, mark in marks.items() if mark is not None}

    def run(params: Any, xs: Any, marks: Any, carry: Any, noise: Any) -> Outputs:
        options = dict(noise or {}) | marks
        if "key" in options:
            options["training"] = True
        if carry is not None:
            options |= {"state": carry, "return_state": True}
        if hidden:
            options["return_hidden"] = True
        example = f"model.apply({', '.join(['params, xs', *(f'{name}=' for name in options)])})"
        checks.check_takes("model.apply", model.apply, example, params, xs, **options)

        def call() -> Any:
            return model.apply(params, xs, **options)

        given = call() if isinstance(model, Model) else checks.tried("model.apply", f"xs {checks.describe(xs)}", call)
        ys, *others = given if hidden or carry is not None else (given,)
        check_outputs(model, params, xs, ys)
        hs = others.pop() if hidden else None
        hs = jnp.concatenate(hs, -1) if isinstance(hs, tuple) else hs
        return Outputs(ys, hs, *others or (None,))

    def run_part(params: Any, xs: Any, marks: Any, carry: Any, noise: Any) -> Outputs:
        if noise and "key" in noise:  # each part of a batch draws its own noise
            noise = noise | {"key": jax.random.fold_in(noise["key"], lax.axis_index(AXIS))}
        return run(params, xs, marks, carry, noise)

    arguments = (params, batch.xs.swapaxes(0, 1), marks, carry, noise)
    if mesh is None:
        return run(*arguments)
    # Without shard_map, XLA gathers the steps of all samples before it multiplies, which takes 1.4 times as long.
    in_specs = (whole, steps, {name: samples if name == "lengths" else steps for name in marks}, samples, whole)
    out_specs = Outputs(steps if reads_every_step(model) else samples, steps, samples)
    return jax.shard_map(run_part, mesh=mesh, check_vma=False, in_specs=in_specs, out_specs=out_specs)(*arguments)


def _time_first(marks: Any) -> Any:
    return None if marks is None else marks.swapaxes(0, 1)


def _check_inputs(model: Any, params: Any, batch: Data, carry: Any) -> None:
    """Check, in the words of the data, that the inputs of a batch are those that a ``Model`` reads."""
    if not isinstance(model, Model):
        return
    model.start(params)  # which checks params
    xs, leading = batch.xs, "N, T" if carry is None else "L"
    came = f"{xs.dtype} [{', '.join([leading, *map(str, xs.shape[2:])])}]"
    if model.embedding_size is not None:
        if xs.ndim != 2 or not jnp.issubdtype(xs.dtype, jnp.integer):
            raise ValueError(f"data.xs must be tokens, whole numbers [{leading}]; got {came}.")
        return
    W_h = params.layers[0].W_h
    if xs.ndim != 3 or xs.shape[2] != W_h.shape[0]:
        raise ValueError(f"data.xs must be {W_h.dtype} [{leading}, {W_h.shape[0]}], as the model reads; got {came}.")
    if checks.dtype_of(xs) != W_h.dtype:
        hint = " (scaled numbers in place of whole ones)" if jnp.issubdtype(xs.dtype, jnp.integer) else ""
        raise TypeError(f"data.xs must be {W_h.dtype}, the dtype of params{hint}; got {came}.")


def check_outputs(model: Any, params: Any, xs: Any, ys: Any) -> None:
    """Check that a model of the user's own gives one output per step or per sample, as it declares.

    ys may be an array or any pytree of arrays.

    Raises:
        TypeError: the outputs are not arrays.
        ValueError: their first axes are others.
    """
    if type(model) is Model:
        return
    every_step, (T, B) = reads_every_step(model), xs.shape[:2]
    if T == B and not every_step:  # which of the two came first? One more sample tells.
        more = jax.ShapeDtypeStruct((T, B + 1, *xs.shape[2:]), xs.dtype)
        with suppress(Exception):  # of a model for one size of batch
            ys, B = jax.eval_shape(model.apply, params, more), B + 1
    wanted, of = ((T, B), "[T, B, ...], as its readout 'all' declares") if every_step else ((B,), _ONCE)
    for path, leaf in jax.tree_util.tree_leaves_with_path(ys):
        where = f"model.apply{jax.tree_util.keystr(path)}" if path else "model.apply"
        if not isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct):
            raise TypeError(f"{where} must return arrays; got {checks.describe(leaf)}.")
        if leaf.shape[: len(wanted)] != wanted:
            raise ValueError(f"{where} must return {of}; got {list(leaf.shape)} for T = {T} and B = {B}.")


_ONCE = "[B, ...] (a model that reads out every step declares it by an attribute readout = 'all')"
