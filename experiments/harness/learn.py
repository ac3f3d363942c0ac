"""What every experiment that trains shares: its flags, and a run of one cell with several seeds from data to result.

All seeds are trained as members of one sweep (mgu_jax.sweep), each with the key of its own number, so that seed 3 of
``--seeds 5`` is the run that ``--seed 3`` would be. A member that is not finite is frozen and said to be.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import mgu_jax as mgu
from experiments.harness import cells, plots
from experiments.harness.measures import ACCURACY, Measure, spread, table
from experiments.run import BadRequest, Bound, Common, Diverged, Run, at_least, between, saved, use_devices
from mgu_jax.training.checkpoint import Checkpoints
from mgu_jax.training.data import Data, Source, Stream, windows
from mgu_jax.training.evaluate import Evaluator
from mgu_jax.training.losses import Loss, cross_entropy
from mgu_jax.training.start import Sweep


@dataclass(frozen=True)
class Training(Common):
    """The flags of every experiment that trains: AdamW, clipped, its rate decaying to zero along a cosine."""

    cell: cells.CellName = "mgu"
    """The recurrent cell: one of ours, or Flax's gru, lstm and linen-mgu."""
    seeds: int = 1
    """Number of runs, with the seeds --seed, --seed + 1, ..., in one program."""
    hidden_size: int = 100
    """H, the width of the layer."""
    match: cells.CellName | None = None
    """Choose H so that the layer has as many parameters as one of this cell with --hidden-size."""
    batch_size: int = 100
    """Samples per optimiser step."""
    learning_rate: float = 3e-3
    """Learning rate at the start."""
    weight_decay: Annotated[float, at_least(0)] = 0.0
    """Decoupled weight decay of all parameters."""
    dropout: Annotated[float, between(0, 1)] = 0.0
    """Rate of dropout on the output of the layer."""
    forget_bias: Annotated[float | Literal["chrono"], Bound("a number or chrono", math.isfinite)] = -1.0
    """Initial forget bias in the paper's sign: negative remembers. chrono gives each unit another one, for memories of
    up to the length of the sequences. MGU2 has none and ignores it."""
    initializer: Literal["orthogonal", "lecun", "glorot", "uniform"] | None = None
    """Initial weights of our own cells, as in mgu_jax.init; orthogonal by default. Flax's cells have lecun."""
    epochs: int = 1
    """Passes over the training set, unless --steps is given."""
    implementation: Literal["manual", "autodiff"] | None = None
    """Gradient of our own cells: the hand-written one or JAX's; mgu_jax.scan chooses by default."""
    at_once: int | None = None
    """Number of seeds computed together under vmap; by default one on a CPU, and all on other devices."""
    devices: int | None = None
    """Number of devices, or cores of a CPU, to split the seeds over; by default two if that divides the seeds."""


@dataclass(frozen=True)
class Task:
    """Data, and what is asked of a model of them.

    Attributes:
        train: what is trained on.
        test: what the result is measured on.
        sources: data source -> its digest.
        valid: chooses the parameters with the best score; without it the last parameters count, and the test set is
            looked at on the way.
        input_size, output_size: D, or the number of tokens, and K.
        longest: steps of a sequence, which chrono initialisation is for.
        measure: what is reported; its metric chooses.
        loss: what is trained on.
        window: of a stream.
        options: of the model, such as ``readout``.
        evaluated_at_once: samples.
    """

    train: Data | Stream | Source
    test: Data | Stream
    sources: dict[str, str]
    input_size: int
    output_size: int
    longest: int
    valid: Data | Stream | None = None
    measure: Measure = ACCURACY
    loss: Loss = cross_entropy
    window: int | None = None
    options: tuple[tuple[str, Any], ...] = ()
    evaluated_at_once: int = 1000

    @property
    def metrics(self) -> tuple[Loss, ...]:
        return tuple(dict.fromkeys((self.measure.metric, self.loss)))


class Learned(NamedTuple):
    """A run that has come to its end."""

    run: Run
    result: dict[str, Any]
    model: mgu.Model
    params: list[Any]  # of each seed


def forget_bias(config: Training) -> float | Literal["chrono"] | None:
    """What the flags ask for, of a cell that has one."""
    return config.forget_bias if cells.has_forget_bias(config.cell) else None


def model_of(config: Training, task: Task) -> tuple[mgu.Model, int]:
    """The model that the flags ask for, and its H.

    Raises:
        BadRequest: options that do not go together.
    """
    sizes, options = (task.input_size, task.output_size), dict(task.options)
    if config.dropout:
        options["dropout"] = config.dropout
    chrono = mgu.chrono(max(3, task.longest)) if forget_bias(config) == "chrono" else None
    width = config.hidden_size
    try:
        if config.match is not None:
            wanted = cells.counts(cells.build(config.match, sizes[0], width, sizes[1], **options))["recurrent"]
            width = cells.width_of(config.cell, wanted, *sizes, **options)
        for name in ("implementation", "initializer"):
            if (value := getattr(config, name)) is not None:
                if config.cell not in cells.FAMILY:
                    raise BadRequest(f"--{name} is for our own cells; got --cell {config.cell}.")
                options[name] = value
        return cells.build(config.cell, sizes[0], width, sizes[1], chrono, **options), width
    except ValueError as error:
        raise BadRequest(str(error)) from error


def learn(
    name: str, config: Training, task: Task, *, steps: int, steps_per_call: int, clip_norm: float = 1.0, every: int = 1
) -> Learned:
    """Train all seeds, with checkpoints and metrics, and measure them on the test set.

    Args:
        name, config: the experiment's.
        task: its data.
        steps: of the training.
        steps_per_call: steps between two lines of metrics and two checkpoints.
        clip_norm: largest norm of a gradient.
        every: chunks between two evaluations.
    """
    devices = config.devices or (1 if config.seeds % 2 else 2)
    devices = use_devices(config.devices) if devices > 1 else 1
    if config.seeds % devices:
        raise BadRequest(f"--devices must divide the {config.seeds} seeds; got {devices}.")
    # One core is as fast on one small matrix after the other as on a stack of them, and its cache holds one of them.
    at_once = config.at_once or (1 if jax.default_backend() == "cpu" else None)
    if isinstance(task.train, Data) and config.batch_size > len(task.train.xs):
        samples = len(task.train.xs)
        raise BadRequest(f"--batch-size must be at most the {samples:,} training samples; got {config.batch_size:,}.")
    for part in (task.train, task.valid):
        if isinstance(part, Stream) and windows(part, config.batch_size, task.window or 1) < 1:
            tokens = len(part.xs)
            rule = f"--batch-size must leave each row a window of {task.window} of {tokens:,} tokens"
            raise BadRequest(f"{rule}; got {config.batch_size:,}.")
    model, width = model_of(config, task)
    hyper = mgu.Hyper(config.learning_rate, config.weight_decay, clip_norm)
    bias = forget_bias(config)
    if bias not in (None, "chrono"):
        hyper = hyper._replace(forget_bias=bias)
    recipe = mgu.Recipe(
        model, task.loss, schedule="cosine", total_steps=steps, batch_size=config.batch_size, window=task.window
    )
    watched = task.test if task.valid is None else task.valid
    split = "test" if task.valid is None else "valid"
    measure = task.measure
    validation = mgu.Validation(
        watched,
        task.metrics,
        higher_is_better=measure.higher_is_better,
        every=every,
        batch_size=task.evaluated_at_once,
    )
    keys = jnp.stack([jax.random.key(config.seed + i) for i in range(config.seeds)])
    resolved = {"total_steps": steps, "steps_per_call": steps_per_call, "width": width}
    asked = {name: value for name, value in hyper._asdict().items() if value is not None}
    run = Run(name, config, task.sources, asked | resolved | {"forget_bias": bias})

    with Checkpoints(run.path("checkpoints")) as checkpoints:
        state = mgu.start(recipe, keys, hyper, validation=validation)
        if config.resume:
            state = saved(checkpoints, state) or state
        resumed_from = int(state.step)
        run.rewind(resumed_from)
        if resumed_from:
            print(f"continuing from step {resumed_from} of {steps}.")
        began, before = time.perf_counter(), run.seconds(resumed_from)

        def on_call(state: Sweep, losses: np.ndarray, scores: dict[str, np.ndarray]) -> str:
            step, frozen = int(state.step), np.asarray(state.stopped) >= 0
            if frozen.all():
                seeds = range(config.seed, config.seed + config.seeds)
                checkpoints.wait()
                raise Diverged(dict(zip(seeds, np.asarray(state.stopped).tolist(), strict=True)), checkpoints.steps)
            run.log(step, "train", **spread("loss", losses.mean(1), frozen))
            text = ""
            if scores:
                means = list(scores.values())
                seen = spread("loss", means[-1], frozen) | spread(measure.name, measure.figure(means[0]), frozen)
                run.log(step, split, **seen)
                text = f"{split} {measure.label} {measure.shown.format(seen[measure.name])}"
            run.log_seconds(step, before + time.perf_counter() - began)
            checkpoints.save(step, state)
            return text

        state, _ = mgu.sweep(
            recipe,
            task.train,
            steps=steps,
            hyper=hyper,
            keys=keys,
            state=state,
            steps_per_call=steps_per_call,
            validation=validation,
            at_once=at_once,
            devices=devices,
            on_call=on_call,
            progress=True,
        )
    seconds = before + time.perf_counter() - began

    chosen: Any = state.members.params if task.valid is None else state.members.best.params
    params = [jax.tree.map(lambda a, i=i: a[i], jax.device_get(chosen)) for i in range(config.seeds)]
    frozen = np.asarray(state.stopped)
    result = {
        "settings": run.record["settings"],
        "cell": config.cell,
        "hidden_size": width,
        "parameters": cells.counts(model),
        "recurrent_parameters": _recurrent(config, task, model, width),
        "seeds": [config.seed + i for i in range(config.seeds)],
        "frozen": [int(config.seed + i) for i in np.flatnonzero(frozen >= 0)],
        **_measured(task, model, chosen, frozen >= 0),
        "steps": int(state.step),
        "seconds": seconds,  # of all seeds, in all processes of this run
        "resumed_from": resumed_from,
    }
    if task.valid is not None and state.members.best is not None:
        result["best_step"] = np.asarray(state.members.best.step).tolist()
    return Learned(run, result, model, params)


def finish(learned: Learned, measure: Measure, others: dict[str, Callable[[Path], None]], **more: Any) -> None:
    """The end of a run: its result before all else, then the curve and the other files, and a table.

    Args:
        learned, measure: the run and what it is about.
        others: name of a file -> what writes it.
        more: of the result.
    """
    run, result = learned.run, learned.result | more
    run.finish(result)
    plots.learning_curve(run.path("learning_curve.png"), run.metrics(), run.record["experiment"], measure)
    for name, write in others.items():
        write(run.path(name))
    print(table(measure, result))
    names = ("config.json", "metrics.jsonl", "result.json", "learning_curve.png", *others)
    print(f"written to {run.folder}: {', '.join(names)}")


def _measured(task: Task, model: mgu.Model, params: Any, frozen: np.ndarray) -> dict[str, Any]:
    """The figures of the test set, params [M, ...]: of each seed, their mean and their standard deviation."""
    size, window, steps = task.evaluated_at_once, None, len(task.test.xs)
    if isinstance(task.test, Stream):  # from the beginning to the end, in one row
        size, window = 1, _window(steps)
    values = Evaluator(model, task.test, task.metrics, size, window).scores_of_members(params, {}, at_once=1)
    figures = np.asarray(task.measure.figure(values[0]))
    seen = spread(task.measure.name, figures, frozen) | spread("loss", values[-1], frozen)
    living = figures[~frozen]
    seen[f"{task.measure.name}_std"] = float(living.std(ddof=1)) if len(living) > 1 else None
    return seen | {"test_samples": steps if window is None else steps // window * window}


def _window(steps: int, most: int = 1000) -> int:
    """The window of at most so many steps that leaves the fewest of a stream out."""
    return min(range(min(most, steps), max(1, min(most, steps) // 2) - 1, -1), key=lambda window: steps % window)


def _recurrent(config: Training, task: Task, model: mgu.Model, width: int) -> dict[str, int]:
    """Parameters of the layer: of the cell at hand, and as the paper counts them at this width."""
    features = dict(task.options).get("embedding_size") or task.input_size
    counted = {
        "MGU": 2 * width * (width + features + 1),
        "GRU": mgu.gru_count(features, width),
        "LSTM": mgu.lstm_count(features, width),
    }
    return counted | {config.cell.upper(): cells.counts(model)["recurrent"]}
