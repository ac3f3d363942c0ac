"""Strict arithmetic for all tests: no silent promotion of dtypes or ranks, and warnings are errors (pyproject.toml)."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def x64():
    """Double precision within the test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    """Both precisions, one after the other; x64 is enabled where it is needed."""
    with jax.enable_x64(request.param == "float64"):
        yield request.param
