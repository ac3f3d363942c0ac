"""What the README says is true: its code runs, and its figures are those of the result files."""

import json
import re
from pathlib import Path

import jax
import pytest

from experiments import features, tables
from experiments.__main__ import NAMES
from mgu_jax.gradients import relative_error

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def result(name):
    return json.loads((ROOT / "experiments" / "results" / f"{name}.json").read_text())


def test_the_code_blocks_run_one_after_the_other(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
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


def figures():
    """The README's figures, made from the files."""
    digits, rows, notebook = result("digits"), result("mnist-rows"), result("notebook")
    counts = digits["recurrent_parameters"]
    yield f"| test accuracy | {100 * digits['accuracy']:.2f} % of {digits['test_samples']} |"
    yield f"| test loss | {digits['loss']:.4f} nats |"
    yield f"| recurrent parameters | MGU {counts['MGU']:,}, GRU {counts['GRU']:,}, LSTM {counts['LSTM']:,} |"
    yield f"| {100 * digits['accuracy']:.2f} % of 450 held-out digits | {digits['seconds']:.0f} |"
    yield (
        f"| {100 * rows['accuracy']:.2f} % of the 10,000 test digits after 15 epochs, "
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


@pytest.mark.parametrize("name", [path.stem for path in (ROOT / "experiments" / "results").glob("*.json")])
def test_every_result_names_what_made_it(name):
    made = result(name)
    assert made["command"] == f"python -m experiments {name}"
    assert made["versions"]["jax"]
    assert made["device"]


def test_the_table_of_features_is_the_scripts():
    made = result("features")
    assert features.table(made["found"]) in README
    assert ", ".join(f"{name} {version}" for name, version in made["peers"].items()) in README
    assert made["not_found"] == []


def test_the_tables_of_the_benchmark_are_the_scripts():
    made = result("benchmark")
    for table in (tables.beside_the_peers(made["rows"]), tables.figures(made["rows"])):
        assert "\n".join(table) in README
    assert set(made["peers"]) == {"flax", "equinox", "dm-haiku", "keras", "torch"}


def test_our_own_claims_are_found():
    ours = [by_peer["mgu_jax"] for by_peer in features.CLAIMS.values()]
    assert all(map(features._found, ours))
    assert not features._found("mgu_jax:scan(nothing)")
    assert not features._found("mgu_jax:nothing")


def test_every_experiment_stands_in_the_table():
    assert all(f"`python -m experiments {name}`" in README for name in NAMES)


def test_pictures_are_there():
    for path in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (ROOT / path).is_file()
