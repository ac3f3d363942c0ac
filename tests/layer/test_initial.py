"""Initial parameters, their counts, and the summary."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mgu_jax as mgu
from tests import laws, oracle


def test_init_shapes_and_dtype():
    params = mgu.init(jax.random.key(0), 28, 100)
    assert [a.shape for a in params[:6]] == [(28, 100), (100, 100), (100,)] * 2
    assert params.b_r is None
    assert all(a.dtype == jnp.float32 for a in params[:6])


@pytest.mark.parametrize(("D", "H", "ours", "gru"), [(28, 100, 25_800, 38_700), (1, 100, 20_400, 30_600)])
def test_counts_of_the_paper(D, H, ours, gru):
    assert mgu.count(mgu.init(jax.random.key(0), D, H)) == ours == 2 * H * (H + D + 1)
    assert mgu.gru_count(D, H) == gru
    assert 2 * mgu.lstm_count(D, H) == 4 * ours


def test_orthogonal_and_glorot_are_the_default():
    params = mgu.init(jax.random.key(1), 20, 50)
    for U in (params.U_f, params.U_h):
        np.testing.assert_allclose(U @ U.T, np.eye(50), rtol=0, atol=1e-5)
    limit = (6 / 70) ** 0.5
    for W in (params.W_f, params.W_h):
        assert 0.9 * limit < np.abs(W).max() <= limit
    assert np.abs(params.U_f - params.U_h).max() > 0.1  # each array has a separate key


def test_qr_is_never_batched():
    """Two batched QR decompositions in one program hang on some CPUs."""
    model = mgu.Model(3, (4, 4), 2, bidirectional="concatenate")
    program = jax.make_jaxpr(jax.vmap(jax.vmap(model.init)))(jax.random.split(jax.random.key(0), (2, 3)))
    assert set(re.findall(r":(\S+) = qr\[", str(program))) == {"f32[4,4]"}


@pytest.mark.parametrize(
    ("name", "low", "high", "mean", "std"),
    [
        ("uniform", -0.1, 0.1, 0, 0.1 / 3**0.5),
        ("notebook", -0.05, 0.05, 0, 0.05 / 3**0.5),
        ("notebook_normal", -0.7, 0.6, -0.05, 0.1),
    ],
)
def test_other_initialisers(name, low, high, mean, std):
    params = mgu.init(jax.random.key(2), 100, 100, initializer=name)
    for weight in (params.W_f, params.U_f, params.W_h, params.U_h):
        assert low <= weight.min()
        assert weight.max() <= high
        assert abs(weight.mean() - mean) < 5 * std / 100
        assert abs(weight.std() - std) < 0.05 * std


def test_default_forget_bias_remembers():
    params = mgu.init(jax.random.key(0), 3, 4)
    np.testing.assert_array_equal(params.b_f, -np.ones(4))
    np.testing.assert_array_equal(params.b_h, np.zeros(4))
    h = mgu.step(jax.tree.map(jnp.zeros_like, params)._replace(b_f=params.b_f), jnp.ones(4), jnp.zeros(3))
    np.testing.assert_allclose(h, 1 - oracle.sigmoid(-1.0), rtol=1e-6)


def test_forget_bias_may_be_traced_or_given_per_unit():
    def bias(value):
        return mgu.init(jax.random.key(0), 3, 4, forget_bias=value).b_f

    swept = jax.vmap(bias)(jnp.array([-2.0, 0.5]))
    np.testing.assert_array_equal(swept, np.array([[-2.0] * 4, [0.5] * 4]))
    np.testing.assert_array_equal(bias(np.arange(4.0)), np.arange(4.0))


def test_parameters_depend_on_the_key_alone():
    a, b, c = (mgu.init(jax.random.key(seed), 3, 4) for seed in (0, 0, 1))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))
    assert not np.array_equal(a.W_f, c.W_f)


def test_old_style_keys_work():
    assert mgu.init(jax.random.PRNGKey(0), 3, 4).W_f.shape == (3, 4)


def formula(name, D, H):
    """The number of parameters of one layer, as in the papers."""
    return {
        "MGU": 2 * H * (H + D + 1),
        "MGU1": 2 * H * (H + D + 1) - D * H,  # Heck and Salem: without W_f
        "MGU2": 2 * H * (H + D + 1) - D * H - H,  # and without b_f
        "MGU3": H * (H + D + 1) + H,  # the bias alone
        "RESET_AFTER_MGU": 2 * H * (H + D + 1) + H,
        "FLAX_MGU": 2 * H * (H + D + 1) + H,
        "UGRNN": 2 * H * (H + D + 1),
        "DIAGONAL_MGU": 2 * H * (D + 2),
        "JANET": 2 * H * (H + D + 1),
        "MIN_GRU": 2 * H * (D + 1),
    }[name]


@pytest.mark.parametrize("name", laws.NAMED)
@pytest.mark.parametrize(("D", "H"), [(28, 100), (1, 100), (3, 7)])
def test_counts_of_the_family(name, D, H):
    assert mgu.count(mgu.init(jax.random.key(0), D, H, laws.NAMED[name])) == formula(name, D, H)


@pytest.mark.parametrize("name", laws.CELLS)
def test_every_member_has_exactly_its_terms(name):
    cell = laws.CELLS[name]
    params = mgu.init(jax.random.key(0), 3, 4, cell)
    shapes = cell.shapes(3, 4)
    assert [None if a is None else a.shape for a in params] == list(shapes)
    relative = mgu.init(jax.random.key(0), 3, 4, mgu.MGU)
    np.testing.assert_array_equal(params.W_h, relative.W_h)  # a missing term does not change the keys of the others


@pytest.mark.parametrize("name", laws.CELLS)
def test_forget_bias_has_the_same_effect_on_every_member(name):
    """-5 keeps almost all of the state and 5 overwrites it, for both signs of the update."""
    cell = laws.CELLS[name]
    for bias, low, high in ((-5.0, 0.98, 1.0), (5.0, 0.0, 0.02)):
        params = jax.tree.map(jnp.zeros_like, mgu.init(jax.random.key(0), 3, 4, cell))
        params = params._replace(b_f=mgu.init(jax.random.key(0), 3, 4, cell, forget_bias=bias).b_f)
        h = mgu.step(params, jnp.ones(4), jnp.zeros(3), cell)
        if params.b_f is None:
            np.testing.assert_allclose(h, 0.5 * np.ones(4))
        else:
            assert np.all((low < h) & (h < high))


@pytest.mark.parametrize("cell", [mgu.MGU, mgu.FLAX_MGU])
def test_chrono(cell):
    """b_f = -log U[1, T_max - 1] in the paper's sign, +log in Flax's."""
    bias = mgu.init(jax.random.key(0), 3, 5000, cell, initializer="uniform", forget_bias=mgu.chrono(100)).b_f
    memory = np.exp(-bias if cell is mgu.MGU else bias)
    assert 1 <= memory.min() < 1.5
    assert 98 < memory.max() <= 99.01
    assert abs(memory.mean() - 50) < 2


@pytest.mark.parametrize("cell", [mgu.MGU, mgu.FLAX_MGU])
def test_uniform_gate(cell):
    """Without inputs, f is spread evenly between 1/H and 1 - 1/H, for both signs of the update."""
    f = jax.nn.sigmoid(
        mgu.init(jax.random.key(0), 3, 5000, cell, forget_bias=mgu.uniform_gate, initializer="uniform").b_f
    )
    assert 1 / 5000 < f.min() < 0.002
    assert 0.998 < f.max() < 1 - 1 / 5000
    np.testing.assert_allclose(np.quantile(f, (0.25, 0.5, 0.75)), (0.25, 0.5, 0.75), rtol=0, atol=0.02)
    assert np.isfinite(mgu.init(jax.random.key(0), 3, 1, cell, forget_bias=mgu.uniform_gate).b_f).all()


def test_identity_and_recurrent_scale():
    params = mgu.init(jax.random.key(0), 3, 4, initializer="identity", recurrent_scale=0.01)
    np.testing.assert_allclose(params.U_f, 0.01 * np.eye(4), rtol=1e-6)
    np.testing.assert_allclose(params.U_h, 0.01 * np.eye(4), rtol=1e-6)
    swept = jax.vmap(lambda s: mgu.init(jax.random.key(0), 3, 4, recurrent_scale=s).U_h)(jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(swept[1], 2 * swept[0], rtol=1e-6)
    diagonal = mgu.init(jax.random.key(0), 3, 4, mgu.DIAGONAL_MGU, initializer="identity")
    np.testing.assert_array_equal(diagonal.U_h, np.ones(4))


def test_lecun_draws_from_the_distributions_of_flax():
    """The variance of W is 1/D for any H, and U is orthogonal."""
    params = mgu.init(jax.random.key(1), 20, 500, initializer="lecun")
    for W in (params.W_f, params.W_h):
        assert abs(W.std() - 20**-0.5) < 0.02 * 20**-0.5
        assert abs(W.mean()) < 5 * 20**-0.5 / 100
    np.testing.assert_allclose(params.U_h @ params.U_h.T, np.eye(500), rtol=0, atol=1e-5)


@pytest.mark.parametrize("initializer", ["orthogonal", "lecun", "glorot", "uniform"])
def test_a_diagonal_recurrence_is_drawn_from_a_bounded_interval(initializer):
    U = mgu.init(jax.random.key(0), 3, 400, mgu.DIAGONAL_MGU, initializer=initializer).U_f
    assert 0.9 / 20 < np.abs(U).max() <= 1 / 20


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
@pytest.mark.parametrize("initializer", ["orthogonal", "uniform", "identity", "notebook_normal"])
def test_half_precision(half, initializer):
    """Values are drawn in float32 and rounded."""
    single, rounded = (mgu.init(jax.random.key(0), 3, 4, initializer=initializer, dtype=d) for d in ("float32", half))
    for a, b in zip(jax.tree.leaves(single), jax.tree.leaves(rounded), strict=True):
        np.testing.assert_array_equal(a.astype(half), b)


def test_summary():
    text = mgu.summary(mgu.init(jax.random.key(0), 28, 100))
    lines = text.splitlines()
    assert lines[0].split() == ["name", "shape", "dtype", "count", "bytes"]
    assert lines[1].split() == ["W_f", "[28,", "100]", "float32", "2,800", "11,200"]
    assert lines[-2].split() == ["total", "25,800", "103,200"]
    assert lines[-1] == "0.667 of a GRU's 38,700, 0.500 of an LSTM's 51,600"
    assert "b_r" not in text
    assert "b_r" in mgu.summary(mgu.init(jax.random.key(0), 28, 100, mgu.FLAX_MGU))


def test_summary_of_a_model():
    """Names are paths, and the ratios are those of the layers alone."""
    model = mgu.Model(50, (4, 6), 2, embedding_size=3, bidirectional="concatenate", learned_h0=True)
    params = model.init(jax.random.key(0))
    lines = mgu.summary(params).splitlines()
    assert lines[1].split() == ["layers[0].W_f", "[3,", "4]", "float32", "12", "48"]
    names = [line.split()[0] for line in lines]
    assert {"W_y", "embedding", "backward[1].U_h", "h0.backward[1]"} <= set(names)
    total, recurrent = mgu.count(params), mgu.count((params.layers, params.backward))
    assert lines[-2].split() == ["total", f"{total:,}", f"{4 * total:,}"]
    gru = 2 * (mgu.gru_count(3, 4) + mgu.gru_count(8, 6))
    assert lines[-1].startswith(f"recurrent layers {recurrent:,}: 0.667 of a GRU's {gru:,}, 0.500 of an LSTM's ")
