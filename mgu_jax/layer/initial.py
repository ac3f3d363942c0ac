"""Initial parameters of a layer."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from mgu_jax import checks
from mgu_jax.layer.family import MGU, Cell, check_cell
from mgu_jax.layer.params import Params

Initializer = Callable[..., Array]


@dataclass(frozen=True)
class Chrono:
    """Draws forget biases for memories of 2 to ``longest`` steps, one per unit; made by ``chrono``."""

    longest: int

    def __call__(self, key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        return -jnp.log(jax.random.uniform(key, shape, dtype, 1, self.longest - 1))


def chrono(longest: int) -> Chrono:
    """A chrono initialiser for ``forget_bias``: b_f = -log U[1, longest - 1] in the paper's sign.

    A unit with b_f = -log n forgets over about n steps (Tallec and Ollivier 2018, arXiv 1804.11188, section 3).

    Args:
        longest: T_max, the longest dependency in steps, at least 3.

    Raises:
        ValueError: longest is not a whole number of at least 3.
    """
    checks.check_size("longest", longest, least=3)
    return Chrono(int(longest))


@dataclass(frozen=True)
class UniformGate:
    """Draws forget biases for gates that are spread evenly between 0 and 1; it is ``uniform_gate``."""

    def __call__(self, key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        u = jax.random.uniform(key, shape, dtype, 1 / shape[-1], 1 - 1 / shape[-1])
        return jnp.log(u / (1 - u)) if shape[-1] > 2 else jnp.zeros(shape, dtype)


# For ``forget_bias``: b_f = log(u/(1 - u)) with u from U[1/H, 1 - 1/H], so that without inputs f is u (Gu, Gulcehre,
# Paine, Hoffman and Pascanu 2020, arXiv 1910.09890, section 3.2).
uniform_gate = UniformGate()
Drawn = Chrono | UniformGate  # forget biases that differ from unit to unit


def _between(limit: float) -> Initializer:
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -limit, limit)


def _notebook_normal(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    return 0.1 * jax.random.normal(key, shape, dtype) - 0.05


def _identity(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    return jnp.eye(shape[0], dtype=dtype) if len(shape) == 2 else jnp.ones(shape, dtype)


def _orthogonal(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """A matrix from JAX's orthogonal initialiser; under ``vmap``, one matrix after another.

    XLA's CPU backend runs two batched QR decompositions of one program at the same time, and in a pool of few threads
    they may wait for each other for ever (seen with jaxlib 0.10.2 on two cores).
    """
    draw = jax.nn.initializers.orthogonal()
    return jax.custom_batching.sequential_vmap(lambda key: draw(key, shape, dtype))(key)


def _schemes(hidden_size: int) -> dict[str, tuple[Initializer, Initializer]]:
    """Name -> (initialiser of W, initialiser of U), for a layer of width H."""
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
    forget_bias: float | Array | Drawn = -1.0,
    recurrent_scale: float | Array = 1.0,
    dtype: DTypeLike = jnp.float32,
) -> Params:
    """The initial ``Params`` of one layer. Biases other than b_f are zero, and gains are one.

    Args:
        key: one PRNG key. It is split into one key per array, so that all members draw equal values for the terms that
            they share.
        input_size: D, at least 1.
        hidden_size: H, at least 1.
        cell: the member of the family.
        initializer: "orthogonal" (orthogonal U, Glorot W), "lecun" (orthogonal U, and W from a normal distribution of
            variance 1/D, as Flax draws them: larger where D is small), "glorot" (both Glorot), "uniform"
            (both from U(-1/sqrt(H), 1/sqrt(H)), as PyTorch draws them), "identity" (U = I, Glorot W; Le, Jaitly and
            Hinton 2015, arXiv 1504.00941), "notebook" (both from U(-0.05, 0.05)) or "notebook_normal" (both from
            N(-0.05, 0.1^2), as the notebook's code draws them). A diagonal U, [H], has no fan-in and no orthogonal
            form, so "orthogonal", "lecun" and "glorot" draw it from U(-1/sqrt(H), 1/sqrt(H)).
        forget_bias: the initial b_f, a number or [H], in the paper's sign: -1, the default, remembers, and +1
            overwrites; or one per unit, as ``chrono(T_max)`` or ``uniform_gate`` draws them. A member whose
            update is "1-f" gets its negative, which has the same effect. It may be traced, and a member without b_f
            ignores it.
        recurrent_scale: factor on U_f and U_h, such as 0.01 with "identity"; it may be traced.
        dtype: float32, float64, bfloat16 or float16.

    Raises:
        TypeError: cell is not a Cell, key is not one PRNG key, dtype is not floating, or recurrent_scale is not a
            number.
        ValueError: a size below 1, an unknown initializer, a forget_bias of another shape, or ``chrono`` or
            ``uniform_gate`` for a member without b_f.
    """
    check_cell(cell)
    checks.check_key("key", key)
    checks.check_size("input_size", input_size)
    checks.check_size("hidden_size", hidden_size)
    checks.check_choice("initializer", initializer, INITIALIZERS)
    checks.check_floating("dtype", dtype)
    checks.check_number("recurrent_scale", recurrent_scale)
    if isinstance(forget_bias, Drawn):
        if "b" not in cell.gate:
            name = "chrono" if isinstance(forget_bias, Chrono) else "uniform_gate"
            raise ValueError(f"forget_bias can be {name} only for a gate with a bias; got gate={cell.gate!r}.")
    else:
        checks.check_numbers("forget_bias", forget_bias, hidden_size)
    drawn = jnp.float32 if jnp.dtype(dtype).itemsize < 4 else dtype  # QR has no half precision

    draw_W, draw_U = _schemes(hidden_size)[initializer]
    if cell.recurrence == "diagonal" and initializer in ("orthogonal", "lecun", "glorot"):
        draw_U = _between(hidden_size**-0.5)
    sign = 1 if cell.update == "f" else -1

    def one(name: str, key: Array, shape: tuple[int, ...] | None) -> Array | None:
        if shape is None:
            return None
        if name == "b_f":
            bias = forget_bias(key, shape, drawn) if isinstance(forget_bias, Drawn) else forget_bias
            return sign * jnp.broadcast_to(jnp.asarray(bias, dtype), shape)
        if name.startswith("U_"):
            return (jnp.asarray(recurrent_scale, drawn) * draw_U(key, shape, drawn)).astype(dtype)
        return {"W": draw_W, "b": _zeros, "g": _ones}[name[0]](key, shape, drawn).astype(dtype)

    shapes = cell.shapes(input_size, hidden_size)
    keys = jax.random.split(key, len(shapes))
    return Params(*map(one, Params._fields, keys, shapes))


def _zeros(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    return jnp.zeros(shape, dtype)


def _ones(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    return jnp.ones(shape, dtype)
