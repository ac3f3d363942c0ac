"""A cell that a user has changed: our layers compute what the framework's own loop over it computes, or say why not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.interop import common as interop
from tests.interop.common import B, D, H, T
from tests.rejects import rejects

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")  # Flax's own
XS = np.random.default_rng(1).standard_normal((B, T, D))
LENGTHS = jnp.asarray(interop.LENGTHS)
RESETS = np.arange(T) == 3


@pytest.fixture(autouse=True)
def frameworks_promote(x64):
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def close(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


def changed_nnx(how):
    """A cell of nnx, changed by a subclass or on the object."""
    from flax import nnx

    from mgu_jax.interop.flax_nnx import MGUCell

    class Half(MGUCell):
        def __call__(self, carry, inputs):
            carry, outputs = super().__call__(carry, inputs)
            return carry / 2, outputs / 2

    class Noisy(MGUCell):  # has a state of its own
        def __init__(self, *sizes, **options):
            super().__init__(*sizes, **options)
            self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

        def __call__(self, carry, inputs):
            return super().__call__(carry, self.dropout(inputs))

    class Ones(MGUCell):
        def initialize_carry(self, input_shape, rngs=None, carry_init=None):
            return super().initialize_carry(input_shape, rngs, carry_init) + 1

    class Scaled(MGUCell):
        @property
        def params(self):
            return jax.tree.map(lambda a: a / 2, super().params)

    classes = {"half": Half, "noisy": Noisy, "ones": Ones, "scaled": Scaled}
    cell = classes.get(how, MGUCell)(D, H, params=interop.params())
    if how == "a carry on the object":
        cell.initialize_carry = lambda shape, rngs=None: jnp.full((*shape[:-1], H), 0.5)
    if how == "a new parameter":
        cell.U_h = nnx.Param(2 * cell.U_h[...])
    return cell


@pytest.mark.parametrize("how", ["half", "noisy", "ones", "scaled", "a carry on the object", "a new parameter"])
def test_nnx(how):
    nnx = pytest.importorskip("flax.nnx")
    from mgu_jax.interop.flax_nnx import MGU

    options = {"reverse": how == "half", "return_carry": True}
    wanted, got = (kind(changed_nnx(how), **options)(XS) for kind in (nnx.RNN, MGU))
    close(got, wanted)
    assert np.abs(MGU(changed_nnx(None), **options)(XS)[1] - got[1]).max() > 1e-3


def changed_linen(how):
    import flax.linen as nn

    from mgu_jax.interop.flax_linen import MinimalGatedCell

    class Half(MinimalGatedCell):
        def __call__(self, carry, inputs):
            carry, outputs = super().__call__(carry, inputs)
            return carry / 2, outputs / 2

    class SetUp(MinimalGatedCell):
        def setup(self):
            self.scale = self.param("scale", nn.initializers.constant(0.5), (), jnp.float64)

        def __call__(self, carry, inputs):
            return super().__call__(carry * self.scale, inputs)

    class Ones(MinimalGatedCell):
        @nn.nowrap
        def initialize_carry(self, rng, input_shape):
            return super().initialize_carry(rng, input_shape) + 1

    class Scaled(MinimalGatedCell):
        @nn.compact
        def parameters(self, in_features):
            return jax.tree.map(lambda a: a / 2, super().parameters(in_features))

    doubled = nn.map_variables(
        MinimalGatedCell, "params", lambda v: jax.tree.map(lambda a: 2 * a, v), init=False, methods=["__call__"]
    )
    classes = {"half": Half, "setup": SetUp, "ones": Ones, "scaled": Scaled, "map_variables": doubled}
    return classes.get(how, MinimalGatedCell)(H, param_dtype=jnp.float64)


@pytest.mark.parametrize("how", ["half", "setup", "ones", "scaled", "map_variables"])
def test_linen(how):
    nn = pytest.importorskip("flax.linen")
    from mgu_jax.interop.convert import to_dict
    from mgu_jax.interop.flax_linen import MinimalGatedRNN

    held = to_dict(interop.params())

    def run(kind, how):
        variables = {"params": {"cell": held | ({"scale": jnp.float64(0.3)} if how == "setup" else {})}}
        return kind(changed_linen(how), return_carry=True).apply(variables, XS)

    got = run(MinimalGatedRNN, how)
    close(got, run(nn.RNN, how))
    assert np.abs(run(MinimalGatedRNN, None)[1] - got[1]).max() > 1e-3


def test_interceptors_of_linen_do_not_see_the_steps_of_our_layer():
    """One of the differences in README.md of mgu_jax/interop."""
    nn = pytest.importorskip("flax.linen")
    from mgu_jax.interop.convert import to_dict
    from mgu_jax.interop.flax_linen import MinimalGatedRNN

    seen = []

    def interceptor(call, arguments, options, context):
        seen.append((type(context.module).__name__, context.method_name))
        return call(*arguments, **options)

    for kind in (nn.RNN, MinimalGatedRNN):
        seen.clear()
        with nn.intercept_methods(interceptor):
            kind(changed_linen(None)).apply({"params": {"cell": to_dict(interop.params())}}, XS)
        assert (("MinimalGatedCell", "__call__") in seen) == (kind is nn.RNN)


def changed_equinox(how=None):
    from mgu_jax.interop.equinox import MGUCell

    class Half(MGUCell):
        def __call__(self, input, hidden, *, key=None):
            return super().__call__(input, hidden) / 2

    class Noisy(MGUCell):
        def __call__(self, input, hidden, *, key=None):
            return super().__call__(input * jax.random.bernoulli(key, 0.5, input.shape), hidden)

    return {"half": Half, "noisy": Noisy}.get(how, MGUCell)(D, H, params=interop.params())


@pytest.mark.parametrize("reverse", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_equinox(reverse):
    """In the loop that Equinox's users write, and with what our layer adds to it."""
    pytest.importorskip("equinox")
    from mgu_jax.interop.equinox import MGU

    cell, xs, h0 = changed_equinox("half"), XS[0], jnp.full(H, 0.5)
    layer = MGU(cell, reverse=reverse)

    def loop(xs, h0=jnp.zeros(H)):
        last, hs = jax.lax.scan(lambda h, x: (cell(x, h),) * 2, h0, xs, reverse=reverse)
        return hs, last

    close(layer(xs), loop(xs))
    close(layer(xs, h0), loop(xs, h0))
    padded = np.where(np.arange(T)[:, None] < 4, xs, np.nan)
    hs, last = layer(padded, h0, length=4)
    close((hs[:4], last), loop(xs[:4], h0))
    assert not hs[4:].any()
    parts = (xs[:4], xs[4:]) if reverse else (xs[:3], xs[3:])  # a step with a reset starts from reset_to
    starts = (2 * h0, h0) if reverse else (h0, 2 * h0)
    first, second = map(loop, parts, starts)
    close(layer(xs, h0, resets=RESETS, reset_to=2 * h0)[0], jnp.concatenate([first[0], second[0]]))


def test_equinox_gives_each_step_a_key():
    pytest.importorskip("equinox")
    from mgu_jax.interop.equinox import MGU

    cell, key = changed_equinox("noisy"), jax.random.key(0)
    hs, _ = MGU(cell)(XS[0], key=key)
    h = jnp.zeros(H)
    for x, of_step, wanted in zip(XS[0], jax.random.split(key, T), hs, strict=True):
        h = cell(x, h, key=of_step)
        close(h, wanted)


def test_what_only_scan_can_do_is_refused():
    pytest.importorskip("flax")
    pytest.importorskip("equinox")
    from mgu_jax.interop import equinox
    from mgu_jax.interop.flax_linen import MinimalGatedRNN
    from mgu_jax.interop.flax_nnx import MGU

    save = {"save": "states"}
    rule = "left out with a Half (it overrides MGUCell.__call__"
    resets = np.zeros((B, T), bool)
    rejects(lambda: MGU(changed_nnx("half"))(XS, resets=resets), "resets", rule, "bool [3, 6]", ValueError)
    rejects(lambda: MGU(changed_nnx("half"), options=save)(XS), "options", rule, "a dict", ValueError)
    rejects(lambda: equinox.MGU(changed_equinox("half"), options=save)(XS[0]), "options", rule, "a dict", ValueError)
    layer, key = MinimalGatedRNN(changed_linen("half")), jax.random.key(0)
    rule = "left out with a Half (it overrides MinimalGatedCell.__call__"
    rejects(lambda: layer.init(jax.random.key(0), XS, key=key), "key", rule, "key<fry> []", ValueError)
