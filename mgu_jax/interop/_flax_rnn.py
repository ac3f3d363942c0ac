"""``scan`` with the axes and the keyword arguments of Flax's RNN, for linen and for nnx."""

from collections.abc import Callable, Mapping
from typing import Any, TypedDict

import jax.numpy as jnp
from jax import Array

from mgu_jax.interop._arguments import check_left_out
from mgu_jax.interop._promotion import check_real, promote
from mgu_jax.layer.family import Cell
from mgu_jax.layer.params import Params, check_features, check_lengths, check_resets, check_state
from mgu_jax.sequence import scan


class CallOptions(TypedDict, total=False):
    """Keyword arguments of a call. Flax's RNN has the first six; a flag that is ``None`` is the layer's own.

    Attributes:
        initial_carry: [..., H]; that of the cell's ``initialize_carry`` if ``None``, which is zero.
        seq_lengths: whole numbers [...]: the valid steps of each sequence.
        return_carry: also return the carry after the last valid step.
        time_major: inputs and outputs are [T, ..., features] instead of [..., T, features].
        reverse: run from the last step to the first.
        keep_order: with ``reverse``, return the outputs in the order of time and not in the order of the run.
        resets: bool, the shape of inputs without features, as in ``scan``.
        reset_to: the carry after a reset, as in ``scan``.
        key: for noise, as in ``scan``.
    """

    initial_carry: Array | None
    seq_lengths: Any
    return_carry: bool | None
    time_major: bool | None
    reverse: bool | None
    keep_order: bool | None
    resets: Array | None
    reset_to: Array | None
    key: Array | None


# What CallOptions adds to the arguments of Flax's RNN.
_OURS = ("resets", "reset_to", "key")


def for_flax_loop(layer: Any, cell_class: type, call: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call for Flax's own loop, which runs a cell that is not computed by ``scan``.

    Raises:
        ValueError: an argument or an option that Flax's loop does not have.
    """
    ours = {name: call.get(name) for name in _OURS}
    check_left_out(layer.cell, cell_class, ours | {"options": dict(layer.options) or None})
    call = {name: value for name, value in call.items() if name not in _OURS}
    if isinstance(call.get("seq_lengths"), list | tuple):
        call["seq_lengths"] = jnp.asarray(call["seq_lengths"])
    return call


def run_rnn(
    layer: Any,
    params: Params,
    cell: Cell,
    options: Mapping[str, Any],
    initialize_carry: Callable[[tuple[int, ...]], Array],
    dtype: Any,
    inputs: Array,
    *,
    initial_carry: Array | None = None,
    seq_lengths: Any = None,
    return_carry: bool | None = None,
    time_major: bool | None = None,
    reverse: bool | None = None,
    keep_order: bool | None = None,
    resets: Array | None = None,
    reset_to: Array | None = None,
    key: Array | None = None,
) -> Any:
    """outputs [..., T, H], or (carry, outputs) with return_carry, of inputs [..., T, D]; see ``CallOptions``.

    Args:
        layer: one of Flax's RNNs, whose flags are used where those of the call are ``None``.
        params, cell, dtype: of the layer's cell.
        options: static options of ``scan``.
        initialize_carry: gives the initial carry for inputs of one step, of the given shape.
        inputs: [..., T, D], or [T, ..., D] with time_major.
        initial_carry, seq_lengths, return_carry, time_major, reverse, keep_order, resets, reset_to, key: as in
            ``CallOptions``.

    Raises:
        TypeError, ValueError: as ``scan`` raises them, with Flax's names of the arguments.
    """
    time_major = _flag(layer, "time_major", time_major)
    reverse = _flag(layer, "reverse", reverse)
    if isinstance(seq_lengths, list | tuple):
        seq_lengths = jnp.asarray(seq_lengths)
    for name, value in (("inputs", inputs), ("initial_carry", initial_carry), ("reset_to", reset_to)):
        check_real(name, value)
    if initial_carry is None and getattr(inputs, "ndim", 0) > 1:
        axis = 0 if time_major else inputs.ndim - 2
        initial_carry = initialize_carry((*inputs.shape[:axis], *inputs.shape[axis + 1 :]))
    params, (inputs, initial_carry, reset_to), rounded = promote(params, dtype, inputs, initial_carry, reset_to)
    # What scan would check under its own names of the arguments is checked here under Flax's.
    check_features("inputs", inputs, "time, ..., " if time_major else "..., time, ", params, "W_h")
    axis = 0 if time_major else inputs.ndim - 2
    xs = jnp.moveaxis(inputs, axis, 0)
    if resets is not None:
        resets = jnp.asarray(resets)
        check_resets(resets, inputs.shape[:-1], "inputs")
        resets = jnp.moveaxis(resets, axis, 0)
    steps, *batch, _ = xs.shape
    check_state("initial_carry", initial_carry, tuple(batch), params, "inputs")
    check_lengths(seq_lengths, steps, tuple(batch), "seq_lengths", "inputs")
    hs, carry = scan(
        params,
        xs,
        initial_carry,
        cell=cell,
        lengths=seq_lengths,
        resets=resets,
        reset_to=reset_to,
        reverse=reverse,
        key=key,
        **{"compute_dtype": rounded, **options},
    )
    if reverse and not _flag(layer, "keep_order", keep_order):
        hs = _reverse_each(hs, seq_lengths)
    outputs = jnp.moveaxis(hs, 0, axis)
    return (carry, outputs) if _flag(layer, "return_carry", return_carry) else outputs


def _flag(layer: Any, name: str, given: bool | None) -> bool:
    """The flag of the call, or else the layer's own."""
    return getattr(layer, name) if given is None else given


def _reverse_each(hs: Array, lengths: Any) -> Array:
    """The valid steps of each sequence from the last to the first, [T, ..., H]; the padding stays at the end."""
    if lengths is None:
        return hs[::-1]
    lengths = jnp.asarray(lengths, jnp.int32)[None]
    t = jnp.arange(hs.shape[0], dtype=jnp.int32).reshape(-1, *[1] * (lengths.ndim - 1))
    return jnp.take_along_axis(hs, jnp.where(t < lengths, lengths - 1 - t, t)[..., None], 0)
