"""Initial parameters of a layer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from mgu_jax import checks
from mgu_jax.layer.family import MGU, Cell, check_cell
from mgu_jax.layer.params import Params

Initializer = Callable[..., Array]


@dataclass(frozen=True)
class Chrono:
    """Forget biases for memories of 2 to ``longest`` steps, each unit its own; made by ``chrono``."""

    longest: int

    def __call__(self, key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        return -jnp.log(jax.random.uniform(key, shape, dtype, 1, self.longest - 1))


def chrono(longest: int) -> Chrono:
    """Chrono initialisation, for ``forget_bias``: b_f = -log U[1, longest - 1] in the paper's sign.

    A unit with b_f = -log n forgets over about n steps (Tallec and Ollivier 2018, arXiv 1804.11188, section 3).

    Args:
        longest: T_max, the longest dependency in steps, at least 3.

    Raises:
        ValueError: longest is no whole number of at least 3.
    """
    checks.check_size("longest", longest, least=3)
    return Chrono(int(longest))


def _between(limit: float) -> Initializer:
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -limit, limit)


def _notebook_normal(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    return 0.1 * jax.random.normal(key, shape, dtype) - 0.05


def _identity(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    return jnp.eye(shape[0], dtype=dtype) if len(shape) == 2 else jnp.ones(shape, dtype)


def _orthogonal(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """JAX's, and under ``vmap`` one matrix after the other.

    Of two batched QR decompositions in one program XLA's CPU runs both at once, and in a pool of few threads they may
    wait for each other for ever (seen with jaxlib 0.10.2 on two cores).
    """
    draw = jax.nn.initializers.orthogonal()
    return jax.custom_batching.sequential_vmap(lambda key: draw(key, shape, dtype))(key)


def _schemes(hidden_size: int) -> dict[str, tuple[Initializer, Initializer]]:
    """Name -> (how W is drawn, how U is drawn), for a layer of width H."""
    uniform, notebook = _between(hidden_size**-0.5), _between(0.05)
    glorot = jax.nn.initializers.glorot_uniform()
    return {
        "orthogonal": (glorot, _orthogonal),
        "lecun": (jax.nn.initializers.lecun_normal(), _orthogonal),
        "glorot": (glorot, glorot),
        "uniform": (uniform, uniform),
        "identity": (glorot, _identity),
        "notebook": (notebook, notebook),
        "notebook_normal": (_notebook_normal, _notebook_normal),
    }


INITIALIZERS = tuple(_schemes(1))


def init(
    key: Array,
    input_size: int,
    hidden_size: int,
    cell: Cell = MGU,
    *,
    initializer: str = "orthogonal",
    forget_bias: Any = -1.0,
    recurrent_scale: Any = 1.0,
    dtype: Any = jnp.float32,
) -> Params:
    """Initial parameters of one layer.

    Args:
        key: one PRNG key. Every array gets a key of its own from it, so that a member which lacks a term draws the
            others as its relatives do.
        input_size: D, at least 1.
        hidden_size: H, at least 1.
        cell: the member of the family.
        initializer: "orthogonal" (orthogonal U, Glorot W), "lecun" (orthogonal U, and W from a normal distribution of
            variance 1/D, as Flax draws them: larger where D is small), "glorot" (both), "uniform" (both from
            U(-1/sqrt(H), 1/sqrt(H)), as PyTorch draws them), "identity" (U = I, Glorot W; Le, Jaitly and Hinton 2015,
            arXiv 1504.00941), "notebook" (both from U(-0.05, 0.05)) or "notebook_normal" (both from N(-0.05, 0.1^2),
            which is what the notebook's code drew). A diagonal U, [H], has no fan-in and no orthogonal form: where
            these need one, it is drawn from U(-1/sqrt(H), 1/sqrt(H)).
        forget_bias: the initial b_f, a number or [H], in the paper's sign: -1, the default, remembers, and +1
            overwrites; or ``chrono(T_max)``. A member whose update is "1-f" gets its negative, so that it means the
            same. May be traced. A member without b_f has none to set.
        recurrent_scale: factor on U_f and U_h, such as 0.01 with "identity". May be traced.
        dtype: float32, float64, bfloat16 or float16.

    Returns:
        ``Params``; the other biases are zero, gains one.

    Raises:
        TypeError: cell is no Cell, key is not one PRNG key, dtype is not floating, or recurrent_scale is no number.
        ValueError: a size below 1, an unknown initializer, a forget_bias of another shape, or chrono for a member
            without b_f.
    """
    check_cell(cell)
    checks.check_key("key", key)
    checks.check_size("input_size", input_size)
    checks.check_size("hidden_size", hidden_size)
    checks.check_choice("initializer", initializer, INITIALIZERS)
    checks.check_floating("dtype", dtype)
    checks.check_number("recurrent_scale", recurrent_scale)
    if isinstance(forget_bias, Chrono):
        if "b" not in cell.gate:
            raise ValueError(f"forget_bias can be chrono only for a gate with a bias; got gate={cell.gate!r}.")
    else:
        checks.check_numbers("forget_bias", forget_bias, hidden_size)
    drawn = jnp.float32 if jnp.dtype(dtype).itemsize < 4 else dtype  # QR and the like know no half precision

    draw_W, draw_U = _schemes(hidden_size)[initializer]
    if cell.recurrence == "diagonal" and initializer in ("orthogonal", "lecun", "glorot"):
        draw_U = _between(hidden_size**-0.5)
    sign = 1 if cell.update == "f" else -1

    def one(name: str, key: Array, shape: Any) -> Any:
        if shape is None:
            return None
        if name == "b_f":
            bias = forget_bias(key, shape, drawn) if isinstance(forget_bias, Chrono) else forget_bias
            return sign * jnp.broadcast_to(jnp.asarray(bias, dtype), shape)
        if name.startswith("U_"):
            return (jnp.asarray(recurrent_scale, drawn) * draw_U(key, shape, drawn)).astype(dtype)
        return {"W": draw_W, "b": _zeros, "g": _ones}[name[0]](key, shape, drawn).astype(dtype)

    shapes = cell.shapes(input_size, hidden_size)
    keys = jax.random.split(key, len(shapes))
    return Params(*map(one, Params._fields, keys, shapes))


def _zeros(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    return jnp.zeros(shape, dtype)


def _ones(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    return jnp.ones(shape, dtype)
