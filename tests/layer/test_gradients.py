"""check_gradients as a user meets it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mgu_jax as mgu
from mgu_jax import sequence
from tests import laws


@pytest.mark.parametrize("cell", [mgu.MGU, mgu.RESET_AFTER_MGU, mgu.MIN_GRU], ids=["MGU", "after", "linear"])
@pytest.mark.parametrize("reverse", [False, True])
def test_report(dtype, cell, reverse):
    params, xs, h0 = laws.cast(laws.case(cell, 9)[:3], dtype)
    report = mgu.check_gradients(params, xs, h0, cell=cell, reverse=reverse)
    names = [name for name, value in params._asdict().items() if value is not None]
    assert [row.name for row in report.rows] == [*names, "xs", "h0"]
    assert report.dtype == dtype
    assert report.worst <= laws.TOLERANCE[dtype]
    assert report.worst_differences <= (1e-8 if dtype == "float64" else 2e-5)
    assert max(row.reference for row in report.rows) <= (1e-8 if dtype == "float64" else 2e-5)
    lines = str(report).splitlines()
    assert lines[0] == f"gradients in {dtype}, relative errors"
    assert "manual:autodiff" in lines[1]
    assert "manual:differences" in lines[1]
    assert [line.split()[0] for line in lines[2:]] == [row.name for row in report.rows]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in ("MGU", "norm") else pytest.mark.slow) for n in laws.CELLS]
)
def test_report_with_every_option(name):
    """Also in float32, where the differences are taken in float64: a key draws the same noise in both."""
    cell = laws.CELLS[name]
    params, xs, h0 = laws.cast(laws.case(cell, 6)[:3], "float32")
    options = {k: v for option in laws.OPTIONS.values() for k, v in option.items()}
    report = mgu.check_gradients(params, xs, h0, cell=cell, directions=2, **options)
    assert report.worst <= 2e-5
    assert report.rows[-1].name == "reset_to"
    if cell.activation != "relu":  # differences may step over its kink
        assert report.worst_differences <= 5e-5


@pytest.mark.parametrize("options", [{"save": "states"}, {"save": "segments", "segment": 2}], ids=str)
def test_ways_to_save_memory_are_judged_too(options):
    """They are the hand-written pass's alone; autodiff is asked without."""
    report = mgu.check_gradients(mgu.init(jax.random.key(0), 2, 3), jnp.ones((7, 2, 2)), **options)
    assert report.worst <= 2e-6
    assert report.worst_differences <= 1e-5


def test_noise_is_judged_too(x64):
    params, xs = mgu.init(jax.random.key(0), 3, 4, dtype="float64"), jax.random.normal(jax.random.key(1), (5, 2, 3))
    plain, noisy = (mgu.check_gradients(params, xs, recurrent_dropout=r, dropconnect=r) for r in (0.0, 0.5))
    assert noisy.worst < 1e-12
    assert noisy.worst_differences < 1e-7
    norms = [{row.name: row.norm for row in report.rows} for report in (plain, noisy)]
    assert all(norms[0][name] != norms[1][name] for name in ("U_h", "xs"))


def test_it_leaves_the_configuration_alone():
    params = mgu.init(jax.random.key(0), 2, 3)
    mgu.check_gradients(params, jnp.ones((4, 2, 2)))
    assert jnp.ones(1).dtype == jnp.float32
    assert not jax.config.jax_enable_x64


def test_without_a_batch_axis_and_of_autodiff_itself(x64):
    params = mgu.init(jax.random.key(0), 2, 3, dtype=jnp.float64)
    report = mgu.check_gradients(params, np.ones((4, 2)), implementation="autodiff", key=jax.random.key(5))
    assert report.worst == 0
    assert report.worst_differences < 1e-8
    assert "autodiff:autodiff" in str(report)


def test_empty_sequence(x64):
    params = mgu.init(jax.random.key(0), 2, 3, dtype=jnp.float64)
    report = mgu.check_gradients(params, jnp.zeros((0, 2, 2)))
    assert report.worst == 0
    assert report.worst_differences < 1e-8


def plant(monkeypatch, fault):
    """An implementation "wrong": right in its values, its gradients (dparams, dxs, dh0) spoilt by ``fault``."""

    @jax.custom_gradient
    def wrong(params, xs, h0):
        outputs, pullback = jax.vjp(
            lambda *a: sequence.definition(sequence.Plan(), *a, None, sequence.Marks()), params, xs, h0
        )
        return outputs, lambda cotangents: fault(*pullback(cotangents))

    monkeypatch.setitem(sequence.IMPLEMENTATIONS, "wrong", lambda plan, *arguments: wrong(*arguments[:3]))


FAULTS = {
    "W_f": lambda dparams, dxs, dh0: (dparams._replace(W_f=0.9 * dparams.W_f), dxs, dh0),
    "W_h": lambda dparams, dxs, dh0: (dparams._replace(W_h=dparams.W_f), dxs, dh0),
    "h0": lambda dparams, dxs, dh0: (dparams, dxs, jnp.zeros_like(dh0)),
}


@pytest.mark.parametrize("guilty", FAULTS)
def test_a_wrong_gradient_is_found(x64, monkeypatch, guilty):
    """A tenth too small, taken from another array, or forgotten: found, and nothing else accused."""
    plant(monkeypatch, FAULTS[guilty])
    params, xs, h0 = laws.cast(laws.case(mgu.MGU)[:3], "float64")
    report = mgu.check_gradients(params, xs, h0, implementation="wrong")
    for row in report.rows:
        assert (row.autodiff > 0.05) == (row.differences > 0.05) == (row.name == guilty)
        assert row.reference < 1e-8


def test_nan_is_the_worst_error_of_all(x64, monkeypatch):
    plant(monkeypatch, lambda dparams, dxs, dh0: (dparams._replace(U_f=dparams.U_f * jnp.nan), dxs, dh0))
    params, xs, h0 = laws.cast(laws.case(mgu.MGU)[:3], "float64")
    report = mgu.check_gradients(params, xs, h0, implementation="wrong")
    assert np.isnan(report.worst)
    assert np.isnan(report.worst_differences)
