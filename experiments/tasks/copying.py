"""Remember ten symbols over a delay of --delay steps, then write them down in their order: T = --delay + 20, D = 10.

The copy memory task (Hochreiter and Schmidhuber 1997; in the form of Arjovsky, Shah and Bengio 2016, arXiv
1511.06464): ten of eight symbols, blanks, a sign to begin, and ten blanks during which the symbols are to be written.
Only these last ten steps count. Guessing has an accuracy of 12.5 %. Training sequences are generated during training
and never repeat, the same for every seed and cell. The gates start with chrono initialisation.
"""

from dataclasses import dataclass

import numpy as np

from experiments.harness.learn import ForgetBias, Training, finish, learn_made
from experiments.harness.measures import ACCURACY
from mgu_jax.training.data import Data

SYMBOLS, REMEMBERED = 8, 10
BLANK, BEGIN = SYMBOLS, SYMBOLS + 1


@dataclass(frozen=True)
class Config(Training):
    """The flags of copy."""

    delay: int = 100
    """Steps between the last symbol to remember and the first to write."""
    learning_rate: float = 3e-3
    forget_bias: ForgetBias = "chrono"


def sequences(rng: np.random.Generator, count: int, delay: int) -> Data:
    """xs [N, T, 10], one-hot, and targets [N, T], whose last ten count."""
    symbols = rng.integers(0, SYMBOLS, (count, REMEMBERED))
    tokens = np.full((count, delay + 2 * REMEMBERED), BLANK)
    tokens[:, :REMEMBERED] = symbols
    tokens[:, -REMEMBERED - 1] = BEGIN
    targets, weights = np.zeros(tokens.shape, np.int32), np.zeros(tokens.shape, np.float32)
    targets[:, -REMEMBERED:], weights[:, -REMEMBERED:] = symbols, 1
    return Data(np.eye(SYMBOLS + 2, dtype=np.float32)[tokens], targets, weights=weights)


def main(config: Config) -> None:
    """Train on new sequences in every step, 5,000 steps by default; test on 1,000 others."""
    delay = min(config.delay, 10) if config.quick else config.delay
    learned = learn_made(
        f"copy-{delay}",
        config,
        lambda rng, count: sequences(rng, count, delay),
        "the copy memory task",
        input_size=SYMBOLS + 2,
        output_size=SYMBOLS,
        longest=delay + 2 * REMEMBERED,
        options=(("readout", "all"),),
    )
    finish(learned, ACCURACY, {}, delay=delay)
