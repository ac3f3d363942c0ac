"""What the README says is true: its code runs, and its figures are those of the result files."""

import json
import os
import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import mgu_jax as mgu
from experiments.__main__ import NAMES
from mgu_jax.gradients import relative_error
from tests.processes import run_together

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def result(name):
    return json.loads((ROOT / "experiments" / "results" / f"{name}.json").read_text())


# Whole programs, of packages that may be absent
(COMING,) = re.findall(r"\n## Coming from .*?(?=\n## )", README, re.DOTALL)


def code(text):
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def is_file(block):
    return block.startswith("# train.py\n")


def test_the_code_blocks_run_one_after_the_other(quick_compiler, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = [block for block in code(README.replace(COMING, "")) if not is_file(block)]
    assert len(blocks) >= 2
    names = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for block in blocks:
            exec(block, names)
    assert names["h_last"].shape == (16, 100)
    assert names["curve"].shape == (200,)
    assert names["report"].worst < 2e-5
    assert names["ys"].shape == (50, 16, 5)
    assert names["y"].shape == (16, 10)
    one = names["of_a_part"](names["params"], names["xs"])
    for got, wanted in zip(jax.tree.leaves(names["gradient"]), jax.tree.leaves(one), strict=True):
        assert relative_error(got, wanted) < 2e-5
    assert "manual:autodiff" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "runs" / "mine").iterdir()) == ["100.npz", "200.npz"]


@pytest.mark.slow
def test_the_commands_for_several_machines_run(tmp_path):
    (text,) = (block for block in code(README) if is_file(block))
    (tmp_path / "train.py").write_text(text)
    commands = [line.split() for line in re.findall(r"    JAX_NUM_CPU_DEVICES=2 (python train.py .*?) +#", README)]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2", "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}

    def command(i, address):
        _, script, _, *others = commands[i]
        return [sys.executable, script, address, *others]

    assert len(commands) == 2
    said = run_together(2, command, env=environment, cwd=tmp_path)
    loss = re.search(r"^loss (.*) on 4 devices$", said[0], re.MULTILINE)
    assert float(loss[1]) < 0.5
    assert "loss" not in said[1]


SECTIONS = dict(re.findall(r"\n### (.*?)\n(.*?)(?=\n### |$)", COMING, re.DOTALL))
PACKAGES = {"Flax NNX": "flax", "Flax Linen": "flax", "Equinox": "equinox", "Haiku": "haiku", "Keras": "keras"} | {
    "PyTorch": "torch",
    "And out again": "onnxruntime",
    "A model that comes along": "jax",
}


def close(one, other):
    np.testing.assert_allclose(one, other, rtol=0, atol=2e-6)


def recipe(cell, names, drive):
    """A recipe's cell in its framework's own loop, ``drive(xs [B, T, D]) -> (weights, ys [B, T, H])``, against scan."""
    xs = jax.random.normal(jax.random.key(1), (3, 6, 4))
    weights, ys = drive(xs)
    hs, _ = mgu.scan(names["from_dict"](weights), xs.swapaxes(0, 1), cell=cell)
    close(ys, hs.swapaxes(0, 1))


def check_nnx(names):
    close(names["carry"], names["theirs"][0])
    sides = names["sides"]
    assert sides.shape == (16, 50, 200)
    close(sides[..., :100], names["ys"])
    assert sides[:, 0, 100:].any()


def check_haiku(names):
    import haiku as hk

    def drive(xs):
        def run(xs):
            core = names["MGU"](5, mgu.MGU1)
            return hk.dynamic_unroll(core, xs, core.initial_state(len(xs)), time_major=False)[0]

        function = hk.transform(run)
        params = function.init(jax.random.key(0), xs)
        return params["mgu"], function.apply(params, None, xs)

    recipe(mgu.MGU1, names, drive)


def check_keras(names):
    import keras

    def drive(xs):
        layer = keras.layers.RNN(names["MGUCell"](5, mgu.MGU1), return_sequences=True)
        ys = layer(xs)
        assert len(layer.trainable_weights) == 5
        return {n: w.value for n, w in layer.cell.terms.items()}, ys

    recipe(mgu.MGU1, names, drive)

    xs = np.random.default_rng(0).normal(size=(8, 6, 4)).astype(np.float32)
    model = names["model"]  # Bidirectional, without a keras.Input
    model.compile(loss="mse", optimizer="adam")
    losses = model.fit(xs, xs.sum((1, 2)), epochs=2, verbose=0).history["loss"]
    assert losses[1] < losses[0]
    forward, backward = (
        m.cell.terms["W_h"].value for m in (model.layers[0].forward_layer, model.layers[0].backward_layer)
    )
    assert not np.array_equal(forward, backward)
    model.save("model.keras")
    close(keras.models.load_model("model.keras").predict(xs, verbose=0), model.predict(xs, verbose=0))


def check_out(names):
    """By the program and by onnxruntime, of numbers that are not zero."""
    import onnxruntime

    xs = names["xs"]
    ys = names["model"].apply(names["params"], xs)
    assert np.abs(ys).max() > 0.01
    assert np.array_equal(names["ys"], ys)
    session = onnxruntime.InferenceSession("digits.onnx", providers=["CPUExecutionProvider"])
    close(session.run(["ys"], {"xs": xs, "lengths": np.full(5, 28, np.int32)})[0], ys)


def check_pretrained(names):
    (sample,) = re.findall(r"\n    (ROMEO:\n.*)$", SECTIONS["A model that comes along"].rstrip("\n"), re.DOTALL)
    assert names["text"].rstrip("\n") == sample.replace("\n    ", "\n")


CHECKS = {
    "Flax NNX": check_nnx,
    "Flax Linen": lambda n: close(n["same"], n["ys"]),
    "Equinox": lambda n: close(n["last"], n["theirs"]),
    "Haiku": check_haiku,
    "Keras": check_keras,
    "PyTorch": lambda n: close(n["ours"], n["module"](n["x"], n["h"]).detach()),
    "And out again": check_out,
    "A model that comes along": check_pretrained,
}


@pytest.mark.filterwarnings("ignore")  # the frameworks' own
@pytest.mark.parametrize("name", SECTIONS)
def test_coming_from(name, tmp_path, monkeypatch, quick_compiler):
    """Each section's blocks run, and before and after are what the text says; a recipe computes what scan computes."""
    pytest.importorskip(PACKAGES[name])
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "readme"}
    blocks = code(SECTIONS[name])
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for block in blocks:
            assert len(block.splitlines()) <= 20
            exec(block, names)
        CHECKS[name](names)


def figures():
    """The README's figures, made from the files."""
    digits, rows, notebook = result("digits"), result("mnist-rows"), result("notebook")
    counts = digits["recurrent_parameters"]
    yield f"| test accuracy | {100 * digits['accuracy']:.2f} % of {digits['test_samples']} |"
    yield f"| test loss | {digits['loss']:.4f} nats |"
    yield f"| recurrent parameters | MGU {counts['MGU']:,}, GRU {counts['GRU']:,}, LSTM {counts['LSTM']:,} |"
    yield f"| {100 * digits['accuracy']:.2f} % of 450 held-out digits | {digits['seconds']:.0f} |"
    yield (
        f"| {100 * rows['accuracy']:.2f} % of the 10,000 test digits after 20 epochs, "
        f"{rows['recurrent_parameters']['MGU']:,} recurrent parameters | {rows['seconds']:.0f} |"
    )
    yield f"| the loss falls from {notebook['loss'][0]:.4f} to {notebook['loss'][-1]:.4f} in ten iterations |"
    sweep = result("sweep")
    best = f"the best of them {100 * sweep['best']['accuracy']:.2f} %, chosen on the digits that it is measured on"
    yield f"| 64 MGUs on two CPU devices take {sweep['share']:.2f} of 64 times one MGU on one; {best} | |"
    for dtype in ("float64", "float32"):
        row = [r for r in result("gradients")["rows"] if r["dtype"] == dtype]
        errors = [max(r[kind] for r in row) for kind in ("autodiff", "differences")]
        yield f"| {dtype} | {errors[0]:.1e} | {errors[1]:.1e} |"


@pytest.mark.parametrize("line", list(figures()))
def test_figures_come_from_the_files(line):
    assert line in README


def test_every_experiment_stands_in_the_table():
    assert all(f"`python -m experiments {name}`" in README for name in NAMES)


def test_pictures_are_there():
    for path in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (ROOT / path).is_file()
