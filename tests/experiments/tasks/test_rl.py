"""The command rl: what it trains, what it leaves, and that seeds and stopped runs repeat their bits."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.harness import ppo
from experiments.tasks import rl
from tests.experiments.common import is_png, lines, refuses, result, run

pytestmark = pytest.mark.usefixtures("quick_compiler", "as_a_user")


def without_seconds(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.mark.slow
def test_rl(tmp_path, capsys):
    """Equal widths, then equal parameters; a run that was stopped after its first part repeats the second's bits."""
    flags = ["rl", "--quick", "--tasks", "memory-8", "--agents", "feed-forward", "--out", tmp_path / "run"]
    assert run(*flags) == 0
    rows, logged = result(tmp_path / "run")["rows"], lines(tmp_path / "run")
    assert [(row["agent"], row["match"]) for row in rows] == [("feed-forward", None), ("feed-forward", "mgu")]
    wanted = rl.parameters("mgu", rl.TASKS["memory-8"].world(), 8)["all"]
    assert abs(rows[1]["parameters"]["all"] / wanted - 1) < 0.05
    assert rows[1]["width"] > rows[0]["width"] == 8
    for row in rows:
        assert row["seeds"] == [0, 1]
        assert np.shape(row["curve"]["return_per_seed"]) == (2, len(row["curve"]["steps"]))
        assert row["curve"]["steps"][-1] == row["steps"] == 2 * 64 * 32
        assert row["return"] == pytest.approx(np.mean(row["return_per_seed"]))
    assert len(logged) == 2
    assert is_png(tmp_path / "run" / "returns.png")
    assert "| Memory chain, 8 steps | 4,096 |" in capsys.readouterr().out
    (tmp_path / "run" / "memory-8-feed-forward-matched.json").unlink()
    assert run(*flags, "--resume") == 0
    again = result(tmp_path / "run")["rows"]
    assert again[0] == rows[0]
    assert without_seconds(again) == without_seconds(rows)
    assert lines(tmp_path / "run") == logged


def test_seed_3_of_5_is_the_run_of_seed_3():
    """Bit for bit, in how it learns and in what it reaches. A training that is not finite reaches nothing."""
    world = rl.TASKS["memory-8"].world()
    sizes = ppo.Sizes(width=4, environments=4, window=10, updates=2, epochs=1, minibatches=2)
    learn = rl.learner("mgu", world, sizes, at_once=1)
    of_five, alone = learn(ppo.Hyper(), [0, 1, 2, 3, 4]), learn(ppo.Hyper(), [3])
    for name in ("totals", "episodes", "returns"):
        np.testing.assert_array_equal(getattr(of_five, name)[3], getattr(alone, name)[0])
    assert len({tuple(total) for total in of_five.totals}) > 1
    assert np.isnan(learn(ppo.Hyper(learning_rate=1e38), [3]).returns).all()


def test_a_curve_has_none_where_no_episode_ended():
    learned = rl.Learned(jnp.array([[2.0, 0.0, 9.0]]), jnp.array([[1, 0, 3]]), np.zeros(1), 0.0)
    assert rl.curve(learned, 10) == {"steps": [10, 20, 30], "return_per_seed": [[2.0, None, 3.0]]}


def test_rl_refuses(tmp_path, capsys):
    refuses(capsys, ["rl", "--steps", "5", "--out", tmp_path / "run"], "--steps", "no meaning", "")
    refuses(capsys, ["rl", "--seeds", "0", "--out", tmp_path / "run"], "--seeds", "a number above 0", "0")
    refuses(capsys, ["rl-tuning", "--steps", "5", "--out", tmp_path / "run"], "--steps", "no meaning", "")
    refuses(capsys, ["rl-speed", "--steps", "5", "--out", tmp_path / "run"], "--steps", "no meaning", "")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_rl_tuning(tmp_path, capsys):
    assert run("rl-tuning", "--quick", "--hidden-size", 4, "--seeds", 1, "--out", tmp_path / "run") == 0
    rows = result(tmp_path / "run")["rows"]
    assert len(rows) == 3 * 3 * 8
    assert capsys.readouterr().out.count("**") == 2 * 3 * 3


@pytest.mark.slow
def test_rl_speed(tmp_path, capsys):
    assert run("rl-speed", "--quick", "--out", tmp_path / "run") == 0
    rows = result(tmp_path / "run")["rows"]
    assert [row["agent"] for row in rows] == ["mgu", "gru", "flax-mgu"] * 2
    assert all(row["relative"] > 0 for row in rows)
    assert "steps a second" in capsys.readouterr().out


@pytest.mark.slow
def test_an_mgu_solves_a_chain_of_8_and_an_agent_without_memory_stays_at_chance(tmp_path):
    flags = ["--tasks", "memory-8", "--agents", "mgu", "feed-forward", "--seeds", 1, "--no-equal-parameters"]
    assert run("rl", *flags, "--out", tmp_path / "run") == 0
    ours, none = result(tmp_path / "run")["rows"]
    assert ours["return"] >= 0.95
    assert abs(none["return"]) < 0.35  # four standard errors of 128 episodes
    assert max(value for value in none["curve"]["return_per_seed"][0]) < 0.35
