"""Recognise a spoken digit, from 6 to 57 frames of 40 bands of sound (Free Spoken Digit Dataset).

2,700 recordings of six speakers are trained on and 300 others of the same speakers tested. Learning rate, batch size,
readout and the time between frames were chosen on 300 of the training recordings (--split choice), not on the test set.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from experiments.datasets import speech
from experiments.harness.classify import classify, steps_of
from experiments.harness.learn import Training
from experiments.run import Bound


@dataclass(frozen=True)
class Config(Training):
    """The flags of speech."""

    split: Literal["official", "choice"] = "official"
    """Test on the recordings 0 to 4 of each speaker and digit (official), or leave these out and test on 5 to 9, to
    choose settings (choice)."""
    bands: int = 40
    """Features of a frame: bands of the mel scale."""
    hop: Annotated[int, Bound("a whole number in [1, 25]", lambda hop: 1 <= hop <= 25)] = 20
    """Milliseconds from one frame of 25 to the next."""
    readout: Literal["last", "mean"] = "mean"
    """Which states the class is read from: the last one, or the mean of all."""
    batch_size: int = 50
    learning_rate: float = 6e-3
    dropout: float = 0.3
    epochs: int = 20


def main(config: Config) -> None:
    """Train, and classify the test recordings."""
    (found,) = speech.splits(config.data_dir, [config.split], config.download, config.bands, config.hop)
    classify("speech", config, found, readout=config.readout, **steps_of(config, found.train, quick=(60, 30)))
