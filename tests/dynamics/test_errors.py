"""Every wrong argument gets one sentence: the argument, the rule, what came."""

import jax
import jax.numpy as jnp
import pytest

import mgu_jax as mgu
from mgu_jax import dynamics
from tests.rejects import rejects

PARAMS = mgu.init(jax.random.key(0), 3, 4)
HALF = jax.tree.map(lambda a: a.astype(jnp.bfloat16), PARAMS)
H, X, XS, STARTS, ONE = (jnp.zeros(shape) for shape in ((2, 4), (2, 3), (6, 2, 3), (5, 4), (3,)))
NORM, RELU, BETA = mgu.Cell(layer_norm=True), mgu.Cell(activation="relu"), mgu.Cell(beta=0.5)

CASES = [
    (lambda: dynamics.jacobian(PARAMS, H, X[:1]), "h", "[1, 4]", "[2, 4]"),
    (lambda: dynamics.jacobian(PARAMS, H, [0.0]), "x", "an array", "a list"),
    (lambda: dynamics.jacobian(PARAMS, H, X, "MGU"), "cell", "an mgu_jax.Cell", "'MGU'"),
    (lambda: dynamics.jvp(PARAMS, H, X, H[:1]), "v", "[2, 4]", "[1, 4]"),
    (lambda: dynamics.jvp(PARAMS, H, X, None), "v", "an array", "None"),
    (lambda: dynamics.jvp(PARAMS, H, X, H, H), "w", "[2, 3]", "[2, 4]"),
    (lambda: dynamics.vjp(PARAMS, H, X, H.astype(int)), "dh_next", "float32", "int32 [2, 4]"),
    (lambda: dynamics.fixed_points(PARAMS, X, STARTS), "x", "[3]", "[2, 3]"),
    (lambda: dynamics.fixed_points(PARAMS, X[0], STARTS[0]), "starts", "[N, H]", "[4]"),
    (lambda: dynamics.fixed_points(PARAMS, X[0], STARTS[:, :3]), "starts", "4", "[5, 3]"),
    (lambda: dynamics.fixed_points(PARAMS, X[0], STARTS, rounds=0), "rounds", "at least 1", "0"),
    (lambda: dynamics.fixed_points(PARAMS, X[0], STARTS, apart=-1.0), "apart", "at least 0", "-1.0"),
    (lambda: dynamics.fixed_points(PARAMS, X[0], STARTS, max_speed="slow"), "max_speed", "a number", "'slow'"),
    (
        lambda: jax.jit(lambda s: dynamics.fixed_points(PARAMS, ONE, s))(STARTS),
        "starts",
        "known numbers (use newton under jit and vmap)",
        "traced",
    ),
    (lambda: dynamics.newton(HALF, X[0], STARTS), "params", "float32 or float64", "bfloat16"),
    (lambda: dynamics.lyapunov(HALF, XS.astype(jnp.bfloat16)), "params", "float32 or float64", "bfloat16"),
    (lambda: dynamics.lyapunov(PARAMS, XS[:0]), "xs", "at least one step", "[0, 2, 3]"),
    (lambda: dynamics.lyapunov(PARAMS, XS, STARTS), "h0", "[2, 4]", "[5, 4]"),
    (lambda: dynamics.lyapunov(PARAMS, XS, k=5), "k", "at most 4", "5"),
    (lambda: dynamics.lyapunov(PARAMS, XS, k=0), "k", "at least 1", "0"),
    (lambda: dynamics.lyapunov(PARAMS, XS, warmup=6), "warmup", "at most 5", "6"),
    (lambda: dynamics.lyapunov(PARAMS, XS, every=0), "every", "at least 1", "0"),
    (lambda: dynamics.memory(PARAMS, XS[0, 0]), "xs", "[T, ..., 3]", "[3]"),
    (lambda: dynamics.memory(PARAMS, XS, probe=X), "probe", "[4] or [P, 4]", "[2, 3]"),
    (lambda: dynamics.memory(PARAMS, XS, probe=1.0), "probe", "an array", "1.0"),
    (lambda: dynamics.stability(PARAMS, NORM), "params", "", ""),
    (lambda: dynamics.stability(mgu.init(jax.random.key(0), 3, 4, NORM), NORM), "cell", "normalisation", "layer_norm"),
    (lambda: dynamics.stability(PARAMS, BETA), "cell", "beta=0", "beta=0.5"),
    (lambda: dynamics.stability(mgu.init(jax.random.key(0), 3, 4, RELU), RELU), "cell", "bounded states", "relu"),
    (lambda: dynamics.stability(PARAMS, inputs=None), "inputs", "bounded", "None"),
    (lambda: dynamics.stability(PARAMS, inputs=-1.0), "inputs", "at least 0", "-1.0"),
    (lambda: dynamics.stability(PARAMS, inputs=jnp.ones(2)), "inputs", "[3]", "float32 [2]"),
    (lambda: dynamics.stability_penalty(PARAMS, margin=-0.1), "margin", "at least 0", "-0.1"),
    (lambda: dynamics.plots.phase_portrait(PARAMS, X[0]), "params", "2 units", "4"),
    (lambda: dynamics.plots.memory_over_time(dynamics.memory(PARAMS, XS), "gates"), "of", "'states'", "'gates'"),
]


@pytest.mark.parametrize(("call", "name", "rule", "got"), CASES)
def test_one_sentence(call, name, rule, got):
    rejects(call, name, rule, got)


def test_plots_name_the_extra_that_they_need(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    rejects(lambda: dynamics.plots.spectrum([0.5]), "matplotlib", "'.[experiments]'", kind=ImportError)
