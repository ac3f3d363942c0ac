"""JapaneseVowels: who of nine says /ae/, by 7 to 29 steps of 12 channels; 270 utterances to learn from, 370 to test on.

Sequences of their own lengths, and few of them. The classifiers of the UEA archive's comparison reach 95 % and more.
"""

from dataclasses import dataclass

from experiments import data
from experiments.classify import classify, steps_of
from experiments.learning import Training


@dataclass(frozen=True)
class Config(Training):
    """The flags of vowels."""

    batch_size: int = 30
    weight_decay: float = 0.1
    dropout: float = 0.3
    epochs: int = 100


def main(config: Config) -> None:
    """Train, and test on the last state of every utterance."""
    vowels = data.vowels(config.data_dir, config.download)
    classify("vowels", config, vowels, readout="mean", **steps_of(config, vowels.train, quick=(90, 45)), every=1)
