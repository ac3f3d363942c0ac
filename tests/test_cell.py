"""One step: the notebook's golden numbers, the oracle, the step's backward, and initial parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mgu_jax as mgu
from tests import laws, oracle

cells = pytest.mark.parametrize("cell", laws.CELLS.values(), ids=laws.CELLS.keys())

# prev_hidden, f, h_hat -> hidden, as the notebook printed them
GOLDEN = [
    (-0.41335591, 0.46692244, -0.41448969, -0.41388529),
    (-0.24835662, 0.57336718, -0.24834578, -0.2483504),
    (0.05868696, 0.45574459, 0.05871416, 0.05869936),
    (0.18363383, 0.43750763, 0.18506013, 0.18425784),
]


@pytest.mark.parametrize(("h", "f", "c", "expected"), GOLDEN)
def test_golden_numbers_of_the_notebook(x64, h, f, c, expected):
    """With zero weights the biases alone set gate and candidate, so the update rule stands by itself."""
    zero, one = jnp.zeros((1, 1)), jnp.ones(1)
    params = mgu.Params(zero, zero, one * np.log(f / (1 - f)), zero, zero, one * np.arctanh(c))
    new, residuals = mgu.step_forward(params, one * h, jnp.zeros(1))
    np.testing.assert_allclose([residuals.gates.f[0], residuals.gates.c[0]], [f, c], rtol=1e-12)
    assert abs(float(new[0]) - expected) <= 5e-8


@cells
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=str)
def test_step_equals_oracle(dtype, cell, batch):
    case = laws.case(cell, 1, batch)
    params, xs, h0 = laws.cast(case[:3], dtype)
    (wanted,), _ = laws.expected(case, cell)[0]
    got = mgu.step(params, h0, xs[0], cell=cell)
    assert got.dtype == dtype
    assert laws.relative_error(got, wanted) <= laws.TOLERANCE[dtype]


@cells
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=str)
def test_step_backward_equals_oracle_and_autodiff(dtype, cell, batch):
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


def test_init_shapes_and_dtype():
    params = mgu.init(jax.random.key(0), 28, 100)
    assert [a.shape for a in params[:6]] == [(28, 100), (100, 100), (100,)] * 2
    assert params.b_r is None
    assert all(a.dtype == jnp.float32 for a in params[:6])


@pytest.mark.parametrize(("D", "H", "ours", "gru"), [(28, 100, 25_800, 38_700), (1, 100, 20_400, 30_600)])
def test_counts_of_the_paper(D, H, ours, gru):
    assert mgu.count(mgu.init(jax.random.key(0), D, H)) == ours == 2 * H * (H + D + 1)
    assert mgu.gru_count(D, H) == gru
    assert 2 * mgu.lstm_count(D, H) == 4 * ours


def test_orthogonal_and_glorot_are_the_default():
    params = mgu.init(jax.random.key(1), 20, 50)
    for U in (params.U_f, params.U_h):
        np.testing.assert_allclose(U @ U.T, np.eye(50), rtol=0, atol=1e-5)
    limit = (6 / 70) ** 0.5
    for W in (params.W_f, params.W_h):
        assert 0.9 * limit < np.abs(W).max() <= limit
    assert np.abs(params.U_f - params.U_h).max() > 0.1  # each array has a key of its own


@pytest.mark.parametrize(
    ("name", "low", "high", "mean", "std"),
    [
        ("uniform", -0.1, 0.1, 0, 0.1 / 3**0.5),
        ("notebook", -0.05, 0.05, 0, 0.05 / 3**0.5),
        ("notebook_normal", -0.7, 0.6, -0.05, 0.1),
    ],
)
def test_other_initialisers(name, low, high, mean, std):
    params = mgu.init(jax.random.key(2), 100, 100, initializer=name)
    for weight in (params.W_f, params.U_f, params.W_h, params.U_h):
        assert low <= weight.min()
        assert weight.max() <= high
        assert abs(weight.mean() - mean) < 5 * std / 100
        assert abs(weight.std() - std) < 0.05 * std


def test_forget_bias_remembers_by_default():
    params = mgu.init(jax.random.key(0), 3, 4)
    np.testing.assert_array_equal(params.b_f, -np.ones(4))
    np.testing.assert_array_equal(params.b_h, np.zeros(4))
    h = mgu.step(jax.tree.map(jnp.zeros_like, params)._replace(b_f=params.b_f), jnp.ones(4), jnp.zeros(3))
    np.testing.assert_allclose(h, 1 - oracle.sigmoid(-1.0), rtol=1e-6)


def test_forget_bias_may_be_traced_and_one_for_each_unit():
    def bias(value):
        return mgu.init(jax.random.key(0), 3, 4, forget_bias=value).b_f

    swept = jax.vmap(bias)(jnp.array([-2.0, 0.5]))
    np.testing.assert_array_equal(swept, np.array([[-2.0] * 4, [0.5] * 4]))
    np.testing.assert_array_equal(bias(np.arange(4.0)), np.arange(4.0))


def test_same_key_same_parameters_other_key_others():
    a, b, c = (mgu.init(jax.random.key(seed), 3, 4) for seed in (0, 0, 1))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))
    assert not np.array_equal(a.W_f, c.W_f)


def test_old_style_keys_work():
    assert mgu.init(jax.random.PRNGKey(0), 3, 4).W_f.shape == (3, 4)
