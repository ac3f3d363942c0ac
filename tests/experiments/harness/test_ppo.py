"""Acting is the training pass step by step, advantages are those of the definition, and a cut is not an end."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.harness import ppo
from experiments.harness.environments import Environment, Outcome, hidden_cartpole, memory_chain

pytestmark = pytest.mark.usefixtures("quick_compiler", "as_a_user")
CHAIN = memory_chain(3)  # one object, so that its programs are compiled once
SIZES = ppo.Sizes(width=5, environments=4, window=9, updates=2, epochs=2, minibatches=2)


def firm(weights):
    """Large weights, since a new agent hardly prefers any action."""
    return 3 * jnp.sin(7.0 * jnp.arange(weights.size) + 1).reshape(weights.shape)


@partial(jax.jit, static_argnums=(0, 1, 2))
def two_windows(agent, world, sizes, key):
    """The parameters of an agent, the carry before its second window and the moments of that window."""
    memory, keys = ppo.AGENTS[agent](), jax.random.split(key, 4)
    params = ppo.init(memory, world, sizes, ppo.Hyper(), keys[0])
    params = params._replace(heads=jax.tree.map(firm, params.heads))
    now, _ = ppo.collect(memory, world, sizes, params, ppo.begin(world, sizes, keys[1]), keys[2])
    then, moments = ppo.collect(memory, world, sizes, params, now, keys[3])
    return params, now, then, moments


SLOW = [pytest.param(agent, marks=pytest.mark.slow) for agent in ("flax-mgu", "feed-forward")]


@pytest.mark.parametrize("agent", ["mgu", "gru", *SLOW])
def test_acting_gives_the_log_probabilities_of_the_training_pass(agent):
    """From a carry in the middle of episodes, with episodes that end in the window, and in the seed of the next."""
    params, now, then, moments = two_windows(agent, CHAIN, SIZES, jax.random.key(0))
    assert moments.ended.any(0).all()
    assert not moments.reset[0].all()
    np.testing.assert_array_equal(moments.reset[1:], moments.ended[:-1])
    np.testing.assert_array_equal(then.reset, moments.ended[-1])
    logits, values = ppo.replay(ppo.AGENTS[agent](), params, now.carry, moments.observation, moments.reset)
    acted, trained = (ppo.log_probability(a, moments.action) for a in (moments.logits, logits))
    assert np.ptp(acted) > 0.1
    np.testing.assert_allclose(trained, acted, atol=1e-6)
    np.testing.assert_allclose(values, moments.value, atol=2e-6)


def test_an_episode_restarts_with_its_state_and_not_with_the_agents():
    """The step after the last of an episode shows the bit again, and the carry before it has no influence."""
    params, now, _, moments = two_windows("mgu", CHAIN, SIZES, jax.random.key(1))
    np.testing.assert_allclose(np.where(moments.reset, moments.observation[..., 0], 1), 1)
    assert (moments.observation[..., 2] != 0)[np.array(moments.reset)].all()
    t, b = np.argwhere(moments.reset[1:])[0] + (1, 0)
    memory, other = ppo.AGENTS["mgu"](), moments.observation.at[:t].set(5.0)
    one, changed = (
        ppo.replay(memory, params, now.carry, seen, moments.reset)[0] for seen in (moments.observation, other)
    )
    np.testing.assert_array_equal(one[t:, b], changed[t:, b])
    assert (one[:t, b] != changed[:t, b]).any()


def slow_advantages(discount, trace, rewards, values, after, terminated, ended):
    """The definition: the sum over l of (discount trace)^l times the surprise of step t + l, up to the end."""
    T, B = rewards.shape
    found = np.zeros((T, B))
    for b in range(B):
        for t in range(T):
            weight = 1.0
            for later in range(t, T):
                promised = 0.0 if terminated[later, b] else after[later, b]
                found[t, b] += weight * (rewards[later, b] + discount * promised - values[later, b])
                if ended[later, b]:
                    break
                weight *= discount * trace
    return found


def moments_of(**fields):
    return ppo.Moment(**dict.fromkeys(ppo.Moment._fields) | fields)


def test_advantages_are_those_of_the_definition(x64):
    random = np.random.default_rng(0)
    rewards, values, after = random.normal(size=(3, 12, 5))
    ended = random.random((12, 5)) < 0.3
    terminated = ended & (random.random((12, 5)) < 0.5)
    assert (ended & ~terminated).any()
    moments = moments_of(reward=rewards, value=values, terminated=terminated, ended=ended)
    found = ppo.advantages(ppo.Hyper(discount=0.9, trace=0.8), jax.tree.map(jnp.asarray, moments), jnp.asarray(after))
    np.testing.assert_allclose(found, slow_advantages(0.9, 0.8, rewards, values, after, terminated, ended), rtol=1e-12)


def clock(cut):
    """One reward per step, halved for learning; after three steps the episode is cut, or else it ends."""

    def step(time, action):
        last = time + 1 >= 3
        return Outcome(time + 1, jnp.float32(1), last & (not cut), last & cut)

    return Environment(
        "clock", 1, 2, 3, 1.0, 0.5, lambda key: jnp.int32(0), lambda time: time[None].astype(jnp.float32), step
    )


@pytest.mark.parametrize("cut", [True, False])
def test_a_cut_episode_is_worth_what_its_last_observation_promises(cut):
    """That observation is 3, which the agent meets with the carry of its episode; it never acts on it."""
    memory, hyper = ppo.AGENTS["mgu"](), ppo.Hyper()
    params, _, _, moments = two_windows("mgu", clock(cut), SIZES, jax.random.key(2))
    after = ppo.following(memory, params, moments)
    same = ~np.array(moments.ended[:-1])
    np.testing.assert_allclose(np.array(after[:-1])[same], np.array(moments.value[1:])[same], atol=2e-6)
    t, b = np.argwhere(moments.ended)[0]
    last = ppo.act(memory, params, moments.carry[t], jnp.full((4, 1), 3.0), jnp.zeros(4, bool))[2][b]
    np.testing.assert_allclose(after[t, b], last, atol=2e-6)
    advantage = ppo.advantages(hyper, moments, after)
    np.testing.assert_allclose(
        advantage[t, b], 0.5 + (hyper.discount * last if cut else 0) - moments.value[t, b], atol=1e-5
    )
    assert moments.total[t, b] == 3  # the return is not scaled


def test_evaluation_counts_each_episode_once():
    """All play as long as the longest episode may last, and what follows the end of one counts for nothing."""
    memory, world = ppo.AGENTS["mgu"](), hidden_cartpole(limit=30)
    params = ppo.init(memory, world, SIZES, ppo.Hyper(), jax.random.key(0))
    found = np.array(ppo.evaluate(memory, world, 5, params, jax.random.key(1), 6))
    start = jax.vmap(world.reset)(jax.random.split(jax.random.key(1), 6))
    act, step = jax.jit(partial(ppo.act, memory)), jax.jit(world.step)
    for i, wanted in enumerate(found[:2]):
        state, carry, total, over = jax.tree.map(lambda a, i=i: a[i], start), jnp.zeros((1, 5)), 0.0, False
        first = True
        while not over:
            carry, logits, _ = act(params, carry, world.observe(state)[None], jnp.full(1, first))
            state, reward, terminated, truncated = step(state, logits[0].argmax())
            total, over, first = total + reward, terminated | truncated, False
        assert total == wanted


def test_a_training_runs_under_vmap_over_hyperparameters_and_keys():
    """Equal members are equal, and another learning rate, forget bias or key makes another agent."""
    train = partial(ppo.train, ppo.AGENTS["mgu"](), CHAIN, SIZES._replace(updates=1))
    rates, biases, seeds = [1e-3, 1e-3, 2e-3, 1e-3, 1e-3], [-1.0, -1.0, -1.0, -3.0, -1.0], [0, 0, 0, 0, 1]
    hyper = ppo.Hyper(learning_rate=jnp.array(rates), forget_bias=jnp.array(biases))
    mapped = ppo.Hyper(*(0 if isinstance(value, jax.Array) else None for value in hyper))
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    params, totals, episodes = jax.jit(jax.vmap(train, (mapped, 0)))(hyper, keys)
    W = np.array(params.encoder.W)
    np.testing.assert_array_equal(W[0], W[1])
    assert all((W[0] != other).any() for other in W[2:])
    np.testing.assert_allclose(params.memory.b_f.mean(1), biases, atol=0.1)
    assert totals.shape == episodes.shape == (5, 1)


@pytest.mark.parametrize("agent", ["mgu", "gru", "flax-mgu"])
def test_a_forget_bias_opens_the_gates_of_all_agents_equally_far(agent):
    memory = ppo.AGENTS[agent]()
    params = memory.init(jax.random.key(0), 3, 4, -30.0)
    carry = jnp.arange(4.0).reshape(1, 4) / 4
    kept = memory.step(params, carry, jnp.ones((1, 3)), jnp.zeros(1, bool))
    np.testing.assert_allclose(kept, carry, atol=1e-6)
