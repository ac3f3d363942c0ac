"""Numbers of mixed dtypes: our cells take what the framework's own take, and return the same dtype."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mgu_jax as mgu
from tests.interop import common as interop
from tests.interop.common import B, D, H, T
from tests.rejects import rejects

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")  # Flax's own
FRAMEWORKS = ["flax.nnx", "flax.linen", "equinox"]
RNG = np.random.default_rng(0)
WHOLE = RNG.integers(0, 2, (B, T, D))


@pytest.fixture(autouse=True)
def frameworks_promote(x64):
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def steps(framework, param_dtype, dtype=None):
    """(a step of the framework's GRU, a step of our cell, our layer), each a function of (inputs, carry)."""
    pytest.importorskip(framework)
    params = interop.params(dtype=param_dtype)
    if framework == "flax.nnx":
        from flax import nnx

        from mgu_jax.interop import flax_nnx

        kinds = {"param_dtype": param_dtype, "dtype": dtype}
        normal = nnx.initializers.normal()  # an orthogonal one cannot be drawn in bfloat16
        gru = nnx.GRUCell(D, H, recurrent_kernel_init=normal, rngs=nnx.Rngs(0), **kinds)
        cell = flax_nnx.MGUCell(D, H, params=params, dtype=dtype)
        layer = flax_nnx.MGU(cell)
        return lambda x, h: gru(h, x)[0], lambda x, h: cell(h, x)[0], lambda x, h: layer(x, initial_carry=h)
    if framework == "flax.linen":
        import flax.linen as nn

        from mgu_jax.interop import flax_linen
        from mgu_jax.interop.convert import to_dict

        kinds = {"param_dtype": param_dtype, "dtype": dtype}
        gru, cell = nn.GRUCell(H, **kinds), flax_linen.MinimalGatedCell(H, **kinds)
        held, layer = {"params": to_dict(params)}, flax_linen.MinimalGatedRNN(cell)

        def in_layer(x, h):
            return layer.apply({"params": {"cell": held["params"]}}, x, initial_carry=h)

        def theirs(x, h):
            return gru.init_with_output(jax.random.key(0), h, x)[0][0]

        return theirs, lambda x, h: cell.apply(held, h, x)[0], in_layer
    import equinox

    from mgu_jax.interop import equinox as mgu_eqx

    gru = equinox.nn.GRUCell(D, H, dtype=param_dtype, key=jax.random.key(0))
    cell = mgu_eqx.MGUCell(D, H, params=params)
    layer = mgu_eqx.MGU(cell)
    return jax.vmap(gru), jax.vmap(cell), lambda x, h: jax.vmap(layer)(x, h)[0]


KINDS = ("int32", "bool", "float16", "float32", "float64", jnp.bfloat16)
SOME = [(name, ("bool", jnp.bfloat16), ("float32",), (jnp.bfloat16, "float64")) for name in FRAMEWORKS]
EVERY = [(name, KINDS, ("float32", jnp.bfloat16), ("float32", jnp.bfloat16, "float64")) for name in FRAMEWORKS]


@pytest.mark.parametrize(
    ("framework", "kinds", "param_dtypes", "carries"), SOME + [pytest.param(*c, marks=pytest.mark.slow) for c in EVERY]
)
def test_a_step_returns_the_dtype_of_the_frameworks_own(framework, kinds, param_dtypes, carries):
    """Of inputs, carry and parameters of any dtype; and of ``dtype=``, which Equinox's cells do not have."""
    dtypes = (None,) if framework == "equinox" else (None, jnp.bfloat16)
    for param_dtype, dtype in itertools.product(param_dtypes, dtypes):
        theirs, ours, layer = steps(framework, param_dtype, dtype)
        for x, h in itertools.product(kinds, carries):
            x, h = jax.ShapeDtypeStruct((B, D), x), jax.ShapeDtypeStruct((B, H), h)
            wanted = jax.eval_shape(theirs, x, h).dtype
            assert jax.eval_shape(ours, x, h).dtype == wanted, (param_dtype, dtype, x, h)
            sequences = jax.ShapeDtypeStruct((B, T, D), x.dtype)
            assert jax.eval_shape(layer, sequences, h).dtype == wanted, (param_dtype, dtype, x, h)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_whole_numbers_are_taken_as_floats(framework):
    _, ours, layer = steps(framework, "float32")
    h = RNG.normal(size=(B, H)).astype(np.float32)
    for kind in ("int32", "bool"):
        xs = WHOLE.astype(kind)
        np.testing.assert_array_equal(ours(xs[:, 0], h), ours(xs[:, 0].astype(np.float32), h))
        np.testing.assert_array_equal(layer(xs, h), layer(xs.astype(np.float32), h))


@pytest.mark.parametrize("framework", FRAMEWORKS[:2])
def test_a_narrower_dtype_rounds_the_products(framework):
    """As ``compute_dtype`` of ``scan`` does; and where it is that of the parameters, nothing changes."""
    h, x = RNG.normal(size=(B, H)).astype(np.float32), RNG.normal(size=(B, T, D)).astype(np.float32)
    _, exact_step, exact = steps(framework, "float32")
    _, same_step, same = steps(framework, "float32", "float32")
    _, rounded_step, rounded = steps(framework, "float32", jnp.bfloat16)
    np.testing.assert_array_equal(same(x, h), exact(x, h))
    np.testing.assert_array_equal(same_step(x[:, 0], h), exact_step(x[:, 0], h))
    params = jax.tree.map(jnp.asarray, interop.params(dtype="float32"))
    wanted = mgu.scan(params, x.swapaxes(0, 1), h, compute_dtype=jnp.bfloat16)[0].swapaxes(0, 1)
    np.testing.assert_allclose(rounded(x, h), wanted, rtol=0, atol=1e-6)
    np.testing.assert_allclose(rounded_step(x[:, 0], h), wanted[:, 0], rtol=0, atol=1e-6)
    assert np.abs(rounded(x, h) - exact(x, h)).max() > 1e-4


def test_inputs_that_are_wider_than_the_carry_widen_it():
    """nnx's loop raises, since its carry would change its dtype: one of the differences in README.md."""
    nnx = pytest.importorskip("flax.nnx")
    from mgu_jax.interop import flax_nnx

    cell, xs = flax_nnx.MGUCell(D, H, params=interop.params(dtype="float32")), RNG.normal(size=(B, T, D))
    with pytest.raises(TypeError, match="carry"):
        nnx.RNN(cell)(xs)
    carry, ys = flax_nnx.MGU(cell, return_carry=True)(xs)
    assert carry.dtype == ys.dtype == "float64"
    wide = jax.tree.map(lambda a: a.astype("float64"), cell.params)
    np.testing.assert_allclose(ys, mgu.scan(wide, xs.swapaxes(0, 1))[0].swapaxes(0, 1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_complex_numbers_and_text_are_refused(framework):
    _, ours, layer = steps(framework, "float32")
    name = "input" if framework == "equinox" else "inputs"
    h = np.zeros((B, H), np.float32)
    for xs, got in ((WHOLE * 1j, f"complex128 [{B}, {T}, {D}]"), ([1.0], "a list")):
        if framework != "equinox":
            rejects(lambda xs=xs: layer(xs, h), name, "an array of real numbers", got, TypeError)
    got = "complex128 [4]" if framework == "equinox" else "complex128 [3, 4]"
    rejects(lambda: ours(WHOLE[:, 0] * 1j, h), name, "an array of real numbers", got, TypeError)
