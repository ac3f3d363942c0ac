"""Every wrong argument gets one sentence: the argument, the rule, what came."""

import jax
import pytest

import mgu_jax as mgu
from mgu_jax.interop import export, files
from mgu_jax.training import checkpoint

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def params():
    return mgu.init(KEY, 32, 64)


def raised(kind, function):
    with pytest.raises(kind) as caught:
        function()
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(".")
    return text


def test_a_summary():
    model = mgu.Model(3, (4,), 2, readout="last")
    params = model.init(KEY)
    text = raised(TypeError, lambda: mgu.summary(params))
    assert text == "params must be an mgu_jax.Params, such as one of a model's layers; got a ModelParams."
    text = raised(TypeError, lambda: mgu.summary(params.layers[0]._replace(W_h=None)))
    assert text == "params.W_h must be an array; got a NoneType."


def test_what_names_no_file(params):
    for asked in (lambda: files.save(None, mgu.MGU, params), lambda: files.load(None), lambda: export.save(None, 0, 0)):
        assert raised(TypeError, asked) == "path must be a text or a path; got None."
    assert raised(TypeError, lambda: checkpoint.Checkpoints(None)) == "folder must be a text or a path; got None."
