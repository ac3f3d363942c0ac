"""JapaneseVowels: who of nine says /ae/, by 7 to 29 steps of 12 channels; 270 utterances to learn from, 370 to test on.

Sequences of their own lengths, and so few that half of what the layer hands on is dropped and all weights decay. The
readout, the dropout and the decay were chosen by thirds of the training utterances held out, not by the test set.
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
    """Train, and test on the last state of every utterance."""
    vowels = data.vowels(config.data_dir, config.download)
    classify("vowels", config, vowels, **steps_of(config, vowels.train, quick=(90, 45)))
