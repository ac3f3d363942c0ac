"""A trained model as a program that runs without mgu_jax, for any number of steps and samples of at least 1.

    export.save("tagger.npz", export.sequence(model, params), params)  # with the extra export

Another process runs it with JAX, NumPy and flatbuffers alone (``pip install jax flatbuffers``):

    weights = dict(numpy.load("tagger.npz"))
    tagger = jax.jit(jax.export.deserialize(bytearray(weights.pop("program"))).call)
    ys = tagger(weights, xs)  # on a CPU or a GPU

The outputs equal those of ``model.apply`` to the last bit. For that, the parameters are arguments of the program and
not constants in it, because XLA rounds sums with constants differently; new weights also fit the same program. The one
exception is ``Model(segment=...)``: the program takes all steps in one segment, and products with another number of
rows may round differently.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax import export as jax_export

from mgu_jax import archive, checks
from mgu_jax.extras import require
from mgu_jax.interop._arguments import check_is_model
from mgu_jax.interop.convert import named
from mgu_jax.model import Model, ModelParams, State, check_model_params

PLATFORMS = ("cpu", "cuda")


def weights(params: ModelParams) -> dict[str, np.ndarray]:
    """The parameters as an exported program takes them. npz has no bfloat16, so its bits are stored as uint16."""
    arrays = {name: np.asarray(a) for name, a in named(params).items()}
    return {name: a.view(np.uint16) if a.dtype == jnp.bfloat16 else a for name, a in arrays.items()}


def _params_of(weights: dict[str, Any], like: ModelParams) -> ModelParams:
    """The inverse of ``weights``, with the structure and the dtypes of ``like``."""

    def one(name: str, leaf: Any) -> Array:
        given, dtype = weights[name], checks.dtype_of(leaf)
        return lax.bitcast_convert_type(given, dtype) if dtype == jnp.bfloat16 else given

    return jax.tree.unflatten(jax.tree.structure(like), [one(name, leaf) for name, leaf in named(like).items()])


def _export(run: Any, params: ModelParams, rows: tuple[Any, ...], others: Any, platforms: Any) -> jax_export.Exported:
    """``run(params, xs, *others)`` as a program of weights, for xs [*rows, D] or tokens [*rows]."""
    if not isinstance(platforms, tuple | list) or not platforms:
        raise TypeError(f"platforms must be a tuple of names, such as ('cpu',); got {checks.describe(platforms)}.")
    for platform in platforms:
        checks.check_choice("an entry of platforms", platform, ("cpu", "cuda", "rocm", "tpu"))
    like = jax.eval_shape(lambda: params)
    if params.embedding is None:
        xs = jax.ShapeDtypeStruct((*rows, params.layers[0].W_h.shape[0]), checks.dtype_of(params.b_y))
    else:
        xs = jax.ShapeDtypeStruct(rows, jnp.int32)
    held = {name: jax.ShapeDtypeStruct(a.shape, checks.dtype_of(a)) for name, a in weights(params).items()}
    program = jax.jit(lambda weights, xs, *others: run(_params_of(weights, like), xs, *others))
    return jax_export.export(program, platforms=platforms)(held, xs, *others)


def sequence(
    model: Model, params: ModelParams, *, lengths: bool = False, platforms: tuple[str, ...] = PLATFORMS
) -> jax_export.Exported:
    """``model.apply`` as a ``jax.export.Exported`` with ``call(weights, xs) -> ys``, for any T and B of at least 1.

    xs are [T, B, D], or tokens, int32 [T, B]; ys are what the model's readout gives.

    Args:
        model: any ``mgu_jax.Model``, except one with implementation="parallel" or "parallel_backward", which need T.
        params: its parameters, or others of the same shapes.
        lengths: export ``call(weights, xs, lengths) -> ys``, with lengths int32 [B].
        platforms: where the program will run: "cpu", "cuda", "rocm" or "tpu".

    Raises:
        TypeError, ValueError: as ``model.apply`` raises them.
    """
    check_is_model(model)
    check_model_params(params)
    steps, batch = jax_export.symbolic_shape("T, B")
    others = (jax.ShapeDtypeStruct((batch,), jnp.int32),) if lengths else ()

    def run(params: ModelParams, xs: Array, lengths: Array | None = None) -> Any:
        return model.apply(params, xs, lengths=lengths)

    return _export(run, params, (steps, batch), others, platforms)


def stream(model: Model, params: ModelParams, *, platforms: tuple[str, ...] = PLATFORMS) -> jax_export.Exported:
    """``model.step`` as a ``jax.export.Exported`` with ``call(weights, x, state, fresh) -> (y, state)``.

    x is [B, D], or tokens, int32 [B], for any B of at least 1; state is a tuple with [B, H] for every layer; y is
    [B, K]. fresh is bool [B]: where it is true, a stream begins, and the model's own first state replaces the given
    one, which may hold anything.

    Args:
        model: any ``mgu_jax.Model``, except a bidirectional one and one with readout="mean".
        params: its parameters, or others of the same shapes.
        platforms: as in ``sequence``.

    Raises:
        TypeError, ValueError: as ``model.step`` raises them.
    """
    check_is_model(model)
    check_model_params(params)
    (batch,) = jax_export.symbolic_shape("B")
    dtype = checks.dtype_of(params.b_y)
    states = tuple(jax.ShapeDtypeStruct((batch, layer.b_h.shape[0]), dtype) for layer in params.layers)

    def run(params: ModelParams, x: Array, state: tuple[Array, ...], fresh: Array) -> Any:
        y, new = model.step(params, x, State(state), reset=fresh)
        return y, new.layers

    return _export(run, params, (batch,), (states, jax.ShapeDtypeStruct((batch,), bool)), platforms)


def save(path: str | Path, exported: jax_export.Exported, params: ModelParams) -> None:
    """Write the program and its weights to one npz file: the entry "program", and the weights by their names.

    A file that is there is replaced when the new one is complete.

    Raises:
        ImportError: flatbuffers, which the extra ``export`` installs, is missing.
        OSError: the file cannot be written.
        TypeError: path is not a path, exported not a program, or params not those of a model.
        ValueError: another ending.
    """
    path = checks.check_path("path", path)
    checks.check_choice("the ending of path", path.suffix, (".npz",))
    if not isinstance(exported, jax_export.Exported):
        raise TypeError(f"exported must be a result of sequence or stream; got {checks.describe(exported)}.")
    check_model_params(params)
    require("flatbuffers", "export")  # jax.export imports it
    archive.write_npz(path, weights(params) | {"program": np.frombuffer(exported.serialize(), np.uint8)})
