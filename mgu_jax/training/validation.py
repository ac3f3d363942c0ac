"""What ``fit`` and ``sweep`` measure now and then: a ``Validation``, checked before the first step."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from mgu_jax import checks
from mgu_jax.training import data as feed
from mgu_jax.training.evaluate import Asked, Members, check_metrics, evaluation, limits_of, try_evaluation
from mgu_jax.training.losses import Loss, cross_entropy, squared_error
from mgu_jax.training.optimizers import Hyper
from mgu_jax.training.step import Recipe


@dataclass(frozen=True)
class Validation:
    """What is measured now and then, and what follows from it.

    Attributes:
        data: ``Data``, or a ``Stream`` if the recipe has a window.
        metrics: functions as ``evaluate`` takes them; the first decides what is best.
        higher_is_better: of the first metric, as of an accuracy; not as of a loss.
        every: chunks between two validations.
        patience: stop when so many validations in a row were no better than the best; never if ``None``.
        batch_size: samples at once; the recipe's for a stream.

    Raises:
        TypeError, ValueError: a value of another kind, or a loss of which more would be better.
    """

    data: Any
    metrics: tuple[Loss, ...]
    higher_is_better: bool = True
    every: int = 1
    patience: int | None = None
    batch_size: int = 1000

    @property
    def names(self) -> list[str]:
        """Of the metrics; those that have none, or one that was there before, are told by their place."""
        found = [getattr(metric, "__name__", "<lambda>") for metric in self.metrics]
        return [f"metric {i}" if n == "<lambda>" or n in found[:i] else n for i, n in enumerate(found)]

    def is_due(self, done: int, steps_per_call: int, steps: int) -> bool:
        """Whether to measure after this step."""
        return done % (steps_per_call * self.every) == 0 or done == steps

    def __post_init__(self) -> None:
        checks.check_size("every", self.every)
        if self.patience is not None:
            checks.check_size("patience", self.patience)
        check_metrics(self.metrics)
        if self.higher_is_better and self.metrics[0] in (cross_entropy, squared_error):
            name = self.metrics[0].__name__
            raise ValueError(f"higher_is_better must be False where the first metric is {name}, a loss; got True.")


def _asked(recipe: Recipe, validation: Validation, hyper: Hyper, members: Members | None) -> Asked:
    size = validation.batch_size if recipe.window is None else recipe.batch_size
    return Asked(recipe.model, validation.data, validation.metrics, size, recipe.window, members, hyper.rates())


def scores_of(
    recipe: Recipe, validation: Validation, params: Any, hyper: Hyper, members: Members | None = None
) -> dict[str, np.ndarray]:
    """The metrics by name: a value of each or, of params and hyper [M, ...] of members, [M]."""
    values = evaluation(_asked(recipe, validation, hyper, members), params)
    return dict(zip(validation.names, values, strict=True))


def shown_scores(scores: dict[str, Any]) -> str:
    """To stand beside the progress."""
    return ", ".join(f"{name} {score:.4g}" for name, score in scores.items())


def check_validation(
    recipe: Recipe, validation: Any, params: Any, hyper: Hyper, members: Members | None = None
) -> None:
    """Its data, as those of the training are checked, and with the model of these params; before the first step."""
    if validation is None:
        return
    try:
        if recipe.window is None:
            feed.check_data(validation.data, 1)
        else:
            feed.check_stream(validation.data, recipe.batch_size, recipe.window)
        feed.check_limits(validation.data, limits_of((recipe.loss, *validation.metrics), params))
    except (TypeError, ValueError) as error:
        raise type(error)(f"validation.{error}") from None
    try:
        try_evaluation(_asked(recipe, validation, hyper, members), params)
    except (TypeError, ValueError) as error:
        raise type(error)(f"validation must fit the model: {error}") from None
