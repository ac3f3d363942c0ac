"""Classify MNIST's digits, read pixel by pixel, in their order or in one random order (--permuted): T = 784, D = 1.

The class depends on pixels that were read hundreds of steps before, so the gates start with chrono initialisation.
Learning rate, factor on the pixels and initial W were chosen for the MGU on a part of the training set.
References: the paper's MGU 84.25 %; JANET 99.0 %, and 92.5 % permuted (van der Westhuizen and Lasenby 2018, arXiv
1804.04849).
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np

from experiments.datasets import data
from experiments.datasets.published import DataSet
from experiments.harness.classify import classify, steps_of
from experiments.harness.learn import ForgetBias, Initializer, Training
from experiments.run import above, at_least
from mgu_jax.training.data import Data

WARMUP = 200  # steps
HELD_OUT = 5_000  # training images, the last ones, on which settings are chosen


@dataclass(frozen=True)
class Config(Training):
    """The flags of mnist-pixels."""

    permuted: bool = False
    """Read the pixels of all images in one random order, the same in every run."""
    split: Literal["choice"] | None = None
    """choice trains on 55,000 of the training images and tests on the other 5,000, to choose settings. By default the
    training has all 60,000, and the test images are the test."""
    input_scale: Annotated[float, above(0)] = 5.0
    """Factor on the pixels, which are 0 to 1 without it."""
    learning_rate: float = 0.012
    warmup: Annotated[int | None, at_least(0)] = None
    """Steps in which the learning rate rises from zero to its value; by default 200, or a quarter of fewer than 800
    steps of training."""
    initializer: Initializer | None = "lecun"
    """Initial weights of our own cells, as in mgu_jax.init; those of Flax's cells are always LeCun's."""
    forget_bias: ForgetBias = "chrono"
    epochs: int = 10


def pixels(mnist: DataSet, permuted: bool, every: int = 1, scale: float = 1.0) -> DataSet:
    """Images [N, 28, 28] as sequences [N, 784, 1], times a factor, or of every n-th pixel only."""
    count = mnist.train.xs[0].size
    order = np.random.default_rng(0).permutation(count) if permuted else np.arange(count)

    def part(images: Any) -> Any:
        return images and images._replace(xs=images.xs.reshape(-1, count)[:, order[::every], None] * np.float32(scale))

    return mnist._replace(train=part(mnist.train), test=part(mnist.test))


def held_out(mnist: DataSet) -> DataSet:
    """The training images alone: the last of them are the test."""
    xs, targets = mnist.train.xs, mnist.train.targets
    train, test = Data(xs[:-HELD_OUT], targets[:-HELD_OUT]), Data(xs[-HELD_OUT:], targets[-HELD_OUT:])
    return mnist._replace(train=train, test=test)


def main(config: Config) -> None:
    """Train, and classify the test images; --quick reads every 28th pixel."""
    found = data.mnist(config.data_dir, config.download)
    found = held_out(found) if config.split == "choice" else found
    mnist = pixels(found, config.permuted, 28 if config.quick else 1, config.input_scale)
    name = "-".join(filter(None, ["mnist-pixels", "permuted" if config.permuted else None, config.split]))
    sizes = steps_of(config, mnist.train, quick=(40, 20), calls=6)
    if config.warmup is None:
        sizes["warmup"] = min(WARMUP, sizes["steps"] // 4)
    classify(name, config, mnist, every=1 if config.quick else 6, evaluated_at_once=500, **sizes)
