"""Models, data and a way to kill a run, shared by the tests of training."""

import jax
import numpy as np

import mgu_jax as mgu

KEY = jax.random.key(5)
KEYS = jax.random.split(jax.random.key(11), 2)

LAST = mgu.Model(3, (5,), 2, readout="last")
TAGS = mgu.Model(3, (5,), 2)
WORDS = mgu.Model(7, (6,), 7, embedding_size=4)


def samples(count=24):
    """Sequences of random numbers, labelled by the sign of their sum."""
    xs = np.random.default_rng(0).standard_normal((count, 6, 3)).astype(np.float32)
    return mgu.Data(xs, (xs.sum((1, 2)) > 0).astype(np.int32))


def stream(steps=202):
    """Random tokens; each one's target is the next."""
    tokens = np.random.default_rng(0).integers(0, 7, steps + 1).astype(np.int32)
    return mgu.Stream(tokens[:-1], tokens[1:])


class Killed(Exception):
    """Raised by ``on_call`` in place of a kill."""


def kill_in_call(number):
    """An ``on_call`` that kills the run when it is called for the ``number``-th time."""
    calls = []

    def on_call(*_):
        calls.append(1)
        if len(calls) == number:
            raise Killed

    return on_call
