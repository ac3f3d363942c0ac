"""The pretrained model predicts its text and writes more of it."""

import os
from pathlib import Path

import jax
import numpy as np
import pytest

import mgu_jax as mgu
from experiments.datasets import text
from mgu_jax.interop import pretrained
from mgu_jax.training.losses import cross_entropy
from tests.rejects import rejects

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def loaded():
    return pretrained.shakespeare()


def test_it_is_a_small_file_in_the_package():
    assert Path(pretrained.__file__).with_name("shakespeare.npz").stat().st_size < 2e6


def test_it_writes_words(loaded):
    """More than an eighth of the words that it writes are among the commonest words of English."""
    written = pretrained.write(*loaded, "ROMEO:\n", 400, KEY)
    assert written.startswith("ROMEO:\n")
    assert len(written) == 7 + 400
    common = {"the", "and", "i", "to", "of", "you", "my", "a", "that", "in", "is", "not", "me", "for", "it", "with"}
    words = [word.strip(".,:;!?").lower() for word in written.split()]
    assert sum(word in common for word in words) > len(words) / 8
    assert written == pretrained.write(*loaded, "ROMEO:\n", 400, KEY)
    assert written != pretrained.write(*loaded, "ROMEO:\n", 400, jax.random.key(1))


@pytest.mark.skipif("MGU_JAX_DATA" not in os.environ, reason="MGU_JAX_DATA names no folder with tiny Shakespeare")
def test_it_knows_its_text(loaded):
    """It predicts the part of the text that it never read in less than 2.3 bits per character."""
    model, params, symbols = loaded
    data = text.shakespeare(None)
    assert "".join(data.symbols) == symbols
    part = mgu.Stream(data.test.xs[:20_001], data.test.targets[:20_001])
    (nats,) = mgu.evaluate(model, params, part, (cross_entropy,), batch_size=1, window=1000)
    assert nats / np.log(2) < 2.3


WRITE = [
    ({"prompt": "§"}, "the model's symbols", "'§'"),
    ({"prompt": ""}, "at least one character", "''"),
    ({"count": 0}, "a whole number of at least 1", "0"),
    ({"temperature": 0.0}, "a number above 0", "0.0"),
    ({"temperature": "hot"}, "a number above 0", "'hot'"),
    ({"temperature": float("nan")}, "a number above 0", "nan"),
]


@pytest.mark.parametrize(("changes", "rule", "got"), WRITE, ids=[str(changes) for changes, *_ in WRITE])
def test_errors_of_write(loaded, changes, rule, got):
    arguments = {"prompt": "A", "count": 3, "key": KEY} | changes
    (name,) = changes
    rejects(lambda: pretrained.write(*loaded, **arguments), name, rule, f"got {got}", ValueError)


def test_errors_of_sample():
    model = mgu.Model(7, (4,), 7, embedding_size=3)
    params = model.init(KEY)
    last = mgu.Model(7, (4,), 7, embedding_size=3, readout="last")
    wide = mgu.Model(7, (4,), 9, embedding_size=3)
    numbers = mgu.Model(7, (4,), 7)
    for arguments, name, rule, got in [
        ((model, params, [7], 3, KEY), "first", "[0, 7)", "[7]"),
        ((model, params, [0.5], 3, KEY), "first", "whole numbers", "[0.5]"),
        ((model, params, [], 3, KEY), "first", "at least one token", "float64 [0]"),
        ((model, params, [1], 3, 0), "key", "one PRNG key", "0"),
        ((last, params, [1], 3, KEY), "the readout of model", "'all'", "'last'"),
        ((wide, params, [1], 3, KEY), "model", "one output per token", "embedding_size=3, input_size=7, output_size=9"),
        ((numbers, params, [1], 3, KEY), "model", "read tokens", "embedding_size=None"),
        (({}, params, [1], 3, KEY), "model", "an mgu_jax.Model", "a dict"),
    ]:
        rejects(lambda arguments=arguments: pretrained.sample(*arguments), name, rule, f"got {got}")


def test_a_second_sample_compiles_nothing():
    model = mgu.Model(7, (4,), 7, embedding_size=3)
    params = model.init(KEY)
    pretrained.sample(model, params, [1, 2], 3, KEY)
    held = pretrained.draw._cache_size()
    pretrained.sample(model, params, [3, 4], 3, jax.random.key(1), 0.5)
    assert pretrained.draw._cache_size() == held
