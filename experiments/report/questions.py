"""The questions of experiments/README.md, each as a table: a line a task, a column a way to do it.

Rows are result.json of runs. Two of them did the same task if their commands differ in nothing but what is compared;
the forget bias is a part of the task, except where it is the question.
"""

import re
from dataclasses import dataclass
from typing import Any

from experiments.harness.measures import Measure
from experiments.run import BadRequest

_COMPARED = ("cell", "match", "forget_bias", "implementation", "initializer", "seed", "seeds", "at_once", "devices")
_FLAGS = re.compile(f" --({'|'.join(_COMPARED)})[ =]\\S+".replace("_", "-"))
_BIAS = re.compile(r" --forget-bias[ =]\S+")


@dataclass(frozen=True)
class Way:
    """A column: what a run must have been asked for. A forget bias of None is that of the task."""

    label: str
    cell: str = "mgu"
    match: str | None = None
    forget_bias: float | str | None = None
    implementation: str | None = None
    initializer: str | None = None

    def is_of(self, row: dict[str, Any]) -> bool:
        settings = row["settings"]
        if self.forget_bias not in (None, settings["forget_bias"]):
            return False
        return (row["cell"], settings["match"]) == (self.cell, self.match) and (
            (settings.get("implementation"), settings.get("initializer")) == (self.implementation, self.initializer)
        )


# Name -> its columns.
QUESTIONS: dict[str, tuple[Way, ...]] = {
    "size": (
        Way("MGU"),
        Way("MGU, W as Flax's", initializer="lecun"),
        Way("GRU, as wide", "gru"),
        Way("LSTM, as wide", "lstm"),
        Way("GRU, as many parameters", "gru", "mgu"),
        Way("LSTM, as many parameters", "lstm", "mgu"),
    ),
    "sign": (
        Way("MGU: reset before, the paper's sign", "mgu"),
        Way("reset after, the paper's sign", "reset-after-mgu"),
        Way("reset after, Flax's sign", "flax-mgu"),
        Way("the same, W as Flax's", "linen-mgu"),
        Way("no reset", "ugrnn"),
    ),
    "gates": (Way("MGU"), Way("MGU1", "mgu1"), Way("MGU2", "mgu2"), Way("MGU3", "mgu3")),
    "bias": (
        *(Way(f"b_f = {b:.0f}", forget_bias=b) for b in (-2.0, -1.0, 0.0, 1.0, 2.0)),
        Way("chrono", forget_bias="chrono"),
    ),
    "gradient": (Way("by hand", implementation="manual"), Way("autodiff", implementation="autodiff")),
}


def task_of(row: dict[str, Any]) -> str:
    """What was asked for besides what is compared, as one types it."""
    return _FLAGS.sub("", row["command"]).removeprefix("python -m experiments ")


def _line_of(row: dict[str, Any], way: Way) -> str:
    """The task as a line of the table names it: with the forget bias asked for, where the way has none of its own."""
    asked = _BIAS.search(row["command"]) if way.forget_bias is None else None
    return task_of(row) + (asked.group() if asked else "")


def asked_besides(row: dict[str, Any]) -> list[str]:
    """What else a run was asked for, of what no column shows."""
    flags = re.findall(r"--(learning-rate|dropout|initializer)[ =](\S+)", row["command"])
    said = [f"{flag.replace('-', ' ')} {value}" for flag, value in flags]
    return said + [kind for kind in [row["settings"].get("implementation")] if kind]


def figure(row: dict[str, Any], measure: Measure) -> str:
    """Mean, deviation and number of seeds; of those that stayed finite where not all did."""
    score, deviation = measure.shown.format(row[measure.name]), row[f"{measure.name}_std"]
    spread = "" if deviation is None else f" ± {measure.shown.format(deviation)}"
    seeds, frozen = len(row["seeds"]), len(row["frozen"])
    return f"{score}{spread} ({f'{seeds - frozen} of ' if frozen else ''}{seeds})"


def found(name: str, rows: list[dict[str, Any]]) -> dict[str, dict[Way, dict[str, Any]]]:
    """The runs of a question by task and way: the tasks that were done in two of its ways or more.

    Raises:
        BadRequest: two runs of one task in one way, or with settings of which more differs than is compared.
    """
    runs: dict[str, dict[Way, dict[str, Any]]] = {}
    for row in rows:
        for way in QUESTIONS[name]:
            if way.is_of(row):
                of_task = runs.setdefault(_line_of(row, way), {})
                if way in of_task:
                    raise BadRequest(f"--results must hold one run of a kind; {row['command']!r} is there twice.")
                of_task[way] = row
                if differ := _differ(*of_task.values()):
                    task = _line_of(row, way)
                    raise BadRequest(
                        f"--results must hold runs of {task!r} with the same settings; {differ[0]} differs."
                    )
    return {task: of_task for task, of_task in runs.items() if len(of_task) > 1}


def _differ(*rows: dict[str, Any]) -> list[str]:
    """The settings, besides those compared and what follows from them, that are not the same in all."""
    settings = [row["settings"] for row in rows]
    names = sorted({name for of_row in settings for name in of_row} - {*_COMPARED, "width"})
    return [name for name in names if any(of_row.get(name) != settings[0].get(name) for of_row in settings)]


def answer(name: str, rows: list[dict[str, Any]], measure_of: Any) -> str:
    """The table of a question: a line a task, a column a way that was gone. And what its runs took."""
    runs = found(name, rows)
    gone = [way for way in QUESTIONS[name] if any(way in of_task for of_task in runs.values())]
    lines = [f"| task | measured | {' | '.join(way.label for way in gone)} |", "|---|---|" + "---|" * len(gone)]
    for task, of_task in runs.items():
        measure = measure_of(next(iter(of_task.values())))
        shown = (figure(of_task[way], measure) if way in of_task else "" for way in gone)
        lines.append(f"| `{task}` | {measure.label} | {' | '.join(shown)} |")
    seconds = [row["seconds"] for of_task in runs.values() for row in of_task.values()]
    return "\n".join([*lines, "", f"{len(seconds)} runs, {sum(seconds) / 60:.0f} minutes."])
