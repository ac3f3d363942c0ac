"""Agents with memory and proximal policy optimisation, in one file: an MGU, two cells of Flax, and no memory.

The whole training, ``train``, is one function of (hyperparameters, key): it can run under ``vmap`` over both. The
algorithm is that of Schulman et al. 2017 (arXiv 1707.06347), with generalised advantages (Schulman et al. 2016, arXiv
1506.02438). All environments act for a window of steps. The training pass then replays the window from the carry with
which it began, and resets inside the window put the carry back to zero: gradients flow through the steps of one window,
and the state flows on. Minibatches are sets of environments, so the order of time is kept.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

import mgu_jax as mgu
from experiments.harness.environments import Environment
from mgu_jax.extras import require
from mgu_jax.interop.scanned import initialize_carry, scanned_mgu


class Hyper(NamedTuple):
    """Numbers, which may differ between the members of a ``vmap``."""

    learning_rate: Any = 1e-3  # at the start; it falls to zero along a line
    forget_bias: Any = -1.0  # in the paper's sign: negative remembers
    discount: Any = 0.99
    trace: Any = 0.95  # lambda of the generalised advantages
    clip: Any = 0.2
    entropy: Any = 0.01
    value: Any = 0.5


class Sizes(NamedTuple):
    """What a compiled program depends on."""

    width: int = 64  # H
    environments: int = 64  # B
    window: int = 64  # T
    updates: int = 100
    epochs: int = 4
    minibatches: int = 4


class Memory(NamedTuple):
    """The part of an agent that may remember."""

    init: Callable[..., Any]  # params, from a key, D, H and the forget bias
    scan: Callable[..., tuple[Array, Array]]  # carry and outputs [T, B, H], from params, carry and (inputs, resets)
    step: Callable[..., Array]  # the next carry, which is the output [B, H], from params, carry, inputs and resets


class Dense(NamedTuple):
    """y = x W + b."""

    W: Array
    b: Array

    @staticmethod
    def init(key: Array, rows: int, columns: int, scale: float) -> "Dense":
        return Dense(jax.nn.initializers.orthogonal(scale)(key, (rows, columns), jnp.float32), jnp.zeros(columns))

    def __call__(self, x: Array) -> Array:
        return x @ self.W + self.b


def of_mgu() -> Memory:
    """The paper's cell, by ``mgu.scan`` in training and ``mgu.step`` in acting."""

    def init(key: Array, D: int, H: int, forget_bias: Any) -> mgu.Params:
        return mgu.init(key, D, H, forget_bias=forget_bias)

    def step(params: mgu.Params, carry: Array, x: Array, resets: Array) -> Array:
        return mgu.step(params, carry, x, reset=resets)

    return Memory(init, scanned_mgu, step)


def of_flax(name: str, keeps: str) -> Memory:
    """A cell of ``flax.linen``, scanned as agents usually scan it; ``keeps`` is the gate whose bias keeps the state."""
    nn = require("flax.linen", "flax")

    def from_zero(carry: Array, resets: Array) -> Array:
        return jnp.where(resets[..., None], jnp.zeros_like(carry), carry)

    class Scanned(nn.Module):
        @partial(nn.scan, variable_broadcast="params", split_rngs={"params": False})
        @nn.compact
        def __call__(self, carry: Array, x: tuple[Array, Array]) -> tuple[Array, Array]:
            inputs, resets = x
            return getattr(nn, name)(carry.shape[-1], name="cell")(from_zero(carry, resets), inputs)

    def init(key: Array, D: int, H: int, forget_bias: Any) -> Any:
        params = getattr(nn, name)(H).init(key, jnp.zeros((1, H)), jnp.zeros((1, D)))["params"]
        bias = jnp.full(H, -jnp.asarray(forget_bias, jnp.float32))  # Flax's sign is the opposite
        return params | {keeps: params[keeps] | {"bias": bias}}

    def scan(params: Any, carry: Array, x: tuple[Array, Array]) -> tuple[Array, Array]:
        return Scanned().apply({"params": {"cell": params}}, carry, x)

    def step(params: Any, carry: Array, x: Array, resets: Array) -> Array:
        return getattr(nn, name)(carry.shape[-1]).apply({"params": params}, from_zero(carry, resets), x)[0]

    return Memory(init, scan, step)


def of_nothing() -> Memory:
    """A layer without a memory, whose output takes the place of the carry and is not read."""

    def init(key: Array, D: int, H: int, forget_bias: Any) -> Dense:
        return Dense.init(key, D, H, 2**0.5)

    def scan(params: Dense, carry: Array, x: tuple[Array, Array]) -> tuple[Array, Array]:
        outputs = jnp.tanh(params(x[0]))
        return outputs[-1], outputs

    def step(params: Dense, carry: Array, x: Array, resets: Array) -> Array:
        return jnp.tanh(params(x))

    return Memory(init, scan, step)


AGENTS: dict[str, Callable[[], Memory]] = {
    "mgu": of_mgu,
    "gru": partial(of_flax, "GRUCell", "iz"),
    "flax-mgu": partial(of_flax, "MGUCell", "if"),
    "feed-forward": of_nothing,
}


class Params(NamedTuple):
    """The parameters of an agent: observation -> features -> memory -> logits of the actions, and a value."""

    encoder: Dense
    memory: Any
    heads: Dense  # [H, actions + 1]


def init(memory: Memory, world: Environment, sizes: Sizes, hyper: Hyper, key: Array, features: int = 64) -> Params:
    """The parameters of a new agent, which takes all actions with nearly equal probabilities."""
    keys, H = jax.random.split(key, 4), sizes.width
    policy, value = Dense.init(keys[2], H, world.actions, 0.01), Dense.init(keys[3], H, 1, 1.0)
    return Params(
        Dense.init(keys[0], world.observation_size, features, 2**0.5),
        memory.init(keys[1], features, H, hyper.forget_bias),
        Dense(*(jnp.concatenate(pair, -1) for pair in zip(policy, value, strict=True))),
    )


def replay(memory: Memory, params: Params, carry: Array, observations: Array, resets: Array) -> tuple[Array, Array]:
    """(logits [T, B, actions], values [T, B]) of observations [T, B, D]: the training pass."""
    _, hs = memory.scan(params.memory, carry, (jnp.tanh(params.encoder(observations)), resets))
    out = params.heads(hs)
    return out[..., :-1], out[..., -1]


def act(memory: Memory, params: Params, carry: Array, observations: Array, resets: Array) -> tuple[Array, Array, Array]:
    """(next carry [B, H], logits [B, actions], values [B]) of observations [B, D]: one step of the same computation."""
    carry = memory.step(params.memory, carry, jnp.tanh(params.encoder(observations)), resets)
    out = params.heads(carry)
    return carry, out[..., :-1], out[..., -1]


class Moment(NamedTuple):
    """One step of all environments."""

    observation: Array  # [B, D]
    reset: Array  # bool [B]: the observation is the first of an episode
    action: Array  # [B]
    logits: Array  # [B, actions]
    value: Array  # [B]
    reward: Array  # [B], scaled
    terminated: Array  # bool [B]: no reward follows
    ended: Array  # bool [B]: terminated or truncated
    carry: Array  # [B, H], after the step
    follower: Array  # [B, D], the observation after the step, before a new episode begins
    total: Array  # [B], the return of the episode up to here


class Now(NamedTuple):
    """What flows from one window to the next."""

    carry: Array  # [B, H]
    state: Any  # of all environments
    reset: Array  # bool [B]
    total: Array  # [B]


def begin(world: Environment, sizes: Sizes, key: Array) -> Now:
    """All environments at the start of an episode."""
    B = sizes.environments
    state = jax.vmap(world.reset)(jax.random.split(key, B))
    return Now(initialize_carry(B, sizes.width), state, jnp.ones(B, bool), jnp.zeros(B))


def expand(flags: Array, axes: int) -> Array:
    """The flags [B] as [B, 1, ...] with this number of axes."""
    return flags.reshape(-1, *[1] * (axes - 1))


def collect(memory: Memory, world: Environment, sizes: Sizes, params: Params, now: Now, key: Array) -> tuple[Now, Any]:
    """Act for one window: what flows on, and the moments [T, B, ...]."""
    noise_key, fresh_key = jax.random.split(key)
    shape = (sizes.window, sizes.environments)
    noise = jax.random.gumbel(noise_key, (*shape, world.actions))
    fresh = jax.vmap(jax.vmap(world.reset))(jax.random.split(fresh_key, shape))

    def step(now: Now, drawn: tuple[Array, Any]) -> tuple[Now, Moment]:
        noise, fresh = drawn
        observation = jax.vmap(world.observe)(now.state)
        carry, logits, value = act(memory, params, now.carry, observation, now.reset)
        action = (logits + noise).argmax(-1)  # a sample of the softmax
        state, reward, terminated, truncated = jax.vmap(world.step)(now.state, action)
        ended, total = terminated | truncated, now.total + reward
        follower = jax.vmap(world.observe)(state)
        past = (observation, now.reset, action, logits, value)
        moment = Moment(*past, reward * world.scale, terminated, ended, carry, follower, total)
        state = jax.tree.map(lambda new, old: jnp.where(expand(ended, new.ndim), new, old), fresh, state)
        return Now(carry, state, ended, jnp.where(ended, 0, total)), moment

    return lax.scan(step, now, (noise, fresh))


def following(memory: Memory, params: Params, moments: Moment) -> Array:
    """The values [T, B] of the observations after each step, also of the last ones of episodes."""
    carry, observation = (a.reshape(-1, a.shape[-1]) for a in (moments.carry, moments.follower))
    return act(memory, params, carry, observation, jnp.zeros(len(carry), bool))[2].reshape(moments.value.shape)


def advantages(hyper: Hyper, moments: Moment, values: Array) -> Array:
    """Generalised advantages [T, B], from the last step to the first; values [T, B] are those after each step.

    A truncated episode is worth what its last observation promises; a terminated one is worth nothing more.
    """

    def back(later: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        surprise, ended = now
        advantage = surprise + hyper.discount * hyper.trace * jnp.where(ended, 0, later)
        return advantage, advantage

    surprise = moments.reward + hyper.discount * jnp.where(moments.terminated, 0, values) - moments.value
    return lax.scan(back, jnp.zeros_like(values[0]), (surprise, moments.ended), reverse=True)[1]


def log_probability(logits: Array, action: Array) -> Array:
    return jnp.take_along_axis(jax.nn.log_softmax(logits), action[..., None], -1)[..., 0]


def loss(
    params: Params, memory: Memory, hyper: Hyper, carry: Array, moments: Moment, advantage: Array, target: Array
) -> Array:
    """The clipped objective of PPO, the squared error of the values, and the entropy of the policy."""
    logits, values = replay(memory, params, carry, moments.observation, moments.reset)
    taken = log_probability(logits, moments.action)
    ratio = jnp.exp(taken - log_probability(moments.logits, moments.action))
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    clipped = jnp.clip(ratio, 1 - hyper.clip, 1 + hyper.clip)
    gain = jnp.minimum(ratio * advantage, clipped * advantage).mean()
    entropy = -(jax.nn.softmax(logits) * jax.nn.log_softmax(logits)).sum(-1).mean()
    return -gain + hyper.value * 0.5 * jnp.square(values - target).mean() - hyper.entropy * entropy


def train(memory: Memory, world: Environment, sizes: Sizes, hyper: Hyper, key: Array) -> tuple[Params, Array, Array]:
    """(params, sums [updates] of the returns of the episodes that end in a window, their numbers [updates])."""
    init_key, begin_key, key = jax.random.split(key, 3)
    params = init(memory, world, sizes, hyper, init_key)
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.scale_by_adam(eps=1e-5))

    def update(held: Any, x: tuple[Array, Array]) -> tuple[Any, tuple[Array, Array]]:
        (params, moving, now), (key, part) = held, x
        act_key, order_key = jax.random.split(key)
        then, moments = collect(memory, world, sizes, params, now, act_key)
        advantage = advantages(hyper, moments, following(memory, params, moments))
        target = advantage + moments.value

        def learn(learning: Any, rows: Array) -> tuple[Any, None]:
            params, moving = learning
            picked = jax.tree.map(lambda a: a[:, rows], (moments, advantage, target))
            gradient = jax.grad(loss)(params, memory, hyper, now.carry[rows], *picked)
            step, moving = optimizer.update(gradient, moving)
            rate = hyper.learning_rate * (1 - part)
            return (jax.tree.map(lambda p, s: p - rate * s, params, step), moving), None

        keys = jax.random.split(order_key, sizes.epochs)
        orders = jax.vmap(lambda key: jax.random.permutation(key, sizes.environments))(keys)
        orders = orders.reshape(sizes.epochs * sizes.minibatches, -1)
        (params, moving), _ = lax.scan(learn, (params, moving), orders)
        return (params, moving, then), (jnp.where(moments.ended, moments.total, 0).sum(), moments.ended.sum())

    parts = jnp.arange(sizes.updates, dtype=jnp.float32) / sizes.updates
    held = (params, optimizer.init(params), begin(world, sizes, begin_key))
    (params, *_), (totals, episodes) = lax.scan(update, held, (jax.random.split(key, sizes.updates), parts))
    return params, totals, episodes


def evaluate(memory: Memory, world: Environment, width: int, params: Params, key: Array, episodes: int) -> Array:
    """The returns [episodes] of new episodes in which the agent takes the likeliest action."""
    state = jax.vmap(world.reset)(jax.random.split(key, episodes))

    def step(held: Any, first: Array) -> tuple[Any, None]:
        carry, state, total, over = held
        resets = jnp.full(episodes, first)
        carry, logits, _ = act(memory, params, carry, jax.vmap(world.observe)(state), resets)
        state, reward, terminated, truncated = jax.vmap(world.step)(state, logits.argmax(-1))
        return (carry, state, total + jnp.where(over, 0, reward), over | terminated | truncated), None

    held = (initialize_carry(episodes, width), state, jnp.zeros(episodes), jnp.zeros(episodes, bool))
    return lax.scan(step, held, jnp.arange(world.longest) == 0)[0][2]
