"""The layer for reinforcement learning beside the pattern that agents with memory use, and beside single steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mgu_jax as mgu
from mgu_jax.gradients import relative_error
from mgu_jax.interop.convert import to_dict
from mgu_jax.interop.scanned import initialize_carry, scanned_mgu
from tests import laws
from tests.interop.common import CELLS, drawn
from tests.rejects import rejects

T, D, H = 6, 4, 5
# One sequence of a batch for every place where a reset can be.
PLACES = {
    "none": [0, 0, 0, 0, 0, 0],
    "first": [1, 0, 0, 0, 0, 0],
    "last": [0, 0, 0, 0, 0, 1],
    "several in a row": [0, 0, 1, 1, 1, 0],
    "first and last": [1, 0, 0, 0, 0, 1],
    "two episodes": [0, 1, 0, 0, 1, 0],
    "all": [1, 1, 1, 1, 1, 1],
}
RESETS = np.array(list(PLACES.values()), bool).T  # [T, B]
B = len(PLACES)


def linen_pattern(cell):
    """A linen module that scans one of our cells over time, as agents with memory scan a GRU."""
    nn = pytest.importorskip("flax.linen")
    from mgu_jax.interop.flax_linen import MinimalGatedCell

    class ScannedRNN(nn.Module):
        @nn.compact
        def __call__(self, carry, x):
            inputs, resets = x
            initial_carry = jnp.zeros(carry.shape, carry.dtype)
            carry = jnp.where(resets[:, None], initial_carry, carry)
            return MinimalGatedCell(carry.shape[-1], cell)(carry, inputs)

    return nn.scan(ScannedRNN, variable_broadcast="params", split_rngs={"params": False})()


def variables(params):
    return {"params": {"MinimalGatedCell_0": to_dict(params)}}


def pattern_of_linen(cell):
    return lambda params, carry, x: linen_pattern(cell).apply(variables(params), carry, x)


def layer_of_linen(cell):
    from mgu_jax.interop.scanned_linen import ScannedMGU

    return lambda params, carry, x: ScannedMGU(cell=cell).apply(variables(params), carry, x)


def layer_of_nnx(cell):
    from mgu_jax.interop.scanned_nnx import ScannedMGU

    return lambda params, carry, x: ScannedMGU(D, H, cell=cell, params=params)(carry, x)


def plain(cell):
    return lambda params, carry, x: scanned_mgu(params, carry, x, cell=cell)


def outputs_and_gradients(run, problem, resets):
    """(values, gradients), each name -> array; the cotangents of outputs and of the last carry are random."""

    @jax.jit
    def both(cotangents, *arguments):
        values, pullback = jax.vjp(lambda p, xs, h0: run(p, h0, (xs, resets)), *arguments)
        return dict(zip(("carry", "outputs"), values, strict=True)), laws.named(*pullback(cotangents))

    params, xs, carry, doutputs, dcarry = problem
    return both((dcarry, doutputs), params, xs, carry)


@pytest.fixture
def flax_promotes(x64):
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")  # Flax's own
@pytest.mark.parametrize(
    "member", [name if name in CELLS else pytest.param(name, marks=pytest.mark.slow) for name in laws.NAMED]
)
def test_the_layer_computes_what_the_usual_pattern_computes(member, flax_promotes):
    """Values and gradients, with a carry other than zero and resets at every place: one sequence each."""
    cell = laws.NAMED[member]
    problem = laws.cast(tuple(laws.case(cell, T, (B,), D, H)), "float64")
    wanted = outputs_and_gradients(pattern_of_linen(cell), problem, RESETS)
    layers = {"plain": plain(cell), "linen": layer_of_linen(cell), "nnx": layer_of_nnx(cell)}
    for name, layer in layers.items() if member == "MGU" else [("linen", layers["linen"])]:
        got = outputs_and_gradients(layer, problem, RESETS)
        for mine, right in zip(got, wanted, strict=True):
            for i, place in enumerate(PLACES):  # by place first, since the error of all hides that of one
                for array in ("outputs", "xs") & mine.keys():
                    one, other = mine[array][:, i], right[array][:, i]
                    assert relative_error(one, other) <= 1e-12, (name, place, array)
            laws.assert_close(mine, right, 1e-12)
    assert not wanted[1]["h0"][RESETS[0]].any()
    assert wanted[1]["h0"][~RESETS[0]].all()


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_linen_draws_the_variables_of_the_pattern(flax_promotes):
    """So a checkpoint of the one continues in the other. The width is that of the carry, or is given first."""
    from mgu_jax.interop.scanned_linen import ScannedMGU

    x, carry = (jnp.ones((T, B, D), jnp.float32), RESETS), ScannedMGU.initialize_carry(B, H)
    theirs = linen_pattern(mgu.MGU).init(jax.random.key(0), carry, x)
    ours = ScannedMGU().init(jax.random.key(0), carry, x)
    assert jax.tree.all(jax.tree.map(np.array_equal, ours, theirs))
    assert ScannedMGU(H).apply(theirs, carry, x)[1].shape == (T, B, H)
    keeping = ScannedMGU(init_options={"forget_bias": -2.0, "initializer": "uniform"}, param_dtype=jnp.float64)
    (own,) = keeping.init(jax.random.key(0), carry.astype(float), (x[0].astype(float), RESETS))["params"].values()
    assert (own["b_f"] == -2).all()
    assert own["U_h"].dtype == jnp.float64


def test_the_initial_carry():
    assert initialize_carry(3, H).tolist() == np.zeros((3, H)).tolist()
    assert initialize_carry((2, 3), H, jnp.bfloat16).shape == (2, 3, H)
    assert initialize_carry((), H, jnp.bfloat16).dtype == jnp.bfloat16


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_resets_as_numbers_a_reset_to_another_state_and_options(flax_promotes):
    nnx = pytest.importorskip("flax.nnx")
    from mgu_jax.interop import scanned_linen, scanned_nnx

    params, xs, carry, *_ = laws.cast(tuple(laws.case(mgu.MGU, T, (1, B), D, H)), "float64")
    key, resets, reset_to, options = jax.random.key(3), RESETS[:, None], jnp.ones_like(carry), {"zoneout": 0.5}
    given = {"reset_to": reset_to, "key": key}
    hs, last = mgu.scan(params, xs, carry, resets=resets, **given, **options)
    made = scanned_nnx.ScannedMGU(D, H, rngs=nnx.Rngs(0), forget_bias=-2.0, options=options)
    assert (made.params.b_f == -2).all()
    nnx.update(made.layer.cell, nnx.state(scanned_nnx.ScannedMGU(D, H, params=params).layer.cell))
    for numbers in (resets, resets.astype(float), resets.astype(np.int32)):
        x = (xs, numbers)
        for got in (
            scanned_mgu(params, carry, x, **given, **options),
            scanned_linen.ScannedMGU(options=options).apply(variables(params), carry, x, **given),
            made(carry, x, **given),
        ):
            np.testing.assert_array_equal(got[0], last)
            np.testing.assert_array_equal(got[1], hs)


class OfModel:
    """An agent whose memory and readout are a ``Model``; a reset goes back to its learned initial state."""

    def __init__(self, dtype):
        self.model = mgu.Model(D, (H, 7), 3, learned_h0=True, dtype=dtype)
        self.params = drawn(self.model)

    def start(self, batch):
        return self.model.start(self.params, (batch,))

    def act(self, params, state, x, reset):
        y, state = self.model.step(params, x, state, reset=reset)
        return state, y

    def train(self, params, state, xs, resets):
        ys, state = self.model.apply(params, xs, state=state, resets=resets, return_state=True)
        return state, ys


class OfLayer:
    """An agent whose memory is the layer above; it acts by ``mgu.step``."""

    def __init__(self, dtype):
        rng = np.random.default_rng(0)
        layer = laws.case(mgu.MGU, T, (B,), D, H).params
        self.params = laws.cast((layer, rng.standard_normal((H, 3))), dtype)

    def start(self, batch):
        return initialize_carry(batch, H, self.params[1].dtype)

    def act(self, params, h, x, reset):
        h = mgu.step(params[0], h, x, reset=reset)
        return h, h @ params[1]

    def train(self, params, h, xs, resets):
        h, hs = scanned_mgu(params[0], h, (xs, resets))
        return h, hs @ params[1]


@pytest.mark.parametrize("agent_class", [OfModel, OfLayer])
def test_acting_step_by_step_gives_the_log_probabilities_of_training(agent_class, dtype):
    """Three windows with carried state. What the agent sees depends on its actions, as in an environment."""
    agent, windows = agent_class(dtype), 3
    rng = np.random.default_rng(1)
    noise = jnp.asarray(rng.standard_normal((windows * T, B, D)), dtype)
    resets = np.concatenate([RESETS, RESETS[::-1], rng.random((T, B)) < 0.3])

    def live(carry, moment):
        state, action = carry
        draw, reset, key = moment
        x = draw + jnp.where(reset, 0, action)[:, None].astype(draw.dtype)
        next_state, logits = agent.act(agent.params, state, x, reset)
        action = jax.random.categorical(key, logits).astype(jnp.int32)
        return (next_state, action), (x, action, log_probability(logits, action), state)

    keys = jax.random.split(jax.random.key(0), windows * T)
    first = (agent.start(B), jnp.zeros(B, jnp.int32))
    (last, _), (xs, actions, acted, states) = jax.lax.scan(live, first, (noise, resets, keys))

    @jax.jit
    def train(params, state, xs, resets, actions):
        state, logits = agent.train(params, state, xs, resets)
        return state, log_probability(logits, actions)

    tolerance = {"float32": 1e-6, "float64": 1e-12}[dtype]
    state = agent.start(B)
    for window in range(windows):
        steps = slice(window * T, (window + 1) * T)
        held = jax.tree.map(lambda a, at=steps.start: a[at], states)  # what an agent keeps of the window's start
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance), state, held)
        rows = xs[steps], resets[steps], actions[steps]
        state, trained = train(agent.params, held, *rows)
        np.testing.assert_allclose(trained, acted[steps], rtol=0, atol=tolerance)
        shuffled = rng.permutation(B)  # whole sequences in another order, as minibatches take them
        _, few = train(
            agent.params, jax.tree.map(lambda a, order=shuffled: a[order], held), *(a[:, shuffled] for a in rows)
        )
        np.testing.assert_allclose(few, acted[steps][:, shuffled], rtol=0, atol=tolerance)
        _, blind = train(agent.params, held, rows[0], np.zeros_like(rows[1]), rows[2])
        assert np.abs(blind - trained).max() > 1e-2, "the resets within this window matter"
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance), state, last)


def log_probability(logits, actions):
    return jnp.take_along_axis(jax.nn.log_softmax(logits), actions[..., None], -1)[..., 0]


def test_errors():
    params = laws.cast(laws.case(mgu.MGU, T, (B,), D, H).params, "float32")
    xs, carry = np.ones((T, B, D), np.float32), initialize_carry(B, H)
    for call, name, rule, got in [
        (lambda: scanned_mgu(params, carry, xs), "x", "the pair (inputs, resets)", "float32 [6, 7, 4]"),
        (lambda: scanned_mgu(params, carry, (xs, [True])), "resets", "an array", "a list"),
        (lambda: scanned_mgu(params, None, (xs, RESETS)), "carry", "an array", "None"),
        (lambda: scanned_mgu(params, carry, (xs[0, 0], RESETS)), "inputs", "[T, ..., D]", "[4]"),
        (lambda: scanned_mgu(params, carry, (xs[..., :3], RESETS)), "inputs", "[T, ..., 4]", "[6, 7, 3]"),
        (lambda: scanned_mgu(params, carry, (xs, RESETS.T)), "resets", "[6, 7]", "[7, 6]"),
        (lambda: scanned_mgu(params, carry[:2], (xs, RESETS)), "carry", "[7, 5]", "[2, 5]"),
        (lambda: scanned_mgu(params, carry[:, :3], (xs, RESETS)), "carry", "[..., 5]", "[7, 3]"),
        (lambda: scanned_mgu(params, carry[0, 0], (xs, RESETS)), "carry", "[..., H]", "[]"),
        (lambda: initialize_carry(B, 0), "size", "at least 1", "0"),
        (lambda: initialize_carry(-1, H), "batch", "at least 0", "-1"),
        (lambda: initialize_carry(B, H, int), "dtype", "float32", "int"),
    ]:
        rejects(call, name, rule, got)


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_errors_of_the_modules(flax_promotes):
    nnx = pytest.importorskip("flax.nnx")
    from mgu_jax.interop import scanned_linen, scanned_nnx

    key, carry, x = jax.random.key(0), initialize_carry(B, H), (jnp.ones((T, B, D), jnp.float32), RESETS)
    for call, name, rule, got in [
        (lambda: scanned_linen.ScannedMGU(9).init(key, carry, x), "carry", "[7, 9]", "[7, 5]"),
        (lambda: scanned_linen.ScannedMGU().init(key, carry, x[0]), "x", "the pair (inputs, resets)", "float32"),
        (lambda: scanned_linen.ScannedMGU(options={"foo": 1}).init(key, carry, x), "options", "mgu_jax.scan", "'foo'"),
        (lambda: scanned_nnx.ScannedMGU(D, 9, rngs=nnx.Rngs(0))(carry, x), "carry", "[7, 9]", "[7, 5]"),
        (
            lambda: scanned_nnx.ScannedMGU(D, H, rngs=nnx.Rngs(0), options={"foo": 1}),
            "options",
            "mgu_jax.scan",
            "'foo'",
        ),
        (lambda: scanned_nnx.ScannedMGU(D, H), "rngs", "if params is not", "None"),
    ]:
        rejects(call, name, rule, got)
