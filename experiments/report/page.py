"""Make the tables of experiments/README.md and the picture beside them from the files in experiments/results/learning.

A file there is the result.json of a run, under any name. Each experiment has a table of its own, a line a file, and
each question (questions.py) one over all of them, between two comments of the page; a text around them stays as it is.
"""

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from experiments.harness import cells, measures, plots
from experiments.report import questions
from experiments.run import BadRequest

HERE = Path(__file__).parent.parent
MEASURES = {measure.name: measure for measure in vars(measures).values() if isinstance(measure, measures.Measure)}
Results = dict[str, list[dict[str, Any]]]  # by experiment


@dataclass(frozen=True)
class Config:
    """The flags of report."""

    results: Path = HERE / "results" / "learning"
    """Folder of the files."""
    page: Path = HERE / "README.md"
    """Page whose tables are made anew."""
    pictures: Path = HERE / "results"
    """Folder for the figures, one a question: each seed of the runs in its table."""


def load(folder: Path) -> Results:
    """The results by experiment, and in each by task, cell, width and what else was asked for."""
    order, found = get_args(cells.CellName), {}

    def place(row: dict[str, Any]) -> tuple:
        settings = row["settings"]
        bias = settings["forget_bias"]
        bias = math.inf if bias in ("chrono", None) else bias
        asked = (settings.get("implementation") or "", bias)
        return (questions.task_of(row), order.index(row["cell"]), row["hidden_size"], *asked)

    for path in sorted(folder.glob("*.json")):
        made = json.loads(path.read_text())
        found.setdefault(made["experiment"], []).append(made)
    return {name: sorted(rows, key=place) for name, rows in sorted(found.items())}


def every(results: Results) -> list[dict[str, Any]]:
    return [row for rows in results.values() for row in rows]


def measure_of(row: dict[str, Any]) -> measures.Measure:
    return next(measure for name, measure in MEASURES.items() if name in row)


def table(rows: list[dict[str, Any]]) -> str:
    """A line a run: what it was, its mean and deviation over the seeds, and what it took."""
    measure = measure_of(rows[0])
    label = f"test {measure.label}"
    lines = [
        f"| cell | H | parameters of the layer | of all | forget bias | {label} | seeds | steps | seconds a seed |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        score, deviation = measure.shown.format(row[measure.name]), row[f"{measure.name}_std"]
        seeds, frozen = len(row["seeds"]), len(row["frozen"])
        parts = (
            ", ".join([row["cell"], *_matched(row["settings"]), *questions.asked_besides(row)]),
            row["hidden_size"],
            f"{row['parameters']['recurrent']:,}",
            f"{row['parameters']['all']:,}",
            "none" if (bias := row["settings"]["forget_bias"]) is None else bias,
            score if deviation is None else f"{score} ± {measure.shown.format(deviation)}",
            seeds if not frozen else f"{seeds}, {frozen} of them not finite",
            f"{row['steps']:,}",
            f"{row['seconds'] / seeds:.0f}",
        )
        lines.append(f"| {' | '.join(map(str, parts))} |")
    lines += ["", *(f"    {command}" for command in dict.fromkeys(row["command"] for row in rows))]
    return "\n".join(lines)


def _matched(settings: dict[str, Any]) -> list[str]:
    return [f"as many parameters as {settings['match']}"] if settings["match"] else []


def _block(name: str) -> tuple[str, str]:
    return f"<!-- table of {name}, by python -m experiments report -->", f"<!-- end of {name} -->"


def written(page: str, results: Results) -> str:
    """The page with its tables as the results say; one of an experiment that it has not yet is added at the end."""
    tables = {f"answer: {name}": questions.answer(name, every(results), measure_of) for name in questions.QUESTIONS}
    tables = {name: text for name, text in tables.items() if _block(name)[0] in page}
    for name, text in (tables | {name: table(rows) for name, rows in results.items()}).items():
        first, last = _block(name)
        block = f"{first}\n{text}\n{last}"
        if first in page:
            page = re.sub(f"{re.escape(first)}.*?{re.escape(last)}", lambda _, b=block: b, page, flags=re.DOTALL)
        else:
            page = f"{page.rstrip()}\n\n### {name}\n\n{block}\n"
    return page


def tables_of(page: str) -> Iterable[str]:
    """The experiments that a page has a table of."""
    return re.findall(r"<!-- table of ([\w-]+), by", page)


def pictured(results: Results) -> Iterable[tuple[str, Any]]:
    """The questions that have a figure, and their runs; in that of the gradients one would see nothing."""
    found = ((name, questions.found(name, every(results))) for name in ("size", "sign", "gates", "bias"))
    return [(name, runs) for name, runs in found if runs]


def main(config: Config) -> None:
    """Write the page and the pictures."""
    results = load(config.results)
    if not results:
        raise BadRequest(
            f"--results must be a folder with the result.json of a run or more; {config.results} has none."
        )
    page = config.page.read_text()
    if lost := [name for name in tables_of(page) if name not in results]:
        raise BadRequest(f"--results must hold what {config.page.name} has a table of; {lost[0]} is not there.")
    config.page.write_text(written(page, results))
    print(f"written: {config.page}")
    for name, runs in pictured(results):
        path = config.pictures / f"{name}.png"
        plots.seeds_of_ways(path, runs, questions.QUESTIONS[name], measure_of)
        print(f"written: {path}")
