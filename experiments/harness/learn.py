"""What all experiments that train share: their flags, and a run of one cell with several seeds, from data to result.

All seeds are members of one sweep (mgu_jax.sweep). Each has the PRNG key of its number, so that seed 3 of ``--seeds 5``
is the run that ``--seed 3`` gives. A seed whose loss is not finite is frozen, and the result says so.
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
from jax import Array

import mgu_jax as mgu
from experiments.harness import cells, plots
from experiments.harness.measures import ACCURACY, Measure, spread, table
from experiments.run import BadRequest, Bound, Common, Diverged, Run, at_least, between, damage_refused, use_devices
from mgu_jax.training.data import Data, Source, Stream, windows
from mgu_jax.training.evaluate import Evaluator
from mgu_jax.training.losses import Loss, cross_entropy

ForgetBias = float | Literal["chrono", "uniform"]
Initializer = Literal["orthogonal", "lecun", "glorot", "uniform"]


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
    """Learning rate at the start, or after the warm-up."""
    warmup: Annotated[int | None, at_least(0)] = None
    """Steps in which the learning rate rises from zero to its value."""
    weight_decay: Annotated[float, at_least(0)] = 0.0
    """Decoupled weight decay of all parameters."""
    dropout: Annotated[float, between(0, 1)] = 0.0
    """Rate of dropout on the output of the layer."""
    recurrent_dropout: Annotated[float | None, between(0, 1)] = None
    """Rate at which our own cells drop units of the state, the same ones in all steps of a sequence, from what the
    products with U see."""
    zoneout: Annotated[float | None, between(0, 1)] = None
    """Rate at which units of our own cells keep their state for a step."""
    ema: Annotated[float | None, between(0, 1)] = None
    """Decay of an average of the parameters over the steps, which is measured in their place."""
    pass_over: Annotated[int | None, at_least(0)] = None
    """How many batches in a row may have a loss or gradient that is not finite, and are then passed over; 0 by
    default."""
    forget_bias: Annotated[ForgetBias, Bound("a number, chrono or uniform", math.isfinite)] = -1.0
    """Initial forget bias in the paper's sign: negative remembers. chrono gives each unit another one, for memories of
    up to the length of the sequences, and uniform one for gates spread evenly between 0 and 1. MGU2 has none and
    ignores it."""
    initializer: Initializer | None = None
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
    """Data, and what is asked of a model.

    Attributes:
        train: the data for training.
        test: the data that the result is measured on.
        sources: data source -> its digest.
        valid: chooses the parameters with the best score. Without it the last parameters are the result, and the
            scores during training are those of the test data.
        input_size, output_size: D, or the number of different tokens, and K.
        longest: steps of the longest sequence, for chrono initialisation.
        measure: what is reported; its metric chooses the parameters.
        loss: what is minimised.
        window: of a stream.
        options: of the model, such as ``readout``.
        evaluated_at_once: number of samples.
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


class Prepared(NamedTuple):
    """A training of all seeds that is ready to start; ``mgu_jax.sweep`` describes most of it."""

    recipe: mgu.Recipe
    hyper: mgu.Hyper
    keys: Array  # one per seed
    seeds: list[int]
    validation: mgu.Validation
    steps: int
    warmup: int
    steps_per_call: int
    width: int  # H of the layer
    at_once: int | None
    devices: int


class Trained(NamedTuple):
    """The end of a training."""

    state: mgu.Sweep
    seconds: float  # of all seeds, in all processes of the run
    resumed_from: int

    @property
    def frozen(self) -> np.ndarray:
        return np.asarray(self.state.stopped) >= 0


class Learned(NamedTuple):
    """A run that is complete, except for its files."""

    run: Run
    result: dict[str, Any]
    model: mgu.Model
    params: list[Any]  # of each seed


def forget_bias(config: Training) -> ForgetBias | None:
    """The initial forget bias that the flags ask for; None for a cell without one."""
    return config.forget_bias if cells.has_forget_bias(config.cell) else None


def model_of(config: Training, task: Task) -> tuple[mgu.Model, int]:
    """The model that the flags ask for, and its H.

    Raises:
        BadRequest: flags that contradict each other.
    """
    sizes, options = (task.input_size, task.output_size), dict(task.options)
    if config.dropout:
        options["dropout"] = config.dropout
    biases = cells.biases(forget_bias(config), task.longest)
    width = config.hidden_size
    try:
        if config.match is not None:
            wanted = cells.counts(cells.build(config.match, sizes[0], width, sizes[1], **options))["recurrent"]
            width = cells.width_of(config.cell, wanted, *sizes, **options)
        for name in ("implementation", "initializer", "recurrent_dropout", "zoneout"):
            if (value := getattr(config, name)) is not None:
                if config.cell not in cells.FAMILY:
                    if value == getattr(type(config), name):  # nobody asked for it
                        continue
                    raise BadRequest(f"--{name.replace('_', '-')} is for our own cells; got --cell {config.cell}.")
                options[name] = value
        return cells.build(config.cell, sizes[0], width, sizes[1], biases, **options), width
    except ValueError as error:
        raise BadRequest(str(error)) from error


def learn(name: str, config: Training, task: Task, **how: Any) -> Learned:
    """Train all seeds, with checkpoints and metrics, and measure them on the test data.

    Args:
        name, config: name and flags of the experiment.
        task: its data.
        how: as ``prepare`` takes it.
    """
    prepared = prepare(config, task, **how)
    settings = {name: value for name, value in prepared.hyper._asdict().items() if value is not None}
    settings |= {
        "total_steps": prepared.steps,
        "warmup_steps": prepared.warmup,
        "steps_per_call": prepared.steps_per_call,
        "width": prepared.width,
    }
    run = Run(name, config, task.sources, settings | {"forget_bias": forget_bias(config)})
    trained = train(run, task, prepared)

    members, model = trained.state.members, prepared.recipe.model
    last = jax.vmap(prepared.recipe.eval_params)
    chosen: Any = last(members) if task.valid is None else members.best.params
    result = {
        "settings": run.record["settings"],
        "cell": config.cell,
        "hidden_size": prepared.width,
        "parameters": cells.counts(model),
        "recurrent_parameters": _recurrent(config, task, model, prepared.width),
        "seeds": prepared.seeds,
        "frozen": [seed for seed, frozen in zip(prepared.seeds, trained.frozen, strict=True) if frozen],
        **measure(task, model, chosen, trained.frozen),
        "steps": int(trained.state.step),
        "seconds": trained.seconds,
        "resumed_from": trained.resumed_from,
    }
    if config.pass_over:
        result["passed_over"] = mgu.passed_over(trained.state).tolist()  # batches of each seed
    if task.valid is not None:
        result["best_step"] = np.asarray(members.best.step).tolist()
    params = [jax.tree.map(lambda a, i=i: a[i], jax.device_get(chosen)) for i in range(config.seeds)]
    return Learned(run, result, model, params)


def learn_made(
    name: str, config: Training, make: Callable[[np.random.Generator, int], Data], source: str, **task: Any
) -> Learned:
    """``learn`` samples that are made anew for every step, the same for every seed and cell; 1,000 others are the test.

    Args:
        name, config: name and flags of the experiment; 5,000 steps by default.
        make: (generator, number) -> the samples.
        source: what is made.
        task: other entries of ``Task``.
    """

    def batch(step: int) -> Data:
        return make(np.random.default_rng((1, step)), config.batch_size)

    made_by = {source: f"made by numpy {np.__version__}"}
    made = Task(batch, make(np.random.default_rng(0), 1000), made_by, **task)
    steps = config.steps or (100 if config.quick else 5_000)
    return learn(name, config, made, steps=steps, steps_per_call=50 if config.quick else 200)


def prepare(
    config: Training,
    task: Task,
    *,
    steps: int,
    steps_per_call: int,
    clip_norm: float = 1.0,
    every: int = 1,
    warmup: int = 0,
) -> Prepared:
    """The training that the flags ask for.

    Args:
        config, task: the flags and the data.
        steps: of the training.
        steps_per_call: steps between two lines of metrics and two checkpoints.
        clip_norm: largest norm of a gradient.
        every: calls of the compiled loop between two validations.
        warmup: steps of warm-up, unless the flags ask for some.

    Raises:
        BadRequest: flags that do not fit the data, the devices or each other.
    """
    devices = config.devices or (1 if config.seeds % 2 else 2)
    devices = use_devices(config.devices) if devices > 1 else 1
    if config.seeds % devices:
        raise BadRequest(f"--devices must divide the {config.seeds} seeds; got {devices}.")
    # A core is as fast on small matrices one after another as on a stack of them, and only one fits into its cache.
    at_once = config.at_once or (1 if jax.default_backend() == "cpu" else None)
    warmup = warmup if config.warmup is None else config.warmup
    if warmup >= steps:
        raise BadRequest(f"--warmup must be below the {steps} steps of the training; got {warmup}.")
    _check_batch_size(config.batch_size, task)
    model, width = model_of(config, task)
    hyper, bias = mgu.Hyper(config.learning_rate, config.weight_decay, clip_norm), forget_bias(config)
    if isinstance(bias, float | int):
        hyper = hyper._replace(forget_bias=bias)
    sizes = {"batch_size": config.batch_size, "window": task.window}
    validation = mgu.Validation(
        task.test if task.valid is None else task.valid,
        task.metrics,
        higher_is_better=task.measure.higher_is_better,
        every=every,
        batch_size=task.evaluated_at_once,
    )
    seeds = [config.seed + i for i in range(config.seeds)]
    return Prepared(
        recipe=mgu.Recipe(
            model,
            task.loss,
            schedule="cosine",
            total_steps=steps,
            warmup_steps=warmup,
            pass_over=config.pass_over or 0,
            evaluate_at=mgu.ema(config.ema) if config.ema is not None else None,
            **sizes,
        ),
        hyper=hyper,
        keys=jnp.stack([jax.random.key(seed) for seed in seeds]),
        seeds=seeds,
        validation=validation,
        steps=steps,
        warmup=warmup,
        steps_per_call=steps_per_call,
        width=width,
        at_once=at_once,
        devices=devices,
    )


def _check_batch_size(size: int, task: Task) -> None:
    if isinstance(task.train, Data) and size > len(task.train.xs):
        rule = f"at most the {len(task.train.xs):,} training samples"
        raise BadRequest(f"--batch-size must be {rule}; got {size:,}.")
    for part in (task.train, task.valid):
        if isinstance(part, Stream) and windows(part, size, task.window or 1) < 1:
            rule = f"leave each row a window of {task.window} of {len(part.xs):,} tokens"
            raise BadRequest(f"--batch-size must {rule}; got {size:,}.")


def train(run: Run, task: Task, prepared: Prepared) -> Trained:
    """Train all seeds, from the newest checkpoint in the folder of the run if there is one.

    Raises:
        BadRequest: the newest checkpoint is damaged.
        Diverged: no seed stayed finite.
    """
    split = "test" if task.valid is None else "valid"
    with mgu.Checkpoints(run.path("checkpoints")) as checkpoints, damage_refused(checkpoints):
        resumed_from = max(checkpoints.steps, default=0)
        run.rewind(resumed_from)
        if resumed_from:
            print(f"continuing from step {resumed_from} of {prepared.steps}.")
        began, before = time.perf_counter(), run.seconds(resumed_from)

        def on_call(state: mgu.Sweep, losses: np.ndarray, scores: dict[str, np.ndarray]) -> str:
            step, stopped = int(state.step), np.asarray(state.stopped)
            if (stopped >= 0).all():
                checkpoints.wait()
                raise Diverged(dict(zip(prepared.seeds, stopped.tolist(), strict=True)), checkpoints.steps)
            run.log(step, "train", **spread("loss", losses.mean(1), stopped >= 0))
            run.log_seconds(step, before + time.perf_counter() - began)
            if not scores:
                return ""
            means = list(scores.values())
            seen = spread("loss", means[-1], stopped >= 0)
            seen |= spread(task.measure.name, task.measure.score(means[0]), stopped >= 0)
            run.log(step, split, **seen)
            return f"{split} {task.measure.label} {task.measure.shown.format(seen[task.measure.name])}"

        state, _ = mgu.sweep(
            prepared.recipe,
            task.train,
            hyper=prepared.hyper,
            keys=prepared.keys,
            steps=prepared.steps,
            checkpoints=checkpoints,
            steps_per_call=prepared.steps_per_call,
            validation=prepared.validation,
            at_once=prepared.at_once,
            devices=prepared.devices,
            on_call=on_call,
            progress=True,
        )
    return Trained(state, before + time.perf_counter() - began, resumed_from)


def measure(task: Task, model: mgu.Model, params: Any, frozen: np.ndarray) -> dict[str, Any]:
    """The scores on the test data, for params [M, ...]: of each seed, their mean and their standard deviation."""
    size, window, steps = task.evaluated_at_once, None, len(task.test.xs)
    if isinstance(task.test, Stream):  # from the beginning to the end, in one row
        size, window = 1, _window(steps)
    values = Evaluator(model, task.test, task.metrics, size, window).scores_of_members(params, {}, at_once=1)
    scores = np.asarray(task.measure.score(values[0]))
    seen = spread(task.measure.name, scores, frozen) | spread("loss", values[-1], frozen)
    living = scores[~frozen]
    seen[f"{task.measure.name}_std"] = float(living.std(ddof=1)) if len(living) > 1 else None
    return seen | {"test_samples": steps if window is None else steps // window * window}


def finish(learned: Learned, score: Measure, others: dict[str, Callable[[Path], None]], **more: Any) -> None:
    """Write the files of a run, the result first, and print a table.

    Args:
        learned, score: the run, and what is reported of it.
        others: name of a further file -> the function that writes it.
        more: entries for the result.
    """
    run, result = learned.run, learned.result | more
    run.finish(result)
    plots.learning_curve(run.path("learning_curve.png"), run.metrics(), run.record["experiment"], score)
    for name, write in others.items():
        write(run.path(name))
    print(table(score, result))
    run.close()


def _window(steps: int, most: int = 1000) -> int:
    """The window length, at most ``most``, that drops the fewest trailing steps."""
    return min(range(min(most, steps), max(1, min(most, steps) // 2) - 1, -1), key=lambda window: steps % window)


def _recurrent(config: Training, task: Task, model: mgu.Model, width: int) -> dict[str, int]:
    """The number of parameters of the layer; for MGU, GRU and LSTM as the paper counts them at this width."""
    features = dict(task.options).get("embedding_size") or task.input_size
    counted = {
        "MGU": 2 * width * (width + features + 1),
        "GRU": mgu.gru_count(features, width),
        "LSTM": mgu.lstm_count(features, width),
    }
    return counted | {config.cell.upper(): cells.counts(model)["recurrent"]}
