"""What is shown while a run works."""

import io
import sys

import pytest

import mgu_jax as mgu
from mgu_jax import losses
from tests.training.common import KEY, LAST, samples

pytestmark = pytest.mark.usefixtures("optax_promotes", "quick_compiler")


def test_progress_prints_plain_lines_without_a_terminal(data, recipe, capsys):
    mgu.fit(recipe, data, steps=20, key=KEY, steps_per_call=10, on_call=lambda *_: "accuracy 50%", progress=True)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["10/20", "20/20"]
    assert all("loss" in line and line.endswith("accuracy 50%") for line in lines)
    assert ["with compilation" in line for line in lines] == [True, False]
    assert ["s left" in line for line in lines] == [False, True]
    mgu.fit(recipe, data, steps=20, key=KEY, steps_per_call=10)
    assert capsys.readouterr() == ("", "")


def test_progress_is_a_bar_on_a_terminal(data, recipe, monkeypatch):
    """It shows the steps, the loss and the caller's text, and there are no plain lines."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    mgu.fit(recipe, data, steps=20, key=KEY, steps_per_call=10, on_call=lambda *_: "accuracy 50%", progress=True)
    shown = terminal.getvalue()
    assert "20/20" in shown
    assert "accuracy 50%" in shown
    assert "\r" in shown


def test_the_last_scores_are_shown_until_the_next_validation(capsys):
    """Also after calls without a validation."""
    validation = mgu.Validation(samples(), (losses.accuracy,), every=2)
    mgu.fit(
        mgu.Recipe(LAST, batch_size=8),
        samples(),
        steps=4,
        key=KEY,
        steps_per_call=1,
        validation=validation,
        progress=True,
    )
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert ["accuracy" in line for line in lines] == [False, True, True, True]
