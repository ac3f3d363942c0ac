"""One step and its backward: against the notebook's golden numbers, the oracle and autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mgu_jax as mgu
from tests import laws

# Every member with one batch axis; the paper's cell also without and with two.
cells = pytest.mark.parametrize(
    ("name", "batch"), [*((name, (3,)) for name in laws.CELLS), ("MGU", ()), ("MGU", (2, 3))], ids=str
)

# prev_hidden, f, h_hat -> hidden, as the notebook printed them
GOLDEN = [
    (-0.41335591, 0.46692244, -0.41448969, -0.41388529),
    (-0.24835662, 0.57336718, -0.24834578, -0.2483504),
    (0.05868696, 0.45574459, 0.05871416, 0.05869936),
    (0.18363383, 0.43750763, 0.18506013, 0.18425784),
]


@pytest.mark.parametrize(("h", "f", "c", "expected"), GOLDEN)
def test_golden_numbers_of_the_notebook(x64, h, f, c, expected):
    """With zero weights the biases alone set gate and candidate, so only the update rule is tested."""
    zero, one = jnp.zeros((1, 1)), jnp.ones(1)
    params = mgu.Params(zero, zero, one * np.log(f / (1 - f)), zero, zero, one * np.arctanh(c))
    new, residuals = mgu.step_forward(params, one * h, jnp.zeros(1))
    np.testing.assert_allclose([residuals.gates.f[0], residuals.gates.c[0]], [f, c], rtol=1e-12)
    assert abs(float(new[0]) - expected) <= 5e-8


@cells
def test_step_equals_oracle(dtype, name, batch):
    cell = laws.CELLS[name]
    case = laws.case(cell, 1, batch)
    params, xs, h0 = laws.cast(case[:3], dtype)
    (wanted,) = laws.expected(case, cell)[0]["hs"]
    got = mgu.step(params, h0, xs[0], cell=cell)
    assert got.dtype == dtype
    assert laws.relative_error(got, wanted) <= laws.TOLERANCE[dtype]


@cells
def test_step_backward_equals_oracle_and_autodiff(dtype, name, batch):
    cell = laws.CELLS[name]
    case = laws.case(cell, 1, batch)
    case = case._replace(dhs=0 * case.dhs)
    params, xs, h0, dh_next = laws.cast((*case[:3], case.dh_last), dtype)
    x = xs[0]
    h, residuals = mgu.step_forward(params, h0, x, cell=cell)
    np.testing.assert_array_equal(h, mgu.step(params, h0, x, cell=cell))
    dparams, dh, dx = mgu.step_backward(params, residuals, dh_next, cell=cell)
    by_hand = laws.named(dparams, dx[None], dh)
    laws.assert_close(by_hand, laws.expected(case, cell)[1], laws.TOLERANCE[dtype])
    _, pullback = jax.vjp(lambda p, h, x: mgu.step(p, h, x, cell=cell), params, h0, x)
    dparams, dh, dx = pullback(dh_next)
    laws.assert_close(by_hand, laws.named(dparams, dx[None], dh), laws.TOLERANCE[dtype])


def test_a_step_is_the_first_of_a_scan():
    params, xs, h0 = laws.cast(laws.case(mgu.MGU)[:3], "float32")
    np.testing.assert_allclose(mgu.step(params, h0, xs[0]), mgu.scan(params, xs, h0)[0][0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("given", [False, True])
def test_a_step_with_a_reset_is_that_of_a_scan(given):
    """Where it resets, the state before may hold anything and gets no gradient."""
    params, xs, h0, _, elsewhere = laws.cast(laws.case(mgu.MGU, 1, (3,)), "float32")
    reset, reset_to = jnp.array([False, True, False]), elsewhere if given else None
    h0 = h0.at[1].set(np.nan)

    def loss(h0, reset_to):
        return jnp.sum(mgu.step(params, h0, xs[0], reset=reset, reset_to=reset_to) ** 2)

    elsewhere = elsewhere if given else jnp.zeros_like(h0)
    wanted = mgu.scan(params, xs, h0, resets=reset[None], reset_to=elsewhere)[1]
    got = mgu.step(params, h0, xs[0], reset=reset, reset_to=reset_to)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6)
    dh0, dreset_to = jax.grad(loss, (0, 1))(h0, elsewhere)
    assert np.array_equal(dh0.any(1), ~reset)
    assert np.array_equal(dreset_to.any(1), reset)
