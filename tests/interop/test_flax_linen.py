"""The cell and the layer for ``flax.linen``, in linen's own loop, Bidirectional and serialisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mgu_jax as mgu
from mgu_jax.interop.convert import to_dict
from tests.interop import common as interop
from tests.interop.common import CELLS, B, D, H, T
from tests.rejects import rejects

nn = pytest.importorskip("flax.linen")
from flax import serialization  # noqa: E402

from mgu_jax.interop.flax_linen import MinimalGatedCell, MinimalGatedRNN  # noqa: E402

XS = np.random.default_rng(1).standard_normal((B, T, D))


@pytest.fixture(autouse=True)
def linen_promotes(x64):
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def cell(member=mgu.MGU, **options):
    return MinimalGatedCell(H, member, param_dtype=jnp.float64, **options)


def variables(params):
    return {"params": {"cell": to_dict(params)}}


def run_by(layer, member):
    def run(params, xs, h0, **drive):
        return layer(cell(member)).apply(variables(params), xs, initial_carry=h0, return_carry=True, **drive)

    return run


@pytest.mark.parametrize("drive", ["lengths reverse", "lengths reverse in order"])  # the tests of nnx have the others
def test_the_layer_computes_what_scan_computes(drive):
    interop.check(run_by(MinimalGatedRNN, mgu.MGU), mgu.MGU, drive)


def test_the_loop_of_linen_computes_what_scan_computes():
    interop.check(run_by(nn.RNN, mgu.MGU), mgu.MGU, "lengths reverse in order")


@pytest.mark.parametrize("member", CELLS)
def test_each_member_in_the_loop_of_linen(member):
    interop.check(run_by(nn.RNN, CELLS[member]), CELLS[member], "plain")


def test_the_cell_and_both_layers_draw_the_same_variables():
    """So one can be trained and the other can continue."""
    made = MinimalGatedCell(H, mgu.MGU1, {"forget_bias": -2.0, "initializer": "uniform"}, param_dtype=jnp.bfloat16)
    xs = jnp.zeros((B, T, D), jnp.bfloat16)
    one, other = (layer(made).init(jax.random.key(0), xs) for layer in (nn.RNN, MinimalGatedRNN))
    assert jax.tree.all(jax.tree.map(np.array_equal, one, other))
    drawn = one["params"]["cell"]
    assert drawn.keys() == {"U_f", "b_f", "W_h", "U_h", "b_h"}
    assert (drawn["b_f"] == -2).all()
    assert drawn["U_h"].dtype == jnp.bfloat16
    assert not np.array_equal(drawn["U_f"], drawn["U_h"])


def test_the_initial_carry():
    assert cell().num_feature_axes == 1
    assert cell().initialize_carry(jax.random.key(0), (2, B, D)).shape == (2, B, H)
    assert cell().initialize_carry(None, (D,)).dtype == jnp.float64
    ones = cell(carry_init=nn.initializers.ones_init())
    assert ones.initialize_carry(jax.random.key(0), (B, D)).tolist() == np.ones((B, H)).tolist()
    empty = np.zeros((B, 0, D))
    carry, _ = MinimalGatedRNN(ones, return_carry=True).apply(variables(interop.params()), empty)
    assert carry.tolist() == np.ones((B, H)).tolist()


def test_one_step():
    """The variables of a cell outside a layer are not nested in "cell"."""
    params, h = interop.params(), np.ones((B, H))
    carry, y = cell().apply({"params": to_dict(params)}, h, XS[:, 0])
    assert np.array_equal(carry, y)
    np.testing.assert_allclose(y, mgu.step(params, h, XS[:, 0]), atol=1e-12)


def test_bidirectional():
    weights = {"forward_rnn": variables(interop.params())["params"]}
    weights = {"params": weights | {"backward_rnn": jax.tree.map(lambda a: a / 2, weights["forward_rnn"])}}
    lengths = jnp.asarray(interop.LENGTHS)
    outputs = []
    for layer in (nn.RNN, MinimalGatedRNN):
        both = nn.Bidirectional(layer(cell()), layer(cell()), return_carry=True)
        outputs.append(jax.jit(both.apply)(weights, XS, seq_lengths=lengths))
    (carries, ys), (our_carries, ours) = outputs
    assert ours.shape == (B, T, 2 * H)
    valid = (jnp.arange(T) < lengths[:, None])[..., None]
    np.testing.assert_allclose(ours, jnp.where(valid, ys, 0), atol=1e-12)
    for a, b in zip(our_carries, carries, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


def test_options_noise_and_resets():
    params, key, resets = interop.params(), jax.random.key(3), np.zeros((B, T), bool)
    resets[0, 3] = True
    layer = MinimalGatedRNN(cell(), options={"zoneout": 0.5, "save": "states"})
    h = jnp.broadcast_to(jnp.arange(1, 1 + params.b_h.size, dtype=params.b_h.dtype), (B, params.b_h.size))
    got = layer.apply(variables(params), XS, resets=resets, reset_to=h, key=key)
    wanted, _ = mgu.scan(params, XS.swapaxes(0, 1), resets=resets.T, reset_to=h, zoneout=0.5, key=key)
    np.testing.assert_allclose(got, wanted.swapaxes(0, 1), atol=1e-12)


def test_serialisation():
    held = variables(interop.params())
    again = serialization.from_bytes(jax.tree.map(np.zeros_like, held), serialization.to_bytes(held))
    assert jax.tree.all(jax.tree.map(np.array_equal, held, again))


def test_errors():
    gru, layer = MinimalGatedRNN(nn.GRUCell(H)), MinimalGatedRNN(cell(), time_major=True)
    rejects(lambda: gru.init(jax.random.key(0), XS), "cell", "a MinimalGatedCell of mgu_jax", "a GRUCell", TypeError)
    given = variables(interop.params())
    rejects(lambda: layer.apply(given, XS[0, 0]), "inputs", "[time, ..., 4]", "got [4]", ValueError)
