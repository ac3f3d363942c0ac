"""What README.md and the page on training say is true: their code runs, and their numbers are those of the files."""

import json
import os
import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.__main__ import NAMES
from experiments.speed.tables import Times
from tests.processes import run_together

ROOT = Path(__file__).parent.parent
NAMES_OF_PAGES = ("README.md", *(f"mgu_jax/{room}/README.md" for room in ("layer", "training", "kernels")))
PAGES = {name: (ROOT / name).read_text() for name in NAMES_OF_PAGES}
README = PAGES["README.md"]
RESULTS = ROOT / "experiments" / "results"


def code(page):
    """The Python blocks of a page, without those that are a file to be run by a command."""
    blocks = re.findall(r"```python\n(.*?)```", PAGES[page], re.DOTALL)
    return [block for block in blocks if not block.startswith("# train.py\n")]


BLOCKS = [(page, i) for page in PAGES for i in range(len(code(page)))]


@pytest.mark.parametrize(("page", "i"), BLOCKS, ids=[f"{page} {i}" for page, i in BLOCKS])
def test_each_block_runs_alone(page, i, quick_compiler, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(code(page)[i], names)
    for name, least in {"accuracy": 0.9, "best": 0.9}.items():  # what learns on real digits has learned
        value = names.get(name)
        if value is not None:
            assert getattr(value, "score", value) > least
    if "report" in names:
        assert names["report"].worst < 2e-5
    if "gradient" in names:
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(names["gradient"]))
    if "losses" in names:
        assert np.mean(names["losses"][..., -10:]) < np.mean(names["losses"][..., :10])


def test_the_readmes_training_resumes_where_it_stopped(quick_compiler, tmp_path, monkeypatch):
    """Run once and run again: the second time, the checkpoints hold the finished run, and nothing is left to train."""
    monkeypatch.chdir(tmp_path)
    (block,) = (block.split("hyper = mgu.grid")[0] for block in code("README.md") if "Checkpoints" in block)
    states, losses = [], []
    for _ in range(2):
        names = {}
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            exec(block, names)
        states.append(names["state"].params)
        losses.append(names["losses"])
    assert [len(of_run) for of_run in losses] == [400, 0]
    for one, other in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_the_commands_for_several_machines_run(tmp_path):
    page = PAGES["mgu_jax/training/README.md"]
    (text,) = re.findall(r"```python\n(# train\.py\n.*?)```", page, re.DOTALL)
    (tmp_path / "train.py").write_text(text)
    commands = [line.split() for line in re.findall(r"    JAX_NUM_CPU_DEVICES=2 (python train.py .*?) +#", page)]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2", "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}

    def command(i, address):
        _, script, _, *others = commands[i]
        return [sys.executable, script, address, *others]

    assert len(commands) == 2
    said = run_together(2, command, env=environment, cwd=tmp_path)
    loss = re.search(r"^loss (.*) on 4 devices$", said[0], re.MULTILINE)
    assert float(loss[1]) < 0.5
    assert "loss" not in said[1]


def result(name):
    return json.loads((RESULTS / f"{name}.json").read_text())


def cells(kind, *files, digits=2):
    """Mean and standard deviation of a score in files of results/learning, as the README prints them."""
    for file in files:
        row = result(f"learning/{file}")
        if kind == "accuracy":
            mean, deviation = (None if row[key] is None else 100 * row[key] for key in ("accuracy", "accuracy_std"))
            yield f"{mean:.2f}" + ("" if deviation is None else f" ± {deviation:.2f}") + " %"
        else:
            yield f"{row[kind]:.{digits}f}"


def table_rows():
    """The README's rows of numbers, made from the files."""
    for task, kind, stem, digits in (
        ("MNIST by rows, T = 28 | 5", "accuracy", "mnist-rows-{}", 2),
        ("IMDB reviews | 3", "accuracy", "imdb-{}", 2),
        ("Penn Treebank words, six epochs, perplexity (lower is better) | 1", "perplexity", "words-{}-h200", 1),
        ("tiny Shakespeare, bits per character (lower is better) | 1", "bits_per_character", "chars-{}", 3),
    ):
        three = cells(kind, *(stem.format(cell) for cell in ("mgu", "gru", "lstm")), digits=digits)
        yield f"| {task} | {' | '.join(three)} |"
    two = cells("accuracy", "mnist-pixels-mgu-tuned", "mnist-pixels-gru-tuned")
    yield f"| MNIST by pixels, T = 784, settings chosen for MGU and GRU | 3 | {' | '.join(two)} | |"
    counts = result("mnist-rows")["recurrent_parameters"]
    three = " | ".join(f"{counts[cell]:,}" for cell in ("MGU", "GRU", "LSTM"))
    yield f"| parameters of a layer, D = 28, H = 100, as the paper counts | | {three} |"
    for dtype in ("float64", "float32"):
        rows = [row for row in result("gradients")["rows"] if row["dtype"] == dtype]
        errors = (max(row[kind] for row in rows) for kind in ("autodiff", "differences"))
        yield f"| {dtype} | {' | '.join(f'{error:.1e}' for error in errors)} |"
    yield from speed_rows()
    yield from experiment_rows()


def speed_rows():
    times = Times(result("benchmark")["rows"])
    sizes = [size for size in times.sizes if size[1] < 1000]
    for text, ratio in {
        "Flax's MGU": lambda size, which: times.ratio(size, "flax MGU", which),
        "the fastest GRU of Flax, Equinox, Haiku, Keras and PyTorch": lambda size, which: times.fastest_gru(
            size, which
        )[1],
        "Flax's GRU": lambda size, which: times.ratio(size, "flax GRU", which),
    }.items():
        shown = []
        for which in ("forward", "both"):
            ratios = np.array([ratio(size, which) for size in sizes])
            shown.append(f"{np.exp(np.log(ratios).mean()):.2f} ({ratios.min():.2f} to {ratios.max():.2f})")
        yield f"| {text} | {' | '.join(shown)} |"


def experiment_rows():
    digits, rows = result("digits"), result("mnist-rows")
    yield f"| {100 * digits['accuracy']:.2f} % of 450 held-out digits | {digits['seconds']:.0f} seconds |"
    yield f"| {100 * rows['accuracy']:.2f} % of 10,000 test digits | {rows['seconds']:.0f} seconds |"
    for file, kind, text in (
        ("chars-mgu", "bits_per_character", "{:.3f} bits per character of tiny Shakespeare, and a sample"),
        ("mnist-pixels-mgu-tuned", "accuracy", "{:.2%} of 10,000 test digits, pixel by pixel"),
        ("words-mgu-h200", "perplexity", "perplexity {:.2f} on Penn Treebank"),
    ):
        row = result(f"learning/{file}")
        first = row[f"{kind}_per_seed"][0]
        yield f"{text.format(first).replace('%', ' %')} | {row['seconds'] / len(row['seeds']) / 60:.0f} minutes |"


@pytest.mark.parametrize("line", list(table_rows()))
def test_numbers_come_from_the_files(line):
    assert line in README


def test_every_command_of_the_readme_is_one():
    named = set(re.findall(r"python -m experiments ([a-z-]+)", README)) - {"list"}
    assert named <= set(NAMES)


def links(page):
    """The files that a page points to, pictures too."""
    found = re.findall(r"\]\(([^)#]+)", PAGES[page])
    return [link for link in found if not link.startswith("https://")]


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_are_there(page):
    for link in links(page):
        assert ((ROOT / page).parent / link).exists(), link


def test_the_version_is_the_changelogs_and_the_citations():
    import mgu_jax as mgu

    assert f"\n## {mgu.__version__}\n" in (ROOT / "CHANGELOG.md").read_text()
    assert f"\nversion: {mgu.__version__}\n" in (ROOT / "CITATION.cff").read_text()
