"""Flax's cells as models: they compute what Flax computes, and training takes them like any other model."""

from typing import get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mgu_jax as mgu
from experiments.harness import baselines, cells
from experiments.harness.baselines import baseline
from mgu_jax.gradients import relative_error
from mgu_jax.training.losses import accuracy

pytestmark = pytest.mark.usefixtures("as_a_user")
T, B, D, H, K = 5, 4, 3, 6, 2


def by_hand(name, params, xs):
    """The states by Flax's equations in NumPy, gate by gate and step by step."""
    p = jax.tree.map(np.float64, dict(params.cell))
    h = c = np.zeros((xs.shape[1], H))
    hs = []

    def sigmoid(z):
        return 1 / (1 + np.exp(-z))

    def into(gate, rows):
        return rows @ p[gate]["kernel"] + p[gate].get("bias", 0)

    for x in np.float64(xs):
        if name == "gru":
            r, z = (sigmoid(into("i" + g, x) + into("h" + g, h)) for g in "rz")
            h = (1 - z) * np.tanh(into("in", x) + r * into("hn", h)) + z * h
        elif name == "lstm":
            i, f, g, o = (into("i" + g, x) + into("h" + g, h) for g in "ifgo")
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
        else:
            f = sigmoid(into("if", x) + into("hf", h))
            h = (1 - f) * np.tanh(into("in", x) + f * into("hn", h)) + f * h
        hs.append(h)
    return np.stack(hs)


def test_a_tied_baseline_reads_out_with_its_embedding():
    tied = baseline("gru", 7, H, 7, embedding_size=H, tie=True)
    params = tied.init(jax.random.key(0))
    apart = baseline("gru", 7, H, 7, embedding_size=H)
    tokens = jax.random.randint(jax.random.key(1), (T, B), 0, 7)
    assert params.W_y is None
    whole = params._replace(W_y=params.embedding.T)
    np.testing.assert_allclose(tied.apply(params, tokens), apart.apply(whole, tokens), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", baselines.CELLS)
def test_a_baseline_computes_flaxs_equations(name):
    """All readouts, lengths, a carried state and single steps, against the equations."""
    key = jax.random.key(0)
    xs = np.asarray(jax.random.normal(key, (T, B, D)))
    lengths = np.array([5, 1, 3, 4])
    models = {readout: baseline(name, D, H, K, readout) for readout in ("all", "last", "mean")}
    params = models["all"].init(key)
    assert jax.tree.all(jax.tree.map(np.array_equal, params, models["mean"].init(key)))
    hs = by_hand(name, params, xs)

    def read(rows):
        return rows @ np.float64(params.W_y) + np.float64(params.b_y)

    apply = jax.jit(models["all"].apply, static_argnames="return_state")
    whole, state = apply(params, xs, return_state=True)
    assert relative_error(whole, read(hs)) < 1e-5
    last = models["last"].apply(params, xs, lengths=lengths)
    assert relative_error(last, read(hs[lengths - 1, np.arange(B)])) < 1e-5
    mean = models["mean"].apply(params, xs, lengths=lengths)
    wanted = np.stack([hs[:n, i].mean(0) for i, n in enumerate(lengths)])
    assert relative_error(mean, read(wanted)) < 1e-5
    assert relative_error(models["mean"].apply(params, xs), read(hs.mean(0))) < 1e-5

    first, carried = apply(params, xs[:2], return_state=True)
    y, stepped = models["all"].step(params, xs[2], carried)
    assert relative_error(jnp.stack([*first, y]), read(hs[:3])) < 1e-5
    rest, end = apply(params, xs[3:], state=stepped, return_state=True)
    assert relative_error(rest, read(hs[3:])) < 1e-5
    for left, right in zip(jax.tree.leaves(end), jax.tree.leaves(state), strict=True):
        assert relative_error(left, right) < 1e-5


@pytest.mark.parametrize("name", baselines.CELLS)
def test_only_the_initial_forget_bias_differs_from_flax(name):
    kind, keeps, takes = baselines.CELLS[name]
    key = jax.random.key(1)
    params = baseline(name, D, H, K).init(key)
    cell = getattr(nn, kind)(features=H)
    flax = nn.RNN(cell, time_major=True).init(jax.random.split(key, 4)[0], jnp.zeros((1, 1, D)))["params"]["cell"]
    for gate, arrays in flax.items():
        for part, value in arrays.items():
            kept = gate == keeps and part == "bias"
            np.testing.assert_array_equal(params.cell[gate][part], np.ones(H) if kept else value)
    scaled = baseline(name, D, H, K).init(key, forget_bias=2.0, initial_scale=0.5)
    np.testing.assert_array_equal(scaled.cell[keeps]["bias"], np.full(H, -2.0))
    np.testing.assert_array_equal(scaled.W_y, 0.5 * params.W_y)
    chrono = baseline(name, D, H, K).init(key, forget_bias=mgu.chrono(100)).cell
    assert np.all((chrono[keeps]["bias"] >= 0) & (chrono[keeps]["bias"] <= np.log(99)))
    assert len(set(np.asarray(chrono[keeps]["bias"]))) == H
    if takes:
        np.testing.assert_array_equal(chrono[takes]["bias"], -chrono[keeps]["bias"])


def test_a_large_negative_forget_bias_keeps_the_state():
    xs = jax.random.normal(jax.random.key(0), (3, 1, D))
    for name in ("gru", "linen-mgu"):  # an LSTM adds to what it keeps
        model = baseline(name, D, H, K)
        params = model.init(jax.random.key(2), forget_bias=-50.0)
        state = jax.tree.map(lambda h: h + 0.3, model.start(params, (1,)))
        _, end = model.apply(params, xs, state=state, return_state=True)
        np.testing.assert_allclose(end, np.full((1, H), 0.3), rtol=1e-6)


def test_dropout_acts_on_the_output_of_the_layer():
    model = baseline("gru", D, H, H, dropout=0.5)
    key = jax.random.key(3)
    params = model.init(key)._replace(W_y=jnp.eye(H), b_y=jnp.zeros(H))
    xs = jax.random.normal(key, (T, B, D))
    apply = jax.jit(model.apply, static_argnames=("training", "dropout"))
    whole, noisy = apply(params, xs), apply(params, xs, key=key, training=True)
    ratio = np.asarray(noisy / whole)
    assert set(np.round(ratio.ravel(), 4)) == {0.0, 2.0}
    for off in ({"training": True, "dropout": 0.0}, {"training": False}):
        np.testing.assert_allclose(apply(params, xs, key=key, **off), whole, rtol=1e-6)
    with pytest.raises(ValueError, match="key must be given to train with dropout; got None"):
        model.apply(params, xs, training=True)
    with pytest.raises(ValueError, match="a rate must be dropout for a baseline; got zoneout"):
        model.apply(params, xs, zoneout=0.1)
    with pytest.raises(ValueError, match="'mean' cannot be stepped"):
        baseline("gru", D, H, K, "mean").step(params, xs[0])
    with pytest.raises(ValueError, match="name must be one of"):
        baseline("rnn", D, H, K)


@pytest.mark.slow
def test_fit_and_sweep_take_a_baseline():
    """A stream with a carried state, and samples with lengths under vmap over seeds; the losses fall."""
    key = jax.random.key(0)
    tokens = np.tile(np.arange(4, dtype=np.int32), 50)
    recipe = mgu.Recipe(baseline("lstm", 4, H, 4, embedding_size=3), batch_size=2, window=5)
    stream = mgu.Stream(tokens[:-1], tokens[1:])
    _, losses = mgu.fit(recipe, stream, steps=60, key=key, hyper=mgu.Hyper(0.02), steps_per_call=60)
    assert losses[-1] < 0.5 * losses[0]

    labels = np.arange(20, dtype=np.int32) % 2
    xs = np.random.default_rng(0).normal(size=(20, T, D)).astype(np.float32) + labels[:, None, None]
    data = mgu.Data(xs, labels, np.full(20, 4, np.int32))
    recipe = mgu.Recipe(baseline("gru", D, H, K, "last"), batch_size=10)
    options = {"steps": 30, "hyper": mgu.Hyper(0.05), "keys": jax.random.split(key, 2), "steps_per_call": 30}
    state, losses = mgu.sweep(recipe, data, validation=mgu.Validation(data, (accuracy,)), **options)
    assert np.all(losses[:, -1] < 0.5 * losses[:, 0])
    assert np.all(state.members.best.score > 0.9)


def test_every_cell_has_a_name_and_a_model():
    assert get_args(cells.CellName) == (*cells.FAMILY, *baselines.CELLS)
    for name in get_args(cells.CellName):
        model = cells.build(name, 5, H, K, readout="last", embedding_size=D)
        assert model == cells.build(name, 5, H, K, readout="last", embedding_size=D)
        params = jax.eval_shape(model.init, jax.random.key(0))
        assert params.embedding.shape == (5, D)
    counts = cells.counts(cells.build("mgu", 28, 100, 10, readout="last"))
    assert counts == {"recurrent": 25_800, "all": 25_800 + 1010}
    assert cells.counts(cells.build("gru", 28, 100, 10))["recurrent"] == mgu.gru_count(28, 100) + 100  # Flax's b_hn
    assert cells.counts(cells.build("lstm", 28, 100, 10))["recurrent"] == mgu.lstm_count(28, 100)


@pytest.mark.parametrize("name", ["mgu", "gru", "lstm", "min-gru"])
def test_the_matched_width_comes_nearest_in_parameters(name):
    wanted = cells.counts(cells.build("mgu", 28, 100, 10))["recurrent"]
    width = cells.width_of(name, wanted, 28, 10)
    assert name != "mgu" or width == 100
    off = [abs(cells.counts(cells.build(name, 28, h, 10))["recurrent"] - wanted) for h in (width - 1, width, width + 1)]
    assert min(off) == off[1]


def test_chrono_replaces_the_forget_bias():
    key = jax.random.key(0)
    chrono = cells.build("mgu", D, H, K, mgu.chrono(50)).init(key, forget_bias=-1.0).layers[0].b_f
    assert len(set(np.asarray(chrono))) == H
    keep = cells.build("gru", D, H, K, mgu.chrono(50)).init(key, forget_bias=-1.0).cell["iz"]["bias"]
    assert np.all((keep >= 0) & (keep <= np.log(49)))
    with pytest.raises(ValueError, match="chrono only for a cell with a forget bias; got mgu2"):
        cells.build("mgu2", D, H, K, mgu.chrono(50))


def test_flax_is_needed_only_for_its_cells(monkeypatch):
    def missing(module, extra):
        raise ImportError(
            f"{module} is needed here and not installed: in a clone of mgu_jax, pip install -e '.[{extra}]'."
        )

    monkeypatch.setattr("experiments.harness.baselines.require", missing)
    cells.build("mgu", D, H, K + 1)
    with pytest.raises(ImportError, match=r"flax\.linen is needed here and not installed"):
        cells.build("gru", D, H, K + 1)
