"""A task that can be learned, and its recipe."""

import numpy as np
import pytest

import mgu_jax as mgu


@pytest.fixture(scope="module")
def data():
    """Which half of the sequence has the larger sum."""
    rng = np.random.default_rng(0)
    xs = rng.standard_normal((40, 6, 3)).astype(np.float32)
    return mgu.Data(xs, (xs[:, 3:].sum((1, 2)) > xs[:, :3].sum((1, 2))).astype(np.int32))


@pytest.fixture(scope="module")
def recipe():
    return mgu.Recipe(mgu.Model(3, (8,), 2, readout="last"), batch_size=8)
