"""The right behaviour for each fault of the notebook that this project began as, by its number in NOTEBOOK.md.

test_laws.py tests the gradients as a whole; these tests also show that each fault would give a different result.
"""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mgu_jax as mgu
from experiments.tasks import notebook
from experiments.tasks.notebook import loss_per_step
from mgu_jax.training import losses
from mgu_jax.training import step as train
from tests import laws

H, K, B, T, D = 5, 2, 3, 10, 4


@pytest.fixture(scope="module")
def model():
    return mgu.Model(D, (H,), K, initializer="notebook")


@pytest.fixture(scope="module")
def params(model):
    """With biases that are not zero, so that their gradients differ."""
    made = model.init(jax.random.key(0))
    return jax.tree.map(lambda a: a + 0.3 * jax.random.normal(jax.random.key(a.size), a.shape), made)


XS = jax.random.normal(jax.random.key(1), (T, B, D))
TARGETS = jax.random.normal(jax.random.key(2), (T, B, K))


def loss(model, params, xs=XS, targets=TARGETS):
    return loss_per_step(model.apply(params, xs), targets).sum()


PAGE = (Path(notebook.__file__).parent / "NOTEBOOK.md").read_text()


def test_the_page_lists_what_is_tested_here():
    faults = [int(number) for number in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)]
    tested = [int(n) for name in globals() for n in re.findall(r"_(\d+)(?=_)", name) if name.startswith("test_")]
    assert faults == tested == list(range(1, 17))


def test_the_counterparts_on_the_page_exist():
    root = Path(notebook.__file__).parents[2]
    for name in re.findall(r"`mgu\.(\w+)`", PAGE):
        assert hasattr(mgu, name)
    for path in re.findall(r"`([\w/]+/\w+\.py)`", PAGE):
        assert (root / path).is_file()


def test_1_no_shape_depends_on_the_batch(model, params):
    for batch in (1, 3, 8):
        assert model.apply(params, jnp.ones((T, batch, D))).shape == (T, batch, K)
    assert params.layers[0].W_f.shape == params.layers[0].W_h.shape == (D, H)


def test_2_each_sample_is_computed_separately(model, params):
    together = model.apply(params, XS)
    for b in range(B):
        np.testing.assert_allclose(model.apply(params, XS[:, b]), together[:, b], rtol=0, atol=1e-6)


def test_3_both_initialisers_have_a_name():
    meant = mgu.init(jax.random.key(0), 200, 200, initializer="notebook").U_f
    written = mgu.init(jax.random.key(0), 200, 200, initializer="notebook_normal").U_f
    assert abs(meant.mean()) < 1e-3
    assert np.abs(meant).max() <= 0.05
    assert abs(written.mean() + 0.05) < 2e-3
    assert np.abs(written).max() > 0.3


def test_4_residuals_of_all_steps_are_used(model, params):
    """The input of every step has a gradient."""
    dxs = jax.grad(lambda xs: loss(model, params, xs))(XS)
    assert np.all(np.abs(dxs).max((1, 2)) > 1e-6)


def test_5_any_number_of_outputs(model, params):
    assert model.apply(params, XS).shape == (T, B, K)


def test_6_dW_y_comes_from_the_new_state(model, params):
    hs, _ = mgu.scan(params.layers[0], XS)
    dys = 2 * (model.apply(params, XS) - TARGETS) / B
    gradient = jax.grad(lambda p: loss(model, p))(params)
    right = np.einsum("tbh,tbk->hk", hs, dys)
    late = np.einsum("tbh,tbk->hk", hs[:-1], dys[1:])
    np.testing.assert_allclose(gradient.W_y, right, rtol=0, atol=1e-4)
    assert np.abs(right - late).max() > 0.01


def test_7_the_loss_of_every_step_contributes(model, params):
    """The gradient is the sum of the gradients of the steps' losses, and none of these is zero."""

    def at(t):
        return jax.grad(lambda p: loss_per_step(model.apply(p, XS), TARGETS)[t])(params)

    parts = [at(t) for t in range(T)]
    assert all(np.abs(part.layers[0].U_h).max() > 1e-5 for part in parts[1:])
    total = jax.tree.map(lambda *a: sum(a[1:], a[0]), *parts)
    whole = jax.grad(lambda p: loss(model, p))(params)
    for a, b in zip(jax.tree.leaves(total), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)


def step_by_step(x64_case):
    params, xs, h0, _, g = laws.cast(tuple(x64_case), "float64")
    _, residuals = mgu.step_forward(params, h0, xs[0])
    return params, residuals, g, mgu.step_backward(params, residuals, g)


def test_8_9_10_the_equations_of_the_step(x64):
    """The right derivatives, U_h on the candidate's path and both terms of df; each fault gives another result."""
    params, (x, h, gates), g, (dparams, dh, _) = step_by_step(laws.case(mgu.MGU, 1))
    f, c = gates.f, gates.c
    dz_h = g * f * (1 - c**2)
    dr = dz_h @ params.U_h.T
    dz_f = (g * (c - h) + dr * h) * f * (1 - f)
    np.testing.assert_allclose(dparams.W_f, x.T @ dz_f, rtol=1e-10)
    np.testing.assert_allclose(dh, g * (1 - f) + dr * f + dz_f @ params.U_f.T, rtol=1e-10)
    twice = g * f * (1 - jnp.tanh(c) ** 2)
    wrong_matrix = ((g * (c - h) + (dz_h @ params.U_f.T) * h) * f * (1 - f), "fault 9")
    no_direct_path = ((dr * h) * f * (1 - f), "fault 10")
    assert np.abs(dparams.b_h - twice.sum(0)).max() > 1e-3
    for dz, fault in (wrong_matrix, no_direct_path):
        assert np.abs(dparams.W_f - x.T @ dz).max() > 1e-3, fault


def test_11_biases_are_summed_over_steps_and_samples(model, params):
    layer = jax.grad(lambda p: loss(model, p))(params).layers[0]
    assert layer.b_f.shape == layer.b_h.shape == (H,)
    single = [
        jax.grad(lambda p, b=b: loss(model, p, XS[:, b : b + 1], TARGETS[:, b : b + 1]))(params) for b in range(B)
    ]
    np.testing.assert_allclose(layer.b_f, sum(s.layers[0].b_f for s in single) / B, rtol=0, atol=1e-5)
    np.testing.assert_allclose(layer.b_h, sum(s.layers[0].b_h for s in single) / B, rtol=0, atol=1e-5)


def test_12_each_parameter_goes_down_its_own_gradient(model, params):
    """One step of gradient descent moves b_h by -lr*db_h, and the loss falls."""
    data = mgu.Data(XS.swapaxes(0, 1), TARGETS.swapaxes(0, 1))
    recipe = mgu.Recipe(model, lambda ys, targets: loss_per_step(ys, targets).sum(), "sgd", batch_size=B)
    state = mgu.start(recipe, jax.random.key(0))._replace(params=params)
    _, curve = train.run_steps(state, mgu.Hyper(learning_rate=1e-3), data, recipe=recipe, steps=2)
    first, _ = train.run_steps(state, mgu.Hyper(learning_rate=1e-3), data, recipe=recipe, steps=1)
    gradient = jax.grad(lambda p: loss(model, p))(params).layers[0]
    moved = first.params.layers[0].b_h - params.layers[0].b_h
    np.testing.assert_allclose(moved, -1e-3 * gradient.b_h, rtol=0, atol=1e-6)
    assert np.abs(gradient.b_h - gradient.b_f).max() > 0.01
    assert curve[1] < curve[0]


def test_13_each_sample_keeps_its_own_error(model, params):
    """Errors that sum to zero over the batch still have a gradient."""
    ys = model.apply(params, XS)
    signs = jnp.array([1.0, -1.0, 0.0])[None, :, None]
    gradient = jax.grad(lambda p: loss(model, p, targets=ys + jnp.broadcast_to(signs, ys.shape)))(params)
    assert np.abs(gradient.W_y).max() > 1e-3


def test_14_training_runs_and_its_loss_falls():
    """The notebook's own problem; test_tasks.py runs it from the command line."""
    ones = np.ones((3, 10, 1), np.float32)
    model = mgu.Model(1, (5,), 1, initializer="notebook")
    recipe = mgu.Recipe(model, losses.squared_error, "sgd", batch_size=3)
    _, curve = mgu.fit(
        recipe, mgu.Data(ones, ones), steps=10, key=jax.random.key(0), hyper=mgu.Hyper(0.1, forget_bias=0.0)
    )
    assert curve[-1] < 0.1 * curve[0]


def test_15_the_last_step_is_not_the_last_sample(model, params):
    every = model.apply(params, XS)
    last = mgu.Model(D, (H,), K, readout="last").apply(params, XS)
    np.testing.assert_allclose(last, every[-1], rtol=0, atol=1e-6)
    assert last.shape == (B, K)


def test_16_nothing_is_printed_and_b_y_starts_at_zero(model, capsys):
    made = model.init(jax.random.key(0))
    model.apply(made, XS)
    np.testing.assert_array_equal(made.b_y, np.zeros(K))
    assert capsys.readouterr() == ("", "")
