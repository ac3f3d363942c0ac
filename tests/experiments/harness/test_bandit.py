"""The simulated subjects and the models that are fitted to them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mgu_jax as mgu
from experiments.harness import bandit
from mgu_jax.gradients import relative_error

pytestmark = pytest.mark.usefixtures("quick_compiler")

KEY = jax.random.key(3)


def test_subjects_are_those_of_their_own_parameters():
    """Q-learning of a subject's kind with its parameters gives the likelihood that the simulation knew."""
    found = bandit.simulate(KEY, 8, 3, 40)
    assert found.data.xs.shape == (8, 3, 40, 3)
    for i in (0, 1, 2, 7):
        model = bandit.QLearning(*list(bandit.KINDS.values())[i % 4])
        params = jax.tree.map(jnp.asarray, found.own(i))
        one = jax.tree.map(lambda a, i=i: a[i], found.data)
        (nats,) = mgu.evaluate(model, params, one, (mgu.losses.cross_entropy,))
        np.testing.assert_allclose(nats, found.nats[i], rtol=1e-5)
        assert jax.tree.structure(params) == jax.tree.structure(model.init(KEY))
    np.testing.assert_array_equal(found.data.xs[:, :, 1:, :2].argmax(-1), found.data.targets[:, :, :-1])
    assert not found.data.xs[:, :, 0].any()
    assert 0.2 < found.data.xs[..., 2].mean() < 0.8


def test_q_learning_by_hand():
    params = bandit.QParams(jnp.float32(0), jnp.log(3.0), jnp.log(0.25), jnp.float32(0.7))  # rates 1/2 and 1/5
    xs = jnp.array([[0, 0, 0], [1, 0, 1], [0, 1, 0], [0, 1, 1]], jnp.float32)[:, None]
    logits = bandit.QLearning(True, True).apply(params, xs)[:, 0]
    values = np.array([[0.5, 0.5], [0.75, 0.5], [0.7, 0.25], [0.66, 0.625]])
    np.testing.assert_allclose(logits, 3 * values + 0.7 * np.asarray(xs[:, 0, :2]), rtol=1e-6)


def test_the_gru_is_flax_s():
    linen = pytest.importorskip("flax.linen")
    model = bandit.GRU(3, 4, 2)
    params = jax.tree.map(lambda a: a + 0.3 * jax.random.normal(KEY, a.shape), model.init(KEY))
    (z, r, n), (hz, hr, hn) = params.W, params.U
    dense = {"iz": (z, params.b[0]), "ir": (r, params.b[1]), "in": (n, params.b[2]), "hn": (hn, params.b_r)}
    theirs = {name: {"kernel": W, "bias": b} for name, (W, b) in dense.items()}
    theirs |= {"hz": {"kernel": hz}, "hr": {"kernel": hr}}
    xs = jax.random.normal(KEY, (9, 5, 3))
    run = linen.RNN(linen.GRUCell(features=4, parent=None), time_major=True)
    hs = run.apply({"params": {"cell": theirs}}, xs)
    assert relative_error(model.apply(params, xs), hs @ params.W_y + params.b_y[None, None]) < 2e-6


def test_a_narrow_gru_has_zero_units_for_ever():
    """Its outputs are those of the narrow one, and the gradient of the units that it lacks is exactly zero."""
    wide, narrow = bandit.GRU(3, 4, 2), bandit.GRU(3, 2, 2)
    params, small = wide.init(KEY, hidden_size=2), narrow.init(KEY)
    xs = jax.random.normal(KEY, (9, 5, 3))
    np.testing.assert_allclose(wide.apply(params, xs), narrow.apply(small, xs), rtol=1e-5, atol=1e-6)
    gradient = jax.grad(lambda p: (wide.apply(p, xs) ** 3).sum())(params)
    assert not any(np.any(g[:, 2:]) for g in (*gradient.W, *gradient.U))
    assert not any(np.any(g[2:]) for g in (*gradient.U, *gradient.b, gradient.b_r, gradient.W_y))
    assert all(np.any(g) for g in jax.tree.leaves(gradient))
