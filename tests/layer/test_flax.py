"""An independent oracle: flax.linen.MGUCell with its reset is FLAX_MGU, and without it UGRNN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mgu_jax as mgu
from tests import laws

nn = pytest.importorskip("flax.linen")


def to_flax(params, reset_gate):
    """Our parameters under Flax's names. Without the reset, Flax's gate is 1 - f: its weights change sign."""
    sign = 1 if reset_gate else -1
    recurrent = {"kernel": params.U_h} | ({"bias": params.b_r} if reset_gate else {})
    return {
        "if": {"kernel": sign * params.W_f, "bias": sign * params.b_f},
        "hf": {"kernel": sign * params.U_f},
        "in": {"kernel": params.W_h, "bias": params.b_h},
        "hn": recurrent,
    }


@pytest.mark.filterwarnings("ignore")  # Flax warns
@pytest.mark.parametrize(("reset_gate", "cell"), [(True, mgu.FLAX_MGU), (False, mgu.UGRNN)])
def test_mgu_cell_of_flax(x64, reset_gate, cell):
    case = laws.case(cell, 9)
    params, xs, h0, *cotangents = laws.cast(tuple(case), "float64")
    theirs = nn.MGUCell(5, reset_gate=reset_gate, param_dtype=jnp.float64, dtype=jnp.float64)

    def run(params, xs, h0):
        variables = {"params": to_flax(params, reset_gate)}

        def body(h, x):
            return theirs.apply(variables, h, x)

        h_last, hs = jax.lax.scan(body, h0, xs)
        return hs, h_last

    with jax.numpy_rank_promotion("allow"):
        outputs, pullback = jax.vjp(run, params, xs, h0)
        dparams, dxs, dh0 = pullback(tuple(cotangents))
    for implementation in ("manual", "autodiff"):
        ours, our_gradients = laws.gradients(case, "float64", cell, implementation=implementation)
        for mine, other in zip(ours.values(), outputs, strict=True):
            np.testing.assert_allclose(mine, other, rtol=0, atol=1e-12)
        laws.assert_close(our_gradients, laws.named(dparams, dxs, dh0), 1e-12)


def test_paper_and_flax_are_different_functions():
    """With a reset, neither sign of the gate's weights makes the two equal."""
    params = mgu.init(jax.random.key(0), 3, 5, mgu.FLAX_MGU)
    xs = jax.random.normal(jax.random.key(1), (9, 2, 3))
    flax, _ = mgu.scan(params, xs, cell=mgu.FLAX_MGU)
    for sign in (1, -1):
        negated = params._replace(W_f=sign * params.W_f, U_f=sign * params.U_f, b_f=sign * params.b_f)
        ours, _ = mgu.scan(negated, xs, cell=mgu.RESET_AFTER_MGU)
        assert np.abs(ours - flax).max() > 0.05
