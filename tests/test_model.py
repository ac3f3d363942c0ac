"""The model is its layers, one on the other, and a readout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mgu_jax as mgu
from tests import laws


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=str)
@pytest.mark.parametrize("readout", ["all", "last"])
def test_apply_is_scans_and_a_product(readout, batch):
    model = mgu.model(4, (5, 6), 2, readout=readout)
    params = model.init(jax.random.key(0))._replace(b_y=jnp.array([0.5, -0.5]))
    xs = jax.random.normal(jax.random.key(1), (7, *batch, 4))
    hs, _ = mgu.scan(params.layers[0], xs)
    hs, h_last = mgu.scan(params.layers[1], hs)
    rows = hs if readout == "all" else h_last
    expected = rows @ params.W_y + jnp.broadcast_to(params.b_y, (*rows.shape[:-1], 2))
    np.testing.assert_allclose(model.apply(params, xs), expected, rtol=0, atol=1e-6)


def test_init_shapes_scale_and_bias():
    model = mgu.model(4, (5, 6), 2)
    params = model.init(jax.random.key(0))
    assert [layer.W_f.shape for layer in params.layers] == [(4, 5), (5, 6)]
    assert params.W_y.shape == (6, 2)
    np.testing.assert_array_equal(params.b_y, np.zeros(2))
    other = model.init(jax.random.key(0), forget_bias=0.5, initial_scale=0.1)
    np.testing.assert_allclose(other.layers[1].U_h, 0.1 * params.layers[1].U_h, rtol=1e-6)
    np.testing.assert_allclose(other.W_y, 0.1 * params.W_y, rtol=1e-6)
    np.testing.assert_array_equal(other.layers[0].b_f, 0.5 * np.ones(5))
    assert not np.array_equal(params.layers[0].W_f[:, :1], params.layers[1].W_f[:4, :1])


def test_implementations_agree_and_dtype_travels(dtype):
    xs = jax.random.normal(jax.random.key(1), (7, 3, 4), dtype)
    gradients = []
    for name in laws.IMPLEMENTATIONS:
        model = mgu.model(4, (5, 6), 2, implementation=name, dtype=dtype)
        params = model.init(jax.random.key(0))
        gradients.append(jax.grad(lambda p, model=model: jnp.sum(model.apply(p, xs) ** 2))(params))
    for a, b in zip(*map(jax.tree.leaves, gradients), strict=True):
        assert a.dtype == dtype
        assert laws.relative_error(a, b) <= laws.TOLERANCE[dtype]


def test_init_under_vmap_makes_a_population():
    model = mgu.model(4, (5,), 2)
    population = jax.vmap(model.init)(jax.random.split(jax.random.key(0), 3))
    assert population.layers[0].U_f.shape == (3, 5, 5)
    assert jax.vmap(model.apply, (0, None))(population, jnp.ones((7, 2, 4))).shape == (3, 7, 2, 2)
