"""An independent oracle: Keras's GRU with reset before and tied gates (z = 1 - f, r = f) is the paper's MGU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mgu_jax as mgu
from tests import laws

keras = pytest.importorskip("keras")


def tied_gru(params, H):
    """A function of our params. Keras stacks [z | r | h], and h' = z*h + (1 - z)*c, so z takes f's negated weights."""
    options = {"return_sequences": True, "return_state": True, "dtype": "float64"}
    # Keras's tanh computes in float32 on a CPU.
    layer = keras.layers.GRU(H, reset_after=False, activation=jnp.tanh, **options)

    def outputs(params, xs, h0):
        W = jnp.concatenate([-params.W_f, params.W_f, params.W_h], 1)
        U = jnp.concatenate([-params.U_f, params.U_f, params.U_h], 1)
        b = jnp.concatenate([-params.b_f, params.b_f, params.b_h])
        (hs, h_last), _ = layer.stateless_call([W, U, b], constants, xs.swapaxes(0, 1), initial_state=h0)
        return hs.swapaxes(0, 1), h_last

    layer.build((None, None, params.W_h.shape[0]))
    constants = [variable.value for variable in layer.non_trainable_variables]
    return outputs


@pytest.mark.filterwarnings("ignore")  # Keras warns
def test_tied_gru_of_keras(x64):
    case = laws.case(mgu.MGU, 9)
    params, xs, h0, *cotangents = laws.cast(tuple(case), "float64")
    ours, our_gradients = laws.gradients(case, "float64", mgu.MGU)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        theirs, pullback = jax.vjp(tied_gru(params, 5), params, xs, h0)
        dparams, dxs, dh0 = pullback(tuple(cotangents))
    for mine, other in zip(ours.values(), theirs, strict=True):
        np.testing.assert_allclose(mine, other, rtol=0, atol=1e-12)
    laws.assert_close(our_gradients, laws.named(dparams, dxs, dh0), 1e-12)
