"""Training a classifier of sequences, with checkpoints, metrics, plots and a table; digits and mnist-rows share it."""

import time
from typing import Any

import jax
import numpy as np

import mgu_jax as mgu
from experiments import plots
from experiments.files import DataSet
from experiments.run import BadRequest, Common, Run, saved
from mgu_jax.checkpoint import Checkpoints
from mgu_jax.fit import begin
from mgu_jax.losses import accuracy, cross_entropy


def classify(
    name: str, config: Common, data: DataSet, *, hidden_size: int, hyper: mgu.Hyper, steps: int, **sizes: Any
) -> None:
    """Train one MGU layer with a readout of its last state, and leave everything that a run writes.

    Args:
        name, config: the experiment's.
        data: its data set.
        hidden_size: H.
        hyper, steps: of the training; Adam, cosine decay to zero over all steps.
        sizes: ``batch_size`` and ``chunk_steps``; the test set is evaluated, logged and saved after every chunk.
    """
    batch_size, samples = sizes["batch_size"], len(data.train.xs)
    if batch_size > samples:
        raise BadRequest(f"--batch-size must be at most the {samples:,} training samples; got {batch_size:,}.")
    run = Run(name, config, data.sources, hyper._asdict() | sizes | {"total_steps": steps})
    input_size, classes = data.train.xs.shape[2], int(data.train.targets.max()) + 1
    model = mgu.model(input_size, (hidden_size,), classes, readout="last")
    recipe = mgu.Recipe(model, schedule="cosine", total_steps=steps, batch_size=batch_size)
    key, validation = jax.random.key(config.seed), mgu.Validation(data.test, (accuracy, cross_entropy))
    began = time.perf_counter()

    with Checkpoints(run.path("checkpoints")) as checkpoints:
        state = begin(recipe, key, hyper, validation)
        if config.resume:
            state = saved(checkpoints, state) or state
        run.rewind(int(state.step))
        resumed_from = int(state.step)
        if resumed_from:
            print(f"going on from step {resumed_from} of {steps}.")

        def on_chunk(state: mgu.TrainState, losses: np.ndarray, scores: dict[str, float]) -> str:
            step = int(state.step)
            run.log(step, "train", loss=losses.mean())
            run.log(step, "test", loss=scores["cross_entropy"], accuracy=scores["accuracy"])
            checkpoints.save(step, state)
            return f"test accuracy {scores['accuracy']:.2%}"

        state, _ = mgu.fit(
            recipe,
            data.train,
            steps=steps,
            key=key,
            hyper=hyper,
            state=state,
            chunk_steps=sizes["chunk_steps"],
            validation=validation,
            on_chunk=on_chunk,
            progress=True,
        )
    seconds = time.perf_counter() - began

    loss, correct = mgu.evaluate(model, state.params, data.test, (cross_entropy, accuracy))
    layer = state.params.layers[0]
    result = {
        "accuracy": correct,
        "loss": loss,
        "steps": int(state.step),
        "test_samples": len(data.test.xs),
        "recurrent_parameters": {
            "MGU": mgu.count(layer),
            "GRU": mgu.gru_count(input_size, hidden_size),
            "LSTM": mgu.lstm_count(input_size, hidden_size),
        },
        "seconds": seconds,  # of this process: those after the step that it resumed from
        "resumed_from": resumed_from,
    }
    run.finish(result)
    plots.learning_curve(run.path("learning_curve.png"), run.metrics(), name)
    plots.digits_and_gates(run.path("gates.png"), model, state.params, data.test)
    print(_table(result))
    print(f"written to {run.folder}: config.json, metrics.jsonl, result.json, learning_curve.png, gates.png")


def _table(result: dict[str, Any]) -> str:
    counts = result["recurrent_parameters"]
    rows = {
        "test accuracy": f"{result['accuracy']:.2%} of {result['test_samples']:,}",
        "test loss": f"{result['loss']:.4f} nats",
        "recurrent parameters": f"MGU {counts['MGU']:,}   GRU {counts['GRU']:,}   LSTM {counts['LSTM']:,}",
        "seconds": f"{result['seconds']:.1f} for {result['steps']:,} steps",
    }
    return "\n".join(["", *(f"  {name:22}{value}" for name, value in rows.items()), ""])
