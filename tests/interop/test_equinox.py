"""The cell and the layer for Equinox: in a loop as Equinox's users write it, under its filters, in its files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mgu_jax as mgu
from tests import laws
from tests.interop import common as interop
from tests.interop.common import CELLS, B, D, H, T
from tests.rejects import rejects

eqx = pytest.importorskip("equinox")
from mgu_jax.interop.equinox import MGU, MGUCell  # noqa: E402

XS = np.random.default_rng(1).standard_normal((B, T, D))


def loop(params, xs, h0, member=mgu.MGU):
    """All states and the last one, by the cell in ``lax.scan``, one example at a time."""
    cell = MGUCell(D, H, member, params=params)

    def one(xs, h0):
        def body(h, x):
            h = cell(x, h)
            return h, h

        return jax.lax.scan(body, h0, xs)

    return jax.vmap(one)(xs, h0)


def layer(params, xs, h0, reverse=False, seq_lengths=None, keep_order=True, time_major=False):
    made = MGU(MGUCell(D, H, params=params), reverse=reverse)
    axis = 1 if time_major else 0
    length = None if seq_lengths is None else jnp.asarray(seq_lengths)

    def one(x, h, length):
        return made(x, h, length=length)

    outputs, carry = jax.vmap(one, (axis, 0, None if length is None else 0), (axis, 0))(xs, h0, length)
    return carry, outputs


@pytest.mark.parametrize("drive", ["plain", "lengths", "lengths reverse in order"])
def test_the_layer_computes_what_scan_computes(x64, drive):
    interop.check(layer, mgu.MGU, drive)


@pytest.mark.parametrize("member", CELLS)
def test_each_member_in_a_loop(x64, member):
    interop.check(lambda *arguments: loop(*arguments, member=CELLS[member]), CELLS[member], "plain")


def test_the_initial_parameters_of_a_cell(x64):
    key = jax.random.key(0)
    cell = MGUCell(D, H, mgu.MGU1, jnp.bfloat16, key=key, forget_bias=-2.0, initializer="uniform")
    wanted = mgu.init(key, D, H, mgu.MGU1, forget_bias=-2.0, initializer="uniform", dtype=jnp.bfloat16)
    assert jax.tree.all(jax.tree.map(np.array_equal, cell.params, wanted))
    assert MGUCell(1, 1, key=key, initializer="uniform").params.W_h.dtype == jnp.float64


def test_filters_and_files(x64, tmp_path):
    """Equinox differentiates and saves the arrays, and only those."""
    model = MGU(MGUCell(D, H, params=interop.params()), options={"save": "states"})

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(model, xs):
        return jnp.sum(jax.vmap(model)(xs)[0])

    found = gradient(model, XS)
    assert jax.tree.structure(found) == jax.tree.structure(eqx.filter(model, eqx.is_array))
    assert laws.relative_error(found.cell.params.b_h, np.zeros(H)) > 0

    eqx.tree_serialise_leaves(tmp_path / "model.eqx", model)
    like = MGU(MGUCell(D, H, params=jax.tree.map(np.zeros_like, interop.params())), options={"save": "states"})
    again = eqx.tree_deserialise_leaves(tmp_path / "model.eqx", like)
    assert jax.tree.all(jax.tree.map(np.array_equal, again, model))


def test_options_noise_resets_and_the_default_state(x64):
    params, key, resets = interop.params(), jax.random.key(3), np.arange(T) == 3
    made = MGU(MGUCell(D, H, params=params), options={"zoneout": 0.5})
    h = jnp.arange(1.0, 1.0 + params.b_h.size)
    got = made(XS[0], resets=resets, reset_to=h, key=key)
    wanted = mgu.scan(params, XS[0], resets=resets, reset_to=h, zoneout=0.5, key=key)
    for mine, right in zip(got, wanted, strict=True):
        np.testing.assert_allclose(mine, right, atol=1e-12)


def test_a_length_may_be_a_whole_number(x64):
    layer = MGU(MGUCell(D, H, params=interop.params()))
    (hs, last), (wanted, end) = layer(XS[0], length=3), layer(XS[0, :3])
    np.testing.assert_allclose(last, end, atol=1e-12)
    np.testing.assert_allclose(hs[:3], wanted, atol=1e-12)
    assert not hs[3:].any()


def test_errors(x64):
    made = MGUCell(D, H, params=interop.params())
    gru = eqx.nn.GRUCell(D, H, key=jax.random.key(0))
    rejects(lambda: MGU(gru), "cell", "MGUCell of mgu_jax", "a GRUCell", TypeError)
    rejects(lambda: MGU(made, options={"foo": 1}), "options", "mgu_jax.scan", "'foo'", TypeError)
    rejects(lambda: MGUCell(D, H), "key", "one PRNG key", "None", TypeError)
    rejects(lambda: MGUCell(9, H, params=interop.params()), "params", "(9, 5)", "(4, 5)", ValueError)
    resets = jnp.zeros(5, bool)
    for call, name, rule, got in [
        (lambda: MGU(made)(XS), "input", "[T, D] (use jax.vmap for a batch)", "[3, 6, 4]"),
        (lambda: made(XS[0], XS[0]), "input", "[D] (use jax.vmap for a batch)", "[6, 4]"),
        (lambda: made(XS[0, 0], XS[0]), "hidden", "[H] (use jax.vmap for a batch)", "[6, 4]"),
        (lambda: MGU(made)(XS[0, :, :3]), "input", "[T, 4]", "[6, 3]"),
        (lambda: MGU(made)(XS[0], XS[0, 0]), "hidden", "[..., 5]", "[4]"),
        (lambda: MGU(made)(XS[0], length=7), "length", "[0, 6]", "7"),
        (lambda: MGU(made)(XS[0], resets=resets), "resets", "[6]", "[5]"),
    ]:
        rejects(call, name, rule, f"got {got}", ValueError)
