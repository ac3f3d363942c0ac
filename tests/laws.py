"""What has to hold for every implementation, every cell and every option: the cases, and the laws as functions.

``test_laws.py`` runs them all. Someone who adds a cell or an implementation adds its name here, and nothing else.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import mgu_jax as mgu
from mgu_jax.gradients import relative_error
from mgu_jax.sequence import IMPLEMENTATIONS
from tests import oracle

CELLS = {"MGU": mgu.MGU}
TOLERANCE = {"float64": 1e-12, "float32": 2e-5}
__all__ = ["CELLS", "IMPLEMENTATIONS", "TOLERANCE"]


class Case(NamedTuple):
    """One problem: arguments of ``scan`` and random cotangents of its outputs, NumPy float64."""

    params: mgu.Params
    xs: np.ndarray
    h0: np.ndarray
    dhs: np.ndarray
    dh_last: np.ndarray


def case(cell, T=7, batch=(3,), D=4, H=5, seed=0):
    """Every weight and bias is random, so that no term can hide behind a zero."""
    rng = np.random.default_rng(seed)
    shapes = cell.shapes(D, H)
    params = mgu.Params(*(None if s is None else rng.normal(0, 1.0 if len(s) == 1 else H**-0.5, s) for s in shapes))
    normal = rng.standard_normal
    return Case(params, normal((T, *batch, D)), normal((*batch, H)), normal((T, *batch, H)), normal((*batch, H)))


def cast(tree, dtype):
    return jax.tree.map(lambda a: jnp.asarray(a, dtype), tree)


def gradients(case, dtype, cell, transform=lambda f: f, **options):
    """(outputs, gradients by name) of ``scan``; ``transform`` may be jax.jit."""

    def run(params, xs, h0):
        return mgu.scan(params, xs, h0, cell=cell, **options)

    def outputs_and_gradients(params, xs, h0, cotangents):
        outputs, pullback = jax.vjp(run, params, xs, h0)
        return outputs, pullback(cotangents)

    arguments = cast((case.params, case.xs, case.h0, (case.dhs, case.dh_last)), dtype)
    outputs, (dparams, dxs, dh0) = transform(outputs_and_gradients)(*arguments)
    return outputs, named(dparams, dxs, dh0)


def named(dparams, dxs, dh0):
    return {k: v for k, v in dparams._asdict().items() if v is not None} | {"xs": dxs, "h0": dh0}


def expected(case, cell, **options):
    """The same by the oracle, whatever the number of batch axes."""
    T, *batch, D = case.xs.shape
    H, B = case.h0.shape[-1], int(np.prod(batch))
    xs, h0 = case.xs.reshape(T, B, D), case.h0.reshape(B, H)
    hs, h_last, kept = oracle.forward(cell, case.params, xs, h0, **options)
    dhs, dh_last = case.dhs.reshape(T, B, H), case.dh_last.reshape(B, H)
    grads = oracle.backward(cell, case.params, xs, h0, kept, dhs, dh_last, **options)
    grads["xs"], grads["h0"] = grads["xs"].reshape(case.xs.shape), grads["h0"].reshape(case.h0.shape)
    return (hs.reshape(T, *batch, H), h_last.reshape(*batch, H)), grads


def assert_close(actual, wanted, tolerance):
    """By name, relative error of the whole array. An empty array or one of zeros must be so exactly."""
    assert actual.keys() == wanted.keys()
    for name, array in actual.items():
        assert array.shape == np.shape(wanted[name]), name
        error = relative_error(array, wanted[name])
        assert error <= tolerance, f"{name}: relative error {error:.1e}, allowed {tolerance:.0e}"


def equals_oracle(case, dtype, cell, implementation, **options):
    """Values and gradients are the oracle's."""
    outputs, grads = gradients(case, dtype, cell, implementation=implementation, **options)
    wanted_outputs, wanted_grads = expected(case, cell, **options)
    outputs = dict(zip(("hs", "h_last"), outputs, strict=True))
    assert_close(outputs, dict(zip(("hs", "h_last"), wanted_outputs, strict=True)), TOLERANCE[dtype])
    assert_close(grads, wanted_grads, TOLERANCE[dtype])
    assert all(a.dtype == dtype for a in (*outputs.values(), *grads.values()))
