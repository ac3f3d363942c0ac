"""Training a classifier of sequences, with plots and a table; digits, MNIST, reviews and vowels share it."""

from typing import Any

import numpy as np

from experiments.datasets.published import DataSet
from experiments.harness import cells, plots
from experiments.harness.learn import Task, Training, finish, learn
from experiments.harness.measures import ACCURACY
from mgu_jax.training.data import Data


def steps_of(config: Training, train: Data, quick: tuple[int, int], chunks: int = 1) -> dict[str, Any]:
    """``steps`` and ``steps_per_call`` for ``learn``: whole epochs, or what --steps or --quick say.

    Args:
        config: the experiment's.
        train: its samples.
        quick: both, for --quick.
        chunks: in an epoch.
    """
    epoch = max(1, len(train.xs) // config.batch_size)
    chunk = quick[1] if config.quick else max(1, epoch // chunks)
    return {"steps": config.steps or (quick[0] if config.quick else config.epochs * epoch), "steps_per_call": chunk}


def classify(
    name: str, config: Training, data: DataSet, *, readout: str = "last", images: bool = False, **options: Any
) -> None:
    """Train one layer with a readout, and leave everything that a run writes.

    Args:
        name, config: the experiment's.
        data: its data set; of tokens where it has symbols.
        readout: of the model.
        images: whether samples are images by rows, of which some are shown with the gates over them.
        options: ``steps`` and ``steps_per_call``, and what else ``learn`` takes; ``embedding_size`` of tokens;
            ``evaluated_at_once`` samples.
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
