"""Errors with several arguments come out of a pool of processes as they went in."""

import pickle
from pathlib import Path

import jax
import numpy as np
import pytest

import mgu_jax as mgu

MODEL = mgu.Model(2, (3,), 2)
ERRORS = [
    mgu.Damaged(3, "arrays/x is damaged", 2, (3,)),
    mgu.Locked(Path("runs"), "process 7"),
    mgu.NotFinite("the loss must stay finite", 4, mgu.start(mgu.Recipe(MODEL), jax.random.key(0)), np.ones(4)),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_errors_can_be_pickled(error):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    mine, right = (jax.tree.leaves(vars(e)) for e in (again, error))
    for one, other in zip(mine, right, strict=True):
        assert np.array_equal(*(jax.random.key_data(a) if hasattr(a, "_impl") else a for a in (one, other)))
