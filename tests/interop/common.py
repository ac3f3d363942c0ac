"""The law of every adapter: the framework's own loop and our layer compute what ``scan`` computes; and helpers."""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

import mgu_jax as mgu
from tests import laws

T, B, D, H = 6, 3, 4, 5
LENGTHS = np.array([4, 6, 1], np.int32)
CELLS = {name: laws.NAMED[name] for name in ("MGU", "MGU3", "RESET_AFTER_MGU")}

# Arguments of Flax's RNNs.
DRIVES = {
    "plain": {},
    "reverse": {"reverse": True, "time_major": True},
    "lengths": {"seq_lengths": LENGTHS},
    "lengths reverse": {"seq_lengths": LENGTHS, "reverse": True},
    "lengths reverse in order": {"seq_lengths": LENGTHS, "reverse": True, "keep_order": True, "time_major": True},
}


def flipped(hs, lengths):
    """The steps of each sequence from the last to the first, [T, B, H]; the padding stays in place."""
    order = [[n - 1 - t if t < n else t for n in (lengths if lengths is not None else [T] * B)] for t in range(T)]
    return jnp.take_along_axis(hs, jnp.asarray(order)[..., None], 0)


def expected(params, xs, h0, cell, seq_lengths=None, reverse=False, keep_order=False, time_major=False):
    """(carry, outputs) in the convention of Flax's RNN, computed by the definition of ``scan``."""
    xs = xs if time_major else xs.swapaxes(0, 1)
    lengths = None if seq_lengths is None else jnp.asarray(seq_lengths)
    hs, carry = mgu.scan(params, xs, h0, cell=cell, lengths=lengths, reverse=reverse, implementation="autodiff")
    hs = flipped(hs, seq_lengths) if reverse and not keep_order else hs
    return carry, hs if time_major else hs.swapaxes(0, 1)


@lru_cache
def _wanted(cell, name):
    """The problem, and the outputs and gradients of the definition; computed once for all adapters."""
    drive = DRIVES[name]
    params, xs, h0, dhs, dh_last = laws.cast(tuple(laws.case(cell, T, (B,), D, H)), "float64")
    valid = np.arange(T)[:, None] < (LENGTHS if "seq_lengths" in drive else np.full(B, T))
    dhs = jnp.where(valid[..., None], dhs, 0)  # frameworks differ in the padding
    if not drive.get("time_major"):
        xs, dhs = xs.swapaxes(0, 1), dhs.swapaxes(0, 1)
    problem = (params, xs, h0, dhs, dh_last)
    return problem, outputs_and_gradients(lambda *arguments: expected(*arguments, cell, **drive), problem)


def outputs_and_gradients(function, problem):
    params, xs, h0, dhs, dh_last = problem

    @jax.jit
    def run(params, xs, h0, cotangents):
        (carry, outputs), pullback = jax.vjp(function, params, xs, h0)
        dparams, dxs, dh0 = pullback(cotangents)
        return {"carry": carry, "outputs": jnp.where(dhs != 0, outputs, 0)}, laws.named(dparams, dxs, dh0)

    return run(params, xs, h0, (dh_last, dhs))


def check(run, cell, name, tolerance=1e-12):
    """``run(params, xs, h0, **drive) -> (carry, outputs)`` and its gradients are those of ``expected``, in float64."""
    problem, wanted = _wanted(cell, name)
    got = outputs_and_gradients(lambda *arguments: run(*arguments, **DRIVES[name]), problem)
    for mine, right in zip(got, wanted, strict=True):
        laws.assert_close(mine, right, tolerance)


def task():
    """xs [B, T, D] and targets [B, T, H] that a layer can learn: the running mean of the first feature."""
    xs = np.random.default_rng(0).standard_normal((16, T, D))
    return xs, np.cumsum(xs[..., :1], 1) / np.arange(1, T + 1)[:, None] * np.ones(H)


def params(cell=mgu.MGU, dtype="float64"):
    """Random parameters of a cell, drawn without compiling a program."""
    return jax.tree.map(lambda a: np.asarray(a, dtype), laws.case(cell, T, (B,), D, H).params)


def drawn(model, seed=0):
    """Random parameters of a model, drawn without compiling a program."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.eval_shape(lambda: jax.random.key(0)))
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.5, size=s.shape), s.dtype), shapes)


def inputs(model, steps, batch):
    """Random xs [T, B, D], or tokens [T, B], for a model."""
    rng = np.random.default_rng(steps)
    if model.embedding_size:
        return rng.integers(0, model.input_size, (steps, batch), np.int32)
    return np.asarray(rng.normal(size=(steps, batch, model.input_size)), model.dtype)
