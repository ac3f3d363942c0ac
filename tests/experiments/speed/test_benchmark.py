"""The benchmark gives all layers the same work in every round, and its tables follow from its rows."""

import json
import sys

import jax
import numpy as np
import pytest

from experiments.__main__ import main
from experiments.speed import gpu, peers, plots, tables, timing
from experiments.speed.benchmark import MEMORY, ON_DEVICES
from mgu_jax.gradients import relative_error
from tests.experiments.common import is_png

pytestmark = pytest.mark.usefixtures("as_a_user")
SIZE = (4, 5, 3, 6)
LAYERS = {name: layer for name, layer in peers.EVERYTHING.items() if peers.installed(layer.package)}


SAME = ("MGU, states", "MGU, states, one segment", "MGU, segments")  # other options of the same layer


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SAME else []) for n in LAYERS])
def test_every_layer_gives_states_and_all_gradients(name):
    layer = LAYERS[name]
    pair = peers.on_one_device(layer, SIZE)
    (run, arguments), (both, same) = pair["forward"], pair["both"]
    states = run(*arguments)
    assert states.shape == ((4, 5, 6) if layer.batch_first else (5, 4, 6))
    dparams, dxs = both(*same)
    assert dxs.shape == arguments[1].shape
    assert jax.tree.structure(dparams) == jax.tree.structure(arguments[0])
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves((states, dparams, dxs)))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in LAYERS if name in ON_DEVICES])
def test_on_two_devices_is_the_same_work(name):
    """The same states, and gradients summed over the devices."""
    one, two = peers.on_one_device(LAYERS[name], SIZE), peers.on_devices(LAYERS[name], SIZE, 2)
    for which in ("forward", "both"):
        mine, right = (function(*arguments) for function, arguments in (two[which], one[which]))
        assert all(len(leaf.sharding.device_set) == 2 for leaf in jax.tree.leaves(mine))
        for got, wanted in zip(jax.tree.leaves(mine), jax.tree.leaves(right), strict=True):
            assert relative_error(got, wanted) <= 1e-5


def test_every_function_runs_once_per_round():
    calls = []

    def contestant(name):
        return (lambda: calls.append(name), ())

    times = timing.alternate({name: contestant(name) for name in "abc"}, budget=0.0, least=4)
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 4, "b": 4, "c": 4}
    assert sorted(calls) == sorted("abc" * 6)  # one that compiles, one that is counted, four rounds
    rounds = ["".join(calls[i : i + 3]) for i in range(6, len(calls), 3)]
    assert all(sorted(names) == ["a", "b", "c"] for names in rounds)
    assert len(set(rounds)) > 1


def test_ratios_are_paired():
    """A round that is slow for both functions does not change their ratio."""
    ours = np.array([1.0, 1.0, 5.0, 1.0])
    assert timing.ratio(2 * ours, ours) == 2
    assert timing.spread(np.array([1.0, 2.0, 3.0])) == {"ms": 2000.0, "low": 1500.0, "high": 2500.0}


def test_flop_are_those_of_the_products():
    """The compiler counts the same for one step without a loop, apart from the elementwise work."""
    B, T, D, H = 8, 1, 64, 128
    function, arguments = peers.on_one_device(peers.OURS["MGU, autodiff"], (B, T, D, H))["forward"]
    counted = function.lower(*arguments).compile().cost_analysis()["flops"]
    assert 1 <= counted / timing.flop((B, T, D, H), "forward") < 1.1
    assert timing.flop((B, T, D, H), "both") == 3 * timing.flop((B, T, D, H), "forward")


def test_products_alone_are_all_products():
    """The compiler merges and omits none of them."""
    for where, count in (("in the loop", 4), ("outside", 8)):
        function, arguments = peers.products_alone(SIZE)[f"products {where}"]
        assert function.lower(*arguments).compile().as_text().count(" dot(") == count


@pytest.mark.slow
def test_quick_run(tmp_path, capsys):
    assert main(["benchmark", "--quick", "--out", str(tmp_path / "run")]) == 0
    rows = json.loads((tmp_path / "run" / "result.json").read_text())["rows"]
    parts = {"implementation", "time", "memory", "long memory", "compilation", "growth", "members", "compiler options"}
    assert {row["part"] for row in rows} == parts | ({"allocation"} if sys.platform.startswith("linux") else set())
    timed = {(row["name"], row["devices"], row["which"]): row for row in rows if row["part"] == "time"}
    assert {name for name, devices, _ in timed if devices == 1} >= set(LAYERS)
    assert {name for name, devices, _ in timed if devices == 2} == set(LAYERS) & set(ON_DEVICES)
    assert all(row["low"] <= row["ms"] <= row["high"] for row in timed.values())
    assert timed["MGU", 1, "both"]["times_ours"] == timed["MGU", 2, "forward"]["times_ours"] == 1
    assert {row["name"] for row in rows if row["part"] == "memory"} == set(MEMORY)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["split"] for line in lines] == [row["part"] for row in rows]
    text = capsys.readouterr().out
    assert "B, T, D, H = 2, 6, 3, 4   multiply-adds at the machine's best rate" in text
    assert all(line in text for make in tables.TABLES.values() for line in make(rows))
    assert all(is_png(tmp_path / "run" / f"{name}.png") for name in plots.PICTURES)


def test_without_peers_there_is_no_empty_picture(tmp_path):
    row = {"part": "time", "size": [2, 6, 3, 4], "devices": 1, "which": "both", "name": "MGU", "ms": 1.0, "low": 0.9}
    row |= {"high": 1.1, "times_ours": 1.0, "gflop_s": 1.0}
    rows = [row, row | {"devices": 2, "ms": 0.7, "low": 0.6, "high": 0.8}]
    assert not plots.ratios(tmp_path / "ratios.png", rows)
    assert plots.arithmetic(tmp_path / "arithmetic.png", rows)
    assert [path.name for path in tmp_path.iterdir()] == ["arithmetic.png"]


@pytest.mark.slow
def test_on_a_gpu_quick(tmp_path, capsys, quick_compiler):
    """It runs on any machine at tiny sizes; what ran is named, and the table comes last."""
    assert main(["benchmark-gpu", "--quick", "--out", str(tmp_path / "run")]) == 0
    rows = json.loads((tmp_path / "run" / "result.json").read_text())["rows"]
    timed = [row for row in rows if row["part"] == "time"]
    assert {row["implementation"] for row in timed if row["name"] in gpu.OURS} == {"manual"}
    assert {row["name"] for row in timed} >= set(gpu.OURS) | {"flax MGU", "flax GRU"}
    assert all(row["us_per_step"] > 0 and row["times_ours"] > 0 for row in timed)
    assert [row["count"] for row in rows if row["part"] == "members"] == [1, 2]
    assert is_png(tmp_path / "run" / "times.png")
    said = capsys.readouterr().out
    assert said.index("forward and training") < said.index("2 members under vmap")


def test_without_a_gpu_its_numbers_are_refused(tmp_path, capsys):
    assert main(["benchmark-gpu", "--out", str(tmp_path / "run")]) == 2
    assert "needs a GPU" in capsys.readouterr().err


def test_an_earlier_jax_needs_its_python(tmp_path, capsys):
    assert main(["earlier", "--out", str(tmp_path / "a")]) == 2
    assert "--python must name" in capsys.readouterr().err
    assert main(["earlier", "--python", str(tmp_path / "none"), "--out", str(tmp_path / "b")]) == 2
    assert "--python must be a Python that runs" in capsys.readouterr().err


@pytest.mark.slow
def test_two_versions_take_turns(tmp_path, capsys):
    """Here the other environment is this one."""
    assert main(["earlier", "--quick", "--python", sys.executable, "--out", str(tmp_path / "run")]) == 0
    made = json.loads((tmp_path / "run" / "result.json").read_text())
    (row,) = made["rows"]
    assert row["times_ours"].keys() == {"MGU", "flax GRU", "earlier flax GRU"}
    assert made["earlier"]["jax"] == jax.__version__
    assert f"time of Flax's GRU on JAX {jax.__version__} relative to ours" in capsys.readouterr().out
