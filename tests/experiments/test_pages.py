"""What the pages of experiments/ say is true: their tables and figures are those of the files, and their code runs."""

import json
import re

import jax
import pytest

import mgu_jax as mgu
from experiments.__main__ import NAMES, _module
from experiments.harness.cells import has_forget_bias
from experiments.report import page as report
from experiments.run import _settings, parse
from experiments.speed import features
from mgu_jax.gradients import relative_error
from tests.experiments.common import digest_in

FOLDER = report.Config().folder
PAGES = {name: (FOLDER / name).read_text() for name in report.PAGES}
RESULTS = sorted((FOLDER / "results").glob("*.json"))
LEARNING = sorted((FOLDER / "results" / "learning").glob("*.json"))
TUNING = sorted((FOLDER / "results" / "tuning").glob("*.json"))


@pytest.mark.parametrize("name", PAGES)
def test_the_tables_are_those_of_the_files(name):
    assert report.written(PAGES[name], report.tables_of(FOLDER)) == PAGES[name]


def test_every_table_of_the_files_is_in_one_page():
    blocks = [block for page in PAGES.values() for block in report.blocks_of(page)]
    assert sorted(blocks) == sorted(report.tables_of(FOLDER))


def test_no_table_of_numbers_is_written_by_hand():
    """Outside the generated tables, a row with a decimal number would be one that no file vouches for."""
    for page in PAGES.values():
        rest = re.sub(r"<!-- table of .*?<!-- end of .*?-->", "", page, flags=re.DOTALL)
        assert not re.findall(r"^\|.*\d\.\d.*\|$", rest, re.MULTILINE)


def test_the_pictures_are_those_of_the_files():
    for path, digest, _ in report.pictures_of(FOLDER):
        assert digest_in(path) == digest, path.name
        assert any(f"]({path.relative_to(FOLDER)})" in page for page in PAGES.values()), path.name


def test_every_picture_and_link_has_its_file():
    for name, page in PAGES.items():
        for link in re.findall(r"\]\(([\w./]+)\)", page):
            assert ((FOLDER / name).parent / link).is_file(), link


@pytest.mark.parametrize("path", LEARNING, ids=lambda path: path.stem)
def test_every_command_still_parses_to_its_recorded_settings(path):
    row = json.loads(path.read_text())
    name, *flags = row["command"].split()[3:]
    asked_for = _settings(parse(_module(name).Config, name, flags, None))
    if not has_forget_bias(row["cell"]):
        asked_for["forget_bias"] = None
    assert asked_for == {setting: row["settings"].get(setting) for setting in asked_for}  # None if it came later


@pytest.mark.parametrize("path", TUNING, ids=lambda path: path.stem)
def test_every_tuning_names_the_command_that_asks_for_it(path):
    made = json.loads(path.read_text())
    name, *flags = made["command"].split()[3:]
    asked_for = _settings(parse(_module(name).Config, name, flags, None))
    assert name == "tune"
    assert {setting: made[setting] for setting in ("cell", "permuted", "compare")}.items() <= asked_for.items()


@pytest.mark.parametrize("name", PAGES)
def test_all_lines_of_a_table_have_as_many_cells(name):
    for lines in re.findall(r"(?:^\|.*\n)+", PAGES[name], re.MULTILINE):
        assert len({line.count("|") for line in lines.splitlines()}) == 1, lines


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_every_result_names_what_made_it(path):
    made = json.loads(path.read_text())
    command, _, flags = made["command"].partition(" --")
    assert command == f"python -m experiments {path.stem.removesuffix('-newest')}"
    assert not flags or path.stem == "earlier"  # which needs an environment
    assert made["versions"]["jax"]
    assert made["device"]


def test_every_experiment_is_in_the_page():
    assert all(f"`python -m experiments {name}`" in PAGES["README.md"] for name in NAMES)


def test_the_flags_of_the_page_exist():
    known = {name for flags in (_module(name).Config for name in NAMES) for name in flags.__dataclass_fields__}
    for flag in re.findall(r"--([a-z][a-z-]+)", PAGES["README.md"]):
        assert flag.replace("-", "_") in known | {"help"}, flag


def test_the_benchmark_and_the_features_name_all_libraries():
    benchmark, looked_up = (
        json.loads((FOLDER / f"results/{name}.json").read_text()) for name in ("benchmark", "features")
    )
    assert set(benchmark["peers"]) == {"flax", "equinox", "dm-haiku", "keras", "torch"} == set(looked_up["peers"])
    assert looked_up["not_found"] == []


def test_our_own_features_are_found():
    assert all(features._found(by_peer["mgu_jax"]) for by_peer in features.CLAIMS.values())
    assert not features._found("mgu_jax:scan(nothing)")
    assert not features._found("mgu_jax:nothing")


def test_the_code_of_the_pages_runs(quick_compiler):
    (code,) = re.findall(r"```python\n(.*?)```", "".join(PAGES.values()), re.DOTALL)
    names = {}
    exec(code, names)
    params, xs = names["params"], names["xs"]
    whole = jax.grad(lambda p: (mgu.scan(p, xs)[0] ** 2).sum())(params)
    for got, wanted in zip(jax.tree.leaves(names["gradient"]), jax.tree.leaves(whole), strict=True):
        assert relative_error(got, wanted) < 2e-5
