"""Memory: the norms of all derivatives of the last state, against autodiff, and the time constants of the gates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mgu_jax as mgu
from mgu_jax import dynamics
from tests import laws

T, B, H = 6, 2, 5
QUICK = ("FLAX_MGU",)


def by_autodiff(cell, params, xs, h0):
    """dh_T/dh_t [B, H, T, H] and dh_T/dx_t [B, H, T, D]: a small change is added to each state and each input."""

    def last(changes, xs, h0):
        def body(h, row):
            change, x = row
            return mgu.step(params, h, x, cell) + change, None

        return jax.lax.scan(body, h0, (changes, xs))[0]

    return jax.vmap(jax.jacrev(last, (0, 1)), (1, 1, 0))(jnp.zeros((T, B, H), xs.dtype), xs, h0)


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in laws.CELLS])
def test_the_norms_are_those_of_autodiff(x64, name):
    """Of all units, and of a probe of three rows."""
    cell = laws.CELLS[name]
    case = laws.case(cell, T, (B,), H=H)
    params, xs, h0, probe = laws.cast((*case[:3], case.dhs[:3, 0]), "float64")
    derivatives = by_autodiff(cell, params, xs, h0)
    for rows, given in ((jnp.eye(H), None), (probe, probe)):
        memory = dynamics.memory(params, xs, h0, given, cell)
        for got, J in zip(memory[:2], derivatives, strict=True):
            wanted = jnp.linalg.norm(jnp.einsum("ph,bhtj->tbpj", rows, J), axis=(2, 3))
            assert laws.relative_error(got, wanted) <= 1e-12 * (50 if cell.layer_norm else 1)


def test_one_row_may_be_a_vector_and_the_batch_is_optional(dtype):
    params, xs, h0 = laws.cast(laws.case(mgu.MGU, T, ())[:3], dtype)
    one, row = (dynamics.memory(params, xs, h0, probe) for probe in (params.b_h, params.b_h[None]))
    assert one.states.shape == one.inputs.shape == (T,)
    assert all(a.dtype == dtype for a in one)
    np.testing.assert_array_equal(one.states, row.states)


def test_under_jit_and_vmap(x64):
    params, xs, h0 = laws.cast(laws.case(mgu.MGU, T, (B,))[:3], "float64")
    together = dynamics.memory(params, xs, h0)
    mapped = jax.jit(jax.vmap(lambda xs, h0: dynamics.memory(params, xs, h0), (1, 0), dynamics.Memory(1, 1, 1, 0)))(
        xs, h0
    )
    for got, wanted in zip(mapped, together, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-12)


@pytest.mark.parametrize("cell", [mgu.MGU3, mgu.Cell(gate="b", update="1-f")], ids=["paper's sign", "Flax's"])
def test_time_constants(x64, cell):
    """A unit that keeps a share k of its state forgets to 1/e in -1/log k steps, whatever the sign of the gate."""
    kept = np.array([0.5, 0.9, np.exp(-1 / 100), 1 - 1e-12, 1.0])
    sign = -1 if cell.update == "f" else 1
    b_f = sign * np.log(np.maximum(kept, 1e-300) / np.maximum(1 - kept, 1e-300))
    params = mgu.init(jax.random.key(0), 2, 5, cell, dtype=jnp.float64)._replace(b_f=jnp.asarray(b_f))
    memory = dynamics.memory(params, jnp.ones((4, 2)), cell=cell)
    np.testing.assert_allclose(memory.kept, np.broadcast_to(kept, (4, 5)), rtol=1e-14)
    np.testing.assert_allclose(memory.time_constants[:3], [1 / np.log(2), -1 / np.log(0.9), 100], rtol=1e-12)
    assert memory.time_constants[3] > 1e11
    assert np.isposinf(memory.time_constants[4])
