"""The laws of ``laws.py`` for all implementations and cells."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import mgu_jax as mgu
from tests import laws

implementations = pytest.mark.parametrize("implementation", laws.IMPLEMENTATIONS)
cells = pytest.mark.parametrize("cell", laws.CELLS.values(), ids=laws.CELLS.keys())
both_ways = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])


@implementations
@cells
@both_ways
@pytest.mark.parametrize("T", [0, 1, 2, 37])
def test_equals_oracle(dtype, cell, implementation, reverse, T):
    laws.equals_oracle(laws.case(cell, T), dtype, cell, implementation, reverse=reverse)


@implementations
@cells
@pytest.mark.parametrize("batch", [(), (0,), (1,), (2, 3)], ids=str)
def test_any_batch(dtype, cell, implementation, batch):
    laws.equals_oracle(laws.case(cell, 5, batch), dtype, cell, implementation)


@implementations
@cells
@pytest.mark.parametrize(("D", "H"), [(1, 1), (1, 6), (6, 1)])
def test_any_width(dtype, cell, implementation, D, H):
    laws.equals_oracle(laws.case(cell, 5, D=D, H=H), dtype, cell, implementation)


@cells
@both_ways
def test_manual_equals_autodiff(dtype, cell, reverse):
    case = laws.case(cell, 37)
    manual, autodiff = (
        laws.gradients(case, dtype, cell, implementation=name, reverse=reverse) for name in ("manual", "autodiff")
    )
    for got, wanted in zip(manual[0], autodiff[0], strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=laws.TOLERANCE[dtype])
    laws.assert_close(manual[1], autodiff[1], laws.TOLERANCE[dtype])


@implementations
@cells
def test_without_h0_is_zeros(dtype, cell, implementation):
    case = laws.case(cell)
    params, xs = laws.cast((case.params, case.xs), dtype)
    without = mgu.scan(params, xs, cell=cell, implementation=implementation)
    zeros = mgu.scan(params, xs, jnp.zeros((3, 5), dtype), cell=cell, implementation=implementation)
    np.testing.assert_array_equal(without[0], zeros[0])
    np.testing.assert_array_equal(without[1], zeros[1])


@implementations
@cells
@pytest.mark.parametrize("output", ["hs", "h_last"])
def test_one_cotangent_alone(dtype, cell, implementation, output):
    case = laws.case(cell)
    case = case._replace(dhs=0 * case.dhs) if output == "h_last" else case._replace(dh_last=0 * case.dh_last)
    laws.equals_oracle(case, dtype, cell, implementation)


@implementations
@cells
@both_ways
def test_finite_differences_first_and_second_order(x64, cell, implementation, reverse):
    case = laws.cast(laws.case(cell, 3, (2,), 2, 3), "float64")

    def outputs(params, xs, h0):
        return mgu.scan(params, xs, h0, cell=cell, implementation=implementation, reverse=reverse)

    check_grads(outputs, (case.params, case.xs, case.h0), order=2, modes=["rev"], atol=2e-5, rtol=2e-5)


def scalar(cell, implementation):
    """A nonlinear loss of both outputs."""

    def loss(params, xs, h0):
        hs, h_last = mgu.scan(params, xs, h0, cell=cell, implementation=implementation)
        return jnp.sum(jnp.sin(hs)) + jnp.sum(h_last**2)

    return loss


@cells
def test_second_derivatives(x64, cell):
    """grad of grad, Hessian-vector products in both modes, and the whole Hessian equal autodiff's."""
    arguments = laws.cast(laws.case(cell, 4, (2,), 2, 3)[:3], "float64")
    tangents = laws.cast(laws.case(cell, 4, (2,), 2, 3, seed=1)[:3], "float64")
    places = (0, 1, 2)

    def second(name):
        loss = scalar(cell, name)
        gradient = jax.grad(loss, places)

        def along(*arguments):
            leaves = zip(jax.tree.leaves(gradient(*arguments)), jax.tree.leaves(tangents), strict=True)
            return sum(jnp.vdot(g, t) for g, t in leaves)

        return {
            "reverse over reverse": jax.grad(along, places)(*arguments),
            "forward over reverse": jax.jvp(gradient, arguments, tangents)[1],
            "hessian": jax.hessian(loss, 2)(*arguments),
        }

    manual, autodiff = second("manual"), second("autodiff")
    for mode in manual:
        for got, wanted in zip(jax.tree.leaves(manual[mode]), jax.tree.leaves(autodiff[mode]), strict=True):
            assert laws.relative_error(got, wanted) <= 1e-12, mode
    pairs = zip(*(jax.tree.leaves(manual[mode]) for mode in list(manual)[:2]), strict=True)
    assert all(laws.relative_error(a, b) <= 1e-12 for a, b in pairs)


def stack(axis, *arrays):
    return jnp.stack(arrays, axis)


@implementations
@cells
@pytest.mark.parametrize("axes", [(0, None, None), (None, 0, None), (None, None, 0), (0, 0, 0), (0, 1, 1)], ids=str)
def test_vmap_over_any_argument(dtype, cell, implementation, axes):
    """Values and gradients of every member equal those of a call of its own."""
    members = [laws.cast(laws.case(cell, 4, (2,), seed=seed)[:3], dtype) for seed in range(3)]
    stacked = tuple(
        members[0][i] if axis is None else jax.tree.map(partial(stack, axis), *(member[i] for member in members))
        for i, axis in enumerate(axes)
    )
    gradient = jax.value_and_grad(scalar(cell, implementation), (0, 1, 2))
    together = jax.vmap(gradient, axes)(*stacked)
    for i, member in enumerate(members):
        arguments = tuple(members[0][j] if axis is None else member[j] for j, axis in enumerate(axes))
        alone = gradient(*arguments)
        for got, wanted in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            assert laws.relative_error(got[i], wanted) <= laws.TOLERANCE[dtype]


@implementations
@cells
def test_gradient_through_vmap(x64, cell, implementation):
    """Shared weights under vmap of the data: their gradient is the sum."""
    params, xs, h0 = laws.cast(laws.case(cell, 4, (6,))[:3], "float64")
    loss = scalar(cell, implementation)
    mapped = jax.grad(lambda p: jnp.sum(jax.vmap(loss, (None, 1, 0))(p, xs, h0)))(params)
    batched = jax.grad(loss)(params, xs, h0)
    for got, wanted in zip(jax.tree.leaves(mapped), jax.tree.leaves(batched), strict=True):
        assert laws.relative_error(got, wanted) <= 1e-12


@implementations
@cells
def test_jit_changes_nothing(dtype, cell, implementation):
    case = laws.case(cell)
    _, eager = laws.gradients(case, dtype, cell, implementation=implementation)
    _, compiled = laws.gradients(case, dtype, cell, jax.jit, implementation=implementation)
    laws.assert_close(compiled, eager, laws.TOLERANCE[dtype])


@cells
def test_inside_another_scan(x64, cell):
    """A loop whose body runs, and differentiates, the whole sequence."""
    params, xs, h0 = laws.cast(laws.case(cell, 3, (2,), 3, 4)[:3], "float64")

    def outer(implementation):
        loss = scalar(cell, implementation)

        def body(h, _):
            h = h - 0.1 * jax.grad(loss, 2)(params, xs, h)
            return mgu.scan(params, xs, h, cell=cell, implementation=implementation)[1], jnp.sum(h)

        return jax.value_and_grad(lambda h: jnp.sum(jax.lax.scan(body, h, None, length=3)[1]))(h0)

    (a, da), (b, db) = outer("manual"), outer("autodiff")
    assert laws.relative_error(a, b) <= 1e-12
    assert laws.relative_error(da, db) <= 1e-12


@implementations
@cells
def test_halves_make_the_whole(dtype, cell, implementation):
    params, xs, h0 = laws.cast(laws.case(cell, 9)[:3], dtype)
    options = {"cell": cell, "implementation": implementation}
    whole, last = mgu.scan(params, xs, h0, **options)
    first, middle = mgu.scan(params, xs[:4], h0, **options)
    second, end = mgu.scan(params, xs[4:], middle, **options)
    np.testing.assert_allclose(jnp.concatenate([first, second]), whole, rtol=0, atol=laws.TOLERANCE[dtype])
    np.testing.assert_allclose(end, last, rtol=0, atol=laws.TOLERANCE[dtype])


@implementations
@cells
def test_samples_do_not_mix(dtype, cell, implementation):
    """Permuting the batch permutes the result (the notebook's fault 2)."""
    params, xs, h0 = laws.cast(laws.case(cell, 6, (5,))[:3], dtype)
    order = jnp.array([3, 0, 4, 1, 2])
    hs, h_last = mgu.scan(params, xs, h0, cell=cell, implementation=implementation)
    moved_hs, moved_last = mgu.scan(params, xs[:, order], h0[order], cell=cell, implementation=implementation)
    np.testing.assert_allclose(moved_hs, hs[:, order], rtol=0, atol=laws.TOLERANCE[dtype])
    np.testing.assert_allclose(moved_last, h_last[order], rtol=0, atol=laws.TOLERANCE[dtype])


@implementations
@cells
def test_reverse_is_the_flipped_run(dtype, cell, implementation):
    params, xs, h0 = laws.cast(laws.case(cell, 6)[:3], dtype)
    hs, h_last = mgu.scan(params, xs, h0, cell=cell, implementation=implementation, reverse=True)
    flipped, flipped_last = mgu.scan(params, xs[::-1], h0, cell=cell, implementation=implementation)
    np.testing.assert_allclose(hs, flipped[::-1], rtol=0, atol=laws.TOLERANCE[dtype])
    np.testing.assert_allclose(h_last, flipped_last, rtol=0, atol=laws.TOLERANCE[dtype])
