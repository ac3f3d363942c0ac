"""Strict arithmetic for all tests: no silent promotion of dtypes or ranks, and warnings are errors (pyproject.toml)."""

import itertools
import os
import signal
from contextlib import contextmanager, nullcontext

os.environ.setdefault("KERAS_BACKEND", "jax")
# Where no native program is or can be, so that the tests which name no implementation run the same one everywhere.
os.environ["MGU_JAX_CACHE"] = os.path.join(__file__, "nowhere")

import jax
import pytest

if jax.__version_info__ < (0, 11):  # whose former emitter builds small programs in half the time; newer ones lack it
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
signal.signal(signal.SIGINT, signal.default_int_handler)  # which shells have what they start in the background ignore
jax.config.update("jax_num_cpu_devices", 2)  # for the tests that spread work over devices; the others use the first


_tests = itertools.count(1)


@contextmanager
def hasty():
    """A compiler that does little, for tests of what a program computes; they compile in half the time."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@contextmanager
def double_precision():
    """x64, and a hasty compiler. Tests in single precision compile as users do."""
    with hasty(), jax.enable_x64(True):
        yield


@pytest.fixture
def quick_compiler(monkeypatch):
    """A hasty compiler within the test, and in the processes that it starts."""
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    with hasty():
        yield


@pytest.fixture
def x64():
    """Double precision within the test."""
    with double_precision():
        yield


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    """Both precisions, one after the other."""
    with double_precision() if request.param == "float64" else nullcontext():
        yield request.param


@pytest.fixture(autouse=True)
def compiled_programs_do_not_pile_up():
    """Thousands of tests compile thousands of programs; clearing them bounds the memory."""
    yield
    if next(_tests) % 150 == 0:
        jax.clear_caches()


@pytest.fixture
def optax_promotes():
    """optax raises floats to integer counts, which strict promotion forbids."""
    with jax.numpy_dtype_promotion("standard"):
        yield
