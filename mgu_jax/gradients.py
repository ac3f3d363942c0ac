"""``check_gradients``: the gradients of an implementation, compared with autodiff and with finite differences."""

from collections.abc import Callable
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
    """The relative errors of one array's gradient, in the Euclidean norm of the whole array.

    Attributes:
        name, shape: of the array.
        norm: of its gradient.
        autodiff: the error against JAX's gradient of the definition in the same dtype.
        differences: the error against finite differences in float64, along random directions.
        reference: the error of autodiff against the same differences. If it is large too, the differences are inexact.
    """

    name: str
    shape: tuple[int, ...]
    norm: float
    autodiff: float
    differences: float
    reference: float


@dataclass(frozen=True)
class GradientReport:
    """The result of ``check_gradients``, which prints as a table.

    Attributes:
        implementation: whose gradients were compared.
        dtype: of params.
        rows: one ``Comparison`` per array.
    """

    implementation: str
    dtype: str
    rows: tuple[Comparison, ...]

    @property
    def worst(self) -> float:
        """The largest error against autodiff; NaN if any error is NaN."""
        return float(np.max([row.autodiff for row in self.rows]))

    @property
    def worst_differences(self) -> float:
        """The largest error against finite differences; NaN if any error is NaN."""
        return float(np.max([row.differences for row in self.rows]))

    def __str__(self) -> str:
        one, differences = self.implementation, "finite differences"
        errors = (f"{one} vs autodiff", f"{one} vs {differences}", f"autodiff vs {differences}")
        table: list[tuple[str, ...]] = [("array", "shape", "norm of gradient", *errors)]
        for row in self.rows:
            errors = (f"{error:.1e}" for error in (row.autodiff, row.differences, row.reference))
            table.append((row.name, str(list(row.shape)), f"{row.norm:.4g}", *errors))
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in table]
        return "\n".join([f"relative errors of the gradients in {self.dtype}", *lines])


def relative_error(actual: Any, expected: Any) -> float:
    """|actual - expected| / |expected| in the Euclidean norm and in float64; 0 if both are zero."""
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
    """A ``GradientReport`` on the gradients of ``scan`` for random cotangents of both of its outputs.

    It has one ``Comparison`` for each array of params, for xs, for h0 and for reset_to.

    Args:
        params, xs, h0, cell: as in ``scan``, but concrete, not traced. The gradient of h0 is compared even if h0 is
            ``None``.
        implementation: the one to check; "manual" if ``None``.
        key: draws the cotangents, the directions, and the noise if a rate is given; ``jax.random.key(0)`` if ``None``.
        directions: the number of random directions per array for finite differences; each takes four forward passes in
            float64.
        options: any other keyword of ``scan``, such as ``reverse``.

    Raises:
        TypeError: params, xs or h0 is traced, or as ``scan``.
        ValueError: directions is below 1, or as ``scan``.
    """
    checks.check_size("directions", directions)
    if not all(map(checks.is_concrete, jax.tree.leaves((params, xs, h0)))):
        raise TypeError("params, xs and h0 must be concrete arrays, for finite differences; got traced ones.")
    key = jax.random.key(0) if key is None else key
    checks.check_key("key", key)
    implementation = "manual" if implementation is None else implementation
    if not all(is_off(options.get(name, 0.0)) for name in Rates._fields):
        options["key"] = jax.random.fold_in(key, 1)
    # This checks all arguments and gives the shapes of the outputs, without running anything.
    hs, h_last = jax.eval_shape(partial(scan, cell=cell, implementation=implementation, **options), params, xs, h0)
    if h0 is None:
        h0 = jnp.zeros(h_last.shape, h_last.dtype)
    reset_to = options.pop("reset_to", None)
    plain = {name: value for name, value in options.items() if name not in ("save", "segment")}  # for autodiff

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
    checked, autodiff = (_by_name(gradient(arguments, which)) for which in (implementation, "autodiff"))

    rows = []
    with jax.enable_x64(True):
        doubled = jax.tree.map(lambda a: np.asarray(a, np.float64), arguments)
        value = jax.jit(lambda arguments: loss(arguments, "autodiff"))
        for index, (name, array) in enumerate(_by_name(doubled).items()):
            units = _unit_vectors(rng, directions, array.size)
            slopes = [_slope(value, doubled, index, unit.reshape(array.shape)) for unit in units]
            expected = [units @ np.asarray(g[name], np.float64).ravel() for g in (checked, autodiff)]
            rows.append(
                Comparison(
                    name=name,
                    shape=array.shape,
                    norm=float(np.linalg.norm(np.asarray(checked[name], np.float64))),
                    autodiff=relative_error(checked[name], autodiff[name]),
                    differences=relative_error(expected[0], slopes),
                    reference=relative_error(expected[1], slopes),
                )
            )
    return GradientReport(implementation, str(checks.dtype_of(params.W_h)), tuple(rows))


def _by_name(arguments: tuple[Params, Any, Any, Any]) -> dict[str, Any]:
    """Name -> array, for the arrays of (params, xs, h0, reset_to) that are present."""
    params, xs, h0, reset_to = arguments
    named = params._asdict() | {"xs": xs, "h0": h0, "reset_to": reset_to}
    return {name: a for name, a in named.items() if a is not None}


def _unit_vectors(rng: np.random.Generator, number: int, size: int) -> np.ndarray:
    """Random unit vectors, [number, size]."""
    vectors = rng.standard_normal((number, size))
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(float).tiny)


def _slope(value: Callable[[Any], Any], arguments: Any, index: int, unit: np.ndarray) -> float:
    """The derivative of ``value`` if the leaf of arguments at ``index`` moves along ``unit``, from five points."""
    leaves, structure = jax.tree.flatten(arguments)

    def at(distance: float) -> float:
        moved = [leaf + distance * unit if i == index else leaf for i, leaf in enumerate(leaves)]
        return float(value(jax.tree.unflatten(structure, moved)))

    near, far = at(_STEP) - at(-_STEP), at(2 * _STEP) - at(-2 * _STEP)
    return (8 * near - far) / (12 * _STEP)
