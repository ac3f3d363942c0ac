"""The memory chain is the one of bsuite, and the cart obeys the equations of motion; both are those of gymnax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.harness import environments
from experiments.harness.environments import CartPole, Chain, hidden_cartpole, memory_chain

pytestmark = pytest.mark.usefixtures("quick_compiler", "as_a_user")


def episode(world, state, actions):
    """The observations before each action, and (rewards, terminated, truncated) after it."""
    seen, step = [], jax.jit(world.step)
    for action in actions:
        before = world.observe(state)
        state, *after = step(state, jnp.int32(action))
        seen.append((before, *after))
    return [np.array(column) for column in zip(*seen, strict=True)]


@pytest.mark.parametrize("bit", [0, 1])
@pytest.mark.parametrize("answer", [0, 1])
def test_a_chain_shows_a_bit_and_asks_for_it(bit, answer):
    """bsuite repeats its first observation after the first action; only the last action is rewarded."""
    shown, rewards, terminated, truncated = episode(
        memory_chain(3), Chain(jnp.int32(bit), jnp.int32(0)), [1, 0, 1, answer]
    )
    sign = 2 * bit - 1
    np.testing.assert_allclose(shown, [[1, 0, sign], [1, 0, sign], [2 / 3, 0, 0], [1 / 3, 0, 0]], rtol=1e-6)
    assert rewards.tolist() == [0, 0, 0, 1 if answer == bit else -1]
    assert terminated.tolist() == [False, False, False, True]
    assert not truncated.any()
    assert len(rewards) == memory_chain(3).longest


def test_both_bits_are_drawn():
    bits = jax.vmap(memory_chain(3).reset)(jax.random.split(jax.random.key(0), 100)).bit
    assert 30 < bits.sum() < 70


def test_the_cart_obeys_the_equations_of_motion(x64):
    """Lagrange's equations of a cart with a uniform pole: of its position, and of the angle."""
    M, m, l, g = 1.0, 0.1, 0.5, 9.8
    for key in jax.random.split(jax.random.key(0), 5):
        motion = jax.random.normal(key, (4,), jnp.float64)
        _, dx, angle, dangle = map(float, motion)
        for action, force in ((0, -10), (1, 10)):
            rates = np.array(environments.push(motion, action) - motion) / 0.02
            np.testing.assert_allclose(rates[[0, 2]], [dx, dangle], rtol=1e-11)
            ddx, ddangle = rates[[1, 3]]
            sine, cosine = np.sin(angle), np.cos(angle)
            np.testing.assert_allclose((M + m) * ddx + m * l * (ddangle * cosine - dangle**2 * sine), force, rtol=1e-9)
            np.testing.assert_allclose(4 / 3 * m * l**2 * ddangle + m * l * ddx * cosine, m * g * l * sine, rtol=1e-9)


def test_an_episode_that_is_cut_is_not_one_that_ends():
    """A pole in balance is cut at the limit; one that falls has ended, also if it falls in the very last step."""
    world = hidden_cartpole(limit=3)
    _, rewards, terminated, truncated = episode(world, CartPole(jnp.zeros(4), jnp.int32(0)), [0, 1, 0])
    assert rewards.tolist() == [1, 1, 1]
    assert terminated.tolist() == [False] * 3
    assert truncated.tolist() == [False, False, True]
    falling = CartPole(jnp.array([0, 0, 0.2, 1.0]), jnp.int32(2))
    _, rewards, terminated, truncated = episode(world, falling, [0])
    assert (rewards.tolist(), terminated.tolist(), truncated.tolist()) == ([1], [True], [False])
    leaving = CartPole(jnp.array([-2.39, -1.0, 0, 0]), jnp.int32(0))
    assert episode(world, leaving, [0])[2].tolist() == [True]


def test_velocities_are_hidden():
    world = hidden_cartpole()
    np.testing.assert_allclose(
        world.observe(CartPole(jnp.array([1.2, 7, -0.1047198, 8]), jnp.int32(0))), [0.5, -0.5], rtol=1e-6
    )


@pytest.fixture
def gymnax():
    return pytest.importorskip("gymnax", reason="gymnax, which needs an older JAX, is not installed")


@pytest.mark.filterwarnings("ignore")  # of gymnax's own imports
@pytest.mark.parametrize("length", [1, 2, 8])
def test_the_chain_is_gymnaxs_step_for_step(length, gymnax):
    theirs, settings = gymnax.make("MemoryChain-bsuite")
    settings, ours = settings.replace(memory_length=length), memory_chain(length)
    for seed in range(4):
        shown, state = theirs.reset_env(jax.random.key(seed), settings)
        mine = Chain(state.context[0], jnp.int32(0))
        for t in range(length + 1):
            np.testing.assert_allclose(ours.observe(mine), shown, rtol=1e-6)
            action = jnp.int32((seed + t) % 2)
            shown, state, reward, done, _ = theirs.step_env(jax.random.key(0), state, action, settings)
            mine, our_reward, terminated, _ = ours.step(mine, action)
            assert (float(our_reward), bool(terminated)) == (float(reward), bool(done))
        assert done


@pytest.mark.filterwarnings("ignore")
def test_the_cart_is_gymnaxs_step_for_step(gymnax):
    theirs, settings = gymnax.make("CartPole-v1")
    ours = hidden_cartpole()
    for seed in range(3):
        shown, state = theirs.reset_env(jax.random.key(seed), settings)
        mine = CartPole(shown, jnp.int32(0))
        for t in range(100):
            action = jnp.int32(jax.random.bernoulli(jax.random.key(1000 * seed + t)))
            shown, state, reward, done, _ = theirs.step_env(jax.random.key(0), state, action, settings)
            mine, our_reward, terminated, _ = ours.step(mine, action)
            np.testing.assert_allclose(mine.motion, shown, rtol=1e-5, atol=1e-6)
            assert (float(our_reward), bool(terminated)) == (float(reward), bool(done))
            if done:
                break
        assert done
