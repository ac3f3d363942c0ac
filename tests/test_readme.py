"""What the README says is true: its code runs, and its figures are those of the result files."""

import json
import os
import re
import sys
from pathlib import Path

import jax
import pytest

from experiments.__main__ import NAMES
from mgu_jax.gradients import relative_error
from tests.processes import run_together

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def result(name):
    return json.loads((ROOT / "experiments" / "results" / f"{name}.json").read_text())


# These sections run in tests/interop/test_page.py
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
