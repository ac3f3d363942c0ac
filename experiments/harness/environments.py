"""Two environments for agents with memory, as pure functions that run under ``jit`` and ``vmap``.

``memory_chain``: a bit is shown at the start and asked for at the end (bsuite, Osband et al. 2020, arXiv 1908.03568).
``hidden_cartpole``: balance a pole on a cart (Barto, Sutton and Anderson 1983, with the constants of Gym's CartPole-v1)
and see positions only, so that velocities must be remembered.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


class Outcome(NamedTuple):
    """What follows from an action."""

    state: Any
    reward: Array
    terminated: Array  # bool: the episode is over, and no reward follows
    truncated: Array  # bool: the episode is cut by its limit of steps, and rewards would have followed


class Environment(NamedTuple):
    """One environment. Its three functions know nothing of batches, and an episode does not restart by itself."""

    title: str
    observation_size: int  # D
    actions: int
    longest: int  # the steps of the longest episode
    solved: float  # the mean return at which the task counts as solved
    scale: float  # learning multiplies rewards by this, so that values are of the order of 1
    reset: Callable[[Array], Any]  # the first state of an episode, from a key
    observe: Callable[[Any], Array]  # [D], from a state
    step: Callable[[Any, Array], Outcome]  # from a state and an action


class Chain(NamedTuple):
    """The state of a memory chain."""

    bit: Array  # 0 or 1
    time: Array  # actions taken


def memory_chain(length: int) -> Environment:
    """A bit that is shown at the start must be named as the last action: the return is 1, or -1 for the other one.

    An episode has length + 1 actions, of which only the last counts. The observation is [part of the time that is left,
    the index of the bit that is asked for, -1 or 1 for the bit]. bsuite shows the first observation twice, so the last
    action comes length - 1 steps after the bit was seen. There is one bit, its index is 0, and the best return without
    a memory is 0.
    """

    def reset(key: Array) -> Chain:
        return Chain(jax.random.bernoulli(key).astype(jnp.int32), jnp.int32(0))

    def observe(state: Chain) -> Array:
        shown = jnp.maximum(state.time - 1, 0)
        bit = jnp.where(shown == 0, 2 * state.bit - 1, 0)
        return jnp.stack([1 - shown.astype(jnp.float32) / length, jnp.float32(0), bit.astype(jnp.float32)])

    def step(state: Chain, action: Array) -> Outcome:
        last = state.time == length
        reward = jnp.where(last, jnp.where(action == state.bit, 1.0, -1.0), 0.0)
        return Outcome(Chain(state.bit, state.time + 1), reward, last, jnp.zeros_like(last))

    return Environment(f"Memory chain, {length} steps", 3, 2, length + 1, 0.95, 1.0, reset, observe, step)


class CartPole(NamedTuple):
    """The state of a cart with a pole."""

    motion: Array  # [4]: position in m, velocity, angle in rad, angular velocity
    time: Array  # actions taken


GRAVITY, CART, POLE, HALF_LENGTH, FORCE, SECONDS = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02  # m/s^2, kg, kg, m, N, s
LIMITS = (2.4, 12 * jnp.pi / 180)  # m, rad


def push(motion: Array, action: Array) -> Array:
    """The motion [4] after one step of Euler's method, with the force to the left (0) or to the right (1)."""
    dx, angle, dangle = motion[1:]
    force = jnp.where(action == 1, FORCE, -FORCE)
    sine, cosine = jnp.sin(angle), jnp.cos(angle)
    pull = (force + POLE * HALF_LENGTH * dangle**2 * sine) / (CART + POLE)
    ddangle = GRAVITY * sine - cosine * pull
    ddangle = ddangle / (HALF_LENGTH * (4 / 3 - POLE * cosine**2 / (CART + POLE)))
    ddx = pull - POLE * HALF_LENGTH * ddangle * cosine / (CART + POLE)
    return motion + SECONDS * jnp.stack([dx, ddx, dangle, ddangle])


def hidden_cartpole(limit: int = 500) -> Environment:
    """One reward per step until the pole falls or the cart leaves the track; cut after ``limit`` steps.

    The observation is [position, angle], each as a part of its limit.
    """

    def reset(key: Array) -> CartPole:
        return CartPole(jax.random.uniform(key, (4,), minval=-0.05, maxval=0.05), jnp.int32(0))

    def observe(state: CartPole) -> Array:
        return state.motion[jnp.array([0, 2])] / jnp.array(LIMITS)

    def step(state: CartPole, action: Array) -> Outcome:
        motion, time = push(state.motion, action), state.time + 1
        fallen = (jnp.abs(motion[0]) > LIMITS[0]) | (jnp.abs(motion[2]) > LIMITS[1])
        return Outcome(CartPole(motion, time), jnp.float32(1), fallen, (time >= limit) & ~fallen)

    return Environment("CartPole without velocities", 2, 2, limit, 0.9 * limit, 0.02, reset, observe, step)
