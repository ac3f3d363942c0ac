"""The experiments in their quick size, as a user types them: what they print and what they leave."""

import json
import os

import jax
import numpy as np
import pytest

from experiments.datasets import data
from experiments.tasks import identification
from tests.experiments.common import drop_newest_checkpoint, is_png, lines, result, run

pytestmark = pytest.mark.usefixtures("quick_compiler", "as_a_user")
MNIST = os.environ.get("MGU_JAX_DATA")


def test_digits(tmp_path, capsys):
    assert run("digits", "--quick", "--out", tmp_path / "a") == 0
    text = capsys.readouterr().out
    assert "recurrent parameters     MGU 35,072   GRU 52,608   LSTM 70,144" in text
    config, made = json.loads((tmp_path / "a" / "config.json").read_text()), result(tmp_path / "a")
    assert config["settings"]["quick"] is True
    assert config["versions"]["jax"] == jax.__version__
    assert len(config["data"]["sklearn.datasets.load_digits"]) == 64
    assert made["accuracy"] > 0.6
    assert made["recurrent_parameters"] == {"MGU": 35_072, "GRU": 52_608, "LSTM": 70_144}
    assert [(row["step"], row["split"]) for row in lines(tmp_path / "a")] == [
        (step, split) for step in (42, 84) for split in ("train", "test")
    ]
    assert is_png(tmp_path / "a" / "learning_curve.png")
    assert is_png(tmp_path / "a" / "gates.png")

    # The same seed gives the same result, another seed a different one.
    run("digits", "--quick", "--out", tmp_path / "b")
    run("digits", "--quick", "--out", tmp_path / "c", "--seed", 1)
    assert lines(tmp_path / "a") == lines(tmp_path / "b")
    assert lines(tmp_path / "a") != lines(tmp_path / "c")


def test_notebook(tmp_path, capsys):
    """The notebook's own problem: the loss falls at every time step, and the gradient check passes."""
    assert run("notebook", "--out", tmp_path / "run") == 0
    made = result(tmp_path / "run")
    assert len(made["loss"]) == 10
    assert np.all(np.diff(made["loss"][:5]) < 0)
    first, last = (np.array(made["loss_per_time_step"][i]) for i in ("1", "10"))
    assert first.shape == (10,)
    assert np.all(last < 0.2 * first)
    np.testing.assert_allclose(first.mean(), made["loss"][0], rtol=1e-5)
    assert made["worst_gradient_error"]["autodiff"] < 2e-5
    text = capsys.readouterr().out
    assert "loss per time step, iteration  1:" in text
    assert "loss per time step, iteration 10:" in text
    assert "manual vs finite differences" in text
    assert is_png(tmp_path / "run" / "loss_per_time_step.png")


@pytest.mark.slow
def test_sweep(tmp_path, capsys):
    """All members in one program; a resumed sweep repeats the same bits."""
    flags = ["sweep", "--quick", "--seeds", 2]
    assert run(*flags, "--out", tmp_path / "run") == 0
    made = result(tmp_path / "run")
    assert [(row["setting"], row["seed"]) for row in made["members"]] == [(n, s) for n in range(4) for s in range(2)]
    assert made["best"]["accuracy"] == max(row["score"] for row in made["members"]) > 0.3
    assert {row["learning_rate"] for row in made["members"]} == {np.float32(1e-3), np.float32(3e-3)}
    assert made["share"] == pytest.approx(made["seconds"] / made["seconds_one_by_one"], rel=1)
    assert len(lines(tmp_path / "run")) == 2 * 8
    assert "best of 8:" in capsys.readouterr().out
    assert is_png(tmp_path / "run" / "surface.png")
    before = lines(tmp_path / "run")
    drop_newest_checkpoint(tmp_path / "run")
    assert run(*flags, "--out", tmp_path / "run", "--resume") == 0
    assert lines(tmp_path / "run") == before


def test_gradients(tmp_path, capsys):
    assert run("gradients", "--quick", "--out", tmp_path / "run") == 0
    worst = result(tmp_path / "run")["worst_against_autodiff"]
    assert worst["float64"] < 1e-12
    assert worst["float32"] < 2e-5
    assert "worst against autodiff" in capsys.readouterr().out


def test_memory(tmp_path, capsys):
    """Curves of three biases, before and after; the bias that remembers longest at the start is chrono's."""
    assert run("memory", "--quick", "--tasks", "adding", "--out", tmp_path / "run") == 0
    rows = result(tmp_path / "run")["rows"]
    assert [(row["task"], row["forget_bias"]) for row in rows] == [("adding", bias) for bias in ("1", "-1", "chrono")]
    for row in rows:
        for when in ("before", "after"):
            curve = row[when]["curve"]
            assert len(curve) == 10
            assert curve[0] == 1
    ends = [row["before"]["curve"][-1] for row in rows]
    assert ends == sorted(ends)
    assert is_png(tmp_path / "run" / "memory.png")
    assert "| Adding, 10 numbers | chrono | squared error" in capsys.readouterr().out


def test_identification(tmp_path, capsys):
    """Both optimisers lower the loss, and every model is measured; the flags of other experiments are refused."""
    assert run("identification", "--quick", "--out", tmp_path / "run") == 0
    made, logged = result(tmp_path / "run"), lines(tmp_path / "run")
    assert [row["step"] for row in logged] == [*range(1, 81)]
    for name, steps in (("Adam", 60), ("L-BFGS", 20)):
        losses = [row["loss"] for row in logged if row["split"] == name]
        assert len(losses) == steps
        assert losses[-1] < 0.8 * losses[0]
    assert [row["model"].split(",")[0] for row in made["rows"]] == ["linear"] * 4 + ["MGU"] * 2
    assert made["rows"][-1]["error"] < 1
    assert "| MGU, H = 16, Adam and L-BFGS |" in capsys.readouterr().out
    assert run("identification", "--resume", "--out", tmp_path / "run") == 2


def test_the_linear_models_find_a_linear_system():
    """A linear model of the order of a filter simulates the filter, and a nonlinear system is not one."""
    u = np.random.default_rng(0).standard_normal((200, 3))
    made = identification.Trajectories(u, identification.filtered(identification.FIRST, u))
    simulated = identification.linear(made, 4, 3)(made)
    assert identification.error(simulated, made.y) < 1e-3  # it starts at rest, three steps late
    train, test = identification.trajectories(0, 4, 200)
    assert identification.error(identification.linear(train, 7, 6)(test), test.y) > 0.1


@pytest.mark.slow
def test_identification_is_far_better_than_any_linear_model(tmp_path):
    assert run("identification", "--out", tmp_path / "run") == 0
    *linear, _, mgu = (row["error"] for row in result(tmp_path / "run")["rows"])
    assert mgu < 0.1 * min(linear)


@pytest.mark.slow
def test_parallel(tmp_path, capsys):
    assert run("parallel", "--quick", "--tasks", "adding", "--out", tmp_path / "run") == 0
    rows = result(tmp_path / "run")["rows"]
    ended = [row for row in rows if row["part"] == "iterations"]
    assert [(row["when"], row["T"]) for row in ended] == [("before", 10), ("before", 20), ("after", 10), ("after", 20)]
    assert not any(row["fell_back"] for row in ended)
    assert all(row["exponent"] < 0 and row["residual"] <= 1e-6 for row in ended)
    timed = [row for row in rows if row["part"] == "time"]
    assert {row["name"] for row in timed} == {"manual", "parallel", "parallel_backward"}
    assert {row["devices"] for row in timed} == {1, 2}
    assert all(row["times_loop"] == 1 for row in timed if row["name"] == "manual")
    assert is_png(tmp_path / "run" / "parallel.png")
    assert "largest exponent" in capsys.readouterr().out


@pytest.mark.slow
def test_jacobians(tmp_path, capsys):
    assert run("jacobians", "--quick", "--out", tmp_path / "run") == 0
    made = result(tmp_path / "run")
    assert [row["cell"] for row in made["rows"]] == ["MGU", "RESET_AFTER_MGU", "UGRNN", "DIAGONAL_MGU"]
    assert all(0 < row["low"] <= row["ms"] <= row["high"] for row in made["rows"])
    assert "`jax.jacrev`" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(not MNIST, reason="MGU_JAX_DATA names no folder with the MNIST files")
def test_mnist_rows_on_the_real_files(tmp_path, monkeypatch):
    monkeypatch.setenv("MGU_JAX_DATA", str(MNIST))
    mnist = data.mnist(None)
    assert mnist.train.xs.shape == (60_000, 28, 28)
    assert np.bincount(mnist.test.targets).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert mnist.train.xs.max() == 1
    assert run("mnist-rows", "--quick", "--out", tmp_path / "run") == 0
    made = result(tmp_path / "run")
    assert made["recurrent_parameters"]["MGU"] == 25_800
    assert made["accuracy"] > 0.2


@pytest.mark.slow
def test_digits_reach_97_percent(tmp_path):
    assert run("digits", "--out", tmp_path / "run") == 0
    assert result(tmp_path / "run")["accuracy"] >= 0.97


@pytest.mark.slow
@pytest.mark.skipif(not MNIST, reason="MGU_JAX_DATA names no folder with the MNIST files")
def test_mnist_rows_reach_99_percent_in_20_epochs(tmp_path):
    assert run("mnist-rows", "--data-dir", MNIST, "--out", tmp_path / "run") == 0
    made = result(tmp_path / "run")
    assert made["accuracy"] >= 0.99
    assert made["steps"] == 12_000
