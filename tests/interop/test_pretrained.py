"""The model that comes with the library: it knows its text, and writes."""

import os
from pathlib import Path

import jax
import numpy as np
import pytest

import mgu_jax as mgu
from experiments.datasets import text
from mgu_jax.interop import pretrained
from mgu_jax.training.losses import cross_entropy

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def loaded():
    return pretrained.shakespeare()


def test_it_is_small_and_comes_with_the_package():
    assert Path(pretrained.__file__).with_name("shakespeare.npz").stat().st_size < 2e6


def test_it_writes_words(loaded):
    """Most of what stands between spaces are words that the plays have too, by a list of the commonest."""
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
    """Of the part that it never saw, at the symbols that the data set has."""
    model, params, symbols = loaded
    data = text.shakespeare(None)
    assert "".join(data.symbols) == symbols
    part = mgu.Stream(*(a[:20_001] for a in data.test))
    (nats,) = mgu.evaluate(model, params, part, (cross_entropy,), batch_size=1, window=1000)
    assert nats / np.log(2) < 2.3


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"prompt": "§"}, "prompt must be written in the model's symbols; got '§'."),
        ({"prompt": ""}, "prompt must have at least one symbol; got ''."),
        ({"count": 0}, "count must be a whole number of at least 1; got 0."),
        ({"temperature": 0.0}, "temperature must be a number above 0; got 0.0."),
        ({"temperature": "hot"}, "temperature must be a number above 0; got 'hot'."),
        ({"temperature": float("nan")}, "temperature must be a number above 0; got nan."),
    ],
)
def test_what_cannot_be_is_one_sentence(loaded, changes, sentence):
    arguments = {"prompt": "A", "count": 3, "key": KEY} | changes
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the whole text is compared)
        pretrained.write(*loaded, **arguments)
    assert str(caught.value) == sentence


def test_it_samples_from_models_of_tokens():
    model = mgu.Model(7, (4,), 7, embedding_size=3)
    params = model.init(KEY)
    shown = "as jax.random.key(0) makes it; got 0."
    wide, last = mgu.Model(7, (4,), 9, embedding_size=3), mgu.Model(7, (4,), 7, embedding_size=3, readout="last")
    logits = "model must read tokens and give logits of as many; got embedding_size="
    for arguments, sentence in [
        ((model, params, [7], 3, KEY), "first must hold whole numbers in [0, 7); got [7]."),
        ((model, params, [0.5], 3, KEY), "first must hold whole numbers in [0, 7); got [0.5]."),
        ((model, params, [], 3, KEY), "first must be tokens [S], at least one; got float64 [0]."),
        ((model, params, [1], 3, 0), f"key must be one PRNG key, {shown}"),
        ((last, params, [1], 3, KEY), "the readout of model must be one of 'all'; got 'last'."),
        ((wide, params, [1], 3, KEY), f"{logits}3, 7 inputs and 9 outputs."),
        ((mgu.Model(7, (4,), 7), params, [1], 3, KEY), f"{logits}None, 7 inputs and 7 outputs."),
    ]:
        with pytest.raises((TypeError, ValueError)) as caught:
            pretrained.sample(*arguments)
        assert str(caught.value) == sentence


def test_a_second_sample_compiles_nothing():
    model = mgu.Model(7, (4,), 7, embedding_size=3)
    params = model.init(KEY)
    pretrained.sample(model, params, [1, 2], 3, KEY)
    held = pretrained.draw._cache_size()
    pretrained.sample(model, params, [3, 4], 3, jax.random.key(1), 0.5)
    assert pretrained.draw._cache_size() == held
