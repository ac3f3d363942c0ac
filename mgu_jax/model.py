"""``model``: layers and a readout as a pair of pure functions, and what their options mean."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mgu_jax import checks
from mgu_jax.family import MGU, Cell, check_cell
from mgu_jax.initial import INITIALIZERS
from mgu_jax.products import Products
from mgu_jax.sequence import check_implementation, check_memory
from mgu_jax.stack import ModelParams, Stack, State


class Model(NamedTuple):
    """``init(key) -> params``, ``apply(params, xs) -> ys``, ``step(params, x, state) -> (y, state)``; see ``model``.

    ``start(params, batch) -> state`` is the state of a batch, (B,), before the first step.
    """

    init: Callable[..., ModelParams]
    apply: Callable[..., Any]
    step: Callable[..., tuple[Array, State]]
    start: Any = None


def detach(state: Any) -> Any:
    """The same state, through which no gradient flows: what truncated BPTT carries from chunk to chunk."""
    return jax.tree.map(jax.lax.stop_gradient, state)


def check_model(model: Any, *needed: str) -> None:
    """``model`` has the functions that are needed of one."""
    if not all(callable(getattr(model, name, None)) for name in needed):
        raise TypeError(f"model must be a Model, as mgu_jax.model makes it; got {checks.describe(model)}.")


def check_reads_on(state: Any) -> None:
    """A state that is carried from window to window is one of layers that all run forward.

    Raises:
        ValueError: it is not.
    """
    if getattr(state, "backward", None) is not None:
        raise ValueError("a bidirectional model cannot read a stream in windows: its reverse layers begin at the end.")


@lru_cache(maxsize=256)
def _build(stack: Stack) -> Model:
    """One object a specification, so that what was compiled for a model serves all that are like it."""
    return Model(stack.init, stack.apply, stack.step, stack.start)


def model(
    input_size: int,
    hidden_sizes: tuple[int, ...],
    output_size: int,
    cell: Cell = MGU,
    *,
    readout: str = "all",
    bidirectional: str | None = None,
    residual: bool = False,
    embedding_size: int | None = None,
    learned_h0: bool = False,
    dropout: float = 0.0,
    recurrent_dropout: float = 0.0,
    zoneout: float = 0.0,
    dropconnect: float = 0.0,
    initializer: str = "orthogonal",
    implementation: str | None = None,
    save: str = "gates",
    chunk: int | None = None,
    precision: Any = None,
    compute_dtype: Any = None,
    dtype: Any = jnp.float32,
) -> Model:
    """A stack of recurrent layers with a linear readout.

    Args:
        input_size: D; with an embedding, the number V of different tokens.
        hidden_sizes: H of every layer, the first first.
        output_size: K.
        cell: the member of the family that all layers use.
        readout: "all" gives ys [T, ..., K] from every step; "last" gives ys [..., K] from the last valid step (of
            reverse layers: the first); "mean" gives ys [..., K] from the mean over the valid steps.
        bidirectional: "concatenate" or "sum": every layer also runs in reverse, and what both hand on is put together.
        residual: a layer's input is added to its output, from the second layer on and where the widths agree.
        embedding_size: features of a token; xs are then whole numbers [T, ...].
        learned_h0: the state before the first step is a parameter, zero at first.
        dropout: on what each layer hands on, to the next layer or to the readout.
        recurrent_dropout, zoneout, dropconnect: as ``scan`` takes them.
        initializer, dtype: as ``init`` takes them; the readout's W_y is Glorot's, its b_y zero.
        implementation, save, chunk, precision, compute_dtype: as ``scan`` takes them.

    Returns:
        ``Model(init, apply, step, start)``.

        ``init(key, forget_bias=-1.0, initial_scale=1.0) -> ModelParams``: ``forget_bias`` as in ``mgu_jax.init``,
        ``initial_scale`` multiplies every initial weight W and U, and W_y (no bias, no embedding); both may be traced.

        ``apply(params, xs, state=None, lengths=None, resets=None, key=None, training=None, return_state=False,
        **rates) -> ys``, or ``(ys, state)``: xs [T, ..., D] (or tokens [T, ...]; NumPy's are looked at, JAX's are taken
        as they are), ``lengths`` and ``resets`` as in ``scan``, but that resets go back to the model's own first state,
        also where ``state`` is another. Noise needs a key and is off without one; ``training=True`` insists on it,
        ``training=False`` turns it off. ``dropout=``, ``recurrent_dropout=``, ``zoneout=`` and ``dropconnect=`` replace
        the model's own rates for this call, and may be traced.

        ``step(params, x, state=None) -> (y, state)``: one input at a time, x [..., D], equal to ``apply`` on the whole.

        ``start(params, batch=()) -> state``: the state before the first step, [*batch, H] of every layer.

    Raises:
        ValueError: a size below 1, no hidden size, an unknown name, or a rate outside of [0, 1); from apply, training
            with noise and without a key; from step, a model that has to see the whole sequence.
        TypeError: a rate that is traced; from init, a key that is not one PRNG key; from the others, arguments of
            another kind, and what ``scan`` raises.
    """
    check_cell(cell)
    checks.check_size("input_size", input_size)
    checks.check_size("output_size", output_size)
    if embedding_size is not None:
        checks.check_size("embedding_size", embedding_size)
    if not isinstance(hidden_sizes, tuple | list) or not hidden_sizes:
        raise ValueError(f"hidden_sizes must be a tuple of at least one width; got {hidden_sizes!r}.")
    for i, size in enumerate(hidden_sizes):
        checks.check_size(f"hidden_sizes[{i}]", size)
    checks.check_choice("readout", readout, ("all", "last", "mean"))
    checks.check_choice("bidirectional", bidirectional, (None, "concatenate", "sum"))
    checks.check_choice("residual", residual, (False, True))
    checks.check_choice("learned_h0", learned_h0, (False, True))
    checks.check_choice("initializer", initializer, INITIALIZERS)
    check_implementation(implementation, cell)
    check_memory(save, chunk, implementation)
    checks.check_floating("dtype", dtype)
    Products(precision, checks.dtype_name("compute_dtype", compute_dtype))  # which checks them
    rates = {
        "dropout": dropout,
        "recurrent_dropout": recurrent_dropout,
        "zoneout": zoneout,
        "dropconnect": dropconnect,
    }
    for name, rate in rates.items():
        checks.check_rate(name, rate)
        if not checks.is_concrete(rate):
            raise TypeError(
                f"{name} must be known where the model is made (apply takes a traced one); got {checks.describe(rate)}."
            )
    # A size of NumPy's is no JSON, and equals the plain one that the cache may have to find.
    stack = Stack(
        int(input_size),
        tuple(map(int, hidden_sizes)),
        int(output_size),
        cell,
        readout,
        bidirectional,
        bool(residual),
        None if embedding_size is None else int(embedding_size),
        bool(learned_h0),
        initializer,
        implementation,
        save,
        None if chunk is None else int(chunk),
        precision,
        checks.dtype_name("compute_dtype", compute_dtype),
        jnp.dtype(dtype),
        tuple((name, float(rate)) for name, rate in rates.items()),
    )
    return _build(stack)
