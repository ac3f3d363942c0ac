"""Fixed and slow points: against algebra, symmetry, a grid, and minimisation by optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mgu_jax as mgu
from mgu_jax import dynamics
from tests import laws


def by_hand(U, b_h=0.0, dtype="float64"):
    """An MGU3 with f = 1/2: h' = h/2 + tanh(h U/2 + b_h)/2, and an input that it ignores."""
    U = jnp.asarray(U, dtype)
    H = len(U)
    return mgu.Params(None, None, jnp.zeros(H, dtype), jnp.zeros((1, H), dtype), U, jnp.full(H, b_h, dtype))


def find(params, starts, **options):
    return dynamics.fixed_points(params, jnp.zeros(1, params.b_h.dtype), starts, mgu.MGU3, **options)


def test_a_bistable_unit(dtype):
    """h = tanh(2h) has three solutions; dF/dh = 1/2 + (1 - h^2) at each."""
    upper = 0.5
    for _ in range(100):
        upper = np.tanh(2 * upper)
    points = find(by_hand([[4.0]], dtype=dtype), jnp.linspace(-1, 1, 21, dtype=dtype)[:, None])
    tolerance = 1e-14 if dtype == "float64" else 1e-6
    np.testing.assert_allclose(points.states[:, 0], [-upper, 0, upper], rtol=0, atol=tolerance)
    np.testing.assert_allclose(points.eigenvalues[:, 0], 1.5 - points.states[:, 0] ** 2, rtol=0, atol=tolerance)
    assert points.stable.tolist() == [True, False, True]
    assert points.fixed.all()
    assert points.reached.sum() == 21
    assert points.states.dtype == points.jacobian.dtype == dtype


def test_a_point_beyond_one(x64):
    """With f = 1/2 and beta = 1, h' = h/2 + s tanh(h U/2) where s = 1/(1 + 1/e); at rest, h = 2 s tanh(2h)."""
    written = 1 / (1 + np.exp(-1))
    params, cell = by_hand([[4.0]]), mgu.Cell(gate="b", beta=1.0)
    upper = 1.0
    for _ in range(100):
        upper = 2 * written * np.tanh(2 * upper)
    assert upper > 1.4
    points = dynamics.fixed_points(params, jnp.zeros(1), jnp.linspace(-1, 1, 21)[:, None], cell)
    np.testing.assert_allclose(points.states[:, 0], [-upper, 0, upper], rtol=0, atol=1e-14)


def test_a_ring(x64):
    """Cosines of the angle between units make a ring of points, equal but for the angle and neutral along it."""
    N = 16
    angle = 2 * np.pi * np.arange(N) / N
    params = by_hand(2 / N * 2.5 * np.cos(angle[:, None] - angle[None]))
    amplitude = 1.0
    for _ in range(200):  # h_i = tanh(amplitude cos(angle_i))
        amplitude = 2.5 / N * np.cos(angle) @ np.tanh(amplitude * np.cos(angle))
    where = np.linspace(0, 2 * np.pi, 9)[:-1]
    ring = np.tanh(amplitude * np.cos(angle[None] - where[:, None]))
    noise = 0.02 * np.random.default_rng(0).standard_normal(ring.shape)
    points = find(params, jnp.asarray(ring + noise), max_speed=1e-12)
    found = points.states @ np.exp(1j * angle)
    assert len(found) == 8
    np.testing.assert_allclose(np.abs(found), np.abs(ring[0] @ np.exp(1j * angle)), rtol=1e-5)
    np.testing.assert_allclose(np.abs(points.eigenvalues[:, 0]), 1, atol=1e-5)
    assert (np.abs(points.eigenvalues[:, 1]) < 0.9).all()


def test_a_slow_point(x64):
    """Just after two fixed points have met, a ghost remains: the least speed in its neighbourhood, by a grid."""
    params = by_hand([[4.0]], 0.55)
    grid = jnp.linspace(-0.9, -0.3, 60_001)[:, None]
    speed = 0.5 * (mgu.step(params, grid, jnp.zeros((len(grid), 1)), mgu.MGU3) - grid)[:, 0] ** 2
    starts = jnp.array([[-0.75], [-0.5]])
    assert len(find(params, starts).states) == 0
    points = find(params, starts, max_speed=1e-3)
    assert points.fixed.tolist() == points.stable.tolist() == [False]
    assert points.reached.tolist() == [2]
    np.testing.assert_allclose(points.states[0, 0], grid[speed.argmin(), 0], atol=1e-3)
    np.testing.assert_allclose(points.speed[0], speed.min(), rtol=1e-4)


@pytest.mark.parametrize("name", [n if n == "MGU" else pytest.param(n, marks=pytest.mark.slow) for n in laws.CELLS])
def test_the_points_of_every_member(x64, name):
    """They stay where they are, their Jacobian is autodiff's, and the state returns to those that are stable."""
    cell = laws.CELLS[name]
    params, xs, h0 = laws.cast(laws.case(cell, 1, (12,))[:3], "float64")
    x = xs[0, 0]
    points = dynamics.fixed_points(params, x, h0, cell)
    assert len(points.states) > 0 or cell.activation != "tanh"  # others may grow without bound
    for state, values, stable in zip(points.states, points.eigenvalues, points.stable, strict=True):
        np.testing.assert_allclose(mgu.step(params, state, x, cell), state, rtol=0, atol=1e-12)
        J = jax.jacrev(lambda h: mgu.step(params, h, x, cell))(state)
        np.testing.assert_allclose(np.sort(np.abs(values)), np.sort(np.abs(np.linalg.eigvals(J))), atol=1e-9)
        assert stable == (np.abs(values).max() < 1)
        if stable and np.abs(values[0]) < 0.97:
            _, back = mgu.scan(params, jnp.broadcast_to(x, (1000, *x.shape)), state + 1e-4, cell=cell)
            np.testing.assert_allclose(back, state, rtol=0, atol=1e-8)


@pytest.mark.usefixtures("optax_promotes")
def test_it_finds_what_a_minimiser_finds(x64):
    """From the same starts, Adam on the speed comes to the same points."""
    params, xs, h0 = laws.cast(laws.case(mgu.MGU, 1, (6,))[:3], "float64")
    x, optimizer = jnp.broadcast_to(xs[0, :1], xs[0].shape), optax.adam(optax.cosine_decay_schedule(0.02, 3000))

    def speed(h):
        return 0.5 * jnp.sum((mgu.step(params, h, x) - h) ** 2)

    def update(carry, _):
        h, state = carry
        updates, state = optimizer.update(jax.grad(speed)(h), state)
        return (h + updates, state), None

    starts = jnp.tanh(h0)
    (ends, _), _ = jax.lax.scan(update, (starts, optimizer.init(starts)), length=3000)
    states, _, fixed = dynamics.newton(params, x[0], starts)
    assert fixed.all()
    np.testing.assert_allclose(ends, states, rtol=0, atol=1e-6)


def test_under_jit_and_vmap(x64):
    """Over inputs and weights; one search alone does the same as many together."""
    params, xs, h0 = laws.cast(laws.case(mgu.MGU, 2, (4,))[:3], "float64")
    several = jax.tree.map(lambda a: jnp.stack([a, 0.5 * a]), params)
    search = jax.jit(jax.vmap(jax.vmap(dynamics.newton, (None, 0, None)), (0, None, None)))
    states, _, fixed = search(several, xs[:, 0], h0)
    assert states.shape == (2, 2, 4, 5)
    assert fixed.any()
    alone = dynamics.newton(jax.tree.map(lambda a: a[1], several), xs[1, 0], h0[2])[0]
    np.testing.assert_allclose(states[1, 1, 2], alone, rtol=0, atol=1e-12)


def test_large_fixed_points(quick_compiler):
    """Rounding may leave a speed that grows with the state; the point is fixed all the same."""
    cell = mgu.Cell(gate="b", activation="identity")
    params = mgu.init(jax.random.key(0), 3, 16, cell, recurrent_scale=0.5)
    params = params._replace(b_h=1e5 * jnp.linspace(1, 2, 16))
    starts = 1e5 * jax.random.normal(jax.random.key(1), (50, 16))
    states, speed, fixed = dynamics.newton(params, jnp.ones(3), starts, cell)
    assert speed.max() > 1e-6
    assert fixed.all()
    np.testing.assert_allclose(states, jnp.broadcast_to(states[0], states.shape), rtol=1e-4)
