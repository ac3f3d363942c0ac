"""Saving and restoring; what a run does with it is tested in test_train.py and test_experiments.py."""

import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgu_jax.checkpoint import Checkpoints


class Tree(NamedTuple):
    step: object
    key: object
    rest: object


def tree(step):
    return Tree(jnp.int32(step), jax.random.key(step), {"a": jnp.full((3, 2), step / 3), "b": (jnp.ones(1),)})


def test_round_trip_is_exact_and_the_newest_counts(tmp_path):
    with Checkpoints(tmp_path / "run", keep=2) as checkpoints:
        assert checkpoints.restore(tree(0)) is None
        for step in (1, 2, 3):
            checkpoints.save(step, tree(step))
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["2", "3"]
    with Checkpoints(tmp_path / "run") as checkpoints:
        restored = checkpoints.restore(tree(0))
    assert type(restored) is Tree
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(tree(3)), strict=True):
        assert a.dtype == b.dtype
        if a is not restored.key:
            np.testing.assert_array_equal(a, b)
    assert jax.random.uniform(restored.key) == jax.random.uniform(tree(3).key)


def test_an_unfinished_checkpoint_is_passed_over(tmp_path):
    """What a kill in the middle of writing leaves behind."""
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, tree(1))
    (tmp_path / "2.orbax-checkpoint-tmp-0").mkdir()
    (tmp_path / "2.orbax-checkpoint-tmp-0" / "half").write_text("...")
    with Checkpoints(tmp_path) as checkpoints:
        assert int(checkpoints.restore(tree(0)).step) == 1


def test_without_orbax_the_sentence_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    with pytest.raises(ImportError) as caught:
        Checkpoints(tmp_path)
    assert str(caught.value) == (
        "orbax.checkpoint is needed here and not installed: pip install 'mgu_jax[experiments]'."
    )
