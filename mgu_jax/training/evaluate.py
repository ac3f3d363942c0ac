"""Metrics and outputs of a model, or of all members of a sweep, over a data set.

One batch is computed at a time, so the memory does not grow with the data.
"""

import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from mgu_jax import checks
from mgu_jax.layer.noise import Rates
from mgu_jax.model import Model, check_model, check_reads_on
from mgu_jax.training.batch import check_limits, limits_of, reads_every_step, run_model
from mgu_jax.training.data import Data, Parts, Stream, as_arrays, check_data, check_stream, take, windows
from mgu_jax.training.devices import map_members, on_own_devices, to_host
from mgu_jax.training.hyper import Hyper
from mgu_jax.training.losses import Loss, is_higher_better
from mgu_jax.training.measure import check_function, measure, takes, weight_of
from mgu_jax.training.parts import as_parts, of_member, part_of_members, whole
from mgu_jax.training.step import Recipe


@on_own_devices
def evaluate(
    model: Model,
    params: Any,
    data: Data | Parts | Stream,
    metrics: tuple[Loss, ...],
    batch_size: int = 1000,
    window: int | None = None,
    after: Stream | None = None,
    **rates: Any,
) -> list[Any]:
    """The mean of each metric over all samples or, for a model that reads out every step, over all valid steps.

    Noise is off, except that zoneout takes its expectation.

    Args:
        model: a ``Model``.
        params: its parameters; of ``Parts``, those of the members of a sweep, [M, ...].
        data: samples; or a ``Stream``, read from its beginning with the state carried along. Steps after the last
            whole window are left out; none are if batch_size is 1 and window divides the number of steps. Of P
            ``Parts``, member i is measured on part i % P, and each mean is an array [M].
        metrics: functions such as ``mgu_jax.losses.accuracy``.
        batch_size: samples computed at once, or the number of rows that a stream is cut into.
        window: steps of a stream computed at once; required for a stream, ``None`` for samples.
        after: the stream that data continue, or the end of it. It is read first, so that its last state is the first of
            data; batch_size must then be 1.
        rates: the rates of noise that the run took from its ``Hyper`` instead of the model.

    Raises:
        TypeError: data of another kind, metrics that are not a tuple of functions, or one that does not return a
            number.
        ValueError: shapes that do not fit, tokens or classes that the model does not have, or an unknown rate.
    """
    check_model(model, "apply")
    check_metrics(metrics)
    _check_rates(rates)
    if isinstance(data, Parts):
        return _evaluate_members(Evaluator(model, as_parts(data), metrics, batch_size, window), params, rates)
    evaluator = Evaluator(model, data, metrics, batch_size, window, after)
    evaluator.check(params, rates)  # before the limits, which need well-formed data
    check_limits(as_arrays(data), limits_of(metrics, params))
    _check_after(after, params)
    return evaluator.scores(params, rates)


def _evaluate_members(evaluator: "Evaluator", params: Any, rates: dict[str, Any]) -> list[np.ndarray]:
    """``evaluate`` of the members of a sweep, each on its part."""
    sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(params)}
    if len(sizes) != 1 or () in sizes:
        raise ValueError(f"params must be those of members, every array [M, ...], for parts; got sizes {sizes}.")
    ((total,),) = sizes
    evaluator.check(jax.tree.map(lambda a: a[0], params), rates)
    check_limits(evaluator.data.data, limits_of(evaluator.metrics, params))
    each = {name: jnp.broadcast_to(jnp.asarray(rate, jnp.float32), (total,)) for name, rate in rates.items()}
    return evaluator.scores_of_members(params, each, part=part_of_members(evaluator.data, total))


@on_own_devices
def predict(
    model: Model,
    params: Any,
    data: Data | Stream,
    batch_size: int = 1000,
    window: int | None = None,
    after: Stream | None = None,
    **rates: Any,
) -> np.ndarray:
    """The outputs ys of all samples: [N, K], or [N, T, K] of a model that reads out every step.

    Noise is off, except that zoneout takes its expectation. Steps after a sample's length hold no meaningful output.

    Args:
        model: a ``Model``.
        params: its parameters.
        data: samples; or a ``Stream``, read from its beginning with the state carried along, whose outputs are
            [batch_size, T, K] with T the steps of all windows. The targets are not used and may be ``None``.
        batch_size: samples computed at once, or the number of rows that a stream is cut into.
        window: steps of a stream computed at once; required for a stream, ``None`` for samples.
        after: the stream that data continue, or the end of it. It is read first, so that its last state is the first of
            data; batch_size must then be 1.
        rates: the rates of noise that the run took from its ``Hyper`` instead of the model.

    Raises:
        TypeError: data of another kind.
        ValueError: shapes that do not fit, tokens that the model does not have, or an unknown rate.
    """
    check_model(model, "apply")
    _check_rates(rates)
    if isinstance(data, Parts):
        raise TypeError(f"data must be those of one part, such as data[0]; got {len(data)} parts.")
    if isinstance(data, Data | Stream) and data.targets is None:
        data = data._replace(targets=data.xs)
    evaluator = Evaluator(model, data, (), batch_size, window, after)
    evaluator.check(params, rates)
    check_limits(as_arrays(data), limits_of((), params))
    _check_after(after, params)
    return evaluator.outputs(params, rates)


@dataclass(frozen=True, eq=False)
class Evaluator:
    """What is computed over which data, a batch at a time; the arguments are those of ``evaluate``."""

    model: Model
    data: Any
    metrics: tuple[Loss, ...]
    batch_size: int = 1000
    window: int | None = None
    after: Stream | None = None

    def check(self, params: Any, rates: dict[str, Any]) -> None:
        """Raise what ``scores`` would raise because of shapes and dtypes, without computing anything."""

        if isinstance(self.data, Parts):
            return replace(self, data=as_parts(self.data)[0]).check(params, rates)

        def first(params: Any, rates: Any) -> Any:
            carry = self._first_carry(params)
            with _of_after():
                for batch in itertools.islice(self._before(), 1):
                    _measure_one(params, carry, rates, batch, self.model, ())
            return _measure_one(params, carry, rates, next(self._batches()), self.model, self.metrics)

        jax.eval_shape(first, params, rates)
        if self.metrics:
            lengths, readout = getattr(self.data, "lengths", None), getattr(self.model, "readout", None)
            checks.check_not_empty("data.lengths", lengths, readout)

    def scores(self, params: Any, rates: dict[str, Any]) -> list[float]:
        """The mean of each metric."""
        measured = partial(_measure_one, params, rates=rates, model=self.model)
        return [float(mean) for mean in self._means(measured, self._first_carry(params))]

    def scores_of_members(
        self,
        params: Any,
        rates: dict[str, Any],
        at_once: int | None = None,
        mesh: Mesh | None = None,
        part: Any = None,
        skipped: Any = None,
    ) -> list[np.ndarray]:
        """The mean of each metric, [M], for the members of a sweep: the entries of params and rates are [M, ...].

        ``at_once`` members are computed together, all if ``None``; on a mesh they are split over its devices. ``part``
        is that of each member, [M], if the data are ``Parts``. Where ``skipped`` is true, [M], nothing is measured.
        """
        how = {"model": self.model, "at_once": at_once, "mesh": mesh, "part": part, "skipped": skipped}
        measured = partial(_measure_members, params, rates=rates, **how)
        carry = None if self.window is None else jax.vmap(self._first_carry)(params)
        return self._means(measured, carry)

    def outputs(self, params: Any, rates: dict[str, Any]) -> np.ndarray:
        """The outputs of all samples, as ``predict`` returns them."""
        carry, parts, every_step = self._first_carry(params), [], reads_every_step(self.model)

        def samples_first(ys: np.ndarray) -> np.ndarray:
            if every_step:
                return ys.swapaxes(0, 1)
            return ys if self.window is None else ys[:, None]  # a stream's window is then one step

        for batch in self._before():
            _, carry = _run(params, carry, rates, batch, self.model)
        for batch in self._batches():
            ys, carry = _run(params, carry, rates, batch, self.model)
            ys = to_host(ys)
            parts.append(jax.tree.map(samples_first, ys))
        return jax.tree.map(lambda *parts: np.concatenate(parts, 0 if self.window is None else 1), *parts)

    def _means(self, measured: Any, carry: Any) -> list[np.ndarray]:
        for batch in self._before():
            _, _, carry = measured(carry, batch=batch, metrics=())
        totals, weights = [np.float64(0.0)] * len(self.metrics), np.float64(0.0)
        for batch in self._batches():
            values, weight, carry = measured(carry, batch=batch, metrics=self.metrics)
            *values, weight = (np.asarray(value, np.float64) for value in to_host((*values, weight)))
            totals = [total + weight * value for total, value in zip(totals, values, strict=True)]
            weights = weights + weight
        with np.errstate(invalid="ignore"):  # nan if nothing was measured: zero would be the best loss of all
            return [np.asarray(total / weights) for total in totals]

    def _first_carry(self, params: Any) -> Any:
        """The model's state before the first window of a stream; ``None`` for samples."""
        if self.window is None:
            return None
        carry = self.model.start(params, (self.batch_size,))
        check_reads_on(carry)
        return carry

    def _before(self) -> Iterator[Data]:
        """The windows of the stream that the data continue; its first one holds the steps that fill no window."""
        if self.after is None:
            return
        if self.window is None:
            raise ValueError(f"after must be left out without a window; got {checks.describe(self.after)}.")
        if self.batch_size != 1:
            raise ValueError(f"batch_size must be 1 where data continue a stream, in one row; got {self.batch_size}.")
        stream = check_stream(self.after, 1, 1)
        if jax.process_count() > 1:
            stream = jax.device_get(stream)
        L, rest = len(stream.xs), len(stream.xs) % self.window
        for first, last in itertools.pairwise([*[0] * (rest > 0), *range(rest, L + 1, self.window)]):
            yield Data(**jax.tree.map(lambda a, first=first, last=last: a[None, first:last], stream)._asdict())

    def _batches(self) -> Iterator[Data]:
        checks.check_size("batch_size", self.batch_size)
        data, size, window = self.data, self.batch_size, self.window
        if jax.process_count() > 1:  # arrays of one process cannot be combined with arrays of all
            data = jax.device_get(data)
        if isinstance(data, Parts):
            data = as_parts(data)
            for first in range(0, data.samples.shape[1], size):
                yield Parts(data.data, data.samples[:, first : first + size])  # pyright: ignore (of all members)
        elif window is None:
            data = check_data(data, 1)
            for first in range(0, len(data.xs), size):
                yield jax.tree.map(lambda a, first=first: a[first : first + size], data)
        else:
            checks.check_size("window", window)
            data = check_stream(data, size, window)
            for index in range(windows(data, size, window)):
                yield take(data, index, size, window)


def _measure(
    params: Any, carry: Any, rates: Any, batch: Data, model: Model, metrics: tuple[Loss, ...]
) -> tuple[list[Array], Array, Any]:
    """The mean of each metric over a batch, the weight of the batch, and the state after it."""
    ys, hs, carry = run_model(model, params, batch, carry, rates, hidden=takes(metrics, "hs"))
    every_step = reads_every_step(model)
    values = measure(metrics, ys, batch, every_step, hs, params)
    return [value for value, _ in values], weight_of(batch, every_step), carry


_measure_one = jax.jit(_measure, static_argnames=("model", "metrics"))


@partial(jax.jit, static_argnames=("model", "metrics", "at_once", "mesh"))
def _measure_members(
    params: Any,
    carry: Any,
    rates: Any,
    batch: Data | Parts,
    model: Model,
    metrics: tuple[Loss, ...],
    at_once: int | None,
    mesh: Mesh | None,
    part: Any = None,
    skipped: Any = None,
) -> tuple[list[Array], Array, Any]:
    def one(batch: Data | Parts, member: tuple[Any, Any, Any, Any]) -> tuple[list[Array], Array, Any]:
        params, carry, rates, part = member
        return _measure(params, carry, rates, whole(of_member(batch, part)), model, metrics)

    return map_members(one, (params, carry, rates, part), batch, at_once, mesh, skipped)


@partial(jax.jit, static_argnames="model")
def _run(params: Any, carry: Any, rates: Any, batch: Data, model: Model) -> tuple[Array, Any]:
    ys, _, carry = run_model(model, params, batch, carry, rates)
    return ys, carry


def check_metrics(metrics: Any) -> None:
    """Check that metrics is a tuple of functions of outputs and targets.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(metrics, tuple) or not metrics or not all(map(callable, metrics)):
        raise TypeError(f"metrics must be a tuple of functions, at least one; got {metrics!r}.")
    for i, metric in enumerate(metrics):
        check_function(f"metrics[{i}]", metric)


@contextmanager
def _of_after() -> Iterator[None]:
    """Errors of data are those of the stream that the data continue."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise type(error)(re.sub("^data", "after", str(error))) from None


def _check_after(after: Any, params: Any) -> None:
    """Check the tokens of the stream that the data continue."""
    if after is not None:
        with _of_after():
            check_limits(as_arrays(after), limits_of((), params))


def _check_rates(rates: dict[str, Any]) -> None:
    for name, rate in rates.items():
        checks.check_choice("a rate", name, ("dropout", *Rates._fields))
        checks.check_rate(name, rate)


@dataclass(frozen=True)
class Validation:
    """What is measured during a run, and when.

    Attributes:
        data: ``Data``, or a ``Stream`` if the recipe has a window; in a sweep of P ``Parts`` also P parts, the one of
            each member.
        metrics: functions as ``evaluate`` takes them; the first decides which parameters are best.
        higher_is_better: whether the first metric is better when higher, as an accuracy, or lower, as a loss. It is
            known of the metrics in ``mgu_jax.losses`` and of the recipe's own loss, and must be said of any other.
        every: calls of the compiled loop between two validations.
        patience: a run, or a member of a sweep, stops after this number of validations in a row without a better
            score; never if ``None``.
        batch_size: samples computed at once; a stream has the recipe's number of rows.
        after: the stream that data continue, such as that of the training, or the end of it. Data are then read in one
            row, from the state after it, as a forecast is made.

    Raises:
        TypeError: metrics is not a tuple of functions.
        ValueError: a number is below 1, or higher_is_better contradicts what is known of the first metric.
    """

    data: Any
    metrics: tuple[Loss, ...]
    higher_is_better: bool | None = None
    every: int = 1
    patience: int | None = None
    batch_size: int = 1000
    after: Stream | None = None

    def __post_init__(self) -> None:
        checks.check_size("every", self.every)
        if self.patience is not None:
            checks.check_size("patience", self.patience)
        check_metrics(self.metrics)
        checks.check_choice("higher_is_better", self.higher_is_better, (None, False, True))
        self._check_direction(is_higher_better(self.metrics[0]))

    def _check_direction(self, known: bool | None, name: str = "higher_is_better") -> None:
        if None not in (known, self.higher_is_better) and known != self.higher_is_better:
            what = f"where the first metric is {self.names[0]}"
            raise ValueError(f"{name} must be {known} {what}; got {self.higher_is_better}.")

    def is_higher_better(self, recipe: Recipe) -> bool:
        """Whether the first metric is better when higher.

        Raises:
            ValueError: nothing tells, or the metric is the recipe's loss and higher_is_better is true.
        """
        known = is_higher_better(self.metrics[0], recipe.loss)
        self._check_direction(known, "validation.higher_is_better")
        if known is None and self.higher_is_better is None:
            what = f"where the first metric is {self.names[0]}, of which nothing else tells"
            raise ValueError(f"validation.higher_is_better must be True or False {what}; got None.")
        return bool(self.higher_is_better if known is None else known)

    @property
    def names(self) -> list[str]:
        """The names of the metrics; a metric without a name, or with an earlier one's, is named by its position."""
        found = [getattr(metric, "__name__", "<lambda>") for metric in self.metrics]
        return [f"metric {i}" if n == "<lambda>" or n in found[:i] else n for i, n in enumerate(found)]

    def is_due(self, done: int, steps_per_call: int, steps: int) -> bool:
        """Whether to measure after this step."""
        return done % (steps_per_call * self.every) == 0 or done == steps

    def evaluator(self, recipe: Recipe) -> Evaluator:
        """What measures the runs of a recipe."""
        size = self.batch_size if recipe.window is None else self._rows(recipe)
        return Evaluator(recipe.model, self.data, self.metrics, size, recipe.window, self.after)

    def _rows(self, recipe: Recipe) -> int:
        return recipe.batch_size if self.after is None else 1

    def check(self, recipe: Recipe, params: Any, hyper: Hyper) -> None:
        """Check the data as those of the training are checked, and together with a model of these parameters.

        Raises:
            TypeError, ValueError: as ``fit`` raises of its data.
        """
        try:
            if recipe.window is not None:
                data: Any = check_stream(self.data, self._rows(recipe), recipe.window)
            else:
                data = as_parts(self.data).data if isinstance(self.data, Parts) else check_data(self.data, 1)
            check_limits(data, limits_of((recipe.loss, *self.metrics), params))
            _check_after(self.after, params)
        except (TypeError, ValueError) as error:
            raise type(error)(f"validation.{error}") from None
        try:
            self.evaluator(recipe).check(params, hyper.rates())
        except (TypeError, ValueError) as error:
            where = (
                "validation."
                if str(error).startswith(("data", "metrics", "after"))
                else "validation must fit the model: "
            )
            raise type(error)(f"{where}{error}") from None
