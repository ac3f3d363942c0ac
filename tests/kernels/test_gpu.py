"""The GPU kernel, by Pallas's interpreter on any machine: it obeys the laws, has no races, and lowers for CUDA."""

import itertools

import jax
import jax.numpy as jnp
import pytest

import mgu_jax as mgu
from mgu_jax.kernels import gpu, mosaic
from mgu_jax.layer.products import Products
from tests import laws
from tests.kernels.members import MEMBERS, OPTIONS, obeys
from tests.rejects import rejects

pytestmark = pytest.mark.skipif(jax.__version_info__ < (0, 11, 2), reason="the kernel needs JAX 0.11.2")


# The interpreter and the lowering take seconds each, so the default run takes these members, ``-m slow`` the others.
FIRST = {
    ("MGU", "all forward"),
    ("MGU", "all in reverse"),
    ("FLAX_MGU", "all forward"),
    ("DIAGONAL_MGU", "all in reverse"),
    ("JANET", "all forward"),
}
EACH = [
    pytest.param(name, options, marks=[] if (name, options) in FIRST else pytest.mark.slow)
    for name in MEMBERS
    for options in OPTIONS
]


@pytest.fixture
def interpreted():
    with mosaic.interpreted():
        yield


@pytest.mark.parametrize(("name", "options"), EACH)
def test_obeys_the_laws(name, options, interpreted):
    obeys(MEMBERS[name], **OPTIONS[options])


@pytest.mark.slow
@pytest.mark.parametrize(("H", "B"), [(64, 16), (70, 20), (130, 1)])
@pytest.mark.parametrize("name", ["MGU", "FLAX_MGU"])
def test_any_size(name, H, B, interpreted):
    obeys(MEMBERS[name], H=H, B=B, T=3)


@pytest.mark.parametrize("shape", [(0, 3), (4, 0)], ids=["no steps", "no samples"])
def test_nothing_to_do(shape, interpreted):
    T, B = shape
    obeys(mgu.MGU, T=T, B=B)


@pytest.mark.parametrize(("precision", "compute_dtype", "tolerance"), [(None, None, 2e-3), (None, "bfloat16", 3e-2)])
def test_coarser_products_are_as_exact_as_they_say(precision, compute_dtype, tolerance, interpreted):
    """The interpreter computes exact activations, so this judges the products alone."""
    case = laws.case(mgu.MGU, H=64)
    options = {"implementation": "mosaic_gpu", "precision": precision, "compute_dtype": compute_dtype}
    outputs, gradients = laws.gradients(case, "float32", mgu.MGU, **options)
    right = laws.expected(case, mgu.MGU)
    laws.assert_close(outputs, right[0], tolerance)
    laws.assert_close(gradients, right[1], tolerance)


@pytest.mark.parametrize(
    "name", ["MGU", *(pytest.param(name, marks=pytest.mark.slow) for name in ("FLAX_MGU", "MGU3"))]
)
def test_no_races(name):
    """All of a step's waiting is there: the interpreter watches every access to shared memory."""
    with mosaic.interpreted(detect_races=True):
        obeys(MEMBERS[name], H=70, resets=laws.RESETS, recurrent_dropout=0.4, key=laws.KEY)


def test_a_population_and_second_derivatives(interpreted):
    """vmap over parameters equals one after the other, and the gradient of a gradient is the definition's."""
    population = jax.vmap(lambda key: mgu.init(key, 4, 5))(jax.random.split(jax.random.key(0), 2))
    xs = jax.random.normal(jax.random.key(1), (3, 2, 4))

    def loss(params, implementation):
        return jnp.sum(mgu.scan(params, xs, implementation=implementation, precision="highest")[0] ** 2)

    def slope(params, implementation):
        gradient = jax.grad(loss)(params, implementation)
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient))

    for function in (loss, slope):
        found, right = (
            jax.vmap(jax.grad(function), (0, None))(population, implementation)
            for implementation in ("mosaic_gpu", "autodiff")
        )
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(right), strict=True):
            assert laws.relative_error(one, other) < 2e-5


REFUSED = [
    (mgu.MIN_GRU, 5, "float32", {}, "sees the state"),
    (mgu.Cell(layer_norm=True), 5, "float32", {}, "layer normalisation"),
    (mgu.MGU, 193, "float32", {}, "at most 192 hidden units"),
    (mgu.MGU, 5, "bfloat16", {}, "float32 parameters"),
    (mgu.MGU, 5, "float32", {"compute_dtype": "float16"}, "bfloat16"),
]


@pytest.mark.parametrize(("cell", "H", "dtype", "products", "why"), REFUSED, ids=[row[-1] for row in REFUSED])
def test_what_it_cannot_serve_is_refused_with_the_reason(cell, H, dtype, products, why, interpreted):
    params = mgu.init(jax.random.key(0), 4, H, cell, dtype=dtype)
    xs = jnp.zeros((3, 2, 4), dtype)
    rejects(lambda: mgu.scan(params, xs, cell=cell, implementation="mosaic_gpu", **products), "'mosaic_gpu'", why)


def test_without_a_gpu_it_is_refused():
    params, xs = mgu.init(jax.random.key(0), 4, 5), jnp.zeros((3, 2, 4))
    rejects(lambda: mgu.scan(params, xs, implementation="mosaic_gpu"), "'mosaic_gpu'", "Hopper")
    assert mgu.which(params, xs) == "manual"


def test_on_a_mesh_that_the_compiler_divides_it_is_refused(interpreted):
    params, xs = mgu.init(jax.random.key(0), 4, 5), jnp.zeros((3, 2, 4))
    with jax.set_mesh(jax.make_mesh((1,), ("batch",))):
        rejects(lambda: mgu.scan(params, xs, implementation="mosaic_gpu"), "'mosaic_gpu'", "shard_map")
        assert mgu.which(params, xs) == "manual"


def test_which_names_what_runs(monkeypatch):
    """Left out, implementation is the kernel wherever the kernel can serve; the names of others stay."""
    monkeypatch.setattr(gpu, "_is_hopper", lambda: True)
    params, xs = mgu.init(jax.random.key(0), 4, 5), jnp.zeros((3, 2, 4))
    assert mgu.which(params, xs) == mgu.which(params, xs, implementation="mosaic_gpu") == "mosaic_gpu"
    assert mgu.which(params, xs, implementation="autodiff") == "autodiff"
    assert mgu.which(params, xs, compute_dtype="float16") == "manual"
    wide = mgu.init(jax.random.key(0), 4, 193)
    assert mgu.which(wide, xs) == "manual"
    rejects(lambda: mgu.which(wide, xs, implementation="mosaic_gpu"), "'mosaic_gpu'", "at most 192")
    rejects(lambda: mgu.which(params, xs[..., :3]), "xs", "[T, ..., 4]")


def program(platform, monkeypatch, B=20, shards=None, check_vma=False, **options):
    """The lowered gradient of a layer with lengths and resets, for a platform that need not be there."""
    monkeypatch.setattr(gpu, "_is_hopper", lambda: True)
    cell, H, T = options.get("cell", mgu.MGU), options.pop("H", 64), 5
    params = jax.eval_shape(lambda: mgu.init(jax.random.key(0), 8, H, cell))
    arrays = (jnp.zeros((T, B, 8)), jnp.zeros((B, H)), jnp.zeros(B, jnp.int32), jnp.zeros((T, B), bool))

    def loss(params, xs, h0, lengths, resets):
        hs, h_last = mgu.scan(params, xs, h0, lengths=lengths, resets=resets, **options)
        return jnp.sum(hs**2) + jnp.sum(h_last)

    gradient = jax.grad(loss, (0, 1, 2))
    if shards is not None:
        specs = {"in_specs": shards, "out_specs": (shards[0], shards[1], shards[2])}
        mesh = jax.make_mesh((2,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
        gradient = jax.shard_map(gradient, mesh=mesh, check_vma=check_vma, **specs)
    traced = jax.jit(gradient).trace(params, *jax.eval_shape(lambda: arrays))
    return traced.lower(lowering_platforms=(platform,)).as_text()


def test_each_platform_of_one_machine_gets_its_own_loops(monkeypatch):
    """On a machine with a GPU, what is compiled for its CPU is a loop of XLA's."""
    text = program("cpu", monkeypatch)
    assert "mosaic_gpu" not in text
    assert "stablehlo.while" in text


def test_inside_shard_map(monkeypatch):
    P = jax.sharding.PartitionSpec
    shards = (P(), P(None, "batch"), P("batch"), P("batch"), P(None, "batch"))
    text = program("cuda", monkeypatch, shards=shards)
    assert text.count("custom_call @mosaic_gpu") == 2
    text = program("cuda", monkeypatch, shards=shards, check_vma=True)  # where Pallas cannot serve
    assert "mosaic_gpu" not in text
    with pytest.raises(ValueError, match="'mosaic_gpu' needs check_vma=False"):
        program("cuda", monkeypatch, shards=shards, check_vma=True, implementation="mosaic_gpu")


SIZES = [(64, "bfloat16"), (64, None), (128, "bfloat16"), (128, None), (192, "bfloat16"), (192, None)]
KERNELS = [
    (name, *size) if name == "MGU" and size in SIZES[::5] else pytest.param(name, *size, marks=pytest.mark.slow)
    for name in MEMBERS
    for size in SIZES
]


@pytest.mark.parametrize(("name", "H", "compute_dtype"), KERNELS)
def test_lowers_for_cuda(name, H, compute_dtype, monkeypatch):
    """Every member, size class and accuracy becomes two kernels, forward and back, and no loop of XLA's."""
    text = program("cuda", monkeypatch, cell=MEMBERS[name], H=H, compute_dtype=compute_dtype)
    assert text.count("custom_call @mosaic_gpu") == 2
    assert "stablehlo.while" not in text


def test_seeds_of_a_model_share_its_launches(monkeypatch):
    """Three seeds of two layers that read in both directions: four kernels forward and four back, without a flag."""
    monkeypatch.setattr(gpu, "_is_hopper", lambda: True)
    model = mgu.Model(8, (64, 100), 10, readout="last", bidirectional="concatenate")
    params = jax.eval_shape(jax.vmap(model.init), jax.random.split(jax.random.key(0), 3))

    def loss(params, xs, lengths):
        return jnp.sum(model.apply(params, xs, lengths=lengths) ** 2)

    arguments = (params, jnp.zeros((5, 20, 8)), jnp.zeros(20, jnp.int32))
    traced = jax.jit(jax.vmap(jax.grad(loss), (0, None, None))).trace(*arguments)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("custom_call @mosaic_gpu") == 8
    assert "stablehlo.while" not in text


def test_shared_memory_is_never_overdrawn():
    kinds = (Products(), Products("highest"), Products(compute_dtype="bfloat16"))
    cells = (mgu.MGU, mgu.FLAX_MGU, mgu.DIAGONAL_MGU)
    for H, products, arrays, cell in itertools.product((1, 64, 65, 128, 129, 192), kinds, range(2, 8), cells):
        tuning = gpu.tuning_for(products, cell, H, arrays)
        taken = mosaic.shared_bytes(tuning, H, arrays, gpu.places_of(cell))
        assert taken <= mosaic.SHARED_MEMORY, (H, products, arrays, cell)
