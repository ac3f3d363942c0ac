"""Lyapunov exponents along a trajectory (Benettin et al. 1980; Engelken, Wolf and Abbott 2023, arXiv 2006.02427).

A change of the state by v becomes J_T ... J_1 v after T steps, and its length grows as exp(exponent * T). The k largest
exponents are the growth rates of k orthonormal tangents Q. After each step, or after some,

    J Q = Q' R        a QR decomposition, and log |R_ii| is the growth of the i-th tangent since the last one.

The tangents run beside the states by equations (16) to (19), without the Jacobian: 2 k H^2 multiplications in a step,
and 2 k^2 H for the decomposition.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from mgu_jax import checks
from mgu_jax.dynamics.arguments import check_factorised, checked_run, split
from mgu_jax.dynamics.linear import tangents
from mgu_jax.layer import mesh
from mgu_jax.layer.cell import InputTerms, advance, prepare, project
from mgu_jax.layer.family import MGU, Cell
from mgu_jax.layer.params import Params


def lyapunov(
    params: Params,
    xs: Array,
    h0: Array | None = None,
    k: int | None = None,
    cell: Cell = MGU,
    *,
    warmup: int = 0,
    every: int = 1,
) -> Array:
    """The k largest Lyapunov exponents [..., k] along the states that follow h0, the largest first, in nats per step.

    A positive exponent means that two states nearby part exponentially (chaos), and -1/exponent is the number of steps
    in which they come e times closer. Cost: T steps of 2 k H^2 + 2 k^2 H multiplications; all tangents together are k
    times as large as the state.

    Args:
        params: the layer's ``Params``.
        xs: [T, ..., D], the inputs, with T - warmup at least 1. Longer sequences give better estimates.
        h0: [..., H], the state before the first step; zeros if ``None``.
        k: how many exponents, from 1 to H; ``None`` gives all.
        cell: the member of the family that params belongs to.
        warmup: steps that are run but not counted, in which the state comes to its attractor and the tangents turn into
            the directions of the largest growth. Without it they begin in random directions.
        every: steps between two decompositions. More are faster, and fail where tangents become parallel in between.

    Raises:
        TypeError: an argument is not an array, its dtype is not that of params, or that is not float32 or float64.
        ValueError: the shapes do not fit each other, or k, warmup or every is out of bounds.
    """
    h0 = checked_run(params, xs, h0, cell)
    check_factorised(params)
    T, H = xs.shape[0], h0.shape[-1]
    k = H if k is None else k
    for name, value, least, most, why in (("k", k, 1, H, "units"), ("warmup", warmup, 0, T - 1, "steps, less one")):
        checks.check_size(name, value, least)
        if value > most:
            raise ValueError(f"{name} must be at most {most} (the number of {why}); got {value}.")
    checks.check_size("every", every)
    run = partial(_lyapunov, k=int(k), cell=cell, warmup=int(warmup), every=int(every))
    return mesh.automatic(run, (params, xs, h0), lambda _, xs, h0: split(xs[0], h0))


@partial(jax.jit, static_argnames=("k", "cell", "warmup", "every"))
def _lyapunov(params: Params, xs: Array, h0: Array, k: int, cell: Cell, warmup: int, every: int) -> Array:
    T, (*batch, H) = xs.shape[0], h0.shape
    steps = jnp.arange(1, T + 1)
    decomposed = (steps % every == 0) | (steps == warmup) | (steps == T)

    def orthonormal(v: Array) -> tuple[Array, Array]:
        q, r = jnp.linalg.qr(jnp.swapaxes(v, -1, -2))
        return jnp.swapaxes(q, -1, -2), jnp.log(jnp.abs(jnp.diagonal(r, axis1=-2, axis2=-1)))

    def body(carry: tuple[Array, Array], rows: tuple[InputTerms, Array, Array]) -> tuple[tuple[Array, Array], Array]:
        (h, v), (inputs, decompose, counts) = carry, rows
        h_next, gates = advance(weights, h, inputs, cell)
        v = tangents(params, h, gates, cell, v)
        v, growth = lax.cond(decompose, orthonormal, lambda v: (v, jnp.zeros_like(v[..., 0])), v)
        return (h_next, v), jnp.where(counts, growth, 0)

    first, _ = orthonormal(jax.random.normal(jax.random.key(0), (k, H), h0.dtype))
    params, xs, h0, first = mesh.vary_alike((params, xs, h0, first))
    weights, v = prepare(params, cell), jnp.broadcast_to(first, (*batch, k, H))
    _, growth = lax.scan(body, (h0, v), (project(params, xs), decomposed, steps > warmup))
    return -jnp.sort(-jnp.sum(growth, 0) / (T - warmup), -1)
