"""Checks of the arguments of public functions. An error is one sentence: the argument, the rule, what came.

Wrong types and dtypes raise ``TypeError``, wrong shapes and values ``ValueError``. Traced arrays are checked for their
shapes and dtypes alone, so the checks cost nothing under ``jit``.
"""

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np


def describe(value: Any) -> str:
    """The text that an error shows for a value: a number or a name itself, an array's dtype and shape, or a type."""
    if isinstance(value, str):
        return repr(str(value))
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        if value.shape == () and is_concrete(value) and not _is_key(value):
            return str(value)
        return f"{jnp.dtype(value.dtype) if not _is_key(value) else value.dtype} {list(value.shape)}"
    if isinstance(value, int | float | None):
        return repr(value)
    return f"a {type(value).__name__}"


def _is_key(value: Any) -> bool:
    return jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def dtype_of(value: Any) -> Any:
    """The dtype in which JAX computes with an array: float32 for NumPy's float64, unless x64 is enabled."""
    return jax.dtypes.canonicalize_dtype(value.dtype)


def check_size(name: str, value: Any, least: int = 1) -> None:
    """Raise ValueError unless value is a whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}; got {describe(value)}.")


def as_size(name: str, value: Any, most: int | None = None) -> int:
    """The whole number that value is, at least 1 and at most ``most``; a number of a floating dtype may be one.

    Raises:
        TypeError: it is traced.
        ValueError: it is something else.
    """
    if not is_concrete(value):
        raise TypeError(f"{name} must be a known number; got {describe(value)}.")
    whole = is_number(value) and not isinstance(value, bool) and float(value) % 1 == 0
    check_size(name, int(value) if whole else value)
    if most is not None and value > most:
        raise ValueError(f"{name} must be at most {most}, the width of the model; got {describe(value)}.")
    return int(value)


def check_path(name: str, value: Any) -> Path:
    """The path of a file or folder that value names; TypeError if it is not a string or a path."""
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name} must be a string or a path; got {describe(value)}.")
    return Path(value)


def is_concrete(value: Any) -> bool:
    """Whether the numbers of a value are known: it is not traced."""
    return not isinstance(value, jax.core.Tracer)


def check_rate(name: str, value: Any) -> None:
    """Raise ValueError unless value is a probability in [0, 1). A traced number passes."""
    if not is_number(value) or (is_concrete(value) and not 0 <= float(value) < 1):
        raise ValueError(f"{name} must be a number in [0, 1); got {describe(value)}.")


def check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Raise ValueError unless value is one of the choices."""
    if not isinstance(value, str | bool | np.bool_ | None) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; got {describe(value)}.")


def check_key(name: str, key: Any) -> None:
    """Raise TypeError unless key is one PRNG key, of the new kind (a key dtype) or the old (a row of uint32)."""
    if not (_is_new_key(key, 0) or _is_old_key(key, 1)):
        raise TypeError(f"{name} must be one PRNG key, as jax.random.key(0) makes it; got {describe(key)}.")


def as_key(name: str, key: Any) -> Any:
    """One PRNG key of the new kind, with the same random numbers; TypeError if it is not a key."""
    check_key(name, key)
    return key if _is_key(key) else jax.random.wrap_key_data(jnp.asarray(key))


def is_keys(value: Any) -> bool:
    """Whether the value is a row of PRNG keys, of the new kind or the old."""
    return (_is_new_key(value, 1) or _is_old_key(value, 2)) and len(value) > 0


def as_keys(name: str, keys: Any) -> Any:
    """A row of PRNG keys of the new kind, with the same random numbers; TypeError if it is not a row of keys."""
    if not is_keys(keys):
        raise TypeError(f"{name} must be PRNG keys [seeds], as jax.random.split makes them; got {describe(keys)}.")
    return keys if _is_key(keys) else jax.random.wrap_key_data(jnp.asarray(keys))


def _is_new_key(value: Any, axes: int) -> bool:
    return isinstance(value, jax.Array) and _is_key(value) and value.ndim == axes


def _is_old_key(value: Any, axes: int) -> bool:
    if not isinstance(value, jax.Array | np.ndarray) or value.dtype != jnp.uint32 or value.ndim != axes:
        return False
    size = 2 if jax.config.jax_default_prng_impl == "threefry2x32" else 4  # pyright: ignore (set at run time)
    return value.shape[-1] == size


def leaf_specs(name: str, tree: Any) -> dict[str, str]:
    """The dtype and shape of every leaf by its path, such as ``{".params.b_y": "float32[3]"}``.

    Raises:
        TypeError: a leaf is neither a number nor an array of numbers or keys, or an array is empty.
    """
    specs = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        value = leaf if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) else np.asarray(leaf)
        known = any(jnp.issubdtype(value.dtype, kind) for kind in (np.number, np.bool_, jax.dtypes.prng_key))
        where = jax.tree_util.keystr(path)
        if not known or not value.size:
            raise TypeError(f"{name} must hold only numbers and non-empty arrays; {name}{where} is {describe(leaf)}.")
        specs[where] = f"{value.dtype}{list(value.shape)}"
    return specs


def check_floating(name: str, dtype: Any) -> None:
    """Raise TypeError unless dtype is one that parameters may have."""
    known = dtype_name(name, dtype)
    if known not in ("float32", "float64", "bfloat16", "float16"):
        raise TypeError(f"{name} must be float32, float64, bfloat16 or float16; got {known}.")


def is_number(value: Any) -> bool:
    """Whether value is one real number, of Python, NumPy or JAX; it may be traced."""
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return value.shape == () and is_real(value.dtype)
    return isinstance(value, int | float)


def is_real(dtype: Any) -> bool:
    return any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_))


def check_numbers(name: str, value: Any, size: int) -> None:
    """Raise ValueError unless value is one real number or a row of ``size`` of them; it may be traced."""
    row = isinstance(value, jax.Array | np.ndarray) and value.shape == (size,) and is_real(value.dtype)
    if not is_number(value) and not row:
        raise ValueError(f"{name} must be a number or [{size}]; got {describe(value)}.")


def check_number(name: str, value: Any) -> None:
    """Raise TypeError unless value is one real number; it may be traced."""
    if not is_number(value):
        raise TypeError(f"{name} must be a number; got {describe(value)}.")


def check_not_empty(name: str, lengths: Any, readout: Any) -> None:
    """Raise ValueError if a sequence has no step and readout, "last" or "mean", would read one. Traced ones pass."""
    if readout not in ("last", "mean") or lengths is None or not is_concrete(lengths) or not np.size(lengths):
        return
    if np.min(lengths) < 1:
        raise ValueError(f"{name} must be at least 1 for a model with readout {readout!r}; got {np.min(lengths)}.")


def is_numeric(value: Any) -> bool:
    """Whether value is one or more numbers that are known."""
    return is_concrete(value) and jnp.issubdtype(np.asarray(value).dtype, np.number)


def check_array(name: str, value: Any, dtype: Any, why: str) -> None:
    """Raise TypeError unless value is an array of this dtype; ``why`` says where the rule comes from."""
    if not isinstance(value, jax.Array | np.ndarray):
        raise TypeError(f"{name} must be an array; got {describe(value)}.")
    if _is_key(value) or dtype_of(value) != dtype:
        raise TypeError(f"{name} must be {dtype} ({why}); got {describe(value)}.")


def check_hashable(name: str, value: Any) -> None:
    """Raise TypeError unless value can be hashed: JAX compiles once for all that are equal."""
    try:
        hash(value)
    except TypeError:
        rule = "hashable, as functions, tuples and frozen dataclasses of such are"
        raise TypeError(f"{name} must be {rule}; got {describe(value)}.") from None


def name_of(function: Any) -> str:
    """The name of a function or of its class."""
    return getattr(function, "__name__", type(function).__name__)


def check_takes(name: str, function: Any, example: str, *arguments: Any, **options: Any) -> None:
    """Raise TypeError unless a function can be called with these arguments; ``example`` shows a call."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a callable without a signature
        return
    try:
        signature.bind(*arguments, **options)
    except TypeError:
        raise TypeError(f"{name} must be callable as {example}; got {name_of(function)}{signature}.") from None


def tried(name: str, given: str, call: Callable[[], Any]) -> Any:
    """What a user's function returns. An error that it raises becomes one that names it, and what it was given."""
    try:
        return call()
    except Exception as error:
        why = f"{type(error).__name__}: {error}".partition("\n")[0].rstrip(".")
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{name} must accept {given}; it raised {why}.") from error


def as_numbers(name: str, value: Any) -> Any:
    """An array of real numbers or bool: the same one, or one of a dtype that JAX knows with the same numbers.

    An array of objects, such as a column of pandas, is accepted if it holds numbers.

    Raises:
        TypeError: value is something else.
    """
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} must be an array without masked entries; got a MaskedArray.")
    if not isinstance(value, jax.Array | np.ndarray):
        raise TypeError(f"{name} must be an array; got {describe(value)}.")
    if value.dtype == object and isinstance(value, np.ndarray):
        odd = next((entry for entry in value.flat if not is_number(entry)), None)
        if not all(map(is_number, value.flat)):
            raise TypeError(f"{name} must hold numbers alone; got an array of objects with {describe(odd)}.")
        value = np.array(value.tolist()).reshape(value.shape)
    if isinstance(value, np.ndarray) and value.dtype.kind in "US":
        hint = "np.unique(labels, return_inverse=True) numbers the labels"
        raise TypeError(f"{name} must hold numbers ({hint}); got text, such as {str(next(iter(value.flat), ''))!r}.")
    if _is_key(value) or not is_real(value.dtype) or value.dtype == np.longdouble != np.float64:
        raise TypeError(f"{name} must hold real numbers; got {_described_dtype(value)}.")
    if isinstance(value, np.ndarray) and not value.dtype.isnative:
        value = value.astype(value.dtype.newbyteorder("="))
    return value


def _described_dtype(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}"


def check_shape(name: str, value: Any, shape: tuple[int, ...], why: str) -> None:
    """Raise ValueError unless value has exactly this shape; ``why`` says where the rule comes from."""
    if value.shape != shape:
        raise ValueError(f"{name} must have shape {list(shape)} ({why}); got {list(value.shape)}.")


def dtype_name(name: str, value: Any) -> str | None:
    """The name of a dtype, or ``None`` for ``None``; TypeError if value is not a dtype."""
    try:
        return None if value is None else jnp.dtype(value).name
    except TypeError:
        raise TypeError(f"{name} must be a dtype; got {describe(value)}.") from None


def steps_within(steps: int, lengths: Any, mask: Any, time_axis: int = 0) -> Any:
    """Which steps of which sequences count, a bool array, or ``None`` if all do: known lengths [...], mask [T, ...].

    Traced ones are taken to leave out everything, so that nothing is checked.
    """
    if not (is_concrete(lengths) and is_concrete(mask)):
        return False
    within = None if mask is None else np.asarray(mask)
    if lengths is not None:
        ends = np.asarray(lengths)
        before = np.arange(steps).reshape(-1, *[1] * ends.ndim) < ends[None]
        before = np.moveaxis(before, 0, time_axis)
        within = before if within is None else within & before
    return within


def check_below(name: str, numbers: Any, limit: int, of: str, counted: Any = None) -> None:
    """Raise ValueError unless numbers lie in [0, limit). Traced ones, and those that do not count, pass."""
    if not is_concrete(numbers) or not numbers.size:
        return
    numbers = np.asarray(numbers) if counted is None else np.asarray(numbers)[counted]
    outside = numbers[(numbers < 0) | (numbers >= limit)]
    if outside.size:
        raise ValueError(f"{name} must lie in [0, {limit}), as {of}; got {outside.flat[0]}.")
