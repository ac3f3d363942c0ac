"""The certificate of stability: attempts to violate it, what it must refuse, and training with its penalty."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mgu_jax as mgu
from mgu_jax import dynamics
from tests import laws

# Every kind of reset, sign, gate and candidate that has a certificate.
MEMBERS = {
    name: cell
    for name, cell in laws.CELLS.items()
    if not cell.layer_norm and cell.beta == 0 and (cell.activation == "tanh" or "h" not in cell.candidate)
} | {"linear candidate": mgu.Cell(gate="xhb", candidate="xb", reset="none", activation="identity", update="1-f")}
QUICK = ("MGU",)
members = pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MEMBERS]
)


def barely_stable(cell, D=3, H=4, seed=0, inputs=0.5):
    """Random params whose recurrent weights are scaled until the gain is just below 1, and the bound of the inputs."""
    params = laws.cast(laws.case(cell, 1, (), D, H, seed).params, "float64")

    def scaled(by):
        return params._replace(**{n: by * getattr(params, n) for n in ("U_f", "U_h") if getattr(params, n) is not None})

    low, high = 0.0, 100.0
    for _ in range(40):
        middle = (low + high) / 2
        stable = dynamics.stability(scaled(middle), cell, inputs=inputs).stable
        low, high = (middle, high) if stable else (low, middle)
    return scaled(low)


def norm(d, weights):
    return jnp.max(jnp.abs(d) / jnp.broadcast_to(weights, d.shape), -1)


@members
def test_no_pair_of_states_violates_it(x64, name):
    """A step with the same input: from random pairs, from corners, and from pairs that are made worse by gradients."""
    cell = MEMBERS[name]
    params = barely_stable(cell)
    found = dynamics.stability(params, cell, inputs=0.5)
    assert found.stable
    assert found.rate < 1
    if not cell.linear:
        assert 0.99 < found.gain < 1

    def ratio(raw):
        a, b = (jnp.sin(r) * jnp.broadcast_to(found.bound, r.shape) for r in raw[:2])
        x = 0.5 * jnp.sin(raw[2])
        a_next, b_next = (mgu.step(params, h, x, cell) for h in (a, b))
        before, after = norm(a - b, found.weights), norm(a_next - b_next, found.weights)
        return jnp.where(before > 1e-8, after / jnp.maximum(before, 1e-8), 0)

    @jax.jit
    def measure_and_climb(raw):
        gradient = jax.grad(lambda raw: jnp.sum(ratio(raw)))(raw)
        return ratio(raw), jax.tree.map(lambda a, g: a + 0.1 * jnp.clip(g, -1, 1), raw, gradient)

    rng = np.random.default_rng(1)
    raw = tuple(jnp.asarray(rng.normal(0, 3, (400, n))) for n in (4, 4, 3))
    corners = tuple(jnp.asarray(rng.choice([-1.57, 1.57], (400, n))) for n in (4, 4, 3))
    near = (raw[0], raw[0] + 1e-5, raw[2])
    worst = 0.0
    for pairs in (raw, corners, near):
        for _ in range(30):
            values, pairs = measure_and_climb(pairs)
            worst = max(worst, values.max())
    assert 0.3 < worst <= found.rate + 1e-7


@members
def test_different_inputs_drive_states_apart_no_further_than_it_says(x64, name):
    """(23), for inputs that differ by at most e, and for the worst constant difference of each sign."""
    cell = MEMBERS[name]
    params = barely_stable(cell, seed=2)
    params = params._replace(**{n: 0.5 * getattr(params, n) for n in ("U_f", "U_h") if getattr(params, n) is not None})
    found = jax.tree.map(np.asarray, dynamics.stability(params, cell, inputs=0.5))
    rng, T, N, e = np.random.default_rng(3), 60, 50, 0.1
    xs = rng.uniform(-0.4, 0.4, (T, N, 3))
    changes = e * np.sign(rng.normal(size=(1, N, 3)))
    starts = rng.uniform(-1, 1, (2, N, 4)) * found.bound
    one, other = (
        np.asarray(mgu.scan(params, x, h, cell=cell)[0]) for x, h in zip((xs, xs + changes), starts, strict=True)
    )
    distances = np.max(
        np.abs(np.concatenate([starts[None, 0], one]) - np.concatenate([starts[None, 1], other])) / found.weights, -1
    )
    t = np.arange(T + 1)[:, None]
    assert np.all(distances <= found.rate**t * distances[0] + found.input_gain * e + 1e-12)
    assert np.all(np.abs(one) <= found.bound)


def test_what_has_two_stable_states_is_not_certified(dtype):
    """A bistable unit, just beyond the point where its two states appear, and just before it."""
    one = jnp.ones(1, dtype)

    def found(U):  # h' = h/2 + tanh(h U/2)/2
        params = mgu.Params(None, None, 0 * one, one[None] * 0, U * one[None], 0 * one)
        return dynamics.stability(params, mgu.MGU3, inputs=None)

    assert found(1.99).stable
    assert not found(2.01).stable
    np.testing.assert_allclose(found(1.0).gain, 0.5, rtol=1e-6)
    np.testing.assert_allclose(found(1.0).rate, 0.75, rtol=1e-6)


def test_unequal_units_need_unequal_weights(x64):
    """A chain from unit to unit forgets, however strong its links are; equal weights could not certify it."""
    H = 4
    params = mgu.Params(None, None, jnp.zeros(H), jnp.zeros((1, H)), jnp.diag(5 * jnp.ones(H - 1), 1), jnp.zeros(H))
    found = dynamics.stability(params, mgu.MGU3, inputs=None)
    assert found.stable
    assert found.weights.max() == 1


def test_training_with_the_penalty(x64):
    """Gradient descent on it alone makes a random layer stable; from there on it is zero, and so is its gradient."""
    params = mgu.init(jax.random.key(0), 3, 8, recurrent_scale=1.5, dtype=jnp.float64)
    assert not dynamics.stability(params).stable
    penalty = jax.jit(jax.value_and_grad(dynamics.stability_penalty))
    for _ in range(100):
        value, gradient = penalty(params)
        if value == 0:
            break
        params = jax.tree.map(lambda p, g: p - 0.05 * g, params, gradient)
    assert value == 0
    assert not any(map(np.any, jax.tree.leaves(gradient)))
    assert dynamics.stability(params).gain <= 0.95
    assert np.abs(params.U_h).max() > 0.05


def test_under_jit_and_vmap(x64):
    params = mgu.init(jax.random.key(0), 3, 4, dtype=jnp.float64)
    several = jax.tree.map(lambda a: jnp.stack([a, 0.1 * a]), params)
    found = jax.jit(jax.vmap(lambda p, inputs: dynamics.stability(p, inputs=inputs)))(several, jnp.array([1.0, 0.5]))
    np.testing.assert_allclose(found.gain[0], dynamics.stability(params).gain, rtol=1e-12)
    assert found.stable.tolist() == [False, True]
