"""Predict the next character of tiny Shakespeare, and write some text.

--split nanogpt divides the text as the character model of nanoGPT does, whose small transformer for a CPU reaches 1.88
nats, 2.71 bits, on its validation part in about 3 minutes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from experiments.datasets import text
from experiments.harness import cells, plots
from experiments.harness.language import learn_language
from experiments.harness.learn import Training, finish
from experiments.harness.measures import BITS
from mgu_jax.interop import files
from mgu_jax.interop.pretrained import draw


@dataclass(frozen=True)
class Config(Training):
    """The flags of chars."""

    window: int = 64
    """T, the number of characters that a gradient flows through."""
    embedding_size: int = 64
    """Features of a character."""
    hidden_size: int = 256
    batch_size: int = 32
    dropout: float = 0.2
    epochs: int = 15
    temperature: float = 0.8
    """Of the sampled text: below 1, likely characters become likelier."""
    split: Literal["nanogpt"] | None = None
    """nanogpt trains on nine tenths and tests the last step on the others. By default a twentieth chooses the step, and
    the last twentieth is the test."""
    characters: int = 500
    """Length of the text that each seed writes."""


def main(config: Config) -> None:
    """Train on nine tenths, choose the step by a twentieth, test on the last twentieth; then write text."""
    data = text.shakespeare(config.data_dir, config.download, validate=config.split is None)
    name = "-".join(filter(None, ["chars", config.split]))
    sizes: dict[str, Any] = {"window": config.window, "embedding_size": config.embedding_size}
    learned = learn_language(name, config, data, BITS, quick=60, **sizes)
    samples, first = [], jnp.array([data.symbols.index("\n")])
    for seed, params in zip(learned.result["seeds"], learned.params, strict=True):
        key, temperature = jax.random.key(seed), jnp.asarray(config.temperature)
        tokens = draw(learned.model, config.characters, params, first, key, temperature)
        samples.append("".join(data.symbols[token] for token in tokens))
    others: dict[str, Any] = {}
    if cell := cells.FAMILY.get(config.cell):
        params, tokens = learned.params[0], data.test.xs[:80]

        def picture(path: Path) -> None:
            gates = plots.gate_activity(params.layers[0], params.embedding[tokens], cell)
            plots.sentence_and_gates(path, gates, [data.symbols[token] for token in tokens])

        others["gates.png"] = picture
        if not isinstance(config.forget_bias, str):  # a file of a model cannot hold it
            others["model.npz"] = lambda path: files.save(path, learned.model, params)
    print(f"\n{samples[0]}")
    finish(learned, BITS, others, samples=samples, temperature=config.temperature)
