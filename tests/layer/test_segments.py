"""Time in segments: cutting and joining are inverse, and neither ``save`` nor ``segment`` changes a result.

``test_laws.py`` combines them with all options.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import mgu_jax as mgu
from mgu_jax.gradients import relative_error
from mgu_jax.layer import segments
from tests import laws

SAVES = pytest.mark.parametrize("save", segments.SAVE)


@pytest.mark.parametrize("reverse", [False, True])
def test_join_undoes_cut_and_segments_run_in_order(reverse):
    for steps in (0, 1, 2, 5, 7, 11):
        rows = {"a": jnp.arange(steps), "b": jnp.arange(2.0 * steps).reshape(steps, 2), "none": None}
        for length in (1, 2, 3, 5, 7, 13):
            stacks = segments.cut(rows, length, reverse)
            back = segments.join(stacks, reverse)
            np.testing.assert_array_equal(back["a"], rows["a"])
            np.testing.assert_array_equal(back["b"], rows["b"])

            def see(carry, segment):
                return carry, segment["a"][::-1] if reverse else segment["a"]

            _, seen = segments.over(see, 0, stacks, reverse)
            order = [int(i) for stack in seen for segment in (stack[::-1] if reverse else stack) for i in segment]
            assert order == list(range(steps))[:: -1 if reverse else 1]


def test_length_fits_the_cache_and_divides_the_steps_if_possible():
    for save in segments.SAVE:
        for steps in (0, 1, 7, 28, 100, 128, 1000, 1009, 100_000):
            for state_bytes in (0, 4, 4096, 2**20, 2**24):
                length = segments.length(save, steps, state_bytes)
                assert 1 <= length <= max(1, steps)
    assert segments.length("gates", 28, 40_000) == 28  # all steps fit the cache
    assert segments.length("gates", 1000, 2**16) == 8  # eight steps fit, and divide 1000
    assert segments.length("states", 1000, 4) == 125
    assert segments.length("segments", 100_000, 4) == 250
    assert segments.length("gates", 1000, 2**16, on_cpu=False) == 1000
    assert segments.length("states", 1000, 2**16, on_cpu=False) == 125


@SAVES
@pytest.mark.parametrize(
    ("T", "segment", "reverse"), [(0, 3, False), (1, 1, True), (7, 1, False), (7, 5, True), (6, 9, True)]
)
def test_any_length(x64, save, T, segment, reverse):
    laws.equals_oracle(laws.case(mgu.MGU, T), "float64", mgu.MGU, "manual", save=save, segment=segment, reverse=reverse)


@SAVES
def test_in_float32_under_jit(save):
    case = laws.case(mgu.MGU, 37)
    laws.equals_oracle(case, "float32", mgu.MGU, "manual", transform=jax.jit, save=save, segment=8)


def loss(of, **options):
    def function(params, xs, h0):
        outputs = mgu.scan(params, xs, h0, **options)
        return sum(jnp.sum(jnp.sin(outputs[i])) for i in of)

    return function


@SAVES
@pytest.mark.parametrize("of", [(0,), (1,), ()], ids=["hs", "h_last", "none"])
def test_outputs_that_the_loss_does_not_use(x64, save, of):
    """Their cotangents are symbolic zeros, and the gradient is the same as with zeros."""
    arguments = laws.cast(laws.case(mgu.MGU, 6)[:3], "float64")
    mine = jax.grad(lambda *a: 0.0 * a[2].sum() + loss(of, save=save, segment=4)(*a), (0, 1, 2))(*arguments)
    right = jax.grad(lambda *a: 0.0 * a[2].sum() + loss(of, implementation="autodiff")(*a), (0, 1, 2))(*arguments)
    for got, wanted in zip(jax.tree.leaves(mine), jax.tree.leaves(right), strict=True):
        assert relative_error(got, wanted) <= 1e-12


@SAVES
def test_second_derivatives_and_vmap(x64, save):
    arguments = laws.cast(laws.case(mgu.MGU, 5, (2,), 2, 3)[:3], "float64")
    ours, right = loss((0, 1), save=save, segment=2), loss((0, 1), implementation="autodiff")
    for got, wanted in zip(*(jax.tree.leaves(jax.hessian(f, 2)(*arguments)) for f in (ours, right)), strict=True):
        assert relative_error(got, wanted) <= 1e-11
    scaled = jnp.array([0.5, 1.0, 2.0])

    def gradients(f):
        return jax.vmap(lambda s: jax.grad(f, (0, 1))(jax.tree.map(lambda a: a * s, arguments[0]), *arguments[1:]))(
            scaled
        )

    for got, wanted in zip(*(jax.tree.leaves(gradients(f)) for f in (ours, right)), strict=True):
        assert relative_error(got, wanted) <= 1e-12


@pytest.mark.parametrize("implementation", [*segments.SAVE, "autodiff"])
@pytest.mark.parametrize("with_h0", [False, True])
def test_on_two_devices(x64, implementation, with_h0):
    """With the batch split over a mesh by shard_map, the gradient of shared parameters is the sum over the devices."""
    params, xs, h0 = laws.cast(laws.case(mgu.MGU, 7, (4,))[:3], "float64")
    resets = jnp.asarray(np.random.default_rng(0).random((7, 4)) < 0.3)
    options = {"implementation": "autodiff"} if implementation == "autodiff" else {"save": implementation, "segment": 2}

    def local(params, xs, h0, resets):
        hs, h_last = mgu.scan(params, xs, h0 if with_h0 else None, resets=resets, **options)
        return jax.lax.psum((jnp.sum(hs**2) if with_h0 else 0) + jnp.sum(h_last**3), "batch")

    mesh = jax.make_mesh((2,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = (P(), P(None, "batch"), P("batch"), P(None, "batch"))
    spread = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P())
    mine = jax.jit(jax.value_and_grad(spread, (0, 1)))(params, xs, h0, resets)

    def whole(params, xs):
        hs, h_last = mgu.scan(params, xs, h0 if with_h0 else None, resets=resets)
        return (jnp.sum(hs**2) if with_h0 else 0) + jnp.sum(h_last**3)

    right = jax.value_and_grad(whole, (0, 1))(params, xs)
    for got, wanted in zip(jax.tree.leaves(mine), jax.tree.leaves(right), strict=True):
        assert relative_error(got, wanted) <= 1e-12
