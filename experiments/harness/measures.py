"""What is reported of a model: a score for each seed, their mean and their standard deviation."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from mgu_jax.training.losses import Loss, accuracy, cross_entropy, squared_error


class Measure(NamedTuple):
    """A score of a model."""

    name: str
    metric: Loss  # its mean over a data set is taken
    score: Callable[[Any], Any]  # the score that follows from the mean
    higher_is_better: bool
    shown: str  # the format of the score
    label: str  # of an axis


ACCURACY = Measure("accuracy", accuracy, lambda share: share, True, "{:.2%}", "accuracy")
PERPLEXITY = Measure("perplexity", cross_entropy, np.exp, False, "{:.2f}", "perplexity")
BITS = Measure(
    "bits_per_character", cross_entropy, lambda nats: nats / np.log(2), False, "{:.3f}", "bits per character"
)
ERROR = Measure("squared_error", squared_error, lambda error: error, False, "{:.1e}", "squared error")


def spread(name: str, values: Any, frozen: np.ndarray) -> dict[str, Any]:
    """The mean over the seeds that are not frozen, and the value of each seed, None for a frozen one."""
    values = np.asarray(values, np.float64)
    each = [None if stopped else value for stopped, value in zip(frozen, values.tolist(), strict=True)]
    return {name: float(values[~frozen].mean()), f"{name}_per_seed": each}


def table(measure: Measure, result: dict[str, Any]) -> str:
    """The table that is printed at the end of a run."""
    counts, seeds, frozen = result["recurrent_parameters"], len(result["seeds"]), len(result["frozen"])
    score = measure.shown.format(result[measure.name])
    if result[f"{measure.name}_std"] is not None:
        deviation = measure.shown.format(result[f"{measure.name}_std"])
        living = [value for value in result[f"{measure.name}_per_seed"] if value is not None]
        each = ", ".join(map(measure.shown.format, living))
        score += f", standard deviation {deviation} over {seeds - frozen} seeds ({each})"
    rows = {
        f"test {measure.label}": f"{score} of {result['test_samples']:,}",
        "test loss": f"{result['loss']:.4f} nats" if measure is not ERROR else "",
        "recurrent parameters": "   ".join(f"{name} {count:,}" for name, count in counts.items()),
        "all parameters": f"{result['parameters']['all']:,}, H = {result['hidden_size']}",
        "frozen seeds": ", ".join(map(str, result["frozen"])),
        "seconds": f"{result['seconds']:.1f} for {result['steps']:,} steps" + (" of all seeds" if seeds > 1 else ""),
    }
    return "\n".join(["", *(f"  {name:25}{value}" for name, value in rows.items() if value), ""])
