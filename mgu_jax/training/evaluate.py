"""Metrics of a model, or of all members of a sweep, over a data set, a batch at a time: memory stays bounded."""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from mgu_jax import checks
from mgu_jax.layer.noise import Rates
from mgu_jax.model import Model, check_model, check_reads_on
from mgu_jax.training import data as feed
from mgu_jax.training.data import Data, Stream
from mgu_jax.training.devices import map_members, to_host
from mgu_jax.training.losses import Loss, accuracy, cross_entropy
from mgu_jax.training.step import measure, run_model


class Members(NamedTuple):
    """How the members of a sweep are evaluated: so many at once, all if ``None``, split over the devices of a mesh."""

    at_once: int | None = None
    mesh: Mesh | None = None


class Asked(NamedTuple):
    """What is measured, and how: as ``evaluate`` takes it, and of params [M, ...] of a sweep with its ``Members``.

    ``rates`` of a sweep are [M].
    """

    model: Model
    data: Any
    metrics: tuple[Loss, ...]
    batch_size: int
    window: int | None = None
    members: Members | None = None
    rates: Any = None


def evaluate(
    model: Model,
    params: Any,
    data: Data | Stream,
    metrics: tuple[Loss, ...],
    batch_size: int = 1000,
    window: int | None = None,
    **rates: Any,
) -> list[float]:
    """Each metric's mean over all samples; over all valid steps, of a model that reads out every step.

    Args:
        model, params: what is evaluated, without noise.
        data: samples; or a ``Stream``, read from its beginning with the state carried along. Steps behind the last
            window that all rows have are left out: none with one row and a window that divides its steps.
        metrics: functions such as ``mgu_jax.training.losses.accuracy``.
        batch_size: samples at once, or the rows that a stream is cut into.
        window: steps of a stream at once; needed for one, and for nothing else.
        rates: of noise, that the run had of its ``Hyper`` and not of the model: zoneout takes its expectation, and the
            others are off.

    Raises:
        TypeError, ValueError: unusable data, or tokens or classes that the model has not; metrics that are not a tuple
            of functions of which each gives a number; something else than rates.
    """
    check_model(model, "apply")
    check_metrics(metrics)
    for name, rate in rates.items():
        checks.check_choice("a rate", name, ("dropout", *Rates._fields))
        checks.check_rate(name, rate)
    asked = Asked(model, data, metrics, batch_size, window, rates=rates)
    try_evaluation(asked, params)  # data that are none at all are said first
    feed.check_limits(data, limits_of(metrics, params))
    return [float(value) for value in evaluation(asked, params)]


def check_metrics(metrics: Any) -> None:
    """A tuple of functions.

    Raises:
        TypeError: something else.
    """
    if not isinstance(metrics, tuple) or not metrics or not all(map(callable, metrics)):
        raise TypeError(f"metrics must be a tuple of functions, at least one; got {metrics!r}.")


def limits_of(functions: tuple[Loss, ...], params: Any) -> feed.Limits:
    """How many tokens there are for the model, and classes for what takes labels."""
    embedding, W_y = (getattr(getattr(params, name, None), "shape", ()) for name in ("embedding", "W_y"))
    labels = any(function in (accuracy, cross_entropy) for function in functions)
    return feed.Limits(embedding[-2] if len(embedding) > 1 else None, W_y[-1] if labels and len(W_y) > 1 else None)


def evaluation(asked: Asked, params: Any) -> list[np.ndarray]:
    """``evaluate``: a value for each metric or, with members, [M]."""
    carry, parts = _parts(asked, params)
    totals, weights = [np.float64(0.0)] * len(asked.metrics), np.float64(0.0)
    for part in parts:
        values, weight, carry = _measured(asked, params, part, carry)
        *values, weight = (np.asarray(value, np.float64) for value in to_host((*values, weight)))
        totals = [total + weight * value for total, value in zip(totals, values, strict=True)]
        weights = weights + weight
    with np.errstate(invalid="ignore"):  # nan where nothing counts: zero would be the best loss of all
        return [np.asarray(total / weights) for total in totals]


def try_evaluation(asked: Asked, params: Any) -> None:
    """Raise what ``evaluation`` would raise of the shapes and dtypes, and compute nothing."""

    def first(params: Any) -> Any:
        carry, parts = _parts(asked, params)
        return _measured(asked, params, next(parts), carry)

    jax.eval_shape(first, params)


def _measured(asked: Asked, params: Any, part: Data, carry: Any) -> Any:
    return _of_a_part(params, part, carry, asked.rates, asked.model, asked.metrics, asked.members)


def _parts(asked: Asked, params: Any) -> tuple[Any, Iterator[Data]]:
    """The state before the first batch, and the batches."""
    model, data, _, batch_size, window, members, _ = asked
    checks.check_size("batch_size", batch_size)
    if jax.process_count() > 1:  # what one process has on its devices cannot meet what is on the devices of all
        data = jax.device_get(data)
    if window is None:
        feed.check_data(data, 1)
        starts = range(0, len(data.xs), batch_size)
        return None, (jax.tree.map(lambda a, i=i: a[i : i + batch_size], data) for i in starts)
    checks.check_size("window", window)
    feed.check_stream(data, batch_size, window)
    begin = partial(model.start, batch=(batch_size,))  # pyright: ignore (a stream's model has one)
    rows = range(feed.windows(data, batch_size, window))
    carry = jax.vmap(begin)(params) if members else begin(params)
    check_reads_on(carry)
    return carry, (feed.take(data, row, batch_size, window) for row in rows)


@partial(jax.jit, static_argnames=("model", "metrics", "members"))
def _of_a_part(
    params: Any, batch: Data, carry: Any, rates: Any, model: Model, metrics: tuple[Loss, ...], members: Members | None
) -> tuple[list[Array], Array, Any]:
    """Each metric's mean over a batch, what the batch weighs, and the state after it."""

    def one(batch: Data, of_one: tuple[Any, Any, Any]) -> tuple[list[Array], Array, Any]:
        params, carry, rates = of_one
        ys, carry = run_model(model, params, batch, carry, rates)
        # Of a model that reads out every step, each valid step counts; of the others, each sample.
        steps = ys.ndim == 3 and batch.lengths is not None
        weight = jnp.sum(jnp.asarray(batch.lengths, jnp.int32)) if steps else jnp.int32(len(batch.xs))
        return measure(metrics, ys, batch), weight, carry

    of_all = (params, carry, rates)
    return map_members(one, of_all, batch, *members) if members is not None else one(batch, of_all)
