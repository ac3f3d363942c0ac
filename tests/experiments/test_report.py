"""The tables of experiments/README.md are those of the files, and the command makes them."""

import copy
import json
import re

import pytest

from experiments.__main__ import _module, main
from experiments.harness import measures, plots
from experiments.harness.cells import CellName, has_forget_bias
from experiments.report import page as report
from experiments.report import questions
from experiments.run import BadRequest, _command, _settings, parse
from mgu_jax.extras import require

ROWS = [
    {
        "experiment": "adding",
        "command": f"python -m experiments adding --cell {cell}",
        "cell": cell,
        "hidden_size": 100,
        "parameters": {"recurrent": recurrent, "all": recurrent + 101},
        "settings": {"forget_bias": "chrono", "match": None},
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
    answer = report._block("answer: size")
    old = f"{answer[0]}\nold\n{answer[1]}\n\n{first}\nold\n{last}"
    (tmp_path / "page.md").write_text(f"# A page\n\nbefore\n\n{old}\n\nafter\n")
    return tmp_path


def run(files):
    flags = ["--results", files, "--page", files / "page.md", "--pictures", files]
    return main(["report", *map(str, flags)])


def test_the_command_writes_tables_and_picture(files, capsys):
    assert run(files) == 0
    page = (files / "page.md").read_text()
    assert "| mgu | 100 | 20,600 | 20,701 | chrono | 2.0e-03 ± 1.4e-03 | 2 | 5,000 | 50 |" in page
    assert page.index("| mgu |") < page.index("| gru |")
    assert page.startswith("# A page\n\nbefore\n\n<!--")
    assert page.endswith("-->\n\nafter\n")
    assert "old" not in page
    assert "| `adding` | squared error | 2.0e-03 ± 1.4e-03 (2) | 2.0e-03 ± 1.4e-03 (2) |" in page
    assert "    python -m experiments adding --cell gru\n" in page
    assert (files / "size.png").read_bytes().startswith(b"\x89PNG")
    assert not (files / "bias.png").exists()  # a question that nobody asked
    assert run(files) == 0
    assert (files / "page.md").read_text() == page
    # A new experiment is added; one that is gone is not left with its old figures.
    other = copy.deepcopy(ROWS[0]) | {"experiment": "adding-400", "squared_error_std": None, "frozen": [1]}
    other["command"] = "python -m experiments adding --length 400"
    (files / "2.json").write_text(json.dumps(other))
    assert run(files) == 0
    assert "after\n\n### adding-400\n\n<!--" in (files / "page.md").read_text()
    assert "| 2.0e-03 | 2, 1 of them not finite |" in (files / "page.md").read_text()
    (files / "2.json").unlink()
    assert run(files) == 2
    assert "must hold what page.md has a table of; adding-400 is not there" in capsys.readouterr().err


def asked(cell="mgu", flags="", score=0.002, **settings):
    """A run of the adding problem of one seed."""
    command = f"python -m experiments adding {flags}".strip()
    settings = {"forget_bias": "chrono", "match": None, "implementation": None} | settings
    one = {"cell": cell, "command": command, "settings": settings, "squared_error": score, "squared_error_std": None}
    return ROWS[1] | one | {"seeds": [0]}


def test_a_question_has_a_line_a_task_and_a_column_a_way():
    rows = [
        asked(),
        asked("gru", "--cell gru --seeds 1", 0.003),
        asked("gru", "--cell gru --match mgu", 0.004, match="mgu"),
        asked("gru", "--length 200 --cell gru", 0.005),  # alone with its task
        asked("gru", "--cell gru --forget-bias 0", 0.006, forget_bias=0.0),  # alone with its bias
        asked(flags="--permuted --forget-bias -1", forget_bias=-1.0),
        asked("gru", "--permuted --forget-bias -1 --cell gru", 0.003, forget_bias=-1.0),
        asked("mgu", "--implementation manual", 0.007, implementation="manual"),  # "
    ]
    assert questions.answer("size", rows, report.measure_of).splitlines() == [
        "| task | measured | MGU | GRU, as wide | GRU, as many parameters |",
        "|---|---|---|---|---|",
        "| `adding` | squared error | 2.0e-03 (1) | 3.0e-03 (1) | 4.0e-03 (1) |",
        "| `adding --permuted --forget-bias -1` | squared error | 2.0e-03 (1) | 3.0e-03 (1) |  |",
        "",
        "5 runs, 8 minutes.",
    ]
    rows = [
        asked(flags="--length 200"),
        asked(flags="--length 200 --forget-bias -1", forget_bias=-1.0, score=0.1),
        asked("gru", "--length 200 --forget-bias -1 --cell gru", forget_bias=-1.0),
    ]
    assert questions.answer("bias", rows, report.measure_of).splitlines()[:3:2] == [
        "| task | measured | b_f = -1 | chrono |",
        "| `adding --length 200` | squared error | 1.0e-01 (1) | 2.0e-03 (1) |",
    ]


def test_the_forget_bias_has_a_picture(files):
    for bias, score in ((-1.0, 0.001), (1.0, 0.1)):
        row = asked(flags=f"--forget-bias {bias:g}", forget_bias=bias, score=score)
        (files / f"bias{bias}.json").write_text(json.dumps(row | {"squared_error_per_seed": [score]}))
    assert run(files) == 0
    assert (files / "bias.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_to_report_is_one_sentence(tmp_path, capsys):
    (tmp_path / "page.md").write_text("")
    assert run(tmp_path) == 2
    assert "--results must be a folder with the result.json of a run or more" in capsys.readouterr().err


def test_the_pages_tables_are_those_of_the_files():
    config = report.Config()
    page, results = config.page.read_text(), report.load(config.results)
    assert report.written(page, results) == page
    assert sorted(report.tables_of(page)) == sorted(results)
    for picture in re.findall(r"\]\((results/.*?)\)", page):
        assert (config.page.parent / picture).exists()


def test_the_pages_figures_are_those_of_the_files():
    config = report.Config()
    for name, runs in report.pictured(report.load(config.results)):
        assert plots.digest_in(config.pictures / f"{name}.png") == plots.digest(runs), name
        assert f"](results/{name}.png)" in config.page.read_text()
        other = copy.deepcopy(runs)
        next(iter(next(iter(other.values())).values()))["loss_per_seed"][0] += 1
        assert plots.digest(other) != plots.digest(runs), name


def test_every_command_of_the_page_still_asks_for_what_its_result_had():
    for path in sorted(report.Config().results.glob("*.json")):
        row = json.loads(path.read_text())
        name, *flags = row["command"].split()[3:]
        asked_for = _settings(parse(_module(name).Config, name, flags, None))
        if not has_forget_bias(row["cell"]):
            asked_for["forget_bias"] = None
        had = {setting: row["settings"].get(setting) for setting in asked_for}  # None, of one that came later
        assert asked_for == had, path.name


def test_runs_that_do_not_belong_together_are_not_put_together():
    twice = [asked(), asked(flags="--seeds 5"), asked("gru", "--cell gru")]
    with pytest.raises(BadRequest, match="'python -m experiments adding --seeds 5' is there twice"):
        questions.answer("size", twice, report.measure_of)
    other = [asked(), asked("gru", "--cell gru", epochs=2)]
    with pytest.raises(BadRequest, match="runs of 'adding' with the same settings; epochs differs"):
        questions.answer("size", other, report.measure_of)


def test_seeds_that_stopped_and_biases_that_are_not_there_are_said():
    stopped = asked() | {"seeds": [0, 1, 2], "frozen": [1]}
    assert questions.figure(stopped, measures.ERROR) == "2.0e-03 (2 of 3)"
    assert "| mgu2 | 100 | 20,600 | 20,701 | none |" in report.table([asked("mgu2", forget_bias=None)])
    assert "| gru, as many parameters as mgu | 100 |" in report.table([asked("gru", match="mgu")])
    rated = asked(flags="--learning-rate 5e-3 --dropout=0.3", implementation="manual")
    assert "| mgu, learning rate 5e-3, dropout 0.3, manual | 100 |" in report.table([rated])


def test_every_cell_has_its_own_look():
    assert set(plots.CELLS) == set(CellName.__args__)
    assert len(set(plots.CELLS.values())) == len(plots.CELLS)


def test_matched_widths_and_other_weights_have_marks_of_their_own():
    figure, axes = plots.figure_of()
    rows = (asked(), asked(match="mgu"), asked(initializer="lecun"))
    marks = [plots._seeds(axes, row, i, measures.ERROR) for i, row in enumerate(rows)]
    assert len({(mark.get_fillstyle(), mark.get_markerfacecolor()) for mark in marks}) == 3
    require("matplotlib.pyplot", "experiments").close(figure)
    title = plots._in_lines("mnist-pixels --permuted --learning-rate 5e-3 --forget-bias -1")
    assert title == "mnist-pixels\n--permuted\n--learning-rate 5e-3\n--forget-bias -1"


def test_a_command_names_no_folder_of_the_machine():
    flags = ["adding", "--out", "/somewhere/else", "--cell", "gru", "--data_dir=/data", "--resume", "--download"]
    assert _command([*flags, "--forget_bias=-2"]) == "python -m experiments adding --cell gru --forget-bias=-2"
