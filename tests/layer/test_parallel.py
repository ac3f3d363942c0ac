"""Newton's method gives the states of the loop or leaves them to the loop, and the affine backward does the same.

``test_laws.py`` has both among all implementations, in its slow part.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import mgu_jax as mgu
from mgu_jax.gradients import relative_error
from mgu_jax.layer import newton
from mgu_jax.layer.bptt import Plan
from mgu_jax.layer.cell import prepare, project
from tests import laws
from tests.rejects import rejects
from tests.test_compilation import inner

DIAGONAL = mgu.DIAGONAL_MGU
EVERY = {k: v for name, options in laws.OPTIONS.items() if name != "resets" for k, v in options.items()}


def chaotic(H=16, T=50, dtype="float64"):
    """Params and xs of a layer that always overwrites its state, h' = tanh(h U_h + x), with a spectral radius of 3."""
    rng = np.random.default_rng(3)
    U = rng.standard_normal((H, H))
    U *= 3 / max(abs(np.linalg.eigvals(U)))
    zeros = np.zeros((2, H))
    params = mgu.Params(zeros, np.zeros((H, H)), np.full(H, 30.0), 0.1 * rng.standard_normal((2, H)), U, np.zeros(H))
    return laws.cast((params, rng.standard_normal((T, 3, 2))), dtype)


def outputs_and_gradients(params, xs, **options):
    """For fixed random cotangents of both outputs."""
    rng = np.random.default_rng(1)

    def loss(params, xs):
        hs, h_last = mgu.scan(params, xs, **options)
        weights = laws.cast((rng.standard_normal(hs.shape), rng.standard_normal(h_last.shape)), hs.dtype)
        return jnp.sum(weights[0] * hs) + jnp.sum(weights[1] * h_last), (hs, h_last)

    return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, xs)


def assert_alike(one, other, tolerance):
    for got, wanted in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert relative_error(got, wanted) <= tolerance


@pytest.mark.parametrize(("implementation", "name"), [("parallel", "MGU"), ("parallel", "DIAGONAL_MGU")])
def test_all_options_together(x64, implementation, name):
    cell = laws.CELLS[name]
    laws.equals_oracle(laws.case(cell, 6), "float64", cell, implementation, **EVERY, segment=4)


@pytest.mark.parametrize("T", [0, 1, 2, *(pytest.param(T, marks=pytest.mark.slow) for T in (37, 64))])
def test_any_length(x64, T):
    laws.equals_oracle(laws.case(DIAGONAL, T), "float64", DIAGONAL, "parallel")


@pytest.mark.parametrize("save", ["gates", pytest.param("segments", marks=pytest.mark.slow)])
def test_in_float32_under_jit(save):
    case = laws.case(DIAGONAL, 37, H=16)
    laws.equals_oracle(case, "float32", DIAGONAL, "parallel", transform=jax.jit, save=save)


def test_the_affine_backward(x64):
    laws.equals_oracle(laws.case(DIAGONAL, 7), "float64", DIAGONAL, "parallel_backward", **{"resets": np.eye(7, 3) > 0})


@pytest.mark.parametrize("cell", [DIAGONAL, pytest.param(mgu.MGU, marks=pytest.mark.slow)], ids=["diagonal", "dense"])
def test_few_iterations_suffice_and_the_residual_is_that_of_rounding(dtype, cell):
    """Whatever the length; and each segment has its own numbers, in the order of time."""
    params, xs, _ = laws.cast(laws.case(cell, 500, (2,), H=8)[:3], dtype)
    found = mgu.convergence(params, xs, cell=cell, segment=250, reverse=True)
    assert isinstance(found, mgu.Convergence)
    assert [a.shape for a in found] == [(2,)] * 4
    assert not found.fell_back.any()
    assert 2 <= found.iterations.min() <= found.iterations.max() <= 8
    assert found.correction.max() <= newton.TOLERANCE[dtype]
    assert found.residual.max() <= 10 * jnp.finfo(dtype).eps


def test_states_beyond_one_where_more_is_written_than_given_up(x64):
    """With beta = 2, a unit that mostly keeps its state tends to e^2 times its candidate."""
    cell = mgu.Cell(recurrence="diagonal", beta=2.0)
    params = mgu.init(jax.random.key(0), 1, 4, cell, forget_bias=-4.0, dtype="float64")
    params = params._replace(b_h=jnp.full(4, 2.0))
    xs = jnp.zeros((300, 1, 1))
    hs, _ = mgu.scan(params, xs, cell=cell, implementation="manual")
    assert 5 < hs.max() < cell.bound
    assert not mgu.convergence(params, xs, cell=cell).fell_back.any()


def test_chaos_is_left_to_the_loop(x64):
    """A positive exponent: the loop computes the states, and they are its own to the last bit."""
    params, xs = chaotic()
    assert mgu.dynamics.lyapunov(params, xs[:, 0], k=1) > 0.1
    assert mgu.convergence(params, xs).fell_back.all()
    (_, (hs, h_last)), gradient = outputs_and_gradients(params, xs, implementation="parallel")
    (_, right), wanted = outputs_and_gradients(params, xs, implementation="manual")
    np.testing.assert_array_equal(hs, right[0])
    np.testing.assert_array_equal(h_last, right[1])
    assert_alike(gradient, wanted, 1e-12)


LOOPS = [("parallel", None), ("parallel", "ITERATIONS"), ("parallel", "_ROUNDING"), ("parallel_backward", "_ROUNDING")]


@pytest.mark.parametrize(("implementation", "ceiling"), LOOPS)
def test_the_loops_take_over_where_they_have_to(x64, monkeypatch, implementation, ceiling):
    """If no iteration is allowed, or no rounding error, results are right all the same; otherwise no loop runs."""
    used = []
    for name in ("forward_loop", "backward_loop"):
        loop = getattr(newton, name)
        monkeypatch.setattr(newton, name, lambda *a, loop=loop, name=name: used.append(name) or loop(*a))
    if ceiling is not None:
        monkeypatch.setattr(newton, ceiling, 0 if ceiling == "ITERATIONS" else -1)
    with jax.disable_jit():
        laws.equals_oracle(laws.case(DIAGONAL, 3, (2,)), "float64", DIAGONAL, implementation)
    wanted = {None: [], "ITERATIONS": ["forward_loop"], "_ROUNDING": ["backward_loop"]}[ceiling]
    assert [name for name in used if implementation == "parallel" or name == "backward_loop"] == wanted


def test_poor_guesses(x64, quick_compiler):
    """From far away it converges to the same states, and from NaN it does not claim to."""
    params, xs, h0 = laws.cast(laws.case(DIAGONAL, 50)[:3], "float64")
    plan = Plan(DIAGONAL)
    inputs = prepare(params, DIAGONAL), project(params, xs), h0, None, None
    run = jax.jit(lambda guess: newton.solve(plan, *inputs, guess))
    right, _ = mgu.scan(params, xs, h0, cell=DIAGONAL)
    normal = np.random.default_rng(0).standard_normal(right.shape)
    for guess in (right, normal, 1e3 * normal, 1e300 * normal):
        hs, _, found = run(guess)
        assert not found.fell_back
        assert relative_error(hs, right) <= 1e-12
    for wrong in (np.nan, np.inf):
        assert run(np.full_like(normal, wrong))[2].fell_back


def test_nan_in_the_input_is_nan_in_the_states_that_follow(quick_compiler):
    params, xs, _ = laws.cast(laws.case(DIAGONAL, 6)[:3], "float32")
    xs = xs.at[3, 1].set(jnp.nan)
    hs, _ = mgu.scan(params, xs, cell=DIAGONAL, implementation="parallel")
    right, _ = mgu.scan(params, xs, cell=DIAGONAL)
    np.testing.assert_array_equal(hs, right)
    assert np.isnan(hs[3:, 1]).all()
    assert mgu.convergence(params, xs, cell=DIAGONAL).fell_back.all()


def primitives(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn.primitive.name
    for body in inner(jaxpr):
        yield from primitives(body)


def test_under_vmap_the_loop_runs_only_if_a_member_needs_it(x64):
    """One member is chaotic and the other is not; and the condition stays one for all members."""
    params, xs = chaotic()
    both = jax.tree.map(lambda a: jnp.stack([a, a / 30]), params)

    def run(params):
        return outputs_and_gradients(params, xs, implementation="parallel")

    together = jax.jit(jax.vmap(run))
    assert "cond" in set(primitives(jax.make_jaxpr(together)(both).jaxpr))
    found = jax.vmap(lambda params: mgu.convergence(params, xs))(both)
    assert found.fell_back.all()  # of all, since one needs it
    for i, got in enumerate([jax.tree.map(lambda a, i=i: a[i], together(both)) for i in range(2)]):
        wanted = outputs_and_gradients(jax.tree.map(lambda a, i=i: a[i], both), xs)
        assert_alike(got, wanted, 1e-11)


def test_products_are_exact_unless_a_precision_is_asked_for():
    params, xs = mgu.init(jax.random.key(0), 2, 3), jnp.ones((4, 1, 2))

    def products(precision):
        run = jax.make_jaxpr(lambda p: mgu.scan(p, xs, implementation="parallel", precision=precision)[0])(params)
        return str(run).count("precision=(Precision.HIGHEST, Precision.HIGHEST)")

    assert products(None) == products("default") > 5
    assert products("high") == 0


def test_refusals():
    params, xs = mgu.init(jax.random.key(0), 2, 33), jnp.ones((4, 1, 2))
    text = rejects(lambda: mgu.scan(params, xs, implementation="parallel"), "implementation 'parallel'", "32", "33")
    assert "4,356 bytes" in text
    assert "287,496 floating-point operations" in text
    rejects(lambda: mgu.Model(2, (33,), 1, implementation="parallel"), "implementation 'parallel'", "diagonal", "33")
    backward = "implementation 'parallel_backward'"
    rejects(lambda: mgu.scan(params, xs, implementation="parallel_backward"), backward, "diagonal", "Cell()")
    half = mgu.init(jax.random.key(0), 2, 3, DIAGONAL, dtype=jnp.bfloat16)
    run = {"xs": xs.astype(jnp.bfloat16), "cell": DIAGONAL, "implementation": "parallel"}
    rejects(lambda: mgu.scan(half, **run), "implementation 'parallel'", "float32 or float64", "bfloat16")
    linear = mgu.init(jax.random.key(0), 2, 3, mgu.MIN_GRU)
    rejects(lambda: mgu.convergence(linear, xs, cell=mgu.MIN_GRU), "cell", "linear in the state", "gate='xb'")
    run = {"xs": xs, "cell": mgu.MIN_GRU, "implementation": "parallel"}
    rejects(lambda: mgu.scan(linear, **run, segment=2), "segment", "left out", "2")
    named = {"implementation": "manual"}
    rejects(lambda: mgu.convergence(params, xs, **named), "options", "scan", "'implementation'", TypeError)
    assert mgu.which(linear, xs, cell=mgu.MIN_GRU, implementation="parallel") == "parallel"


@pytest.mark.slow
def test_a_model_of_two_directions(quick_compiler):
    """With layers above each other, the batch in front, and lengths."""
    model = mgu.Model(2, (3, 3), 1, DIAGONAL, bidirectional="sum", implementation="parallel", readout="mean")
    right = mgu.Model(2, (3, 3), 1, DIAGONAL, bidirectional="sum", readout="mean")
    params = right.init(jax.random.key(0))
    xs, lengths = jax.random.normal(jax.random.key(1), (3, 6, 2)), jnp.array([6, 0, 4])

    def gradient(model):
        return jax.grad(lambda p: jnp.sum(model.apply(p, xs, lengths=lengths, time_axis=1) ** 2))(params)

    assert_alike(gradient(model), gradient(right), 2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["parallel", "parallel_backward"])
@pytest.mark.parametrize("check_vma", [False, True])
def test_on_two_devices(x64, implementation, check_vma):
    """The batch is split by shard_map; each device decides for itself whether its loop runs."""
    params, xs, _ = laws.cast(laws.case(DIAGONAL, 9, (4,))[:3], "float64")
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))

    def local(params, xs):
        hs, h_last = mgu.scan(params, xs, cell=DIAGONAL, implementation=implementation, segment=5)
        return jax.lax.psum(jnp.sum(hs**2) + jnp.sum(h_last**3), "batch")

    split = jax.shard_map(local, mesh=mesh, in_specs=(P(), P(None, "batch")), out_specs=P(), check_vma=check_vma)

    def whole(params, xs):
        hs, h_last = mgu.scan(params, xs, cell=DIAGONAL)
        return jnp.sum(hs**2) + jnp.sum(h_last**3)

    (mine, of_mine), (right, of_right) = (jax.jit(jax.value_and_grad(f, 1))(params, xs) for f in (split, whole))
    assert_alike((mine, of_mine), (right, of_right), 1e-12)


@pytest.mark.slow
def test_segments_bound_the_memory():
    """Segments of 128 steps take less than a tenth of the memory of one segment of 16,384."""
    params = mgu.init(jax.random.key(0), 4, 16, DIAGONAL)

    def temporaries(T, segment):
        def loss(params, xs):
            return jnp.sum(
                mgu.scan(params, xs, cell=DIAGONAL, implementation="parallel", save="segments", segment=segment)[1] ** 2
            )

        xs = jax.ShapeDtypeStruct((T, 2, 4), jnp.float32)
        return jax.jit(jax.grad(loss)).lower(params, xs).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(16_384, 128) < temporaries(16_384, 16_384) / 10
