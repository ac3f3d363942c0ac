"""Training a classifier of sequences, with pictures and a table: for digits, MNIST, reviews and vowels."""

from typing import Any

import numpy as np

from experiments.datasets.published import DataSet
from experiments.harness import cells, plots
from experiments.harness.learn import Task, Training, finish, learn
from experiments.harness.measures import ACCURACY
from mgu_jax.training.data import Data


def steps_of(config: Training, train: Data, quick: tuple[int, int], calls: int = 1) -> dict[str, Any]:
    """``steps`` and ``steps_per_call`` for ``learn``: whole epochs, unless --steps or --quick ask for others.

    Args:
        config: the flags.
        train: the samples.
        quick: both numbers for --quick.
        calls: of the compiled loop per epoch.
    """
    epoch = max(1, len(train.xs) // config.batch_size)
    per_call = quick[1] if config.quick else max(1, epoch // calls)
    return {"steps": config.steps or (quick[0] if config.quick else config.epochs * epoch), "steps_per_call": per_call}


def classify(
    name: str, config: Training, data: DataSet, *, readout: str = "last", images: bool = False, **options: Any
) -> None:
    """Train one layer with a readout, and write all files of the run.

    Args:
        name, config: name and flags of the experiment.
        data: the data set; its samples are tokens if it has symbols.
        readout: of the model.
        images: whether samples are images by rows; some are then shown with the activity of the gate.
        options: ``steps``, ``steps_per_call`` and others of ``learn``; ``embedding_size`` of tokens;
            ``evaluated_at_once``, the number of samples.
    """
    inside: dict[str, Any] = {"readout": readout}
    if data.symbols:
        inside["embedding_size"] = options.pop("embedding_size")
    task = Task(
        data.train,
        data.test,
        data.sources,
        input_size=len(data.symbols) or data.train.xs.shape[2],
        output_size=int(np.max(data.train.targets)) + 1,
        longest=data.train.xs.shape[1],
        valid=data.valid,
        options=tuple(inside.items()),
        evaluated_at_once=options.pop("evaluated_at_once", 1000),
    )
    learned = learn(name, config, task, **options)
    others: dict[str, Any] = {}
    if images and (cell := cells.FAMILY.get(config.cell)):
        model, params = learned.model, learned.params[0]
        others["gates.png"] = lambda path: plots.digits_and_gates(path, model, params, data.test, cell)
    finish(learned, ACCURACY, others)
