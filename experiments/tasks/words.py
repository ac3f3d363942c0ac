"""Predict the next word of Penn Treebank, or of the King James Bible (--text kjv).

T = 35 as in the paper, whose MGU and GRU reached test perplexities of 135.33 and 125.24 with H = 100, and of 114.14 and
105.75 with H = 200. The default dropout suits H = 200; with --hidden-size 100, --dropout 0.3 is better.
"""

from dataclasses import dataclass
from typing import Literal

from experiments.datasets import text
from experiments.harness.language import learn_language
from experiments.harness.learn import Training, finish
from experiments.harness.measures import PERPLEXITY
from experiments.run import BadRequest


@dataclass(frozen=True)
class Config(Training):
    """The flags of words."""

    text: Literal["ptb", "kjv"] = "ptb"
    """The text to learn."""
    window: int = 35
    """T, the number of words that a gradient flows through."""
    embedding_size: int | None = None
    """Features of a word; --hidden-size by default."""
    tie: bool = False
    """Read out with the embedding transposed, which saves as many parameters as the embedding has."""
    hidden_size: int = 200
    batch_size: int = 20
    learning_rate: float = 5e-3
    dropout: float = 0.5
    epochs: int = 6


def main(config: Config) -> None:
    """Train on the first part, choose the step by the second, test on the third."""
    data = getattr(text, config.text)(config.data_dir, config.download)
    name = "words" if config.text == "ptb" else f"words-{config.text}"
    sizes = {"window": config.window, "embedding_size": config.embedding_size or config.hidden_size}
    if config.tie and sizes["embedding_size"] != config.hidden_size:
        raise BadRequest(f"--tie must have --embedding-size = --hidden-size; got {config.embedding_size}.")
    learned = learn_language(name, config, data, PERPLEXITY, quick=10, tie=config.tie, **sizes)
    finish(learned, PERPLEXITY, {})
