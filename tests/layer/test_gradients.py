"""check_gradients: what it reports for right and wrong gradients."""

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
    assert dtype in lines[0]
    assert "manual vs autodiff" in lines[1]
    assert "manual vs finite differences" in lines[1]
    assert [line.split()[0] for line in lines[2:]] == [row.name for row in report.rows]


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n == "MGU" else pytest.mark.slow) for n in laws.CELLS])
def test_report_with_every_option(name):
    """In float32, with differences in float64: a key draws the same noise in both."""
    cell = laws.CELLS[name]
    params, xs, h0 = laws.cast(laws.case(cell, 6)[:3], "float32")
    options = {k: v for option in laws.OPTIONS.values() for k, v in option.items()}
    report = mgu.check_gradients(params, xs, h0, cell=cell, directions=2, **options)
    assert report.worst <= 2e-5
    assert report.rows[-1].name == "reset_to"
    if cell.activation != "relu":  # its kink may lie between two points of the differences
        assert report.worst_differences <= 5e-5


@pytest.mark.parametrize("options", [{"save": "states"}, {"save": "segments", "segment": 2}], ids=str)
def test_save_and_segment_are_checked_too(options):
    """Only "manual" uses them; autodiff runs without them."""
    report = mgu.check_gradients(mgu.init(jax.random.key(0), 2, 3), jnp.ones((7, 2, 2)), **options)
    assert report.worst <= 2e-6
    assert report.worst_differences <= 1e-5


def test_noise_is_checked_too(x64):
    params, xs = mgu.init(jax.random.key(0), 3, 4, dtype="float64"), jax.random.normal(jax.random.key(1), (5, 2, 3))
    plain, noisy = (mgu.check_gradients(params, xs, recurrent_dropout=r, dropconnect=r) for r in (0.0, 0.5))
    assert noisy.worst < 1e-12
    assert noisy.worst_differences < 1e-7
    norms = [{row.name: row.norm for row in report.rows} for report in (plain, noisy)]
    assert all(norms[0][name] != norms[1][name] for name in ("U_h", "xs"))


def test_it_does_not_change_the_configuration():
    params = mgu.init(jax.random.key(0), 2, 3)
    mgu.check_gradients(params, jnp.ones((4, 2, 2)))
    assert jnp.ones(1).dtype == jnp.float32
    assert not jax.config.jax_enable_x64


def test_autodiff_can_be_checked_and_a_batch_axis_is_optional(x64):
    params = mgu.init(jax.random.key(0), 2, 3, dtype=jnp.float64)
    report = mgu.check_gradients(params, np.ones((4, 2)), implementation="autodiff", key=jax.random.key(5))
    assert report.worst == 0
    assert report.worst_differences < 1e-8
    assert "autodiff vs autodiff" in str(report)


def test_empty_sequence(x64):
    params = mgu.init(jax.random.key(0), 2, 3, dtype=jnp.float64)
    report = mgu.check_gradients(params, jnp.zeros((0, 2, 2)))
    assert report.worst == 0
    assert report.worst_differences < 1e-8


def plant(monkeypatch, fault):
    """Add an implementation "wrong" with right values, whose gradients (dparams, dxs, dh0) are changed by ``fault``."""

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
    """A gradient that is 10 % too small, another array's or zero is found, and all others are reported as right."""
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
