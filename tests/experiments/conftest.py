"""What tests of experiments share: they run as a user runs them."""

import jax
import pytest


@pytest.fixture
def as_a_user(monkeypatch, tmp_path_factory):
    """The usual promotion of dtypes and ranks, which optax and the peers need; no data folder and an empty cache."""
    monkeypatch.delenv("MGU_JAX_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
