"""A task is its settings; the tables and figures of a page follow from the files, and the command makes them."""

import copy
import json

import pytest

from experiments.harness import measures, plots
from experiments.harness.cells import CellName
from experiments.report import page as report
from experiments.report import questions, tasks
from experiments.run import BadRequest, _command
from experiments.tasks import adding
from mgu_jax.extras import require
from tests.experiments.common import is_png, refuses, run


def asked(cell="mgu", score=0.002, experiment="adding", **settings):
    """A run of one seed, as its result.json has it; ``settings`` are those that it was asked for."""
    flags = "".join(f" --{name.replace('_', '-')} {value}" for name, value in settings.items())
    return {
        "experiment": experiment,
        "command": f"python -m experiments adding --cell {cell}{flags}",
        "cell": cell,
        "hidden_size": 100,
        "parameters": {"recurrent": 20_600, "all": 20_701},
        "settings": {"forget_bias": "chrono", "match": None, "cell": cell} | settings,
        "squared_error": score,
        "squared_error_per_seed": [score],
        "squared_error_std": None,
        "seeds": [0],
        "frozen": [],
        "steps": 5000,
        "seconds": 100.0,
    }


TWO_SEEDS = {"squared_error_per_seed": [0.001, 0.003], "squared_error_std": 0.001414, "seeds": [0, 1]}
ROWS = [asked("gru") | TWO_SEEDS, asked() | TWO_SEEDS]

TITLES = [
    (asked(), "Adding, 50 to 55 numbers"),
    (asked(length=200, steps=2000, experiment="adding-200"), "Adding, 200 numbers, 2,000 steps"),
    (asked(experiment="words", hidden_size=200), "Penn Treebank, H = 200"),
    (asked(experiment="words", hidden_size=100, dropout=0.3), "Penn Treebank, H = 100, dropout 0.3"),
    (asked(experiment="words-kjv", text="kjv"), "King James Bible, H = 200"),
    (asked(experiment="mnist-pixels-permuted", permuted=True), "MNIST by pixels, permuted"),
    (asked(experiment="mnist-pixels", permuted=False, epochs=10), "MNIST by pixels"),
    (asked(experiment="mnist-pixels", learning_rate=0.016, input_scale=10.0), "MNIST by pixels"),
    (
        asked(experiment="mnist-pixels", learning_rate=0.001, input_scale=1.0, warmup=0),
        "MNIST by pixels, learning rate 0.001, pixels times 1, no warm-up",
    ),
    (asked(experiment="chars", split="nanogpt"), "Tiny Shakespeare, nanoGPT's split"),
    (asked(experiment="speech", split="choice"), "Spoken digits, tested on a part of the training set"),
    (asked(experiment="digits", epochs=3, batch_size=16), "Digits by rows, batch size 16, epochs 3"),
    (asked(experiment="mnist-rows", cell="gru", match="mgu", seeds=5, seed=3, devices=1), "MNIST by rows"),
]


@pytest.mark.parametrize(("row", "title"), TITLES, ids=[title for _, title in TITLES])
def test_a_title_says_what_differs_from_the_defaults_and_is_not_compared(row, title):
    assert tasks.task_of(row).title == title


def test_the_order_of_the_flags_makes_no_other_task():
    one, other = asked(length=200, steps=2000), asked(steps=2000, length=200)
    assert one["command"] != other["command"]
    assert tasks.task_of(one) == tasks.task_of(other)
    assert hash(tasks.task_of(one)) == hash(tasks.task_of(other))
    assert tasks.task_of(one) != tasks.task_of(asked(length=200))


def test_the_forget_bias_belongs_to_the_task_unless_it_is_the_question():
    row = asked(forget_bias=-1.0, length=200)
    assert questions.Way("MGU").task(row).title == "Adding, 200 numbers, b_f = -1"
    assert questions.Way("b_f = -1", forget_bias=-1.0).task(row).title == "Adding, 200 numbers"


@pytest.fixture
def folder(tmp_path):
    """Two results, a page with a text and an old table, and a page of tasks."""
    (tmp_path / "results" / "learning").mkdir(parents=True)
    put(tmp_path, *ROWS)
    old = report.block("question size", "old")
    (tmp_path / "README.md").write_text(f"# A page\n\nbefore\n\n{old}\n\nafter\n")
    (tmp_path / "results" / "README.md").write_text("# Tasks\n\n" + report.block("task adding", "old") + "\n\nafter\n")
    return tmp_path


def put(folder, *rows):
    for row in rows:
        number = len(list((folder / "results" / "learning").iterdir()))
        (folder / "results" / "learning" / f"{number}.json").write_text(json.dumps(row))


def test_the_command_writes_all_pages_and_pictures(folder, capsys):
    assert run("report", "--folder", folder) == 0
    page, results = ((folder / name).read_text() for name in ("README.md", "results/README.md"))
    assert "| mgu | 100 | 20,600 | 20,701 | chrono | 2.0e-03 ± 1.4e-03 | 2 | 5,000 | 50 |" in results
    assert results.index("| mgu |") < results.index("| gru |")
    assert "    python -m experiments adding --cell gru\n" in results
    assert page.startswith("# A page\n\nbefore\n\n<!--")
    assert page.endswith("-->\n\nafter\n")
    assert "old" not in page + results
    assert (
        "| Adding, 50 to 55 numbers | squared error | 2.0e-03 ± 1.4e-03 (2; 50 s) | 2.0e-03 ± 1.4e-03 (2; 50 s) |"
        in page
    )
    assert is_png(folder / "results" / "size.png")
    assert not (folder / "results" / "bias.png").exists()  # a question without runs
    assert run("report", "--folder", folder) == 0
    assert (folder / "README.md").read_text() == page
    # A new experiment is added to the page of tasks; one without a file is refused.
    put(folder, asked(experiment="adding-400", length=400) | {"frozen": [1], "seeds": [0, 1]})
    assert run("report", "--folder", folder) == 0
    results = (folder / "results" / "README.md").read_text()
    assert "after\n\n## adding-400\n\n<!--" in results
    assert "| 2.0e-03 | 2, 1 of them not finite |" in results
    (folder / "results" / "learning" / "2.json").unlink()
    refuses(capsys, ["report", "--folder", folder], "--folder", "the files of every table", "task adding-400")


def test_by_pixels_the_rate_and_the_factor_belong_to_the_cell():
    def run(cell, score, rate, scale, **more):
        return asked(cell, score, "mnist-pixels", learning_rate=rate, input_scale=scale, **more) | {"steps": 6000}

    rows = [run("gru", 0.003, 0.016, 10.0), run("mgu", 0.002, 0.012, 5.0), run("mgu", 0.004, 1e-3, 1.0, warmup=0)]
    assert [
        line.split(" | ")[2:] for line in questions.answer("remember", rows, report.measure_of).splitlines()[2:4]
    ] == [
        ["2.0e-03 (1; 2 minutes)", "3.0e-03 (1; 2 minutes) |"],
        ["4.0e-03 (1; 2 minutes)", " |"],
    ]
    with pytest.raises(BadRequest, match="is there twice"):
        questions.answer("remember", [*rows, run("mgu", 0.005, 0.02, 5.0)], report.measure_of)


def test_a_row_says_in_how_many_steps_each_seed_solved_it():
    row = asked("gru", 0.001, steps=3000, learning_rate=0.01) | {"length": 1000, "solved": [1400, None, 800]}
    row |= {"seeds": [0, 1, 2], "steps": 3000, "seconds": 720.0}
    (line,) = adding.table([("gru", row)]).splitlines()[2:]
    assert line == "| 1,000 | gru | 2 of 3 | 800, 1,400 | 1.0e-03 | 3,000 | 4 |"


def test_nothing_to_report_is_one_sentence(tmp_path, capsys):
    refuses(capsys, ["report", "--folder", tmp_path], "--folder", "a result.json or more", tmp_path)


def test_a_question_has_a_row_per_task_and_a_column_per_configuration():
    rows = [
        asked(),
        asked("gru", 0.003, seeds=1),
        asked("gru", 0.004, match="mgu"),
        asked("gru", 0.005, length=200),  # the only run of its task
        asked("gru", 0.006, forget_bias=0.0),  # the only one with its bias
        asked(length=400, forget_bias=-1.0),
        asked("gru", 0.003, forget_bias=-1.0, length=400),
        asked(score=0.007, implementation="manual"),  # the only one with its gradient
    ]
    assert questions.answer("size", rows, report.measure_of).splitlines() == [
        "| task | measured | MGU | GRU, same width | GRU, same parameter count |",
        "|---|---|---|---|---|",
        "| Adding, 50 to 55 numbers | squared error "
        "| 2.0e-03 (1; 2 minutes) | 3.0e-03 (1; 2 minutes) | 4.0e-03 (1; 2 minutes) |",
        "| Adding, 400 numbers, b_f = -1 | squared error | 2.0e-03 (1; 2 minutes) | 3.0e-03 (1; 2 minutes) |  |",
        "",
        "5 runs, 8 minutes on one core.",
    ]
    rows = [
        asked(length=200),
        asked(length=200, forget_bias=-1.0, score=0.1),
        asked("gru", length=200, forget_bias=-1.0),
    ]
    assert questions.answer("bias", rows, report.measure_of).splitlines()[:3:2] == [
        "| task | measured | b_f = -1 | chrono |",
        "| Adding, 200 numbers | squared error | 1.0e-01 (1; 2 minutes) | 2.0e-03 (1; 2 minutes) |",
    ]


def test_the_forget_bias_has_a_picture(folder):
    put(folder, asked(forget_bias=-1.0, score=0.001), asked(forget_bias=1.0, score=0.1))
    assert run("report", "--folder", folder) == 0
    assert is_png(folder / "results" / "bias.png")


def test_runs_that_do_not_belong_together_are_not_put_together():
    twice = [asked(), asked(seeds=5), asked("gru")]
    with pytest.raises(BadRequest, match="'python -m experiments adding --cell mgu --seeds 5' is there twice"):
        questions.answer("size", twice, report.measure_of)
    other = [asked(), asked("gru", clip_norm=2.0)]  # which no flag asks for
    with pytest.raises(BadRequest, match="'Adding, 50 to 55 numbers' with the same settings; clip_norm differs"):
        questions.answer("size", other, report.measure_of)


def test_tables_name_frozen_seeds_missing_biases_and_settings_without_a_column():
    stopped = asked() | {"seeds": [0, 1, 2], "frozen": [1]}
    assert questions.shown_score(stopped, measures.ERROR) == "2.0e-03 (2 of 3)"
    assert "| mgu2 | 100 | 20,600 | 20,701 | none |" in report.table([asked("mgu2", forget_bias=None)])
    assert "| gru, same parameter count as mgu | 100 |" in report.table([asked("gru", match="mgu")])
    rated = asked(learning_rate=5e-3, dropout=0.3, implementation="manual")
    assert "| mgu, learning rate 0.005, dropout 0.3, manual gradient | 100 |" in report.table([rated])


def test_every_cell_has_its_own_look():
    assert set(plots.CELLS) == set(CellName.__args__)
    assert len(set(plots.CELLS.values())) == len(plots.CELLS)


def test_matched_widths_and_other_weights_have_marks_of_their_own():
    figure, axes = plots.figure_of()
    rows = (asked(), asked(match="mgu"), asked(initializer="lecun"))
    marks = [plots._seeds(axes, row, i, measures.ERROR) for i, row in enumerate(rows)]
    assert len({(mark.get_fillstyle(), mark.get_markerfacecolor()) for mark in marks}) == 3
    require("matplotlib.pyplot", "experiments").close(figure)


def test_a_long_title_is_broken_after_its_commas():
    title = plots._in_lines("MNIST by pixels, permuted, learning rate 0.005, b_f = -1")
    assert title == "MNIST by pixels, permuted,\nlearning rate 0.005, b_f = -1"


def test_a_digest_follows_the_scores_and_the_titles():
    runs = questions.found("size", ROWS)
    other = copy.deepcopy(runs)
    next(iter(next(iter(other.values())).values()))["squared_error_per_seed"][0] += 1
    assert plots.digest(other) != plots.digest(runs)
    renamed = {tasks.Task("adding", (("length", 200),)): of_task for of_task in runs.values()}
    assert plots.digest(renamed) != plots.digest(runs)


def test_a_command_names_no_folder_of_the_machine():
    flags = ["adding", "--out", "/somewhere/else", "--cell", "gru", "--data_dir=/data", "--resume", "--download"]
    assert _command([*flags, "--forget_bias=-2"]) == "python -m experiments adding --cell gru --forget-bias=-2"
