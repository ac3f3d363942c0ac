"""Recognise the digits of a speaker who was never heard: train on five speakers, test on the sixth, in all six turns.

The data and the settings are those of ``speech``, where the speakers of the test are known. Six splits and all seeds
are the members of one sweep, each with its own part of the data (mgu_jax.Parts).
"""

import time
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np

import mgu_jax as mgu
from experiments.datasets import speech
from experiments.datasets.published import DataSet
from experiments.harness import cells
from experiments.harness.classify import steps_of
from experiments.harness.learn import Task, prepare
from experiments.run import Common, Run
from experiments.tasks.speech import Config as Settings

SPEAKERS = get_args(speech.Speaker)
# Row of the table -> cell, and the cell whose number of parameters it has.
CELLS = {"MGU": ("mgu", None), "GRU, same width": ("gru", None)}


@dataclass(frozen=True)
class Config(Common):
    """The flags of speakers."""

    seeds: int = 2
    """Number of seeds for each speaker and cell."""
    hidden_size: int = 100
    """H, the width of the layer."""


def fit(settings: Settings, found: list[DataSet], sizes: dict[str, Any]) -> dict[str, Any]:
    """The accuracies [seeds, speakers] of a cell, its size and its time."""
    first = found[0]
    task = Task(
        first.train,
        first.test,
        first.sources,
        input_size=first.train.xs.shape[2],
        output_size=10,
        longest=first.train.xs.shape[1],
        options=(("readout", settings.readout),),
    )
    prepared = prepare(settings, task, **sizes)
    began = time.perf_counter()
    state, _ = mgu.sweep(
        prepared.recipe,
        mgu.Parts([split.train for split in found]),
        hyper=prepared.hyper,
        keys=prepared.keys,
        steps=prepared.steps,
        steps_per_call=prepared.steps_per_call,
        at_once=prepared.at_once,
        progress=True,
    )
    seconds, model = time.perf_counter() - began, prepared.recipe.model
    tests = mgu.Parts([split.test for split in found])
    (accuracy,) = mgu.evaluate(model, state.members.params, tests, (mgu.losses.accuracy,))
    return {
        "hidden_size": prepared.width,
        "parameters": cells.counts(model),
        "accuracy": np.asarray(accuracy).reshape(settings.seeds, len(found)).tolist(),
        "seconds": seconds,
    }


def main(config: Config) -> None:
    """Train every cell on all splits, and write what each makes of the speaker that it did not hear."""
    asked = {name: getattr(config, name) for name in ("seed", "steps", "quick", "seeds", "hidden_size")}
    settings = Settings(**asked, devices=1)
    found = speech.splits(config.data_dir, SPEAKERS, config.download, settings.bands, settings.hop)
    settings = replace(settings, batch_size=min(settings.batch_size, len(found[0].train.xs)))
    sizes = steps_of(settings, found[0].train, quick=(20, 2))
    run = Run("speakers", config, found[0].sources, {"total_steps": sizes["steps"]})
    run.rewind(0)
    rows = []
    for label, (cell, match) in CELLS.items():
        print(f"{label}:")
        of_cell: Any = replace(settings, cell=cell, match=match)  # pyright: ignore (a name of a cell)
        row = run.once(label.replace(" ", "-"), lambda of_cell=of_cell: fit(of_cell, found, sizes))
        run.log(len(rows) + 1, label, accuracy=float(np.mean(row["accuracy"])))
        rows.append({"cell": label} | row)
    speakers = list(SPEAKERS)
    run.finish({"settings": run.record["settings"], "speakers": speakers, "steps": sizes["steps"], "rows": rows})
    print(f"\n{table({'speakers': speakers, 'rows': rows})}\n")
    run.close()


def table(result: dict[str, Any]) -> str:
    """One row per cell, one column per speaker: the accuracy on the speaker who was left out, then that on all."""
    heads = " | ".join(result["speakers"])
    lines = [
        f"| cell | H | parameters of the layer | {heads} | all six |",
        "|---|---|---|---|" + "---|" * len(result["speakers"]),
    ]
    for row in result["rows"]:
        scores = np.array(row["accuracy"])
        deviation = f" ± {scores.mean(1).std(ddof=1):.1%}" if len(scores) > 1 else ""
        each = " | ".join(f"{score:.1%}" for score in scores.mean(0))
        size = f"{row['hidden_size']} | {row['parameters']['recurrent']:,}"
        lines.append(f"| {row['cell']} | {size} | {each} | {scores.mean():.1%}{deviation} ({len(scores)}) |")
    minutes = sum(row["seconds"] for row in result["rows"]) / 60
    return "\n".join([*lines, "", f"{minutes:.0f} minutes on one core."])
