"""The page of this package is true: every section runs by itself, and computes what its text says."""

import importlib
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import mgu_jax as mgu
from mgu_jax import interop
from mgu_jax.interop.convert import from_dict

PAGE = (Path(interop.__file__).parent / "README.md").read_text()
INTRODUCTION, *_ = PAGE.partition("\n## ")
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))


def close(one, other):
    np.testing.assert_allclose(one, other, rtol=0, atol=2e-6)


def check_nnx(names):
    close(names["carry"], names["rnn_carry"])
    ys, sides = names["ys"], names["sides"]
    valid = np.arange(50) < np.asarray(names["lengths"])[:, None]
    close(ys, np.where(valid[..., None], names["rnn_ys"], 0))
    assert sides.shape == (16, 50, 200)
    close(sides[..., :100], ys)
    assert sides[:, 0, 100:].any()


def check_linen(names):
    close(names["same"], names["ys"])
    assert names["cell"] == mgu.FLAX_MGU
    params = from_dict(names["variables"]["params"]["cell"])
    close(names["papers"], mgu.scan(params, names["xs"].swapaxes(0, 1))[0].swapaxes(0, 1))


def check_equinox(names):
    close(names["last"], names["loop_last"])
    close(names["hs"][:, -1], names["last"])


def check_haiku(names):
    def scanned(params, xs, cell):
        return mgu.scan(from_dict(params["mgu"]), xs.swapaxes(0, 1), cell=cell)[0].swapaxes(0, 1)

    close(names["ys"], scanned(names["params"], names["xs"], mgu.MGU))
    hk = names["hk"]

    def run(xs):
        core = names["MGU"](5, mgu.MGU1)
        return hk.dynamic_unroll(core, xs, core.initial_state(len(xs)), time_major=False)[0]

    xs = jax.random.normal(jax.random.key(1), (3, 6, 4))
    function = hk.transform(run)
    params = function.init(jax.random.key(0), xs)
    close(function.apply(params, None, xs), scanned(params, xs, mgu.MGU1))


def check_keras(names):
    """The cell computes what ``scan`` computes, and a model of it trains, saves and loads."""
    keras = names["keras"]
    xs = np.random.default_rng(0).normal(size=(8, 6, 4)).astype(np.float32)
    layer = keras.layers.RNN(names["MGUCell"](5, mgu.MGU1), return_sequences=True)
    ys = layer(xs)
    assert len(layer.trainable_weights) == 5
    params = from_dict({name: weight.value for name, weight in layer.cell.terms.items()})
    close(ys, mgu.scan(params, xs.swapaxes(0, 1), cell=mgu.MGU1)[0].swapaxes(0, 1))

    model = names["model"]
    model.compile(loss="mse", optimizer="adam")
    losses = model.fit(xs, xs.sum((1, 2)), epochs=2, verbose=0).history["loss"]
    assert losses[1] < losses[0]
    both = model.layers[0]
    forward, backward = (layer.cell.terms["W_h"].value for layer in (both.forward_layer, both.backward_layer))
    assert not np.array_equal(forward, backward)
    model.save("model.keras")
    close(keras.models.load_model("model.keras").predict(xs, verbose=0), model.predict(xs, verbose=0))


def check_torch(names):
    close(names["new_h"], names["module"](names["x"], names["h"]).detach())
    assert np.array_equal(names["module"].weight_ih.detach(), names["to_torch"](names["params"])["weight_ih"])


def check_reinforcement_learning(names):
    """The two programs differ in the cell alone: the layer computes what the class above it does with our cell."""
    from mgu_jax.interop.flax_linen import MinimalGatedCell

    names["nn"] = SimpleNamespace(GRUCell=MinimalGatedCell)  # which the class looks up when it is called
    x = names["inputs"], names["resets"]
    last_carry, outputs = names["ScannedRNN"]().apply(names["variables"], names["carry"], x)
    close(names["outputs"], outputs)
    ours = names["layer"].apply(names["variables"], names["carry"], x)
    close(ours[0], last_carry)
    close(names["h"], names["hs"][0])
    close(names["last_carry"], names["hs"][-1])


def check_exporting(names):
    """The program equals the model to the last bit, and so does onnxruntime within rounding."""
    import onnxruntime

    xs = names["xs"]
    ys = names["model"].apply(names["params"], xs)
    assert np.abs(ys).max() > 0.01
    assert np.array_equal(names["ys"], ys)
    session = onnxruntime.InferenceSession("digits.onnx", providers=["CPUExecutionProvider"])
    close(session.run(["ys"], {"xs": xs, "lengths": np.full(5, 28, np.int32)})[0], ys)


def check_pretrained(names):
    (sample,) = re.findall(r"\n    (ROMEO:\n.*)$", SECTIONS["A pretrained model"].rstrip("\n"), re.DOTALL)
    assert names["text"].rstrip("\n") == sample.replace("\n    ", "\n")


# Section -> (the package that it needs, the check of what it computes).
CHECKS = {
    "Flax NNX": ("flax", check_nnx),
    "Flax Linen": ("flax", check_linen),
    "Equinox": ("equinox", check_equinox),
    "Haiku": ("haiku", check_haiku),
    "Keras": ("keras", check_keras),
    "PyTorch": ("torch", check_torch),
    "Reinforcement learning": ("flax", check_reinforcement_learning),
    "Exporting": ("onnxruntime", check_exporting),
    "A pretrained model": ("jax", check_pretrained),
}


def test_every_section_is_checked():
    assert list(SECTIONS) == list(CHECKS)


@pytest.mark.filterwarnings("ignore")  # the frameworks warn about themselves
@pytest.mark.parametrize("name", SECTIONS)
def test_section(name, tmp_path, monkeypatch, quick_compiler):
    """The blocks of a section run one after the other, without those of any other section."""
    package, check = CHECKS[name]
    pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for block in re.findall(r"```python\n(.*?)```", SECTIONS[name], re.DOTALL):
            exec(block, names)
        check(names)


ROWS = [
    [cell.strip() for cell in line.split("|")[1:-1]]
    for line in INTRODUCTION.splitlines()
    if re.match(r"\| [A-Z]", line)
]


def test_the_table_links_to_the_sections():
    assert [row[0] for row in ROWS] == list(SECTIONS)[: len(ROWS)]
    for framework, *_, link in ROWS:
        assert link == f"[{framework}](#{framework.lower().replace(' ', '-')})"


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_the_names_in_the_table_exist(row):
    for module, name in re.findall(r"`(\w+)\.(\w+)`", " ".join(row)):
        if module == "mgu":
            assert hasattr(mgu, name)
        else:
            of_flax = module.endswith(("_nnx", "_linen"))
            pytest.importorskip("flax" if of_flax else "equinox" if module == "equinox" else "jax")
            assert hasattr(importlib.import_module(f"mgu_jax.interop.{module}"), name)
