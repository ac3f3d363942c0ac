"""Every experiment in its quick size, as a user types it, and what the command line promises."""

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.__main__ import NAMES, main
from experiments.datasets import data
from experiments.run import BadRequest
from experiments.speed import overhead as training
from mgu_jax.training.checkpoint import Checkpoints

ROOT = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.usefixtures("quick_compiler")


@pytest.fixture(autouse=True)
def as_a_user(monkeypatch, tmp_path_factory):
    """Not in the strict arithmetic of the tests: optax promotes. No data folder unless a test names one."""
    monkeypatch.delenv("MGU_JAX_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def run(*arguments):
    return main([str(argument) for argument in arguments])


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def png(path):
    return path.read_bytes().startswith(b"\x89PNG")


def test_list_names_every_experiment(capsys):
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in NAMES)
    assert main([]) == 0
    capsys.readouterr()
    assert main(["list", "--foo"]) == 2
    assert capsys.readouterr().err == "error: list must stand alone; got --foo.\n"


def test_wrong_name_and_wrong_flag_end_with_2(capsys):
    assert main(["digit"]) == 2
    assert capsys.readouterr().err == (f"error: NAME must be one of {', '.join(NAMES)} or list; got 'digit'.\n")
    for flags in (["--bogus"], ["--seed", "x"]):
        with pytest.raises(SystemExit) as caught:
            main(["digits", *flags])
        assert caught.value.code == 2


def test_digits(tmp_path, capsys):
    assert run("digits", "--quick", "--out", tmp_path / "a") == 0
    text = capsys.readouterr().out
    assert "recurrent parameters  MGU 35,072   GRU 52,608   LSTM 70,144" in text
    config, result = (json.loads((tmp_path / "a" / name).read_text()) for name in ("config.json", "result.json"))
    assert config["settings"]["quick"] is True
    assert config["versions"]["jax"] == jax.__version__
    assert len(config["data"]["sklearn.datasets.load_digits"]) == 64
    assert result["accuracy"] > 0.6
    assert result["recurrent_parameters"] == {"MGU": 35_072, "GRU": 52_608, "LSTM": 70_144}
    assert [(row["step"], row["split"]) for row in lines(tmp_path / "a")] == [
        (step, split) for step in (42, 84) for split in ("train", "test")
    ]
    assert png(tmp_path / "a" / "learning_curve.png")
    assert png(tmp_path / "a" / "gates.png")

    # The same seed, the same result; another seed, another one.
    run("digits", "--quick", "--out", tmp_path / "b")
    run("digits", "--quick", "--out", tmp_path / "c", "--seed", 1)
    assert lines(tmp_path / "a") == lines(tmp_path / "b")
    assert lines(tmp_path / "a") != lines(tmp_path / "c")


def test_the_held_out_quarter_of_the_digits():
    """A quarter of each class, none of it trained on, rows read from the top."""
    digits = data.digits()
    assert digits.train.xs.shape == (1347, 8, 8)
    assert digits.test.xs.shape == (450, 8, 8)
    images = {x.tobytes() for x in digits.train.xs}
    assert sum(x.tobytes() in images for x in digits.test.xs) == 0
    counts = np.bincount(digits.test.targets) / np.bincount(np.concatenate([digits.train.targets, digits.test.targets]))
    assert np.all(np.abs(counts - 0.25) < 0.01)
    from sklearn.datasets import load_digits

    originals = {image.astype(np.float32).tobytes() for image in load_digits().images / 16}
    assert all(x.tobytes() in originals for x in digits.test.xs)


def test_an_earlier_run_is_kept(tmp_path, capsys):
    for _ in range(3):
        run("notebook", "--steps", 2, "--out", tmp_path / "run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run.1", "run.2"]
    assert f"{tmp_path / 'run'} held a run already; it is now {tmp_path / 'run.2'}." in capsys.readouterr().out


def start_and_kill(folder, flags, rows, seconds):
    """Start a run as a process and kill it without warning, some seconds after so many rows of metrics."""
    command = [sys.executable, "-m", "experiments", *flags, "--out", str(folder)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    metrics = folder / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") >= rows):
        time.sleep(0.005)
    time.sleep(seconds)
    process.kill()
    process.wait()


SMALL = ["digits", "--steps", "840", "--hidden-size", "16"]


def ends_as(folder, whole):
    assert run(*SMALL, "--out", folder, "--resume") == 0
    assert lines(folder) == lines(whole)
    results = [json.loads((place / "result.json").read_text()) for place in (whole, folder)]
    return results[0]["loss"] == results[1]["loss"]


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits(tmp_path):
    """Killed without warning between two checkpoints, then resumed: the same metrics, the same result."""
    assert run(*SMALL, "--out", tmp_path / "whole") == 0
    start_and_kill(tmp_path / "killed", SMALL, rows=9, seconds=0)
    assert not (tmp_path / "killed" / "result.json").exists()
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 999, "spl')  # the kill may come in the middle of a line
    assert ends_as(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.slow
def test_runs_killed_at_twenty_moments_resume_to_the_same_bits(tmp_path):
    """From before the first checkpoint to after the last, most of them while one is being written."""
    assert run(*SMALL, "--out", tmp_path / "whole") == 0
    rng, resumed = random.Random(0), []
    for moment in range(20):
        folder = tmp_path / f"{moment}"
        start_and_kill(folder, SMALL, rows=max(1, 2 * moment), seconds=rng.uniform(0, 0.1))
        with Checkpoints(folder / "checkpoints") as checkpoints:
            resumed.append(checkpoints.steps[-1] if checkpoints.steps else 0)
        assert ends_as(folder, tmp_path / "whole")
    assert len(set(resumed)) > 10


@pytest.mark.slow
def test_training_measures_its_four_parts(tmp_path, capsys):
    assert run("training", "--quick", "--out", tmp_path / "run") == 0
    rows = json.loads((tmp_path / "run" / "result.json").read_text())["rows"]
    assert [row["part"] for row in rows] == ["host loop", "devices", "members", "checkpoint"]
    figures = [value for row in rows for value in row.values() if isinstance(value, float)]
    assert len(figures) == 10
    assert min(figures) > 0
    assert "\n".join(training.table(rows)) in capsys.readouterr().out


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path, capsys):
    (tmp_path / "metrics.csv").write_text("1,2")
    assert run("digits", "--quick", "--out", tmp_path) == 2
    assert capsys.readouterr().err == (
        f"error: --out must be a new or an empty folder, or one of a run; {tmp_path} is none of them.\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_tensorboard_shows_what_the_metrics_hold(tmp_path):
    """Also of a run that resumes: what was shown after its checkpoint is taken back."""
    assert run("digits", "--quick", "--out", tmp_path / "run", "--tensorboard") == 0
    (tmp_path / "run" / "checkpoints" / "84.npz").unlink()
    assert run("digits", "--quick", "--out", tmp_path / "run", "--tensorboard", "--resume") == 0
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    shown = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    wanted = {}
    for line in lines(tmp_path / "run"):
        for name in line.keys() - {"step", "split"}:
            tag, value = f"{line['split']}/{name}", line[name]
            if isinstance(value, list):
                (value,), tag = value, f"{tag}/0"
            wanted.setdefault(tag, []).append((line["step"], pytest.approx(value, rel=1e-6)))
    assert wanted == {tag: [(e.step, e.value) for e in shown.Scalars(tag)] for tag in shown.Tags()["scalars"]}


def test_resume_names_a_damaged_checkpoint_and_goes_on_without_it(tmp_path, capsys):
    """One sentence and status 2; the one before it leads to the same bits."""
    run("digits", "--quick", "--out", tmp_path / "run")
    folder, before = tmp_path / "run" / "checkpoints", lines(tmp_path / "run")
    damaged = folder / "84.npz"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    capsys.readouterr()
    assert run("digits", "--quick", "--out", tmp_path / "run", "--resume") == 2
    assert capsys.readouterr().err == (
        f"error: the checkpoint of step 84 in {folder} is damaged (its end is missing); that of step 42 is "
        f"whole, and --resume goes on from it once {damaged} is removed.\n"
    )
    assert lines(tmp_path / "run") == before
    damaged.unlink()
    assert run("digits", "--quick", "--out", tmp_path / "run", "--resume") == 0
    assert "going on from step 42 of 84." in capsys.readouterr().out
    assert lines(tmp_path / "run") == before


def test_a_checkpoint_that_cannot_be_saved_is_one_sentence(tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mgu_jax.archive.write", full)
    assert run("digits", "--quick", "--out", tmp_path / "run") == 1
    folder = tmp_path / "run" / "checkpoints"
    what = f"the checkpoint of step 42 could not be saved in {folder} (No space left on device)"
    assert capsys.readouterr().err == f"error: {what}; those before it are whole.\n"


def test_an_interrupted_run_says_how_to_go_on(tmp_path):
    """Ctrl-C: one sentence, status 130, and a folder that resumes."""
    command = [sys.executable, "-m", "experiments", "digits", "--hidden-size", "16", "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") > 4):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, text = process.communicate(timeout=60)
    assert process.returncode == 130
    assert text.endswith("stopped; the same command with --resume goes on from the last checkpoint.\n")
    assert "Traceback" not in text
    assert any((tmp_path / "run" / "checkpoints").iterdir())


def test_resume_refuses_what_it_cannot_do(tmp_path, capsys):
    assert run("digits", "--quick", "--out", tmp_path / "none", "--resume") == 2
    assert "--resume needs a run to go on with; there is none in" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    run("digits", "--quick", "--steps", 42, "--out", tmp_path / "run")
    before = (tmp_path / "run" / "config.json").read_bytes()
    assert run("digits", "--quick", "--steps", 42, "--out", tmp_path / "run", "--resume", "--seed", 5) == 2
    assert "seed was 0; got 5." in capsys.readouterr().err
    assert (tmp_path / "run" / "config.json").read_bytes() == before

    assert run("notebook", "--out", tmp_path / "run", "--resume") == 2
    assert "--resume needs a run of notebook" in capsys.readouterr().err
    metrics = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    for damaged in ("{bad\n", "{}\n", "[]\n"):
        (tmp_path / "run" / "metrics.jsonl").write_bytes(damaged.encode() + metrics)
        assert run("digits", "--quick", "--steps", 42, "--out", tmp_path / "run", "--resume") == 2
        assert f"metrics.jsonl; that in {tmp_path / 'run'} is damaged." in capsys.readouterr().err
        assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == damaged.encode() + metrics
    for damaged in ("{bad", "{}"):
        (tmp_path / "run" / "config.json").write_text(damaged)
        assert run("digits", "--quick", "--steps", 42, "--out", tmp_path / "run", "--resume") == 2
        assert f"config.json; that in {tmp_path / 'run'} is damaged." in capsys.readouterr().err


@pytest.mark.parametrize("name", ["notebook", pytest.param("gradients", marks=pytest.mark.slow)])
def test_a_short_run_that_resumes_begins_again(name, tmp_path):
    flags = ["--quick", "--out", tmp_path / "run"]
    run(name, *flags)
    before = lines(tmp_path / "run")
    run(name, *flags, "--resume")
    assert lines(tmp_path / "run") == before


IMPOSSIBLE = [
    ("digits", "--steps", "-5", "--steps must be a number above 0; got -5."),
    ("digits", "--steps", "0", "--steps must be a number above 0; got 0."),
    ("digits", "--hidden-size", "0", "--hidden-size must be a number above 0; got 0."),
    ("digits", "--batch-size", "5000", "--batch-size must be at most the 1,347 training samples; got 5,000."),
    ("digits", "--learning-rate", "nan", "--learning-rate must be a number above 0; got nan."),
    ("digits", "--seed", "-1", "--seed must be a whole number in [0, 2^32); got -1."),
    ("digits", "--seed", "99999999999", "--seed must be a whole number in [0, 2^32); got 99999999999."),
    ("mnist-rows", "--epochs", "0", "--epochs must be a number above 0; got 0."),
    ("sweep", "--seeds", "0", "--seeds must be a number above 0; got 0."),
    ("sweep", "--devices", "9999", f"--devices must be at most the {os.cpu_count()} cores that there are; got 9999."),
    ("gradients", "--steps", "5", "--steps has no meaning for gradients, which takes no optimiser step."),
]


@pytest.mark.parametrize(("name", "flag", "value", "text"), IMPOSSIBLE, ids=[" ".join(i[:3]) for i in IMPOSSIBLE])
def test_impossible_values_are_one_sentence_and_leave_nothing(tmp_path, capsys, name, flag, value, text):
    assert run(name, flag, value, "--out", tmp_path / "run") == 2
    assert capsys.readouterr().err == f"error: {text}\n"
    assert not (tmp_path / "run").exists()


def test_training_that_fails_is_one_sentence(tmp_path, capsys):
    assert run("digits", "--quick", "--learning-rate", "1e38", "--out", tmp_path / "run") == 1
    assert "must stay finite" in capsys.readouterr().err


def test_a_missing_extra_is_named_before_anything_is_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("experiments.run.NEEDED", ("tyro", "a_package_that_nobody_has"))
    assert run("digits", "--out", tmp_path / "run") == 1
    text = "a_package_that_nobody_has is needed here and not installed: pip install 'mgu_jax[experiments]'."
    assert capsys.readouterr().err == f"error: {text}\n"
    assert not (tmp_path / "run").exists()


def test_an_output_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert run("notebook", "--out", tmp_path / "file" / "run") == 2
    assert capsys.readouterr().err.startswith("error: --out must be a folder that can be written; got")
    assert (tmp_path / "file").read_text() == "mine"


def test_notebook(tmp_path, capsys):
    """The notebook's own test: the loss falls, at every time step, and the gradients hold."""
    assert run("notebook", "--out", tmp_path / "run") == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert len(result["loss"]) == 10
    assert np.all(np.diff(result["loss"][:5]) < 0)
    first, last = (np.array(result["loss_per_time_step"][i]) for i in ("1", "10"))
    assert first.shape == (10,)
    assert np.all(last < 0.2 * first)
    np.testing.assert_allclose(first.mean(), result["loss"][0], rtol=1e-5)
    assert result["worst_gradient_error"]["autodiff"] < 2e-5
    text = capsys.readouterr().out
    assert "loss per time step, iteration  1:" in text
    assert "loss per time step, iteration 10:" in text
    assert "manual:differences" in text
    assert png(tmp_path / "run" / "loss_per_time_step.png")


def test_sweep(tmp_path, capsys):
    """All members in one program; resumed, the same to the bit."""
    flags = ["sweep", "--quick", "--seeds", 2]
    assert run(*flags, "--out", tmp_path / "run") == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert [(row["setting"], row["seed"]) for row in result["members"]] == [(n, s) for n in range(4) for s in range(2)]
    assert result["best"]["accuracy"] == max(row["score"] for row in result["members"]) > 0.3
    assert {row["learning_rate"] for row in result["members"]} == {np.float32(1e-3), np.float32(3e-3)}
    assert result["share"] == pytest.approx(result["seconds"] / result["seconds_one_by_one"], rel=1)
    assert len(lines(tmp_path / "run")) == 2 * 8
    assert "best of 8:" in capsys.readouterr().out
    assert png(tmp_path / "run" / "surface.png")
    before = lines(tmp_path / "run")
    newest = max((tmp_path / "run" / "checkpoints").iterdir(), key=lambda path: int(path.stem))
    newest.unlink()  # as if the run had been killed before
    assert run(*flags, "--out", tmp_path / "run", "--resume") == 0
    assert lines(tmp_path / "run") == before


def test_gradients(tmp_path, capsys):
    assert run("gradients", "--quick", "--out", tmp_path / "run") == 0
    worst = json.loads((tmp_path / "run" / "result.json").read_text())["worst_against_autodiff"]
    assert worst["float64"] < 1e-12
    assert worst["float32"] < 2e-5
    assert "worst against autodiff" in capsys.readouterr().out


def test_a_data_folder_that_is_not_there(tmp_path, capsys):
    assert run("data", "--data-dir", tmp_path / "none") == 2
    assert capsys.readouterr().err == f"error: --data-dir must be a folder; there is none at {tmp_path / 'none'}.\n"


def test_mnist_without_the_files_is_one_sentence(tmp_path, capsys):
    for flags in ([], ["--data-dir", tmp_path]):
        assert run("mnist-rows", "--out", tmp_path / "run", *flags) == 2
        text = capsys.readouterr().err
        assert text.count("\n") == 1
        assert "train-images-idx3-ubyte.gz" in text
        assert "--data-dir or MGU_JAX_DATA" in text
    assert list(tmp_path.iterdir()) == []


DAMAGED = {
    "empty": b"",
    "not gzip": b"no gzip",
    "another": gzip.compress(b"another file"),
    "cut short": gzip.compress(b"a" * 99)[:-9],
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_file_is_named(tmp_path, kind):
    content, name = DAMAGED[kind], "train-images-idx3-ubyte.gz"
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadRequest, match=f"{name} is damaged or another file than the published one: get the four"):
        data.mnist(tmp_path)


MNIST = os.environ.get("MGU_JAX_DATA")


@pytest.mark.slow
@pytest.mark.skipif(not MNIST, reason="MGU_JAX_DATA names no folder with the MNIST files")
def test_mnist_rows_on_the_real_files(tmp_path, monkeypatch):
    monkeypatch.setenv("MGU_JAX_DATA", str(MNIST))
    mnist = data.mnist(None)
    assert mnist.train.xs.shape == (60_000, 28, 28)
    assert np.bincount(mnist.test.targets).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert mnist.train.xs.max() == 1
    assert run("mnist-rows", "--quick", "--out", tmp_path / "run") == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["recurrent_parameters"]["MGU"] == 25_800
    assert result["accuracy"] > 0.2


@pytest.mark.slow
def test_digits_reach_97_percent_in_90_seconds(tmp_path):
    began = time.perf_counter()
    assert run("digits", "--out", tmp_path / "run") == 0
    assert time.perf_counter() - began < 90
    assert json.loads((tmp_path / "run" / "result.json").read_text())["accuracy"] >= 0.97


@pytest.mark.slow
@pytest.mark.skipif(not MNIST, reason="MGU_JAX_DATA names no folder with the MNIST files")
def test_mnist_rows_reach_99_percent_in_20_epochs(tmp_path):
    assert run("mnist-rows", "--data-dir", MNIST, "--out", tmp_path / "run") == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["accuracy"] >= 0.99
    assert result["steps"] == 12_000
