"""The page of this room is true: each block runs alone, finds what the text says, and draws the figure after it."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

from mgu_jax import dynamics
from tests.experiments.common import is_png

FOLDER = Path(dynamics.__file__).parent
PAGE = (FOLDER / "README.md").read_text()
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))


def check_jacobian(names):
    near_one = np.abs(np.linalg.eigvals(names["J"]) - 1) < 0.2
    assert near_one.mean() > 0.7


def check_points(names):
    points = names["points"]
    assert points.fixed.all()
    assert sorted(points.stable) == [False, True, True]
    assert names["losses"][-10:].mean() < 0.05
    assert not points.stable[np.abs(points.eigenvalues[:, 0]).argmax()]


def check_exponents(names):
    assert names["exponents"][0] > 0.3
    assert names["exponents"][-1] < 0


def check_memory(names):
    assert names["memory"].states[0].min() > 0.1
    assert 30 < names["memory"].time_constants.mean() < 200


def check_stability(names):
    assert names["found"].stable
    assert np.all(names["distances"] <= names["bound"][:, None] * (1 + 1e-5))


CHECKS = {
    "The Jacobian": check_jacobian,
    "Fixed points": check_points,
    "Lyapunov exponents": check_exponents,
    "Memory": check_memory,
    "Stability": check_stability,
}


def test_every_section_is_checked():
    assert list(SECTIONS) == list(CHECKS)


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_draws_its_figure(section, quick_compiler, tmp_path, monkeypatch):
    (block,) = re.findall(r"```python\n(.*?)```", SECTIONS[section], re.DOTALL)
    ((link, name),) = re.findall(r"\]\((\S*/(\w+\.png))\)", SECTIONS[section])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    names = {"__name__": "page"}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(block, names)
        CHECKS[section](names)
    assert is_png(tmp_path / name)
    assert is_png(FOLDER / link)


def test_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)#]+)", PAGE):
        assert (FOLDER / link).exists(), link


def test_the_table_names_functions_that_exist():
    for name, arguments in re.findall(r"^\| `(\w+)\((.*?)\)`", PAGE, re.MULTILINE):
        assert callable(getattr(dynamics, name))
        assert arguments.startswith("params")
