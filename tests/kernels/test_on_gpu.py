"""The kernel on a Hopper GPU: ``pytest -m gpu``. It obeys the laws, and the compiled program holds it."""

import jax
import jax.numpy as jnp
import pytest

import mgu_jax as mgu
from tests import laws
from tests.kernels.members import MEMBERS, OPTIONS, obeys

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif("not gpu._is_hopper()", reason="needs a Hopper GPU"),
]
SIZES = [(5, 3), (64, 16), (100, 20), (128, 64), (192, 33)]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", MEMBERS)
def test_obeys_the_laws(name, options):
    obeys(MEMBERS[name], **OPTIONS[options])


@pytest.mark.parametrize(("H", "B"), SIZES)
@pytest.mark.parametrize("name", ["MGU", "MGU3", "FLAX_MGU", "UGRNN", "JANET"])
def test_any_size(name, H, B):
    obeys(MEMBERS[name], H=H, B=B, T=20)


@pytest.mark.parametrize(("compute_dtype", "tolerance"), [(None, 5e-3), ("bfloat16", 5e-2)])
def test_coarser_products_are_as_exact_as_they_say(compute_dtype, tolerance):
    case = laws.case(mgu.MGU, H=128, T=50, batch=(16,))
    outputs, gradients = laws.gradients(
        case, "float32", mgu.MGU, implementation="mosaic_gpu", compute_dtype=compute_dtype
    )
    right = laws.expected(case, mgu.MGU)
    laws.assert_close(outputs, right[0], tolerance)
    laws.assert_close(gradients, right[1], tolerance)


def test_the_compiled_program_holds_two_kernels():
    params, xs = mgu.init(jax.random.key(0), 8, 64), jnp.ones((20, 16, 8))

    def loss(params):
        return jnp.sum(mgu.scan(params, xs, implementation="mosaic_gpu")[0] ** 2)

    text = jax.jit(jax.grad(loss)).lower(params).compile().as_text()
    assert text.count("mosaic_gpu") >= 2
    assert "while(" not in text


def test_a_population_is_as_its_members_are():
    population = jax.vmap(lambda key: mgu.init(key, 8, 64))(jax.random.split(jax.random.key(0), 8))
    xs = jax.random.normal(jax.random.key(1), (20, 16, 8))

    def run(params):
        return mgu.scan(params, xs, implementation="mosaic_gpu", precision="highest")[0]

    together = jax.vmap(run)(population)
    for i in range(8):
        alone = run(jax.tree.map(lambda a, i=i: a[i], population))
        assert laws.relative_error(together[i], alone) < 1e-6
