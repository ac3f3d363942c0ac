"""Models of several widths in the arrays of the widest: the units that are zero stay zero, and change nothing."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mgu_jax as mgu
from mgu_jax.widths import resized
from tests.laws import CELLS
from tests.rejects import rejects

KEYS = jax.random.split(jax.random.key(5), 2)


def data(dtype):
    rng = np.random.default_rng(0)
    xs = rng.standard_normal((12, 6, 3)).astype(dtype)
    return mgu.Data(xs, (xs.sum((1, 2)) > 0).astype(np.int32), rng.integers(1, 7, 12))


SHAPES = [
    {"hidden_sizes": (5,)},
    {"hidden_sizes": (5, 6), "bidirectional": "concatenate", "learned_h0": True},
    {"hidden_sizes": (5, 5), "bidirectional": "sum", "residual": True, "readout": "mean"},
]


def model_of(cell, more):
    return mgu.Model(3, output_size=2, cell=cell, dtype=jnp.float64, **{"readout": "last"} | more)


def zeros_of(model, hidden_size):
    """Which numbers of the parameters are those of units that are zero."""
    drawn = model.init(KEYS[0], hidden_size=hidden_size)
    ones = jax.tree.map(jnp.ones_like, mgu.narrowed(model, drawn, hidden_size)[1])
    narrow = replace(model, hidden_sizes=(hidden_size,) * len(model.hidden_sizes))
    assert jax.tree.structure(ones) == jax.tree.structure(narrow.init(KEYS[0]))
    return jax.tree.map(lambda a: a == 0, resized(ones, model.hidden_sizes))


NORMAL = {name: cell for name, cell in CELLS.items() if not cell.layer_norm}
QUICK = ("MGU", "RESET_AFTER_MGU", "DIAGONAL_MGU", "MIN_GRU")
CASES = [(name, 0) for name in NORMAL] + [("MGU", 1), ("MGU", 2), ("DIAGONAL_MGU", 1)]
MARKED = [case if case[0] in QUICK and not case[1] else pytest.param(*case, marks=pytest.mark.slow) for case in CASES]


@pytest.mark.parametrize(("name", "shape"), MARKED)
def test_the_gradient_of_zero_units_is_exactly_zero(name, shape, x64):
    """And the outputs are those of the narrow model, for every member of the family, with noise too."""
    model = model_of(NORMAL[name], SHAPES[shape] | {"zoneout": 0.2, "recurrent_dropout": 0.2})
    params, zero = model.init(KEYS[0], hidden_size=2), zeros_of(model, 2)
    narrow, small = mgu.narrowed(model, params, 2)
    xs = jnp.asarray(data(np.float64).xs.swapaxes(0, 1))
    np.testing.assert_allclose(model.apply(params, xs), narrow.apply(small, xs), rtol=1e-13, atol=1e-13)
    cotangent = jax.random.normal(KEYS[1], (12, 2), jnp.float64)
    gradient = jax.grad(lambda p: (model.apply(p, xs, key=KEYS[1]) * cotangent).sum())(params)
    for g, z in zip(jax.tree.leaves(gradient), jax.tree.leaves(zero), strict=True):
        assert np.all(np.asarray(g)[np.asarray(z)] == 0)
    assert np.any(gradient.layers[0].W_h)


@pytest.mark.usefixtures("optax_promotes")
@pytest.mark.parametrize(
    ("optimizer", "shape", "sizes"),
    [
        ("adamw", 0, (5, 2)),
        pytest.param("momentum", 0, (5, 1), marks=pytest.mark.slow),
        pytest.param("adamw", 1, (5, 1, 2), marks=pytest.mark.slow),
    ],
)
def test_a_narrow_member_is_the_run_of_the_narrow_model(optimizer, shape, sizes, x64):
    """Under weight decay and clipping, in one sweep of several widths, in float64 to 1e-12; zero units stay zero."""
    model = model_of(mgu.MGU, SHAPES[shape])
    recipe = mgu.Recipe(model, optimizer=optimizer, batch_size=4)
    # Numbers that are the same in float32, which a sweep holds them in.
    hyper = mgu.Hyper(2**-5, weight_decay=0.125, clip_norm=0.5, momentum=0.75, hidden_size=np.array(sizes))
    how = {"steps": 8, "steps_per_call": 4}
    state, losses = mgu.sweep(recipe, data(np.float64), hyper=hyper, keys=KEYS, **how)
    for n, size in list(enumerate(sizes))[1:]:
        params = jax.tree.map(lambda a, n=n: a[2 * n + 1], state.members.params)
        narrow, small = mgu.narrowed(model, params, hyper.hidden_size[n])  # which checks that the others are zero
        own = replace(recipe, model=replace(model, hidden_sizes=(size,) * len(model.hidden_sizes)))
        assert narrow == own.model
        alone, values = mgu.fit(own, data(np.float64), key=KEYS[1], hyper=hyper._replace(hidden_size=None), **how)
        np.testing.assert_allclose(losses[2 * n + 1], values, rtol=1e-12)
        for got, wanted in zip(jax.tree.leaves(small), jax.tree.leaves(alone.params), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.usefixtures("optax_promotes")
def test_a_run_alone_may_be_narrow_too(x64):
    model = model_of(mgu.MGU, SHAPES[0])
    how = {"data": data(np.float64), "steps": 8, "key": KEYS[1]}
    state, _ = mgu.fit(mgu.Recipe(model, batch_size=4), hyper=mgu.Hyper(hidden_size=2), **how)
    narrow, small = mgu.narrowed(model, state.params, 2)
    alone, _ = mgu.fit(mgu.Recipe(narrow, batch_size=4), **how)
    for got, wanted in zip(jax.tree.leaves(small), jax.tree.leaves(alone.params), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_leading_axes_and_a_grid_of_widths():
    model = mgu.Model(3, (4,), 2)
    hyper = mgu.grid(hidden_size=(1, 4), learning_rate=(1e-2, 1e-3))
    state = mgu.start(mgu.Recipe(model), KEYS, hyper)
    narrow, params = mgu.narrowed(model, jax.tree.map(lambda a: a[:4], state.members.params), 1)
    assert (narrow.hidden_sizes, params.layers[0].U_f.shape, params.W_y.shape) == ((1,), (4, 1, 1), (4, 1, 2))
    whole = mgu.start(mgu.Recipe(model), KEYS[0], mgu.Hyper(learning_rate=1e-3)).params
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(state.members.params), strict=True):
        np.testing.assert_array_equal(a, b[6])


class Own:
    """A model of the user's own, without widths."""

    def init(self, key, forget_bias, initial_scale):
        return jnp.zeros(2)

    def apply(self, params, xs, **rates):
        return xs[-1, :, :2] * params


def test_errors():
    model = mgu.Model(3, (4, 6), 2)
    params, key = model.init(KEYS[0]), KEYS[0]
    normed = mgu.Model(3, (4,), 2, mgu.Cell(layer_norm=True))
    with_size = lambda size: mgu.Hyper(hidden_size=size)  # noqa: E731
    rejects(lambda: model.init(key, hidden_size=5), "hidden_size", "at most 4, the width of the model", 5)
    rejects(lambda: model.init(key, hidden_size=0), "hidden_size", "a whole number of at least 1", 0)
    rejects(lambda: normed.init(key, hidden_size=2), "hidden_size", "None for a cell with layer_norm", 2)
    tied = mgu.Model(9, (4,), 9, embedding_size=4, tie=True)
    rejects(lambda: tied.init(key, hidden_size=2), "hidden_size", "None for a model with tie", 2)
    rejects(lambda: mgu.narrowed(model, params, 2.5), "hidden_size", "a whole number", 2.5)
    rejects(lambda: mgu.narrowed(model, params, 3), "params.layers[0].W_f", "zero in the units that are cut off")
    rejects(lambda: mgu.narrowed(3, params, 3), "model", "a Model", 3)
    rejects(lambda: mgu.narrowed(model, 3, 3), "params", "a ModelParams", 3)
    rejects(lambda: jax.jit(lambda size: model.init(key, hidden_size=size))(2), "hidden_size", "a known number")
    start = lambda model, size: mgu.start(mgu.Recipe(model), key, with_size(size))  # noqa: E731
    rejects(lambda: start(model, 0), "hyper.hidden_size", "a whole number of at least 1", 0)
    rejects(lambda: start(model, 1.5), "hyper.hidden_size", "a whole number of at least 1", 1.5)
    rejects(lambda: start(model, 7), "hidden_size", "at most 4", 7)
    rejects(lambda: start(Own(), 2), "model.init", "(key, forget_bias=, initial_scale=, hidden_size=)", "init")
