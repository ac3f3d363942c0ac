"""Make the tables of this folder's pages, and the figures in them, from the result files.

The pages are README.md (the questions), BENCHMARK.md (speed, memory, features) and results/README.md (one table per
task). The files are results/NAME.json and results/learning/*.json, each the result.json of a run. A table stands
between two comments of a page; the text around it stays as it is.
"""

import json
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from experiments.harness import cells, measures, plots, portraits
from experiments.report import questions, tasks
from experiments.run import BadRequest
from experiments.speed import agents, earlier, features, jacobians, overhead, parallel, tables
from experiments.speed import plots as speed_plots
from experiments.tasks import adding, identification, memory, rl, rl_tuning, speakers, subjects, tune

MEASURES = {measure.name: measure for measure in vars(measures).values() if isinstance(measure, measures.Measure)}
TASKS_PAGE = "results/README.md"
PAGES = ("README.md", "BENCHMARK.md", TASKS_PAGE)
PICTURED = ("size", "sign", "gates", "bias")  # a picture of the two gradients would show nothing
Results = dict[str, list[dict[str, Any]]]  # by experiment


@dataclass(frozen=True)
class Config:
    """The flags of report."""

    folder: Path = Path(__file__).parent.parent
    """Folder of the pages; the result files lie in its folder results."""


def load(folder: Path) -> Results:
    """The results of learning by experiment; in each sorted by task, cell, width and the other settings."""
    order, found = get_args(cells.CellName), {}

    def place(row: dict[str, Any]) -> tuple:
        bias = row["settings"]["forget_bias"]
        bias = math.inf if bias in ("chrono", "uniform", None) else bias
        asked = (row["settings"].get("implementation") or "", bias, row["settings"].get("initializer") or "")
        return (tasks.task_of(row).place, order.index(row["cell"]), row["hidden_size"], *asked)

    for path in sorted((folder / "results" / "learning").glob("*.json")):
        made = json.loads(path.read_text())
        found.setdefault(made["experiment"], []).append(made)
    return {name: sorted(rows, key=place) for name, rows in sorted(found.items())}


def every(results: Results) -> list[dict[str, Any]]:
    return [row for rows in results.values() for row in rows]


def measure_of(row: dict[str, Any]) -> measures.Measure:
    return next(measure for name, measure in MEASURES.items() if name in row)


def table(rows: list[dict[str, Any]]) -> str:
    """One row per run: what it was, mean and standard deviation over the seeds, and its cost; then the commands."""
    measure = measure_of(rows[0])
    lines = [
        f"| cell | H | parameters of the layer | of the model | forget bias | test {measure.label} | seeds | steps "
        "| seconds per seed |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        score, deviation = measure.shown.format(row[measure.name]), row[f"{measure.name}_std"]
        seeds, frozen = len(row["seeds"]), len(row["frozen"])
        parts = (
            _name(row),
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


def _name(row: dict[str, Any]) -> str:
    """The cell of a run, and what it was asked for that no column shows."""
    asked = tasks.asked(row)
    match = [f"same parameter count as {asked['match']}"] if "match" in asked else []
    shown = [name for name in asked if name in tasks.PHRASES and name not in ("permuted", "hidden_size", "steps")]
    return ", ".join([row["cell"], *match, *(tasks.phrase(name, asked[name]) for name in shown)])


def _result(folder: Path, name: str) -> dict[str, Any]:
    path = folder / "results" / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def tables_of(folder: Path) -> dict[str, str]:
    """Name -> text, of every table that the files of a folder give."""
    results = load(folder)
    made = {f"question {name}": questions.answer(name, every(results), measure_of) for name in questions.QUESTIONS}
    made |= {f"task {name}": table(rows) for name, rows in results.items()}
    # The same with two versions of JAX; of the newest, what the page shows of it.
    for run, names in {"benchmark": tuple(tables.TABLES), "benchmark-newest": ("speed", "summary", "native")}.items():
        if result := _result(folder, run):
            made_with = f"jaxlib {result['versions']['jaxlib']}, Python {result['versions']['python']}."
            for name in names:
                lines = tables.TABLES[name](result["rows"])
                made[f"{run} {name}"] = "\n".join([*lines, "", made_with]) if lines else ""
    if result := _result(folder, "earlier"):
        made["earlier"] = earlier.table(result["rows"], result["versions"], result["earlier"])
    if rows := _result(folder, "training").get("rows"):
        made["training"] = "\n".join(overhead.table(rows))
    if result := _result(folder, "subjects"):
        made["subjects"] = subjects.table(result)
    if result := _result(folder, "speakers"):
        made["speakers"] = speakers.table(result)
    tuned: dict[str, list[dict[str, Any]]] = {}
    for path in sorted((folder / "results" / "tuning").glob("*.json")):
        made_by = json.loads(path.read_text())
        tuned.setdefault(f"tune {made_by['cell']}{' permuted' if made_by['permuted'] else ''}", []).append(made_by)
    made |= {name: tune.table(runs) for name, runs in tuned.items()}
    if rows := [row for row in every(results) if "solved" in row and isinstance(row["length"], int)]:
        made["adding"] = adding.table([(_name(row), row) for row in rows])
    if rows := _result(folder, "memory").get("rows"):
        made["memory"] = memory.table(rows)
    for name, module in {"rl": rl, "rl-tuning": rl_tuning, "rl-speed": agents}.items():
        if rows := _result(folder, name).get("rows"):
            made[name] = module.table(rows)
    if rows := _result(folder, "identification").get("rows"):
        made["identification"] = identification.table(rows)
    if rows := _result(folder, "jacobians").get("rows"):
        made["jacobians"] = jacobians.table(rows)
    if rows := _result(folder, "parallel").get("rows"):
        made["parallel iterations"] = parallel.table_of_iterations(rows)
        made["parallel times"] = parallel.table_of_times(rows)
    if result := _result(folder, "features"):
        made["features"] = features.table(result["found"], result["peers"])
    return made | {"commands": commands(every(results))}


def commands(rows: list[dict[str, Any]]) -> str:
    """One row per experiment that trains: its command with the default flags, its test score and its time per seed."""
    lines = ["| command | what it does | test score | time per seed |", "|---|---|---|---|"]
    for row in sorted(rows, key=lambda row: tasks.task_of(row).place):
        if row["cell"] == "mgu" and tasks.asked(row).keys() <= {"seeds"}:
            name, measure = tasks.name_of(row), measure_of(row)
            time = questions.time_of(row["seconds"] / len(row["seeds"]))
            what = (tasks.KNOWN[name].module.__doc__ or "").splitlines()[0].removesuffix(".")
            score = f"{measure.label} {measure.shown.format(row[measure.name])}"
            lines.append(f"| `python -m experiments {name}` | {what} | {score} | {time} |")
    return "\n".join(lines)


def _comments(name: str) -> tuple[str, str]:
    """The two comments that a table stands between."""
    return f"<!-- table of {name}, by python -m experiments report -->", f"<!-- end of {name} -->"


def block(name: str, text: str) -> str:
    first, last = _comments(name)
    return f"{first}\n{text}\n{last}"


def blocks_of(page: str) -> list[str]:
    """The names of the tables in a page."""
    return re.findall(r"<!-- table of (.*?), by", page)


def written(page: str, made: dict[str, str]) -> str:
    """The page with its tables as the files say."""
    for name in blocks_of(page):
        first, last = map(re.escape, _comments(name))
        page = re.sub(f"{first}.*?{last}", lambda _, n=name: block(n, made[n]), page, flags=re.DOTALL)
    return page


def pictures_of(folder: Path) -> Iterable[tuple[Path, str, Callable[[], Any]]]:
    """(path, digest of what it shows, function that draws it) of every figure that the files of a folder give."""
    rows = every(load(folder))
    for name in PICTURED:
        if runs := questions.found(name, rows):
            path = folder / "results" / f"{name}.png"

            def draw(path: Path = path, runs: questions.Found = runs, name: str = name) -> None:
                plots.seeds_of_ways(path, runs, questions.QUESTIONS[name], measure_of)

            yield path, plots.digest(runs), draw
    if result := _result(folder, "subjects"):
        path = folder / "results" / "subjects.png"
        yield path, portraits.digest(result), lambda path=path, result=result: portraits.subjects(path, result)
    if rows := _result(folder, "memory").get("rows"):
        path = folder / "results" / "memory.png"
        yield path, plots.digest_of(rows), lambda path=path, rows=rows: plots.memory_curves(path, rows)
    if rows := _result(folder, "rl").get("rows"):
        path = folder / "results" / "rl.png"
        yield path, plots.digest_of(rows), lambda path=path, rows=rows: plots.returns(path, rows, rl.label)
    if rows := _result(folder, "parallel").get("rows"):
        path = folder / "results" / "parallel.png"
        yield path, plots.digest_of(rows), lambda path=path, rows=rows: parallel.picture(path, rows)
    if rows := _result(folder, "benchmark").get("rows"):
        for name, function in speed_plots.PICTURES.items():
            path = folder / "results" / f"benchmark_{name}.png"
            yield path, speed_plots.digest(rows), lambda path=path, function=function: function(path, rows)


def main(config: Config) -> None:
    """Write the pages and the figures."""
    results = load(config.folder)
    if not results:
        raise BadRequest(
            f"--folder must hold results/learning with a result.json or more; {config.folder} has none there."
        )
    made, texts = tables_of(config.folder), {}
    for name in PAGES:
        if (path := config.folder / name).is_file():
            page = path.read_text()
            if lost := [name for name in blocks_of(page) if name not in made]:
                raise BadRequest(
                    f"--folder must hold the files of every table; {path.name} has that of {lost[0]}, without a file."
                )
            if name == TASKS_PAGE:
                new = [task for task in results if f"task {task}" not in blocks_of(page)]
                page = page.rstrip() + "".join(f"\n\n## {task}\n\n{block(f'task {task}', '')}" for task in new) + "\n"
            texts[path] = written(page, made)
    for path, text in texts.items():
        path.write_text(text)
        print(f"written: {path}")
    for path, _, draw in pictures_of(config.folder):
        draw()
        print(f"written: {path}")
