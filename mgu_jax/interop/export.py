"""A trained model as a program that JAX runs alone, by ``jax.export``, for any batch and any number of steps.

    export.save("tagger.npz", export.sequence(model, params), params)

and in another process, which needs neither mgu_jax nor the code that trained:

    weights = dict(numpy.load("tagger.npz"))
    tagger = jax.jit(jax.export.deserialize(bytearray(weights.pop("program"))).call)
    ys = tagger(weights, xs)  # on a CPU or a GPU

The parameters are arguments of the program and not constants in it: XLA rounds sums with constants differently, and so
the outputs are those of ``model.apply`` to the last bit. (Except for ``Model(segment=...)``: the program takes all
steps in one segment, and products of other numbers of rows may round otherwise.) New weights fit the same program.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax import export as jax_export

from mgu_jax import checks
from mgu_jax.interop.convert import named
from mgu_jax.model import Model, ModelParams, State, check_model_params

PLATFORMS = ("cpu", "cuda")


def check_model(model: Any, params: Any) -> None:
    """Both are of their kinds."""
    if not isinstance(model, Model):
        raise TypeError(f"model must be an mgu_jax.Model; got {checks.describe(model)}.")
    check_model_params(params)


def weights(params: ModelParams) -> dict[str, np.ndarray]:
    """The parameters as an exported program takes them. npz knows no bfloat16, so its bits go as uint16."""
    arrays = {name: np.asarray(a) for name, a in named(params).items()}
    return {name: a.view(np.uint16) if a.dtype == jnp.bfloat16 else a for name, a in arrays.items()}


def _put_back(weights: dict[str, Any], like: ModelParams) -> ModelParams:
    def one(name: str, leaf: Any) -> Array:
        given, dtype = weights[name], checks.dtype_of(leaf)
        return lax.bitcast_convert_type(given, dtype) if dtype == jnp.bfloat16 else given

    return jax.tree.unflatten(jax.tree.structure(like), [one(name, leaf) for name, leaf in named(like).items()])


def _export(run: Any, params: ModelParams, rows: tuple[Any, ...], others: Any, platforms: Any) -> jax_export.Exported:
    """``run(params, xs, *others)`` for xs [rows..., D], or tokens [rows...], as a program of weights."""
    if not isinstance(platforms, tuple | list) or not platforms:
        raise TypeError(f"platforms must be a tuple of names, such as ('cpu',); got {checks.describe(platforms)}.")
    for platform in platforms:
        checks.check_choice("an entry of platforms", platform, ("cpu", "cuda", "rocm", "tpu"))
    like = jax.eval_shape(lambda: params)
    if params.embedding is None:
        xs = jax.ShapeDtypeStruct((*rows, params.layers[0].W_h.shape[0]), checks.dtype_of(params.W_y))
    else:
        xs = jax.ShapeDtypeStruct(rows, jnp.int32)
    held = {name: jax.ShapeDtypeStruct(a.shape, checks.dtype_of(a)) for name, a in weights(params).items()}
    program = jax.jit(lambda weights, xs, *others: run(_put_back(weights, like), xs, *others))
    return jax_export.export(program, platforms=platforms)(held, xs, *others)


def sequence(
    model: Model, params: ModelParams, *, lengths: bool = False, platforms: tuple[str, ...] = PLATFORMS
) -> jax_export.Exported:
    """``model.apply`` of whole sequences, ``call(weights, xs) -> ys``, for any T and B of at least 1.

    Args:
        model: what ``mgu_jax.Model`` made; not with implementation="parallel", which has to know T.
        params: its parameters, or others of their shapes.
        lengths: ``call(weights, xs, lengths) -> ys``, with lengths int32 [B].
        platforms: where it will run: "cpu", "cuda", "rocm", "tpu".

    Returns:
        a ``jax.export.Exported``: xs [T, B, D] (or tokens, int32 [T, B]) -> ys as the model's readout gives them.

    Raises:
        TypeError, ValueError: as ``model.apply`` raises them.
    """
    check_model(model, params)
    steps, batch = jax_export.symbolic_shape("T, B")
    others = (jax.ShapeDtypeStruct((batch,), jnp.int32),) if lengths else ()

    def run(params: ModelParams, xs: Array, lengths: Array | None = None) -> Any:
        return model.apply(params, xs, lengths=lengths)

    return _export(run, params, (steps, batch), others, platforms)


def stream(model: Model, params: ModelParams, *, platforms: tuple[str, ...] = PLATFORMS) -> jax_export.Exported:
    """``model.step`` for streams, ``call(weights, x, state, fresh) -> (y, state)``, for any B of at least 1.

    Args:
        model: what ``mgu_jax.Model`` made; not a bidirectional one, nor one with readout="mean".
        params: its parameters, or others of their shapes.
        platforms: as in ``sequence``.

    Returns:
        a ``jax.export.Exported``: x [B, D] (or tokens, int32 [B]), state a tuple of [B, H] for every layer, and fresh,
        bool [B] -> y [B, K] and the new state. Where fresh is true a stream begins: the model's own first state takes
        the place of the one that was given, which may then hold anything.

    Raises:
        TypeError, ValueError: as ``model.step`` raises them.
    """
    check_model(model, params)
    (batch,) = jax_export.symbolic_shape("B")
    dtype = checks.dtype_of(params.W_y)
    states = tuple(jax.ShapeDtypeStruct((batch, layer.b_h.shape[0]), dtype) for layer in params.layers)

    def run(params: ModelParams, x: Array, state: tuple[Array, ...], fresh: Array) -> Any:
        start = model.start(params, fresh.shape).layers
        layers = tuple(jnp.where(fresh[:, None], first, h) for first, h in zip(start, state, strict=True))
        y, new = model.step(params, x, State(layers))
        return y, new.layers

    return _export(run, params, (batch,), (states, jax.ShapeDtypeStruct((batch,), bool)), platforms)


def save(path: str | Path, exported: jax_export.Exported, params: ModelParams) -> None:
    """Write program and weights to one npz file: the entry "program", and the weights by their names.

    Raises:
        TypeError: no path, no program, or no params of a model.
        ValueError: another ending.
    """
    checks.check_choice("the ending of path", checks.check_path("path", path).suffix, (".npz",))
    if not isinstance(exported, jax_export.Exported):
        raise TypeError(f"exported must be what sequence or stream made; got {checks.describe(exported)}.")
    check_model_params(params)
    entries: Any = weights(params) | {"program": np.frombuffer(exported.serialize(), np.uint8)}
    np.savez(path, **entries)
