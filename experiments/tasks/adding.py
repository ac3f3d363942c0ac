"""Add the two marked numbers among 50 to 55, or among --length numbers: D = 2.

Each step brings a number from [0, 1] and a mark; one number in each half of the sequence is marked. Guessing the mean
has a squared error of 1/6. Training sequences are generated during training and never repeat, the same for every seed
and cell. The paper's MGU, of two directions, saw 10,000 of them for 1,000 epochs and reached 0.0045. The gates start
with chrono initialisation.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.harness.learn import ForgetBias, Training, finish, learn_made
from experiments.harness.measures import ERROR
from experiments.run import BadRequest
from mgu_jax.training.data import Data
from mgu_jax.training.losses import squared_error

SOLVED = 0.01  # squared error
AT_ONCE = 400_000  # steps of all sequences that are measured together


@dataclass(frozen=True)
class Config(Training):
    """The flags of adding."""

    length: int | None = None
    """T of every sequence; by default it is drawn from 50 to 55 for each."""
    learning_rate: float = 3e-3
    forget_bias: ForgetBias = "chrono"


def sequences(rng: np.random.Generator, count: int, length: int | None) -> Data:
    """xs [N, T, 2] of numbers and marks, targets [N, 1], and lengths [N] if they differ."""
    longest = length or 55
    lengths = np.full(count, length) if length else rng.integers(50, 56, count)
    numbers = rng.random((count, longest), np.float32)
    first = rng.integers(0, lengths // 2)
    second = rng.integers(lengths // 2, lengths)
    marks, rows = np.zeros((count, longest), np.float32), np.arange(count)
    marks[rows, first] = marks[rows, second] = 1
    targets = (numbers * marks).sum(1, keepdims=True)
    return Data(np.stack([numbers, marks], -1), targets, None if length else lengths.astype(np.int32))


def main(config: Config) -> None:
    """Train on new sequences in every step, 5,000 steps by default; test on 1,000 others."""
    if config.length is not None and config.length < 2:
        raise BadRequest(f"--length must be at least 2; got {config.length}.")
    length = 10 if config.quick and config.length is None else config.length
    learned = learn_made(
        f"adding-{config.length}" if config.length else "adding",
        config,
        lambda rng, count: sequences(rng, count, length),
        "the adding problem",
        input_size=2,
        output_size=1,
        longest=length or 55,
        measure=ERROR,
        loss=squared_error,
        options=(("readout", "last"),),
        evaluated_at_once=max(1, min(1000, AT_ONCE // (length or 55))),
    )
    finish(learned, ERROR, {}, length=length or [50, 55], solved=solved(learned.run.metrics()))


def solved(metrics: list[dict[str, Any]]) -> list[int | None]:
    """The first step of each seed at which the test error was below ``SOLVED``; ``None`` if it never was."""
    tests = [line for line in metrics if line["split"] == "test"]
    of_seeds = zip(*(line["squared_error_per_seed"] for line in tests), strict=True)
    steps = [line["step"] for line in tests]
    return [
        next((step for step, error in zip(steps, errors, strict=True) if error is not None and error < SOLVED), None)
        for errors in of_seeds
    ]


def table(runs: list[tuple[str, dict[str, Any]]]) -> str:
    """One row per run, (name, result), of one length: in how many steps each seed solved it, and its last error."""
    lines = [
        f"| numbers | cell | seeds that solve it | steps until the error is below {SOLVED:g} "
        "| squared error in the end | steps in all | minutes per seed |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in sorted(runs, key=lambda run: (run[1]["length"], run[1]["cell"] != "mgu", run[0])):
        steps = sorted(step for step in row["solved"] if step is not None)
        error, seeds = ERROR.shown.format(row["squared_error"]), len(row["seeds"])
        lines.append(
            f"| {row['length']:,} | {name} | {len(steps)} of {seeds} "
            f"| {', '.join(f'{step:,}' for step in steps)} | {error} | {row['steps']:,} "
            f"| {row['seconds'] / seeds / 60:.0f} |"
        )
    return "\n".join(lines)
