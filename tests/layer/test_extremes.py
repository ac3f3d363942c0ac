"""Saturated and extreme inputs give finite outputs and gradients wherever the true ones are finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mgu_jax as mgu
from tests import laws

LARGEST, DENORMAL = float(np.finfo(np.float32).max), 1e-42


def one_unit(cell, x, h, seed=0):
    """A case with D = H = 1 and weights below 1 in size, so that no true product overflows."""
    case = laws.case(cell, 3, (1,), 1, 1, seed)
    params = jax.tree.map(lambda a: np.clip(a, -0.9, 0.9), case.params)
    return case._replace(params=params, xs=np.full_like(case.xs, x), h0=np.full_like(case.h0, h))


@pytest.mark.parametrize("implementation", ["manual", "autodiff"])
@pytest.mark.parametrize("cell", [laws.CELLS["MGU"]], ids=["MGU"])
@pytest.mark.parametrize("h", [0.0, 1.0, -1e4, DENORMAL])
@pytest.mark.parametrize("x", [1e4, -1e4, DENORMAL, -DENORMAL, LARGEST, -LARGEST, 0.0])
def test_finite_where_the_truth_is(cell, implementation, x, h):
    case = one_unit(cell, x, h)
    outputs, grads = laws.gradients(case, "float32", cell, implementation=implementation)
    true_outputs, true_grads = laws.expected(case, cell)
    assert all(np.isfinite(a).all() for a in outputs.values())
    np.testing.assert_allclose(outputs["hs"], true_outputs["hs"], rtol=2e-5, atol=1e-30)
    for name, gradient in grads.items():
        representable = np.abs(true_grads[name]) < LARGEST
        assert np.isfinite(np.asarray(gradient)[representable]).all(), name
        right, got = true_grads[name][representable], np.asarray(gradient, np.float64)[representable]
        np.testing.assert_allclose(got, right, rtol=1e-4, atol=1e-5 * np.abs(right).max(initial=1e-30), err_msg=name)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("h", [LARGEST, -LARGEST])
@pytest.mark.parametrize("x", [0.0, 1e4, -1e4])
def test_the_largest_state_has_a_finite_gradient_where_the_truth_is_finite(x, h, seed):
    """Only "manual" is tested: autodiff overflows, since it multiplies by the state before the gate's slope."""
    case = one_unit(mgu.MGU, x, h, seed)
    _, grads = laws.gradients(case, "float32", mgu.MGU)
    _, true_grads = laws.expected(case, mgu.MGU)
    for name, gradient in grads.items():
        representable = np.abs(true_grads[name]) < LARGEST
        assert np.isfinite(np.asarray(gradient)[representable]).all(), name


@pytest.mark.parametrize("implementation", ["manual", "autodiff"])
def test_a_saturated_gate_overwrites_or_keeps_exactly(implementation):
    params = mgu.init(jax.random.key(0), 2, 3)
    xs, h0 = jnp.ones((4, 1, 2)), jnp.full((1, 3), 0.7)
    kept, _ = mgu.scan(params._replace(b_f=jnp.full(3, -1e4)), xs, h0, implementation=implementation)
    np.testing.assert_array_equal(kept, np.full((4, 1, 3), np.float32(0.7)))
    overwrite = params._replace(b_f=jnp.full(3, 1e4), U_f=jnp.zeros((3, 3)), U_h=jnp.zeros((3, 3)))
    far, _ = mgu.scan(overwrite, xs, jnp.full((1, 3), 1e30), implementation=implementation)
    near, _ = mgu.scan(overwrite, xs, h0, implementation=implementation)
    np.testing.assert_array_equal(far, near)


def test_a_long_sequence_stays_finite():
    params = mgu.init(jax.random.key(0), 2, 8)
    xs = jax.random.normal(jax.random.key(1), (5000, 1, 2))
    value, gradient = jax.value_and_grad(lambda p: jnp.sum(mgu.scan(p, xs)[0] ** 2))(params)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


LONG = [("manual", {"segment": 1}), ("autodiff", {}), pytest.param("parallel", {}, marks=pytest.mark.slow)]


@pytest.mark.parametrize(("implementation", "options"), LONG, ids=str)
def test_sums_over_many_steps_of_half_precision(implementation, options, quick_compiler):
    """Gradients are sums of 2,000 terms of one sign: each addition in bfloat16 would round to eight bits."""
    cell, T, rng = mgu.MIN_GRU if implementation == "parallel" else mgu.MGU, 500, np.random.default_rng(0)
    case = laws.case(cell, T, (4,))
    case = case._replace(dhs=np.full_like(case.dhs, 1 / T), dh_last=0 * case.dh_last)
    case = jax.tree.map(lambda a: np.asarray(jnp.asarray(a, jnp.bfloat16), float), case)
    options |= {"resets": rng.random((T, 4)) < 0.2}
    reset_to = np.full((4, 5), 0.5)
    _, grads = laws.gradients(
        case, "bfloat16", cell, jax.jit, implementation=implementation, reset_to=reset_to, **options
    )
    _, wanted = laws.expected(case, cell, reset_to=reset_to, **options)
    for name in {*mgu.Params._fields, "reset_to"} & grads.keys():
        error = laws.relative_error(np.asarray(grads[name], float), wanted[name])
        assert error < 0.01, f"{name}: {error}"
