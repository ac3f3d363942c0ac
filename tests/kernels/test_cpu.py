"""The native program for CPUs: it obeys the laws at any size and number of threads, and is compiled once."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mgu_jax as mgu
from mgu_jax.kernels import cpu
from tests import laws
from tests.kernels import members
from tests.rejects import rejects

ROOT = Path(__file__).parents[2]
MEMBERS = {name: cell for name, cell in members.MEMBERS.items() if cell.recurrence == "dense"}
# Each default case has another member, kind of program and set of options.
FIRST = {
    ("MGU", "plain"),
    ("MGU", "all forward"),
    ("FLAX_MGU", "all in reverse"),
    ("UGRNN", "all forward"),
    ("MGU3", "all in reverse"),
    ("relu", "all forward"),
    ("JANET", "all in reverse"),
}
EACH = [
    pytest.param(*case, marks=[] if case[:2] in FIRST and case[2] == "float64" else pytest.mark.slow)
    for case in itertools.product(MEMBERS, members.OPTIONS, ("float64", "float32"))
]


@pytest.fixture(scope="module", autouse=True)
def built(request, tmp_path_factory):
    """The program, compiled once and kept in pytest's cache; without a compiler, these tests are skipped."""
    cache = getattr(request.config, "cache", None)
    folder = cache.mkdir("mgu_jax") if cache else tmp_path_factory.mktemp("mgu_jax")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MGU_JAX_CACHE", str(folder))
        if why := cpu.load():
            pytest.skip(f"the native program {why}")
        yield folder


def obeys(cell, dtype="float64", T=6, B=3, H=5, D=4, tolerance=None, **options):
    laws.equals_oracle(laws.case(cell, T, (B,), D, H), dtype, cell, "native", tolerance, **options)


@pytest.mark.parametrize(("name", "options", "dtype"), EACH)
def test_obeys_the_laws(name, options, dtype, x64):
    obeys(MEMBERS[name], dtype, **members.OPTIONS[options])


def test_obeys_the_laws_in_float32_under_jit():
    obeys(mgu.MGU, "float32", T=37, B=9, H=33, transform=jax.jit)


# D and H below, at and above multiples of a vector and of a panel; B below and above the number of threads and the rows
# of a product; rows of several steps that do and do not fill the chunk of the weight gradients.
SIZES = [(1, 1, 1, 1), (2, 200, 1, 33), (3, 5, 17, 31), (33, 13, 40, 65)]
MORE = [(1, 400, 3, 16), (7, 3, 64, 7), (16, 25, 16, 64), (50, 9, 28, 100), (193, 3, 2, 48), (400, 2, 1, 17)]


@pytest.mark.parametrize(("B", "T", "D", "H"), [*SIZES, *(pytest.param(*s, marks=pytest.mark.slow) for s in MORE)])
def test_any_size(x64, B, T, D, H):
    obeys(mgu.MGU, B=B, T=T, D=D, H=H, tolerance=1e-11 if T > 100 else None)


@pytest.mark.parametrize("shape", [(0, 3), (4, 0)], ids=["no steps", "no samples"])
def test_nothing_to_do(x64, shape):
    T, B = shape
    obeys(mgu.MGU, T=T, B=B)


def test_a_population_and_second_derivatives(x64):
    """vmap over parameters equals one after the other, and the gradient of a gradient is the definition's."""
    population = jax.vmap(lambda key: mgu.init(key, 4, 5, dtype="float64"))(jax.random.split(jax.random.key(0), 3))
    xs = jax.random.normal(jax.random.key(1), (3, 2, 4), "float64")

    def loss(params, implementation):
        return jnp.sum(mgu.scan(params, xs, implementation=implementation)[0] ** 2)

    def slope(params, implementation):
        gradient = jax.grad(loss)(params, implementation)
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient))

    found, right = (
        jax.vmap(jax.value_and_grad(slope), (0, None))(population, implementation)
        for implementation in ("native", "autodiff")
    )
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(right), strict=True):
        assert laws.relative_error(one, other) < 1e-12


@pytest.mark.parametrize("name", ["MGU", "relu", "JANET", pytest.param("FLAX_MGU", marks=pytest.mark.slow)])
def test_saturated_gates_and_numbers_that_are_not_finite(name):
    """A huge input saturates as in the definition, and NaN stays in its sample, forward and back."""
    cell = MEMBERS[name]
    params = mgu.init(jax.random.key(0), 2, 17, cell)
    xs = jax.random.normal(jax.random.key(1), (4, 3, 2)).at[1, 0].set(1e4).at[2, 1, 0].set(jnp.nan)

    def found(implementation):
        def loss(xs):
            hs, _ = mgu.scan(params, xs, cell=cell, implementation=implementation)
            return jnp.sum(hs**2), hs

        return jax.grad(loss, has_aux=True)(xs)[::-1]

    for mine, right in zip(found("native"), found("autodiff"), strict=True):
        np.testing.assert_array_equal(np.isnan(mine), np.isnan(right))
        assert not np.isnan(mine[:, 2]).any()
        np.testing.assert_allclose(np.nan_to_num(mine), np.nan_to_num(right), rtol=1e-4, atol=1e-6)


def test_two_runs_are_equal():
    """The parts of the samples are summed in their order, whichever thread was faster."""
    params, xs = mgu.init(jax.random.key(0), 8, 48), jax.random.normal(jax.random.key(1), (40, 32, 8))
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(mgu.scan(p, xs, implementation="native")[0] ** 2)))
    first = gradient(params)
    for _ in range(20):
        assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), first, gradient(params)))


REFUSED = [
    (mgu.MIN_GRU, "float32", {}, "sees the state"),
    (mgu.DIAGONAL_MGU, "float32", {}, "dense"),
    (mgu.Cell(layer_norm=True), "float32", {}, "layer normalisation"),
    (mgu.MGU, "bfloat16", {}, "float32 or float64"),
    (mgu.MGU, "float32", {"compute_dtype": "bfloat16"}, "compute_dtype"),
    (mgu.MGU, "float32", {"precision": jax.lax.DotAlgorithmPreset.BF16_BF16_F32}, "precision"),
]


@pytest.mark.parametrize(("cell", "dtype", "products", "why"), REFUSED, ids=[row[-1] for row in REFUSED])
def test_what_it_cannot_serve_is_refused_with_the_reason(cell, dtype, products, why):
    params = mgu.init(jax.random.key(0), 4, 5, cell, dtype=dtype)
    xs = jnp.zeros((3, 2, 4), dtype)
    rejects(lambda: mgu.scan(params, xs, cell=cell, implementation="native", **products), "'native'", why)


def test_on_a_mesh():
    """Each device of jax.shard_map runs its own part; what the compiler divides itself is refused."""
    P = jax.sharding.PartitionSpec
    params, xs = mgu.init(jax.random.key(0), 4, 5), jax.random.normal(jax.random.key(1), (3, 4, 4))
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))

    def split(implementation, check_vma):
        run = lambda xs: mgu.scan(params, xs, implementation=implementation)[0]  # noqa: E731
        rows = P(None, "batch")
        return jax.jit(jax.shard_map(run, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=check_vma))(xs)

    assert laws.relative_error(split("native", False), split("autodiff", False)) < 2e-6
    rejects(lambda: split("native", True), "'native'", "check_vma=False")
    with jax.set_mesh(jax.make_mesh((1,), ("batch",))):
        rejects(lambda: mgu.scan(params, xs, implementation="native"), "'native'", "shard_map")


def test_none_takes_it_where_it_is_built_and_faster(built, monkeypatch, tmp_path):
    params, xs = mgu.init(jax.random.key(0), 4, 5), jnp.zeros((3, 8, 4))
    assert mgu.which(params, xs) == "native"
    assert mgu.which(params, xs[:, :1]) == ("native" if jax.__version_info__ < (0, 11) else "manual")
    assert mgu.which(params, xs[:, :1], implementation="native") == "native"
    assert mgu.which(params, xs, compute_dtype="bfloat16") == "manual"
    monkeypatch.setenv("MGU_JAX_CACHE", str(tmp_path))
    assert mgu.which(params, xs) == "manual"
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_compiled_says_so_in_one_sentence(monkeypatch, tmp_path):
    """And None then takes "manual" without a word."""

    def reason(**environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, str(value))
        params, xs = mgu.init(jax.random.key(0), 4, 5), jnp.zeros((3, 8, 4))
        assert mgu.which(params, xs) == "manual"
        text = str(rejects(lambda: mgu.scan(params, xs, implementation="native"), "'native'"))
        assert not [path for path in tmp_path.rglob("*.so") if path.is_file()]
        return text

    folder = tmp_path / "cache"
    assert "could not be compiled by" in reason(MGU_JAX_CACHE=folder, MGU_JAX_CXXFLAGS="-Dmain=( -include missing.h")
    (tmp_path / "file").write_text("")
    assert "could not be kept in" in reason(MGU_JAX_CACHE=tmp_path / "file" / "x", MGU_JAX_CXXFLAGS="")
    assert "needs a C++ compiler" in reason(MGU_JAX_CACHE=folder, PATH=tmp_path, CXX="")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "needs Linux" in reason()


def run(code, **environment):
    """The output of a program in a process of its own."""
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_command_builds_it():
    done = run("import runpy; runpy.run_module('mgu_jax.kernels', run_name='__main__', alter_sys=False)")
    assert "native: ready" in done


ALL_SIZES = """
import os
cache = os.environ["MGU_JAX_CACHE"]
from tests.conftest import double_precision
os.environ["MGU_JAX_CACHE"] = cache  # conftest names a place where no program can be
from tests.kernels import members, test_cpu
with double_precision():
    for B, T, D, H in test_cpu.SIZES + test_cpu.MORE:
        test_cpu.obeys(test_cpu.MEMBERS["FLAX_MGU" if B % 2 else "MGU"], B=B, T=T, D=D, H=H, tolerance=1e-11)
    for cell in test_cpu.MEMBERS.values():
        for options in members.OPTIONS.values():
            test_cpu.obeys(cell, **options)
print("obeys")
"""


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads(threads):
    assert "obeys" in run(ALL_SIZES, NPROC=str(threads), XLA_FLAGS="")  # XLA reads NPROC


@pytest.mark.slow
def test_the_address_sanitizer_finds_nothing(tmp_path):
    def found(name):
        done = subprocess.run([cpu.compiler(), f"-print-file-name={name}"], capture_output=True, text=True)
        return os.path.realpath(done.stdout.strip())

    preloaded = [found(name) for name in ("libasan.so", "libstdc++.so")]  # the sanitizer looks there for exceptions
    if not all(map(os.path.exists, preloaded)):
        pytest.skip("this compiler has no address sanitizer")
    flags = "-fsanitize=address -fno-omit-frame-pointer"
    environment = {"MGU_JAX_CACHE": str(tmp_path), "MGU_JAX_CXXFLAGS": flags, "LD_PRELOAD": " ".join(preloaded)}
    assert "obeys" in run(ALL_SIZES, ASAN_OPTIONS="detect_leaks=0", **environment)
