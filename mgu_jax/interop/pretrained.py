"""A language model of characters that comes with the library, trained by ``python -m experiments chars``.

model, params, symbols = pretrained.shakespeare()
print(pretrained.write(model, params, symbols, "ROMEO:", 300, jax.random.key(0)))
"""

import string
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from mgu_jax import checks
from mgu_jax.interop import files
from mgu_jax.model import Model, ModelParams, State

_SYMBOLS = "\n !$&',-.3:;?" + string.ascii_uppercase + string.ascii_lowercase


def shakespeare() -> tuple[Model, ModelParams, str]:
    """(model, params, symbols): an MGU of H = 256 that has read nine tenths of tiny Shakespeare, Karpathy's million
    characters of the plays. Token i of the model is ``symbols[i]``; ys are the logits of the next one.
    """
    return *files.load(Path(__file__).parent / "shakespeare.npz"), _SYMBOLS


def sample(
    model: Model, params: ModelParams, first: Any, count: int, key: Array, temperature: float = 1.0
) -> np.ndarray:
    """Tokens that a language model goes on with, each drawn from softmax(logits / temperature) and read in turn.

    Args:
        model, params: of tokens, with a readout of every step.
        first: tokens [S] that it reads before, at least one.
        count: how many tokens to draw.
        key: one PRNG key.
        temperature: above 0; below 1 the likely becomes likelier.

    Returns:
        int32 [count].

    Raises:
        TypeError: model is none of ``mgu_jax.Model``, or key no PRNG key.
        ValueError: a model of no tokens or without a readout of every step; no first token, or one that the model has
            not; a count or temperature that is not above 0.
    """
    if not isinstance(model, Model):
        raise TypeError(f"model must be an mgu_jax.Model; got {checks.describe(model)}.")
    if model.embedding_size is None or model.output_size != model.input_size:
        raise ValueError(
            "model must read tokens and give logits of as many; got embedding_size="
            f"{model.embedding_size}, {model.input_size} inputs and {model.output_size} outputs."
        )
    checks.check_choice("the readout of model", model.readout, ("all",))
    checks.check_key("key", key)
    given = np.asarray(first)
    if given.ndim != 1 or not given.size:
        raise ValueError(f"first must be tokens [S], at least one; got {checks.describe(given)}.")
    if given.dtype.kind not in "iu" or given.min() < 0 or given.max() >= model.input_size:
        raise ValueError(f"first must hold whole numbers in [0, {model.input_size}); got {given.tolist()}.")
    checks.check_size("count", count)
    if not checks.is_number(temperature) or not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be a number above 0; got {checks.describe(temperature)}.")
    degree = jnp.asarray(temperature, model.dtype)
    return np.asarray(draw(model, count, params, jnp.asarray(given, jnp.int32), key, degree))


@partial(jax.jit, static_argnums=(0, 1))
def draw(model: Model, count: int, params: Any, first: Array, key: Array, temperature: Array) -> Array:
    """``sample`` without its checks, for any ``Model`` that can be stepped."""
    ys, state = model.apply(params, first, state=model.start(params, ()), return_state=True)

    def body(carry: tuple[Array, State], key: Array) -> tuple[tuple[Array, State], Array]:
        logits, state = carry
        token = jax.random.categorical(key, logits / temperature).astype(jnp.int32)
        return model.step(params, token, state), token

    return lax.scan(body, (ys[-1], state), jax.random.split(key, count))[1]


def write(
    model: Model, params: ModelParams, symbols: str, prompt: str, count: int, key: Array, temperature: float = 0.8
) -> str:
    """The prompt, and count characters that the model goes on with; see ``sample``.

    Raises:
        ValueError: a prompt that is empty or has other symbols than the model knows.
    """
    if not prompt:
        raise ValueError("prompt must have at least one symbol; got ''.")
    if unknown := sorted(set(prompt) - set(symbols)):
        raise ValueError(f"prompt must be written in the model's symbols; got {unknown[0]!r}.")
    first = np.array([symbols.index(symbol) for symbol in prompt], np.int32)
    return prompt + "".join(symbols[token] for token in sample(model, params, first, count, key, temperature))
