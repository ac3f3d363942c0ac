"""What the public functions ask of their arguments. One sentence an error: the argument, the rule, what came.

Only static shapes and dtypes are looked at, so the checks cost nothing under ``jit``. Wrong types and dtypes raise
``TypeError``, wrong shapes and values ``ValueError``.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mgu_jax.params import Params


def describe(value: Any) -> str:
    """What came, in the words of an error."""
    if isinstance(value, jax.Array | np.ndarray):
        return f"{jnp.dtype(value.dtype) if not _is_key(value) else value.dtype} {list(value.shape)}"
    if isinstance(value, str | int | float | None):
        return repr(value)
    return f"a {type(value).__name__}"


def _is_key(value: Any) -> bool:
    return jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def dtype_of(value: Any) -> Any:
    """The dtype that JAX will compute with: a NumPy float64 array is float32 unless x64 is enabled."""
    return jax.dtypes.canonicalize_dtype(value.dtype)


def check_size(name: str, value: Any) -> None:
    """``value`` counts features, so it is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1; got {describe(value)}.")


def check_choice(name: str, value: Any, choices: tuple) -> None:
    """``value`` is one of the names."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; got {describe(value)}.")


def check_key(name: str, key: Any) -> None:
    """``key`` is one PRNG key, of the new kind (a key dtype) or of the old (a row of uint32)."""
    is_array = isinstance(key, jax.Array | np.ndarray)
    if is_array and ((_is_key(key) and key.ndim == 0) or (key.dtype == jnp.uint32 and key.ndim == 1)):
        return
    raise TypeError(f"{name} must be one PRNG key, as jax.random.key(0) makes it; got {describe(key)}.")


def check_array(name: str, value: Any, dtype: Any, why: str) -> None:
    """``value`` is an array of the floating dtype that the parameters have."""
    if not isinstance(value, jax.Array | np.ndarray):
        raise TypeError(f"{name} must be an array; got {describe(value)}.")
    if _is_key(value) or dtype_of(value) != dtype:
        raise TypeError(f"{name} must be {dtype} ({why}); got {describe(value)}.")


def check_params(params: Any, cell: Any) -> tuple[int, int]:
    """``params`` fits ``cell``; returns the feature sizes (D, H) that it was made for.

    Raises:
        TypeError: not a ``Params``, an entry that is no floating array, or entries of different dtypes.
        ValueError: a term that the cell lacks or needs, or shapes that do not belong together.
    """
    if not isinstance(params, Params):
        raise TypeError(f"params must be an mgu_jax.Params, as mgu_jax.init makes it; got {describe(params)}.")
    for name, value in params._asdict().items():
        if value is not None and not isinstance(value, jax.Array | np.ndarray):
            raise TypeError(f"params.{name} must be an array; got {describe(value)}.")
    W_h = params.W_h
    if W_h is None or W_h.ndim != 2 or 0 in W_h.shape:
        raise ValueError(f"params.W_h must have shape [D, H] with D and H at least 1; got {describe(W_h)}.")
    if not jnp.issubdtype(W_h.dtype, jnp.floating):
        raise TypeError(f"params.W_h must be of a floating dtype; got {describe(W_h)}.")
    D, H = W_h.shape
    for name, shape in cell.shapes(D, H)._asdict().items():
        value = getattr(params, name)
        if shape is None:
            if value is not None:
                raise ValueError(f"params.{name} must be None (the cell has no such term); got {describe(value)}.")
            continue
        if value is None:
            raise ValueError(f"params.{name} must have shape {list(shape)} (the cell needs it); got None.")
        check_array(f"params.{name}", value, dtype_of(W_h), "the dtype of params.W_h")
        check_shape(f"params.{name}", value, shape, f"params.W_h is {[D, H]}")
    return D, H


def check_features(name: str, value: Any, leading: str, params: Params, source: str) -> None:
    """``value [leading..., features]`` has the dtype of ``params`` and the features of the weight named ``source``.

    ``source`` is "W_h" for inputs (its rows) and "b_h" for states (its length); ``leading`` is what stands before the
    features in the text of an error, as "T, ..., ".
    """
    weight = getattr(params, source)
    check_array(name, value, dtype_of(params.W_h), "the dtype of params")
    needed = leading.count(",") - leading.count("...")
    if value.ndim < needed + 1 or value.shape[-1] != weight.shape[0]:
        raise ValueError(
            f"{name} must have shape [{leading}{weight.shape[0]}] (params.{source} is {list(weight.shape)}); "
            f"got {list(value.shape)}."
        )


def check_shape(name: str, value: Any, shape: tuple[int, ...], why: str) -> None:
    """``value`` has exactly this shape."""
    if value.shape != shape:
        raise ValueError(f"{name} must have shape {list(shape)} ({why}); got {list(value.shape)}.")
