"""The tables of experiments/README.md are those of the files, and the command makes them."""

import copy
import json

import pytest

from experiments import plots, report
from experiments.__main__ import main
from experiments.cells import CellName
from experiments.run import _command

ROWS = [
    {
        "experiment": "adding",
        "command": f"python -m experiments adding --cell {cell}",
        "cell": cell,
        "hidden_size": 100,
        "parameters": {"recurrent": recurrent, "all": recurrent + 101},
        "settings": {"forget_bias": "chrono"},
        "squared_error": 0.002,
        "squared_error_per_seed": [0.001, 0.003],
        "squared_error_std": 0.001414,
        "seeds": [0, 1],
        "frozen": [],
        "steps": 5000,
        "seconds": 100.0,
    }
    for cell, recurrent in (("gru", 31_000), ("mgu", 20_600))
]


@pytest.fixture
def files(tmp_path):
    """Two results, and a page with a text and a table that is old."""
    for i, row in enumerate(ROWS):
        (tmp_path / f"{i}.json").write_text(json.dumps(row))
    first, last = report._block("adding")
    (tmp_path / "page.md").write_text(f"# A page\n\nbefore\n\n{first}\nold\n{last}\n\nafter\n")
    return tmp_path


def run(files):
    flags = ["--results", files, "--page", files / "page.md", "--picture", files / "picture.png"]
    return main(["report", *map(str, flags)])


def test_the_command_writes_tables_and_picture(files, capsys):
    assert run(files) == 0
    page = (files / "page.md").read_text()
    assert "| mgu | 100 | 20,600 | 20,701 | chrono | 0.00200 ± 0.00141 | 2 | 5,000 | 50 |" in page
    assert page.index("| mgu |") < page.index("| gru |")
    assert page.startswith("# A page\n\nbefore\n\n<!--")
    assert page.endswith("-->\n\nafter\n")
    assert "old" not in page
    assert "    python -m experiments adding --cell gru\n" in page
    assert (files / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert run(files) == 0
    assert (files / "page.md").read_text() == page
    # A new experiment is added; one that is gone is not left with its old figures.
    other = copy.deepcopy(ROWS[0]) | {"experiment": "adding-400", "squared_error_std": None, "frozen": [1]}
    (files / "2.json").write_text(json.dumps(other))
    assert run(files) == 0
    assert "after\n\n### adding-400\n\n<!--" in (files / "page.md").read_text()
    assert "| 0.00200 | 2, 1 of them not finite |" in (files / "page.md").read_text()
    (files / "2.json").unlink()
    assert run(files) == 2
    assert "must hold what page.md has a table of; adding-400 is not there" in capsys.readouterr().err


def test_nothing_to_report_is_one_sentence(tmp_path, capsys):
    (tmp_path / "page.md").write_text("")
    assert run(tmp_path) == 2
    assert "--results must be a folder with the result.json of a run or more" in capsys.readouterr().err


def test_the_pages_tables_are_those_of_the_files():
    config = report.Config()
    page, results = config.page.read_text(), report.load(config.results)
    assert report.written(page, results) == page
    assert sorted(report.tables_of(page)) == sorted(results)
    assert config.picture.exists() or not results


def test_every_cell_has_its_own_look():
    assert set(plots.CELLS) == set(CellName.__args__)
    assert len(set(plots.CELLS.values())) == len(plots.CELLS)


def test_a_command_names_no_folder_of_the_machine():
    flags = ["adding", "--out", "/somewhere/else", "--cell", "gru", "--data-dir=/data", "--resume", "--download"]
    assert _command(flags) == "python -m experiments adding --cell gru"
