"""What has to hold for every implementation, every cell and every option: the cases, and the laws as functions.

``test_laws.py`` runs them all. A new cell or implementation only needs its name here.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import mgu_jax as mgu
from mgu_jax.gradients import relative_error
from mgu_jax.layer import noise
from mgu_jax.sequence import IMPLEMENTATIONS, KERNELS
from tests import oracle

NAMED = {
    "MGU": mgu.MGU,
    "MGU1": mgu.MGU1,
    "MGU2": mgu.MGU2,
    "MGU3": mgu.MGU3,
    "RESET_AFTER_MGU": mgu.RESET_AFTER_MGU,
    "FLAX_MGU": mgu.FLAX_MGU,
    "UGRNN": mgu.UGRNN,
    "DIAGONAL_MGU": mgu.DIAGONAL_MGU,
    "JANET": mgu.JANET,
    "MIN_GRU": mgu.MIN_GRU,
}
# Members that a user might write. Every value of every attribute occurs, and most pairs of values.
OTHERS = {
    "relu": mgu.Cell(activation="relu", beta=0.7),
    "flax update": mgu.Cell(update="1-f"),
    "diagonal after": mgu.Cell(recurrence="diagonal", reset="after", gate="xh", activation="relu"),
    "diagonal flax update": mgu.Cell(recurrence="diagonal", reset="none", gate="hb", update="1-f", beta=1.0),
    "blind gate": mgu.Cell(gate="x", reset="after", beta=-0.5),
    "blind candidate": mgu.Cell(gate="xhb", candidate="xb", reset="none", update="1-f"),
    "linear tanh": mgu.Cell(gate="b", candidate="xb", reset="none", activation="tanh", recurrence="diagonal"),
    "norm": mgu.Cell(layer_norm=True, beta=0.7),
    "norm after": mgu.Cell(layer_norm=True, reset="after", update="1-f", gate="xh", beta=-0.5),
    "norm diagonal": mgu.Cell(layer_norm=True, recurrence="diagonal", reset="none", gate="h"),
    "norm bias": mgu.Cell(layer_norm=True, gate="b", activation="identity"),
    "norm linear": mgu.Cell(layer_norm=True, gate="xb", candidate="xb", reset="none", beta=1.0),
}
CELLS = NAMED | OTHERS
TOLERANCE = {"float64": 1e-12, "float32": 2e-5}
# (implementation, name of a cell), for all cells that the implementation can serve
EVERYWHERE = [name for name in IMPLEMENTATIONS if name not in KERNELS]  # tests/kernels judges the kernels
PAIRS = [(i, name) for name, cell in CELLS.items() for i in EVERYWHERE if i != "parallel_backward" or cell.elementwise]
OTHER_PAIRS = [pair for pair in PAIRS if pair[1] in OTHERS]

KEY = jax.random.key(7)
LENGTHS, RESETS = np.array([5, 0, 6]), np.random.default_rng(5).random((6, 3)) < 0.4
MASK = np.random.default_rng(8).random((6, 3)) < 0.7
# Options of scan, for T = 6, B = 3.
OPTIONS = {
    "reverse": {"reverse": True},
    "lengths": {"lengths": LENGTHS},
    "mask": {"mask": MASK},
    "resets": {"resets": RESETS},
    "resets elsewhere": {"resets": RESETS, "reset_to": np.random.default_rng(6).standard_normal((3, 5))},
    "recurrent_dropout": {"recurrent_dropout": 0.4, "key": KEY},
    "zoneout": {"zoneout": 0.3, "key": KEY},
    "zoneout expected": {"zoneout": 0.25},
    "dropconnect": {"dropconnect": 0.5, "key": KEY},
}


class Case(NamedTuple):
    """The arguments of ``scan`` and random cotangents of its outputs, in NumPy float64."""

    params: mgu.Params
    xs: np.ndarray
    h0: np.ndarray
    dhs: np.ndarray
    dh_last: np.ndarray


def case(cell, T=7, batch=(3,), D=4, H=5, seed=0):
    """A random ``Case``. Every weight and bias is random, so that no term can hide behind a zero."""
    rng = np.random.default_rng(seed)
    shapes = cell.shapes(D, H)
    params = mgu.Params(*(None if s is None else rng.normal(0, 1.0 if len(s) == 1 else H**-0.5, s) for s in shapes))
    normal = rng.standard_normal
    return Case(params, normal((T, *batch, D)), normal((*batch, H)), normal((T, *batch, H)), normal((*batch, H)))


def cast(tree, dtype):
    return jax.tree.map(lambda a: jnp.asarray(a, dtype), tree)


def gradients(case, dtype, cell, transform=lambda f: f, reset_to=None, **options):
    """(outputs, gradients) of ``scan``, each name -> array; ``transform`` may be jax.jit."""

    def run(params, xs, h0, reset_to):
        return mgu.scan(params, xs, h0, cell=cell, reset_to=reset_to, **options)

    def outputs_and_gradients(cotangents, *arguments):
        outputs, pullback = jax.vjp(run, *arguments)
        return outputs, pullback(cotangents)

    arguments = cast(((case.dhs, case.dh_last), case.params, case.xs, case.h0, reset_to), dtype)
    outputs, found = transform(outputs_and_gradients)(*arguments)
    return dict(zip(("hs", "h_last"), outputs, strict=True)), named(*found)


def named(dparams, dxs, dh0, dreset_to=None):
    found = dparams._asdict() | {"xs": dxs, "h0": dh0, "reset_to": dreset_to}
    return {k: v for k, v in found.items() if v is not None}


def expected(case, cell, *, key=None, dropconnect=0.0, mask=None, save=None, segment=None, precision=None, **options):
    """(outputs, gradients) of the oracle, for any number of batch axes and the noise that ``scan`` draws.

    ``save``, ``segment`` and ``precision`` are ignored: by law, they change no result beyond the tolerance.
    """
    T, *batch, D = case.xs.shape
    H, B = case.h0.shape[-1], int(np.prod(batch))
    xs, h0 = case.xs.reshape(T, B, D), case.h0.reshape(B, H)
    rates = noise.Rates(options.pop("recurrent_dropout", 0.0), options.pop("zoneout", 0.0), dropconnect)
    with jax.enable_x64(True):
        ones = jax.tree.map(jnp.ones_like, cast(case.params, "float64"))
        weights = jax.tree.map(np.asarray, noise.mask_weights(key, dropconnect, ones))
        alpha, dropped = (None if a is None else np.asarray(a) for a in noise.sample(key, rates, (T, B, H), "float64"))
    params = jax.tree.map(np.multiply, case.params, weights)
    if (reset_to := options.get("reset_to")) is not None:
        options["reset_to"] = reset_to.reshape(B, H)
    alpha = None if alpha is None else np.broadcast_to(alpha, (T, B, H))
    # No part of the update takes place at a hole, where hs is zero; a reset does.
    there = np.ones((T, B, 1)) if mask is None else np.reshape(mask, (T, B, 1))
    alpha = alpha if mask is None else np.broadcast_to(there * (1 if alpha is None else alpha), (T, B, H))

    hs, h_last, kept = oracle.forward(cell, params, xs, h0, alpha=alpha, mask=dropped, **options)
    dhs, dh_last = there * case.dhs.reshape(T, B, H), case.dh_last.reshape(B, H)
    hs = there * hs
    grads = oracle.backward(cell, params, xs, h0, kept, dhs, dh_last, **options)
    for name, value in weights._asdict().items():
        if value is not None:
            grads[name] = grads[name] * value
    grads |= {name: grads[name].reshape(a.shape) for name, a in (("xs", case.xs), ("h0", case.h0))}
    if reset_to is not None:
        grads["reset_to"] = grads["reset_to"].reshape(reset_to.shape)
    return {"hs": hs.reshape(T, *batch, H), "h_last": h_last.reshape(*batch, H)}, grads


def assert_close(actual, wanted, tolerance):
    """The relative error of each whole array is within the tolerance. Where zeros are wanted, all must be zero."""
    assert actual.keys() == wanted.keys()
    for name, array in actual.items():
        assert array.shape == np.shape(wanted[name]), name
        error = relative_error(array, wanted[name])
        assert error <= tolerance, f"{name}: relative error {error:.1e}, allowed {tolerance:.0e}"


def equals_oracle(case, dtype, cell, implementation, tolerance=None, transform=lambda f: f, **options):
    """Values and gradients equal the oracle's."""
    # Layer normalisation over a few features loses digits by cancellation, in every implementation.
    tolerance = tolerance or TOLERANCE[dtype] * (50 if cell.layer_norm else 1)
    got = gradients(case, dtype, cell, transform, implementation=implementation, **options)
    wanted = expected(case, cell, **options)
    for mine, right in zip(got, wanted, strict=True):
        assert_close(mine, right, tolerance)
        assert all(a.dtype == dtype for a in mine.values())


def rounded(cell, dtype="bfloat16"):
    """The relative error that is allowed with a compute dtype of few bits."""
    return {"bfloat16": 5e-2, "float16": 5e-3}[dtype] * (4 if dataclasses.asdict(cell)["layer_norm"] else 1)
