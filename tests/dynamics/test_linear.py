"""The Jacobian in closed form and the products with it, against autodiff, for every member of the family."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mgu_jax as mgu
from mgu_jax import dynamics
from mgu_jax.dynamics import linear
from tests import laws
from tests.test_compilation import products

NAMES = list(laws.CELLS)


def arguments(cell, dtype, batch=(3,)):
    """(params, h, x, v, w, dh_next), all random."""
    case = laws.case(cell, 2, batch)
    return laws.cast((case.params, case.h0, case.xs[0], case.dhs[0], case.xs[1], case.dhs[1]), dtype)


def equals_autodiff(cell, dtype, batch=(3,)):
    """One program computes the Jacobian by JAX, and the closed form and both products by hand."""
    params, h, x, v, w, dh_next = arguments(cell, dtype, batch)

    @jax.jit
    def both(params, h, x, v, w, dh_next):
        autodiff = jax.jacrev(lambda h, x: mgu.step(params, h, x, cell), (0, 1))
        for _ in batch:
            autodiff = jax.vmap(autodiff)
        Jh, Jx = autodiff(h, x)
        wanted = {
            "h": Jh,
            "x": Jx,
            "jvp": jnp.einsum("...ij,...j", Jh, v) + jnp.einsum("...ij,...j", Jx, w),
            "jvp of h": jnp.einsum("...ij,...j", Jh, v),
            "vjp of h": jnp.einsum("...i,...ij", dh_next, Jh),
            "vjp of x": jnp.einsum("...i,...ij", dh_next, Jx),
        }
        got = dict(zip("hx", dynamics.jacobian(params, h, x, cell), strict=True))
        got["jvp"] = dynamics.jvp(params, h, x, v, w, cell)
        got["jvp of h"] = dynamics.jvp(params, h, x, v, cell=cell)
        got["vjp of h"], got["vjp of x"] = dynamics.vjp(params, h, x, dh_next, cell)
        return got, wanted

    got, wanted = both(params, h, x, v, w, dh_next)
    assert all(a.dtype == dtype for a in got.values())
    laws.assert_close(got, wanted, laws.TOLERANCE[dtype] * (50 if cell.layer_norm else 1))


@pytest.mark.parametrize("name", NAMES)
def test_it_equals_autodiff(x64, name):
    equals_autodiff(laws.CELLS[name], "float64")


@pytest.mark.parametrize(
    "name", [n if n in ("MGU", "norm") else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]
)
def test_it_equals_autodiff_in_single_precision(quick_compiler, name):
    equals_autodiff(laws.CELLS[name], "float32")


@pytest.mark.parametrize("batch", [(2, 3)])
def test_any_batch(x64, batch):
    equals_autodiff(mgu.RESET_AFTER_MGU, "float64", batch)


def test_it_can_be_mapped(x64):
    """Over states and over weights."""
    params, h, x, *_ = arguments(mgu.MGU, "float64")
    together = dynamics.jacobian(params, h, x)[0]
    several = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), params)
    mapped = jax.vmap(jax.vmap(dynamics.jacobian, (None, 0, 0)), (0, None, None))(several, h, x)[0]
    np.testing.assert_allclose(mapped[0], together, rtol=0, atol=1e-14)


# The products of a whole call: those of the step itself, and those that fill dh'/dh and dh'/dx.
@pytest.mark.parametrize(
    ("name", "of_the_step", "of_the_jacobian"),
    [("MGU", 4, 2), ("MGU3", 2, 0), ("RESET_AFTER_MGU", 3, 0), ("UGRNN", 3, 0), ("DIAGONAL_MGU", 2, 0)],
)
def test_number_of_products(name, of_the_step, of_the_jacobian):
    params, h, x, *_ = arguments(laws.CELLS[name], "float32")
    program = jax.make_jaxpr(lambda h, x: linear.jacobian(params, h, x, laws.CELLS[name]))(h, x)
    assert products(program.jaxpr) == of_the_step + of_the_jacobian
