"""The cell and the layer for ``flax.nnx``, in nnx's own loop, Bidirectional, optimizer and checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mgu_jax as mgu
from tests.interop import common as interop
from tests.interop.common import CELLS, DRIVES, B, D, H, T
from tests.rejects import rejects

nnx = pytest.importorskip("flax.nnx")
from mgu_jax.interop.flax_nnx import MGU, MGUCell  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")  # Flax's own

XS = np.random.default_rng(1).standard_normal((B, T, D))


@pytest.fixture(autouse=True)
def nnx_promotes(x64):
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def cell(scale=1):
    return MGUCell(D, H, params=jax.tree.map(lambda a: scale * a, interop.params()))


def run_by(layer, member):
    def run(params, xs, h0, **drive):
        made = layer(MGUCell(D, H, cell=member, params=params))
        return made(xs, initial_carry=h0, return_carry=True, **drive)

    return run


@pytest.mark.parametrize("drive", DRIVES)
def test_the_layer_computes_what_scan_computes(drive):
    interop.check(run_by(MGU, mgu.MGU), mgu.MGU, drive)


@pytest.mark.parametrize("drive", ["reverse", "lengths reverse in order"])
def test_the_loop_of_nnx_computes_what_scan_computes(drive):
    interop.check(run_by(nnx.RNN, mgu.MGU), mgu.MGU, drive)


@pytest.mark.parametrize("member", CELLS)
def test_each_member_in_the_loop_of_nnx(member):
    interop.check(run_by(nnx.RNN, CELLS[member]), CELLS[member], "plain")


def test_the_initial_parameters_of_a_cell():
    uniform = {"initializer": "uniform"}
    drawn = MGUCell(D, H, cell=mgu.MGU3, forget_bias=-2.0, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0), **uniform)
    assert drawn.params.W_f is None
    assert (drawn.params.b_f == -2).all()
    wanted = mgu.init(nnx.Rngs(0).params(), D, H, mgu.MGU3, dtype=jnp.bfloat16, **uniform)
    assert drawn.params.U_h.dtype == jnp.bfloat16
    assert np.array_equal(drawn.params.U_h, wanted.U_h)


def test_the_initial_carry():
    made = cell()
    assert made.num_feature_axes == 1
    assert made.initialize_carry((2, B, D)).shape == (2, B, H)
    assert made.initialize_carry((D,), nnx.Rngs(0)).shape == (H,)
    drawn = made.initialize_carry((B, D), nnx.Rngs(0), nnx.initializers.normal())
    assert drawn.shape == (B, H)
    assert drawn.std() > 0
    carry, y = made(drawn, XS[:, 0])
    assert np.array_equal(carry, y)


def test_one_sequence_and_many_batch_axes():
    layers = [f(cell(), return_carry=True) for f in (nnx.RNN, MGU)]
    for xs in (XS[0], XS[None, :, None]):
        (carry, ys), (our_carry, ours) = (layer(xs) for layer in layers)
        assert ours.shape == ys.shape == (*xs.shape[:-1], H)
        np.testing.assert_allclose(ours, ys, atol=1e-12)
        np.testing.assert_allclose(our_carry, carry, atol=1e-12)


def test_padding_gives_zeros_and_an_empty_sequence_keeps_its_carry():
    lengths, h0 = jnp.array([0, 2, T]), jnp.full((B, H), 0.5)
    xs = XS.copy()
    xs[1, 2:] = np.nan
    for reverse in (False, True):
        layer = MGU(cell(), return_carry=True, reverse=reverse)
        carry, ys = layer(xs, initial_carry=h0, seq_lengths=lengths)
        assert np.array_equal(carry[0], h0[0])
        assert not ys[0].any()
        assert not ys[1, 2:].any()
        assert ys[1, :2].all()
        assert np.isfinite(ys).all()


def test_bidirectional():
    one, two = cell(), cell(0.5)
    theirs = nnx.Bidirectional(nnx.RNN(one), nnx.RNN(two), return_carry=True)
    ours = nnx.Bidirectional(MGU(one), MGU(two), return_carry=True)
    lengths = jnp.asarray(interop.LENGTHS)
    (carries, ys), (our_carries, mine) = (nnx.jit(lambda m: m(XS, seq_lengths=lengths))(m) for m in (theirs, ours))
    assert mine.shape == (B, T, 2 * H)
    valid = (jnp.arange(T) < lengths[:, None])[..., None]
    np.testing.assert_allclose(mine, jnp.where(valid, ys, 0), atol=1e-12)
    for a, b in zip(our_carries, carries, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


def test_lengths_may_be_a_list_or_have_many_axes():
    layer = MGU(cell())
    lengths = [1, 2, T]
    many = layer(XS[None, :, None], seq_lengths=jnp.asarray(lengths)[None, :, None])
    np.testing.assert_allclose(many[0, :, 0], layer(XS, seq_lengths=lengths), atol=1e-12)
    np.testing.assert_array_equal(layer(XS, seq_lengths=lengths), layer(XS, seq_lengths=jnp.asarray(lengths)))


def test_options_noise_and_resets():
    xs, key, resets = XS, jax.random.key(3), jnp.zeros((B, T), bool).at[0, 3].set(True)
    made = cell()
    noisy = MGU(made, options={"zoneout": 0.5, "save": "states"})
    h = jnp.broadcast_to(jnp.arange(1, 1 + made.params.b_h.size, dtype=xs.dtype), (B, made.params.b_h.size))
    wanted, _ = mgu.scan(made.params, xs.swapaxes(0, 1), resets=resets.T, reset_to=h, zoneout=0.5, key=key)
    np.testing.assert_allclose(noisy(xs, resets=resets, reset_to=h, key=key), wanted.swapaxes(0, 1), atol=1e-12)


def test_optimizer_and_checkpoint(tmp_path):
    """The layer trains with nnx's optimizer, and a checkpoint of nnx's own RNN restores it."""
    ocp = pytest.importorskip("orbax.checkpoint")
    xs, targets = interop.task()
    model = MGU(cell())
    optimizer = nnx.Optimizer(model, optax.adam(3e-2), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        loss, gradient = nnx.value_and_grad(lambda m: jnp.mean((m(xs) - targets) ** 2))(model)
        optimizer.update(model, gradient)
        return loss

    losses = [float(step(model, optimizer)) for _ in range(30)]
    assert losses[-1] < losses[0] / 2

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", nnx.state(nnx.RNN(model.cell, rngs=False), nnx.Param))
        checkpointer.wait_until_finished()
        other = MGU(cell(0), rngs=False)
        nnx.update(other, checkpointer.restore(tmp_path / "state", nnx.state(other, nnx.Param)))
    assert np.array_equal(other(xs), model(xs))


def test_errors():
    layer, gru = MGU(cell()), nnx.GRUCell(D, H, rngs=nnx.Rngs(0))
    few, resets = jnp.zeros((2, H)), jnp.zeros((2, 6), bool)
    for call, name, rule, got in [
        (lambda: MGUCell(D, H), "rngs", "if params is not", "None"),
        (lambda: cell().initialize_carry((D,), None, jnp.ones), "rngs", "if carry_init is", "None"),
        (lambda: MGUCell(9, H, params=cell().params), "params", "(9, 5)", "(4, 5)"),
        (lambda: layer(jnp.ones(6)), "inputs", "[..., time, 4]", "[6]"),
        (lambda: layer(XS, initial_carry=few), "initial_carry", "[3, 5] (the batch of inputs", "[2, 5]"),
        (lambda: layer(XS, seq_lengths=[6, 7, 6]), "seq_lengths", "[0, 6] (inputs", "7"),
        (lambda: layer(XS, resets=resets), "resets", "[3, 6]", "[2, 6]"),
    ]:
        rejects(call, name, rule, f"got {got}", ValueError)
    for call, name, rule, got in [
        (lambda: MGUCell(D, H, rngs=0), "rngs", "an nnx.Rngs", "0"),
        (lambda: MGUCell(D, H, rngs=nnx.Rngs(0), dtype="int32"), "dtype", "float32, float64", "int32"),
        (lambda: MGU(cell(), options={"foo": 1}), "options", "mgu_jax.scan", "'foo'"),
        (lambda: MGU(cell(), options={"lengths": 1}), "options", "mgu_jax.scan", "'lengths'"),
        (lambda: MGU(gru), "cell", "an MGUCell of mgu_jax", "a GRUCell"),
    ]:
        rejects(call, name, rule, f"got {got}", TypeError)
    with pytest.raises(TypeError, match="unexpected keyword argument 'foo'"):
        layer(XS, foo=1)
