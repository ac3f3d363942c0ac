"""Recognise which of nine men says /ae/, from 7 to 29 steps of 12 channels (JapaneseVowels).

270 utterances are trained on and 370 tested. They are so few that half of the layer's output is dropped and all weights
decay. Readout, dropout and weight decay were chosen on thirds of the training utterances, not on the test set.
"""

from dataclasses import dataclass

from experiments.datasets import data
from experiments.harness.classify import classify, steps_of
from experiments.harness.learn import Training


@dataclass(frozen=True)
class Config(Training):
    """The flags of vowels."""

    batch_size: int = 30
    weight_decay: float = 0.1
    dropout: float = 0.5
    epochs: int = 60


def main(config: Config) -> None:
    """Train, and classify the test utterances by their last state."""
    vowels = data.vowels(config.data_dir, config.download)
    classify("vowels", config, vowels, **steps_of(config, vowels.train, quick=(90, 45)))
