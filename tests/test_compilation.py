"""How often programs are compiled, how large they are, and what that depends on."""

import time

import chex
import jax
import jax.numpy as jnp
import pytest

import mgu_jax as mgu
from tests import laws

implementations = pytest.mark.parametrize("implementation", ["manual", "autodiff"])


@pytest.fixture
def compilations():
    """A list that grows by one entry whenever XLA compiles during the test."""
    seen = []

    def listen(event, *_, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


@implementations
def test_second_call_compiles_nothing(compilations, implementation):
    """Values and gradients, outside of any jit."""
    params = mgu.init(jax.random.key(0), 3, 11)
    others, xs = jax.tree.map(jnp.sin, params), jnp.ones((6, 2, 3))

    def loss(params, xs):
        return mgu.scan(params, xs, implementation=implementation)[1].sum()

    for function in (loss, jax.grad(loss)):
        function(params, xs)
        assert compilations
        compilations.clear()
        function(others, xs)
        assert not compilations


@implementations
def test_a_training_loop_is_traced_once(implementation):
    xs = jnp.ones((6, 2, 3))

    @jax.jit
    @chex.assert_max_traces(1)
    def update(params):
        gradient = jax.grad(lambda p: jnp.sum(mgu.scan(p, xs, implementation=implementation)[0] ** 2))(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)

    params = mgu.init(jax.random.key(0), 3, 4)
    for _ in range(5):
        params = update(params)
    chex.clear_trace_counter()


def equations(jaxpr):
    """The number of equations of a program, in all its loops and calls."""
    inner = [
        e for eqn in jaxpr.eqns for e in jax.tree.leaves(list(eqn.params.values()), is_leaf=is_jaxpr) if is_jaxpr(e)
    ]
    return len(jaxpr.eqns) + sum(equations(getattr(j, "jaxpr", j)) for j in inner)


def is_jaxpr(value):
    return hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns")


@implementations
@pytest.mark.parametrize("differentiate", [False, True])
def test_the_size_of_the_program_does_not_depend_on_T(implementation, differentiate):
    params = mgu.init(jax.random.key(0), 3, 4)

    def loss(params, xs):
        hs, h_last = mgu.scan(params, xs, implementation=implementation)
        return jnp.sum(hs) + jnp.sum(h_last)

    function = jax.grad(loss) if differentiate else loss
    short, long = (equations(jax.make_jaxpr(function)(params, jnp.zeros((T, 2, 3))).jaxpr) for T in (5, 5000))
    assert short == long > 10


@pytest.mark.slow
def test_time_grows_linearly_with_T():
    """Ten times the steps take less than 25 times the time; with quadratic time it would be 100 times."""
    params = mgu.init(jax.random.key(0), 4, 16)
    step = jax.jit(jax.grad(lambda p, xs: jnp.sum(mgu.scan(p, xs)[0] ** 2)))

    def seconds(T):
        xs = jnp.ones((T, 2, 4))
        jax.block_until_ready(step(params, xs))
        times = []
        for _ in range(5):
            began = time.perf_counter()
            jax.block_until_ready(step(params, xs))
            times.append(time.perf_counter() - began)
        return min(times)

    assert seconds(20_000) < 25 * seconds(2_000)


# The products inside each loop, and all products: two of the input, two of dx, and one for each weight.
PRODUCTS = {
    "MGU": ([2, 2], 4 + 2 + 2 + 4),
    "MGU1": ([2, 2], 4 + 1 + 1 + 3),
    "MGU2": ([2, 2], 4 + 1 + 1 + 3),
    "MGU3": ([1, 1], 2 + 1 + 1 + 2),
    "RESET_AFTER_MGU": ([1, 1], 2 + 2 + 2 + 4),
    "FLAX_MGU": ([1, 1], 2 + 2 + 2 + 4),
    "UGRNN": ([1, 1], 2 + 2 + 2 + 4),
    "DIAGONAL_MGU": ([0, 0], 0 + 2 + 2 + 2),
    "JANET": ([1, 1], 2 + 2 + 2 + 4),
    "MIN_GRU": ([0, 0], 0 + 2 + 2 + 2),
}


def inner(jaxpr):
    """The programs inside a program's equations."""
    for eqn in jaxpr.eqns:
        yield from inside(eqn)


def inside(eqn):
    """The programs inside one equation."""
    for j in filter(is_jaxpr, jax.tree.leaves(list(eqn.params.values()), is_leaf=is_jaxpr)):
        yield getattr(j, "jaxpr", j)


def loops(jaxpr):
    """The bodies of the loops that contain no other loop."""
    for eqn in jaxpr.eqns:
        bodies = [body for j in inside(eqn) for body in loops(j)]
        if eqn.primitive.name == "scan" and not bodies:
            bodies = [eqn.params["jaxpr"].jaxpr]
        yield from bodies


def products(jaxpr):
    return sum(e.primitive.name == "dot_general" for e in jaxpr.eqns) + sum(map(products, inner(jaxpr)))


@pytest.mark.parametrize(("reverse", "segment"), [(False, None), (True, None), (False, 4)])
@pytest.mark.parametrize("name", PRODUCTS)
def test_number_of_products_inside_the_loops(name, reverse, segment):
    """Input products and weight gradients are outside the loops, and one product of width 2H replaces two."""
    cell, xs = laws.NAMED[name], jnp.zeros((8, 2, 3))
    params = mgu.init(jax.random.key(0), 3, 5, cell)  # of at most 4 units, the products would be written out

    def loss(params, xs):
        return jnp.sum(mgu.scan(params, xs, reverse=reverse, segment=segment, cell=cell)[0] ** 2)

    program = jax.make_jaxpr(jax.grad(loss, (0, 1)))(params, xs).jaxpr
    bodies = [products(body) for body in loops(program)]
    assert (bodies, products(program)) == PRODUCTS[name]


def temporaries(T, save, of):
    """The bytes that a gradient needs besides its arguments and results, relative to the states of all steps."""
    params, xs = mgu.init(jax.random.key(0), 4, 16), jax.ShapeDtypeStruct((T, 2, 4), jnp.float32)

    def loss(params, xs):
        return jnp.sum(mgu.scan(params, xs, save=save)[of] ** 2)

    used = jax.jit(jax.grad(loss, (0, 1))).lower(params, xs).compile().memory_analysis()
    return used.temp_size_in_bytes / (T * 2 * 16 * 4)


@pytest.mark.parametrize(("save", "most"), [("gates", 5.6), ("states", 4.0), ("segments", 2.6)])
def test_memory_of_a_gradient(save, most):
    """The loss uses all states, and takes twice their memory itself."""
    assert temporaries(65_536, save, 0) <= most


def test_memory_grows_as_the_square_root_of_time():
    """A hundred times the steps take about ten times the memory."""
    short, long = (T * temporaries(T, "segments", 1) for T in (1_000, 100_000))
    assert long < 15 * short
