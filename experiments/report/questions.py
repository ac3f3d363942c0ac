"""The questions of experiments/README.md. Each is a table: one row per task, one column per configuration compared.

The cells of a table are runs, each the result.json that it left. The forget bias belongs to the task, except in the
question about the forget bias.
"""

from dataclasses import dataclass
from typing import Any

from experiments.harness.cells import other_initializer
from experiments.harness.measures import Measure
from experiments.report.tasks import COMPARED, Task, chosen_of, name_of, task_of
from experiments.run import BadRequest


@dataclass(frozen=True)
class Way:
    """A column: the settings of the runs in it. A ``forget_bias`` of None is that of the task."""

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
        found = (row["cell"], settings["match"], settings.get("implementation"), other_initializer(row))
        return found == (self.cell, self.match, self.implementation, self.initializer)

    def task(self, row: dict[str, Any]) -> Task:
        """The task of a run in this column."""
        if self.forget_bias is None:
            return task_of(row, [name for name in COMPARED if name != "forget_bias"])
        return task_of(row)


Found = dict[Task, dict[Way, dict[str, Any]]]

# Name of the question -> its columns.
QUESTIONS: dict[str, tuple[Way, ...]] = {
    "size": (
        Way("MGU"),
        Way("MGU, Flax's initial W", initializer="lecun"),
        Way("GRU, same width", "gru"),
        Way("LSTM, same width", "lstm"),
        Way("GRU, same parameter count", "gru", "mgu"),
        Way("LSTM, same parameter count", "lstm", "mgu"),
    ),
    "sign": (
        Way("MGU: reset before the product, the paper's sign", "mgu"),
        Way("reset after, the paper's sign", "reset-after-mgu"),
        Way("reset after, Flax's sign", "flax-mgu"),
        Way("Flax's own cell: reset after, Flax's sign, Flax's initial W", "linen-mgu"),
        Way("no reset", "ugrnn"),
    ),
    "gates": (Way("MGU"), Way("MGU1", "mgu1"), Way("MGU2", "mgu2"), Way("MGU3", "mgu3")),
    "bias": (
        *(Way(f"b_f = {b:.0f}", forget_bias=b) for b in (-2.0, -1.0, 0.0, 1.0, 2.0)),
        Way("chrono", forget_bias="chrono"),
    ),
    "remember": (
        Way("MGU"),
        Way("MGU, Flax's initial W", initializer="lecun"),
        Way("JANET, Flax's initial W", "janet", initializer="lecun"),
        Way("GRU", "gru"),
        Way("no reset", "ugrnn"),
    ),
    "diagonal": (Way("MGU"), Way("diagonal recurrence", "diagonal-mgu")),
    "gradient": (
        Way("hand-written gradient", implementation="manual"),
        Way("autodiff", implementation="autodiff"),
    ),
}

# Questions about the runs of one experiment with this many steps or more; one column is enough there.
ABOUT = {"remember": ("mnist-pixels", 6_000)}
ENOUGH = 3  # seeds


def shown_score(row: dict[str, Any], measure: Measure) -> str:
    """Mean ± standard deviation (number of seeds); only of the seeds that stayed finite.

    With fewer than ``ENOUGH`` seeds, it also gives the time of one.
    """
    score, deviation = measure.shown.format(row[measure.name]), row[f"{measure.name}_std"]
    spread = "" if deviation is None else f" ± {measure.shown.format(deviation)}"
    seeds, frozen = len(row["seeds"]), len(row["frozen"])
    cost = f"; {time_of(row['seconds'] / seeds)}" if seeds < ENOUGH else ""
    return f"{score}{spread} ({f'{seeds - frozen} of ' if frozen else ''}{seeds}{cost})"


def time_of(seconds: float) -> str:
    """In words, rounded to seconds or minutes."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} minutes"


def found(name: str, rows: list[dict[str, Any]]) -> Found:
    """The runs of a question by task and column: the tasks with two columns or more.

    Raises:
        BadRequest: two runs of one task in one column, or runs whose settings differ in more than is compared.
    """
    runs: Found = {}
    for row in rows:
        about, steps = ABOUT.get(name, (name_of(row), 0))
        if name_of(row) != about or row["steps"] < steps:
            continue
        for way in QUESTIONS[name]:
            if way.is_of(row):
                task = way.task(row)
                of_task = runs.setdefault(task, {})
                if way in of_task:
                    raise BadRequest(f"--folder must hold one run of a kind; {row['command']!r} is there twice.")
                of_task[way] = row
                if differ := _differ(*of_task.values()):
                    raise BadRequest(
                        f"--folder must hold runs of {task.title!r} with the same settings; {differ[0]} differs."
                    )
    least = 1 if name in ABOUT else 2
    return {task: of_task for task, of_task in sorted(runs.items(), key=lambda i: i[0].place) if len(of_task) >= least}


def _differ(*rows: dict[str, Any]) -> list[str]:
    """The settings that differ, apart from those that are compared and the width that follows from them.

    One that came later is missing in old files, which is as if it were zero, False or None.
    """
    settings = [row["settings"] for row in rows]
    names = sorted({name for of_row in settings for name in of_row} - {*COMPARED, *chosen_of(rows[0]), "width"})

    def differ(name: str, one: dict[str, Any], other: dict[str, Any]) -> bool:
        if name in one and name in other:
            return one[name] != other[name]
        return bool(one.get(name) or other.get(name))

    return [name for name in names if any(differ(name, settings[0], of_row) for of_row in settings)]


def answer(name: str, rows: list[dict[str, Any]], measure_of: Any) -> str:
    """The table of a question: one row per task, one column per configuration that was run; then the total run time."""
    runs = found(name, rows)
    gone = [way for way in QUESTIONS[name] if any(way in of_task for of_task in runs.values())]
    lines = [f"| task | measured | {' | '.join(way.label for way in gone)} |", "|---|---|" + "---|" * len(gone)]
    for task, of_task in runs.items():
        measure = measure_of(next(iter(of_task.values())))
        shown = (shown_score(of_task[way], measure) if way in of_task else "" for way in gone)
        lines.append(f"| {task.title} | {measure.label} | {' | '.join(shown)} |")
    seconds = [row["seconds"] for of_task in runs.values() for row in of_task.values()]
    return "\n".join([*lines, "", f"{len(seconds)} runs, {sum(seconds) / 60:.0f} minutes on one core."])
