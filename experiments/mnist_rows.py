"""MNIST read row by row: 28 steps of 28 pixels, one layer of H = 100, the paper's 25,800 recurrent parameters.

Needs the original files in --data-dir. Typical output after 15 epochs, about a minute on two cores:

    test accuracy         98.9% of 10,000
    recurrent parameters  MGU 25,800   GRU 38,700   LSTM 51,600
"""

from dataclasses import dataclass

import mgu_jax as mgu
from experiments import data
from experiments.classify import classify
from experiments.run import Common


@dataclass(frozen=True)
class Config(Common):
    """The flags of mnist-rows."""

    hidden_size: int = 100
    """H, the width of the layer."""
    batch_size: int = 100
    """Samples in an optimiser step."""
    learning_rate: float = 3e-3
    """Adam's, at the start; it decays to zero along a cosine."""
    epochs: int = 15
    """Passes over the 60,000 training digits; --steps, if given, decides instead."""


def main(config: Config) -> None:
    """Train on the 60,000, test on the 10,000."""
    mnist = data.mnist(config.data_dir, config.download)
    epoch = max(1, len(mnist.train.xs) // config.batch_size)
    classify(
        "mnist-rows",
        config,
        mnist,
        hidden_size=config.hidden_size,
        hyper=mgu.Hyper(learning_rate=config.learning_rate, clip_norm=1.0),
        steps=config.steps or (60 if config.quick else config.epochs * epoch),
        batch_size=config.batch_size,
        chunk_steps=20 if config.quick else epoch,
    )
