"""``check_gradients``: the gradients of an implementation beside autodiff's and finite differences, on any sizes."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mgu_jax import checks
from mgu_jax.layer.family import MGU, Cell
from mgu_jax.layer.noise import Rates, is_off
from mgu_jax.layer.params import Params
from mgu_jax.sequence import scan

_STEP = 1e-3  # of the finite differences; the error of the five-point formula is of order _STEP**4


@dataclass(frozen=True)
class Comparison:
    """One array's gradient by three ways; errors are relative, in the Euclidean norm of the whole array.

    ``autodiff`` compares with JAX's gradient of the definition in the same dtype, ``differences`` with finite
    differences in float64 along random directions, and ``reference`` holds autodiff itself against those differences:
    where it is large too, the differences are what is inexact.
    """

    name: str
    shape: tuple[int, ...]
    norm: float
    autodiff: float
    differences: float
    reference: float


@dataclass(frozen=True)
class GradientReport:
    """What ``check_gradients`` found. It prints as a table; ``worst`` is the largest error against autodiff."""

    implementation: str
    dtype: str
    rows: tuple[Comparison, ...]

    @property
    def worst(self) -> float:
        """The largest error against autodiff; nan if any is."""
        return float(np.max([row.autodiff for row in self.rows]))

    @property
    def worst_differences(self) -> float:
        """The largest error against finite differences; nan if any is."""
        return float(np.max([row.differences for row in self.rows]))

    def __str__(self) -> str:
        name = self.implementation
        head = ("array", "shape", "|gradient|", f"{name}:autodiff", f"{name}:differences", "autodiff:differences")
        body = [
            (
                r.name,
                str(list(r.shape)),
                f"{r.norm:.4g}",
                *(f"{e:.1e}" for e in (r.autodiff, r.differences, r.reference)),
            )
            for r in self.rows
        ]
        widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
        lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in [head, *body]]
        return "\n".join([f"gradients in {self.dtype}, relative errors", *lines])


def relative_error(actual: Any, expected: Any) -> float:
    """|actual - expected| / |expected| in the Euclidean norm, in float64; 0 where both vanish."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    difference, size = np.linalg.norm(actual - expected), np.linalg.norm(expected)
    return float(difference / size) if size else (0.0 if difference == 0 else float("inf"))


def check_gradients(
    params: Params,
    xs: Array,
    h0: Array | None = None,
    *,
    cell: Cell = MGU,
    implementation: str | None = None,
    key: Array | None = None,
    directions: int = 4,
    **options: Any,
) -> GradientReport:
    """Compare the gradients of ``scan`` for random cotangents on both of its outputs.

    Args:
        params, xs, h0, cell: as ``scan`` takes them; the arrays concrete, not traced. The gradient of h0 is compared
            also where h0 is ``None``.
        implementation: whose gradients are judged; "manual" if ``None``.
        key: draws the cotangents and the directions; ``jax.random.key(0)`` if ``None``.
        directions: along how many random unit vectors per array the finite differences are taken (each costs four
            forward passes in float64).
        options: any other keyword of ``scan``, such as ``reverse``. The noise of a rate follows from ``key`` too.

    Returns:
        A ``GradientReport``, one ``Comparison`` for each array of params, for xs, for h0 and for reset_to.

    Raises:
        TypeError, ValueError: as ``scan`` does; ValueError if directions is below 1.
    """
    checks.check_size("directions", directions)
    if not all(map(checks.is_concrete, jax.tree.leaves((params, xs, h0)))):
        raise TypeError("params, xs and h0 must be concrete arrays, since differences are taken; got traced ones.")
    key = jax.random.key(0) if key is None else key
    checks.check_key("key", key)
    implementation = "manual" if implementation is None else implementation
    if not all(is_off(options.get(name, 0.0)) for name in Rates._fields):
        options["key"] = jax.random.fold_in(key, 1)
    # Checks everything, and gives the shapes of the outputs without running anything.
    hs, h_last = jax.eval_shape(partial(scan, cell=cell, implementation=implementation, **options), params, xs, h0)
    if h0 is None:
        h0 = jnp.zeros(h_last.shape, h_last.dtype)
    reset_to = options.pop("reset_to", None)
    plain = {name: value for name, value in options.items() if name not in ("save", "segment")}  # autodiff saves all

    rng = np.random.default_rng(np.asarray(jax.random.key_data(jax.random.fold_in(key, 0))).ravel())
    cotangents = rng.standard_normal(hs.shape), rng.standard_normal(h_last.shape)

    def loss(arguments: Any, implementation: str) -> Array:
        *arguments, reset_to = arguments
        chosen = plain if implementation == "autodiff" else options
        hs, h_last = scan(*arguments, cell=cell, reset_to=reset_to, implementation=implementation, **chosen)
        w_hs, w_last = (jnp.asarray(w, hs.dtype) for w in cotangents)
        return jnp.sum(w_hs * hs) + jnp.sum(w_last * h_last)

    arguments = (params, xs, h0, reset_to)
    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    judged, autodiff = (_by_name(gradient(arguments, which)) for which in (implementation, "autodiff"))

    rows = []
    with jax.enable_x64(True):
        doubled = jax.tree.map(lambda a: np.asarray(a, np.float64), arguments)
        value = jax.jit(lambda arguments: loss(arguments, "autodiff"))
        for index, (name, array) in enumerate(_by_name(doubled).items()):
            units = rng.standard_normal((directions, array.size))
            units /= np.maximum(np.linalg.norm(units, axis=1, keepdims=True), np.finfo(float).tiny)
            slopes = [_slope(value, doubled, index, unit.reshape(array.shape)) for unit in units]
            expected = [units @ np.asarray(g[name], np.float64).ravel() for g in (judged, autodiff)]
            rows.append(
                Comparison(
                    name=name,
                    shape=array.shape,
                    norm=float(np.linalg.norm(np.asarray(judged[name], np.float64))),
                    autodiff=relative_error(judged[name], autodiff[name]),
                    differences=relative_error(expected[0], slopes),
                    reference=relative_error(expected[1], slopes),
                )
            )
    return GradientReport(implementation, str(checks.dtype_of(params.W_h)), tuple(rows))


def _by_name(arguments: tuple[Params, Any, Any, Any]) -> dict[str, Any]:
    params, xs, h0, reset_to = arguments
    named = params._asdict() | {"xs": xs, "h0": h0, "reset_to": reset_to}
    return {name: a for name, a in named.items() if a is not None}


def _slope(value: Any, arguments: Any, index: int, unit: np.ndarray) -> float:
    """The derivative of value along unit, which moves the array at this place of the pytree, by five points."""
    leaves, structure = jax.tree.flatten(arguments)

    def at(distance: float) -> float:
        moved = [leaf + distance * unit if i == index else leaf for i, leaf in enumerate(leaves)]
        return float(value(jax.tree.unflatten(structure, moved)))

    near, far = at(_STEP) - at(-_STEP), at(2 * _STEP) - at(-2 * _STEP)
    return (8 * near - far) / (12 * _STEP)
