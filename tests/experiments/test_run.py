"""What every experiment promises: its flags, the folder that it writes, and a run that resumes bit for bit."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Annotated

import pytest

from experiments.__main__ import NAMES, main
from experiments.run import BadRequest, Bound, Common, Outside, at_least, mark_of
from mgu_jax.training.checkpoint import Checkpoints
from tests.experiments.common import ROOT, drop_newest_checkpoint, lines, refuses, run, said
from tests.rejects import rejects

pytestmark = pytest.mark.usefixtures("quick_compiler", "as_a_user")


def test_list_names_every_experiment(capsys):
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in NAMES)
    assert main([]) == 0
    refuses(capsys, ["list", "--foo"], "list", "alone", "--foo")


def test_wrong_name_and_wrong_flag_end_with_2(capsys):
    refuses(capsys, ["digit"], "NAME", ", ".join(NAMES), "'digit'")
    for flags in (["--bogus"], ["--seed", "x"]):
        with pytest.raises(SystemExit) as caught:
            main(["digits", *flags])
        assert caught.value.code == 2


IMPOSSIBLE = [
    (["digits", "--steps", "-5"], "--steps", "a number above 0", "-5"),
    (["digits", "--steps", "0"], "--steps", "a number above 0", "0"),
    (["digits", "--hidden-size", "0"], "--hidden-size", "a number above 0", "0"),
    (["digits", "--batch-size", "5000"], "--batch-size", "at most the 1,347 training samples", "5,000"),
    (["digits", "--learning-rate", "nan"], "--learning-rate", "a number above 0", "nan"),
    (["digits", "--seed", "-1"], "--seed", "a whole number in [0, 2^32)", "-1"),
    (["digits", "--seed", "99999999999"], "--seed", "a whole number in [0, 2^32)", "99999999999"),
    (["mnist-rows", "--epochs", "0"], "--epochs", "a number above 0", "0"),
    (["sweep", "--seeds", "0"], "--seeds", "a number above 0", "0"),
    (["sweep", "--devices", "9999"], "--devices", f"at most the {os.cpu_count()} cores", "9999"),
    (["benchmark", "--devices", "9999"], "--devices", f"at most the {os.cpu_count()} cores", "9999"),
    (["gradients", "--steps", "5"], "--steps", "has no meaning for gradients", ""),
    (["benchmark", "--seed", "3"], "--seed", "has no meaning for benchmark", ""),
    (["vowels", "--dropout", "1"], "--dropout", "a number in [0, 1)", "1.0"),
    (["vowels", "--weight-decay", "-1"], "--weight-decay", "a number of at least 0", "-1.0"),
    (["vowels", "--forget-bias", "nan"], "--forget-bias", "a number, chrono or uniform", "nan"),
    (["digits", "--quick", "--warmup", "84"], "--warmup", "below the 84 steps of the training", "84"),
    (["digits", "--ema", "1"], "--ema", "a number in [0, 1)", "1.0"),
    (["adding", "--length", "1"], "--length", "at least 2", "1"),
    (["adding", "--cell", "gru", "--implementation", "manual"], "--implementation", "our own cells", "--cell gru"),
    (["adding", "--cell", "gru", "--initializer", "lecun"], "--initializer", "our own cells", "--cell gru"),
    (["adding", "--seeds", "3", "--devices", "2"], "--devices", "divide the 3 seeds", "2"),
]


@pytest.mark.parametrize(("flags", "name", "rule", "got"), IMPOSSIBLE, ids=[" ".join(i[0]) for i in IMPOSSIBLE])
def test_impossible_values_are_one_sentence_and_leave_nothing(tmp_path, capsys, flags, name, rule, got):
    refuses(capsys, [*flags, "--out", tmp_path / "run"], name, rule, got)
    assert not (tmp_path / "run").exists()


def test_a_bound_is_declared_beside_its_field_and_inherited_by_a_field_that_overrides_it():
    @dataclass(frozen=True)
    class Parent(Common):
        delay: Annotated[float, at_least(0)] = 0.0
        note: Annotated[str, Outside()] = ""

    @dataclass(frozen=True)
    class Child(Parent):
        delay: float = 2.0

    assert mark_of(Child, "delay", Bound).rule == "a number of at least 0"
    assert mark_of(Child, "note", Outside) == Outside()
    assert mark_of(Child, "delay", Outside) is None
    rejects(lambda: Child(delay=-1.0), "--delay", "a number of at least 0", "-1.0", BadRequest)


def test_training_that_fails_is_one_sentence(tmp_path, capsys):
    assert run("digits", "--quick", "--learning-rate", "1e38", "--out", tmp_path / "run") == 1
    assert "must stay finite" in capsys.readouterr().err


def test_a_missing_extra_is_named_before_anything_is_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("experiments.run.NEEDED", ("tyro", "a_package_that_nobody_has"))
    assert run("digits", "--out", tmp_path / "run") == 1
    said(capsys, "a_package_that_nobody_has", "is needed", "pip install -e '.[experiments]'")
    assert not (tmp_path / "run").exists()


def test_an_output_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    flags = ["notebook", "--out", tmp_path / "file" / "run"]
    refuses(capsys, flags, "--out", "a folder that can be written", tmp_path / "file" / "run")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path, capsys):
    (tmp_path / "metrics.csv").write_text("1,2")
    refuses(capsys, ["digits", "--quick", "--out", tmp_path], "--out", "the folder of an earlier run", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_an_earlier_run_is_kept(tmp_path, capsys):
    for _ in range(3):
        run("notebook", "--steps", 2, "--out", tmp_path / "run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run.1", "run.2"]
    assert f"{tmp_path / 'run'} held a run already; it is now {tmp_path / 'run.2'}." in capsys.readouterr().out


HOLD = """
import sys
from experiments.run import Common, Run
run = Run("notebook", Common(out=sys.argv[1]), {})
print("holds", flush=True)
sys.stdin.readline()
"""


def test_a_folder_that_a_run_writes_into_is_refused(tmp_path, capsys):
    """Also to a run that resumes. When the first is dead, both are possible; nothing of the first is lost."""
    folder = tmp_path / "run"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], cwd=ROOT, **pipes)
    assert process.stdout.readline() == "holds\n"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    flags = ["notebook", "--steps", 2, "--out", folder]
    for more in ([], ["--resume"]):
        who = f"{folder} is in use by process {process.pid} on {socket.gethostname()} since 20"
        refuses(capsys, [*flags, *more], "--out", "a folder that no other run writes into", who)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    process.kill()
    process.communicate()
    assert run(*flags) == 0
    made = ["config.json", "loss_per_time_step.png", "metrics.jsonl", "result.json"]
    assert sorted(path.name for path in folder.iterdir()) == made
    assert sorted(path.name for path in (tmp_path / "run.1").iterdir()) == ["config.json", "metrics.jsonl"]
    assert run("notebook", "--out", folder, "--resume") == 2  # for its steps differ
    assert sorted(path.name for path in folder.iterdir()) == made


def test_what_a_run_wrote_is_its_last_line(tmp_path, capsys):
    """All of it, and nothing that is not there."""
    for name, others in (
        ("notebook", "loss_per_time_step.png"),
        ("digits", "checkpoints/, gates.png, learning_curve.png"),
    ):
        folder = tmp_path / name
        assert run(name, "--quick", "--out", folder) == 0
        seconds = "seconds.jsonl, " if name == "digits" else ""
        wanted = f"written to {folder}: config.json, metrics.jsonl, {seconds}result.json, {others}"
        assert capsys.readouterr().out.splitlines()[-1] == wanted


def test_a_setting_that_is_not_given_is_null(tmp_path):
    run("notebook", "--steps", 2, "--out", tmp_path / "run")
    text = (tmp_path / "run" / "config.json").read_text()
    assert json.loads(text)["data_dir"] is None
    assert '"None"' not in text


@pytest.mark.parametrize("command", ["list", "digits --help"])
def test_a_reader_that_leaves_ends_a_command_quietly(command):
    """As ``head`` does. Python's own message, at its end, would be as wrong as a traceback."""
    shell = f"({sys.executable} -m experiments {command}; echo $? >&2) | true"
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stderr == "141\n"


def start_and_kill(folder, flags, rows, seconds):
    """Start a run as a process and kill it, some seconds after it has written this number of rows of metrics."""
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
    """A run killed between two checkpoints resumes to the same metrics and the same result."""
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
def test_tensorboard_shows_what_the_metrics_hold(tmp_path):
    """Also for a run that resumes: what was shown after its checkpoint is taken back."""
    assert run("digits", "--quick", "--out", tmp_path / "run", "--tensorboard") == 0
    assert drop_newest_checkpoint(tmp_path / "run") == 42
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


def test_resume_names_a_damaged_checkpoint_and_continues_without_it(tmp_path, capsys):
    """One sentence and status 2; the checkpoint before it leads to the same bits."""
    folder = tmp_path / "run"
    flags = ["digits", "--quick", "--out", folder]
    run(*flags)
    before, damaged = lines(folder), folder / "checkpoints" / "84.npz"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    text = refuses(capsys, [*flags, "--resume"], "the checkpoint of step 84", "that of step 42 is whole", damaged)
    assert "is damaged" in text
    assert lines(folder) == before
    damaged.unlink()
    assert run(*flags, "--resume") == 0
    assert "continuing from step 42 of 84." in capsys.readouterr().out
    assert lines(folder) == before


def test_a_checkpoint_that_cannot_be_saved_is_one_sentence(tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mgu_jax.archive.write", full)
    assert run("digits", "--quick", "--out", tmp_path / "run") == 1
    folder = tmp_path / "run" / "checkpoints"
    rule = f"could not be saved in {folder} (No space left on device)"
    said(capsys, "the checkpoint of step 42", rule, "those before it are whole")


def test_an_interrupted_run_says_how_to_continue(tmp_path):
    """Ctrl-C gives one sentence, status 130, and a folder from which the run resumes."""
    flags = ["--hidden-size", "16", "--steps", "1000000", "--out", str(tmp_path / "run")]  # it does not end by itself
    command = [sys.executable, "-m", "experiments", "digits", *flags]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") > 4):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, text = process.communicate(timeout=60)
    assert process.returncode == 130
    assert text.endswith("stopped; the same command with --resume continues from the last checkpoint.\n")
    assert "Traceback" not in text
    assert any((tmp_path / "run" / "checkpoints").iterdir())


def test_resume_refuses_what_it_cannot_do(tmp_path, capsys):
    refuses(capsys, ["digits", "--quick", "--out", tmp_path / "none", "--resume"], "--resume", "an earlier run", "none")
    assert not (tmp_path / "none").exists()
    folder = tmp_path / "run"
    flags = ["digits", "--quick", "--steps", 42, "--out", folder]
    run(*flags)
    before = (folder / "config.json").read_bytes()
    refuses(capsys, [*flags, "--resume", "--seed", 5], "--resume", "seed was 0", "5")
    assert (folder / "config.json").read_bytes() == before

    refuses(capsys, ["notebook", "--out", folder, "--resume"], "--resume", "a run of notebook", "digits")
    metrics = (folder / "metrics.jsonl").read_bytes()
    for damaged in ("{bad\n", "{}\n", "[]\n"):
        (folder / "metrics.jsonl").write_bytes(damaged.encode() + metrics)
        refuses(capsys, [*flags, "--resume"], "--resume", "metrics.jsonl", f"in {folder} is damaged")
        assert (folder / "metrics.jsonl").read_bytes() == damaged.encode() + metrics
    for damaged in ("{bad", "{}"):
        (folder / "config.json").write_text(damaged)
        refuses(capsys, [*flags, "--resume"], "--resume", "config.json", f"in {folder} is damaged")


@pytest.mark.parametrize("name", ["notebook", pytest.param("gradients", marks=pytest.mark.slow)])
def test_a_short_run_that_resumes_starts_again(name, tmp_path):
    flags = ["--quick", "--out", tmp_path / "run"]
    run(name, *flags)
    before = lines(tmp_path / "run")
    run(name, *flags, "--resume")
    assert lines(tmp_path / "run") == before
