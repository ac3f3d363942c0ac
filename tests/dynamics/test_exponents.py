"""Lyapunov exponents: against algebra, determinants, and two trajectories side by side."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mgu_jax as mgu
from mgu_jax import dynamics
from tests import laws


def trajectory(cell, T, H=5, spread=0.0, scale=1.0, dtype="float64"):
    """Random params (forget biases ``spread`` apart, U times ``scale``), xs, h0, and the state before each step."""
    params, xs, h0 = laws.cast(laws.case(cell, T, (), H=H)[:3], dtype)
    if spread:
        params = params._replace(b_f=jnp.asarray(spread * np.arange(H), dtype), W_f=0.1 * params.W_f)
    if scale != 1:
        params = params._replace(U_f=scale * params.U_f, U_h=scale * params.U_h)
    hs, _ = mgu.scan(params, xs, h0, cell=cell)
    return params, xs, h0, jnp.concatenate([h0[None], hs[:-1]])


@pytest.mark.parametrize("cell", [mgu.MIN_GRU, mgu.DIAGONAL_MGU], ids=["linear", "diagonal"])
def test_a_diagonal_jacobian_has_exponents_by_algebra(dtype, cell):
    """The mean logarithm of each diagonal entry, once the tangents have turned into the axes."""
    params, xs, h0, before = trajectory(cell, 2_000, spread=1.0, dtype=dtype)
    J = dynamics.jacobian(params, before, xs, cell)[0]
    wanted = np.log(np.abs(np.diagonal(np.asarray(J)[400:], axis1=1, axis2=2))).mean(0)
    got = dynamics.lyapunov(params, xs, h0, 3, cell, warmup=400)
    assert got.dtype == dtype
    np.testing.assert_allclose(got, np.sort(wanted)[::-1][:3], rtol=1e-10 if dtype == "float64" else 1e-4)


@pytest.mark.parametrize("name", ["MGU", pytest.param("norm", marks=pytest.mark.slow)])
def test_they_add_up_to_the_growth_of_volume(x64, name):
    """The sum of all exponents is the mean of log |det J|, for any length, and for any steps between two QRs."""
    cell = laws.CELLS[name]
    params, xs, h0, before = trajectory(cell, 40)
    wanted = np.linalg.slogdet(dynamics.jacobian(params, before, xs, cell)[0])[1].mean()
    each, every_third = (dynamics.lyapunov(params, xs, h0, cell=cell, every=every) for every in (1, 3))
    assert np.all(np.diff(each) <= 0)
    np.testing.assert_allclose(each.sum(), wanted, rtol=1e-9)
    np.testing.assert_allclose(every_third, each, rtol=1e-7)


def test_a_chaotic_layer(x64):
    """Two neighbours part at the rate of the largest exponent. Rounding makes every run another sample of the chaos."""
    params, xs, h0, _ = trajectory(mgu.MGU, 1_500, H=32, scale=6.0)
    params, xs = params._replace(b_f=params.b_f + 1), 0.1 * xs
    exponents = dynamics.lyapunov(params, xs, h0, 2, warmup=200)
    assert exponents[0] > 0.2
    np.testing.assert_allclose(dynamics.lyapunov(params, xs, h0, 2, warmup=200, every=5), exponents, rtol=0.1)

    def body(pair, x):
        h, d = pair
        h_next = mgu.step(params, h, x)
        d = (mgu.step(params, h + 1e-7 * d, x) - h_next) / 1e-7
        return (h_next, d / jnp.linalg.norm(d)), jnp.log(jnp.linalg.norm(d))

    growth = jax.lax.scan(body, (h0, jnp.eye(32)[0]), xs)[1][200:].mean()
    np.testing.assert_allclose(exponents[0], growth, rtol=0.1)


def test_under_jit_and_vmap(x64):
    params, xs, *_ = trajectory(mgu.MGU, 30)
    two = jnp.stack([xs, -xs], 1)
    together = dynamics.lyapunov(params, two, k=2)
    mapped = jax.jit(jax.vmap(lambda xs: dynamics.lyapunov(params, xs, k=2), 1))(two)
    assert together.shape == (2, 2)
    np.testing.assert_allclose(mapped, together, rtol=1e-12)
