"""The model that comes with the library: it knows its text, and writes."""

import os
from pathlib import Path

import jax
import numpy as np
import pytest

import mgu_jax as mgu
from experiments import text
from mgu_jax.interop import pretrained
from mgu_jax.losses import cross_entropy

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
        ({"prompt": ""}, "first must be tokens [S], at least one; got int32 [0]."),
        ({"count": 0}, "count must be a whole number of at least 1; got 0."),
        ({"temperature": 0.0}, "temperature must be above 0; got 0.0."),
    ],
)
def test_what_cannot_be_is_one_sentence(loaded, changes, sentence):
    arguments = {"prompt": "A", "count": 3, "key": KEY} | changes
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the whole text is compared)
        pretrained.write(*loaded, **arguments)
    assert str(caught.value) == sentence
