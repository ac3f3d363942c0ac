"""``scan`` with the axes and the arguments of Flax's RNN, which linen and nnx share."""

from typing import Any

import jax.numpy as jnp
from jax import Array

from mgu_jax.layer.family import Cell
from mgu_jax.layer.params import Params, check_features, check_lengths, check_resets, check_state
from mgu_jax.sequence import scan


def chosen(layer: Any, **flags: bool | None) -> list[bool]:
    """The flags of a call; where they are ``None``, those of the layer."""
    return [getattr(layer, name) if flag is None else flag for name, flag in flags.items()]


def run(
    layer: Any,
    params: Params,
    inputs: Array,
    initial_carry: Array | None,
    cell: Cell,
    *,
    seq_lengths: Array | None,
    resets: Array | None,
    return_carry: bool | None,
    time_major: bool | None,
    reverse: bool | None,
    keep_order: bool | None,
    **options: Any,
) -> Any:
    """inputs [..., T, D], or [T, ..., D] if time_major -> outputs [..., T, H] or [T, ..., H], or (carry, outputs).

    Outputs of ``reverse`` come in the order of running, unless ``keep_order``; padding stays at the end. Flags that are
    ``None`` are the layer's.
    """
    return_carry, time_major, reverse, keep_order = chosen(
        layer, return_carry=return_carry, time_major=time_major, reverse=reverse, keep_order=keep_order
    )
    if isinstance(seq_lengths, list | tuple):
        seq_lengths = jnp.asarray(seq_lengths)
    check_features("inputs", inputs, "time, ..., " if time_major else "..., time, ", params, "W_h")
    axis = 0 if time_major else inputs.ndim - 2
    xs = jnp.moveaxis(jnp.asarray(inputs), axis, 0)
    if resets is not None:
        resets = jnp.asarray(resets)
        check_resets(resets, inputs.shape[:-1], "inputs")
        resets = jnp.moveaxis(resets, axis, 0)
    steps, *batch, _ = xs.shape  # what scan would ask under its own names, under Flax's
    if initial_carry is not None:
        check_state("initial_carry", initial_carry, tuple(batch), params, "inputs")
    check_lengths(seq_lengths, steps, tuple(batch), "seq_lengths", "inputs")
    hs, carry = scan(
        params, xs, initial_carry, cell=cell, lengths=seq_lengths, resets=resets, reverse=reverse, **options
    )
    if reverse and not keep_order:
        hs = _turned(hs, seq_lengths)
    outputs = jnp.moveaxis(hs, 0, axis)
    return (carry, outputs) if return_carry else outputs


def _turned(hs: Array, lengths: Any) -> Array:
    """The steps of each sequence from its last to its first, [T, ..., H]."""
    if lengths is None:
        return hs[::-1]
    lengths = jnp.asarray(lengths, jnp.int32)[None]
    t = jnp.arange(hs.shape[0], dtype=jnp.int32).reshape(-1, *[1] * (lengths.ndim - 1))
    return jnp.take_along_axis(hs, jnp.where(t < lengths, lengths - 1 - t, t)[..., None], 0)
