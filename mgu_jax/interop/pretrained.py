"""A trained language model of characters that is part of the package, and functions that let such a model write.

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
from mgu_jax.interop._arguments import check_is_model
from mgu_jax.model import Model, ModelParams, State

_SYMBOLS = "\n !$&',-.3:;?" + string.ascii_uppercase + string.ascii_lowercase


def shakespeare() -> tuple[Model, ModelParams, str]:
    """(model, params, symbols): an MGU of H = 256, trained by ``python -m experiments chars`` on tiny Shakespeare.

    Token i is the character ``symbols[i]``, and ys are the logits of the next character. The text is Karpathy's
    million characters of the plays, and the model has read the first nine tenths.
    """
    return *files.load(Path(__file__).parent / "shakespeare.npz"), _SYMBOLS


def sample(
    model: Model, params: ModelParams, first: Any, count: int, key: Array, temperature: float = 1.0
) -> np.ndarray:
    """Tokens int32 [count] that a language model writes after ``first``.

    Each token is drawn from softmax(logits / temperature) and is the model's next input.

    Args:
        model, params: a language model, which reads tokens and gives the logits of the next token after every step.
        first: at least one token [S] that the model reads before it writes.
        count: how many tokens to draw.
        key: one PRNG key.
        temperature: above 0; below 1 it favours the likely tokens.

    Raises:
        TypeError: model is not an ``mgu_jax.Model``, or key is not a PRNG key.
        ValueError: a model that does not read and predict the same tokens after every step; no first token, or a token
            that the model does not know; a count or temperature that is not above 0.
    """
    check_is_model(model)
    if model.embedding_size is None or model.output_size != model.input_size:
        raise ValueError(
            "model must read tokens and have one output per token; got "
            f"embedding_size={model.embedding_size}, input_size={model.input_size}, output_size={model.output_size}."
        )
    checks.check_choice("the readout of model", model.readout, ("all",))
    checks.check_key("key", key)
    given = np.asarray(first)
    if given.ndim != 1 or not given.size:
        raise ValueError(f"first must be at least one token, [S]; got {checks.describe(given)}.")
    if given.dtype.kind not in "iu" or given.min() < 0 or given.max() >= model.input_size:
        raise ValueError(f"first must hold whole numbers in [0, {model.input_size}); got {given.tolist()}.")
    checks.check_size("count", count)
    if not checks.is_number(temperature) or not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be a number above 0; got {checks.describe(temperature)}.")
    degree = jnp.asarray(temperature, model.dtype)
    return np.asarray(draw(model, count, params, jnp.asarray(given, jnp.int32), key, degree))


@partial(jax.jit, static_argnums=(0, 1))
def draw(model: Model, count: int, params: Any, first: Array, key: Array, temperature: Array) -> Array:
    """What ``sample`` returns, without its checks, for any ``Model`` that can be stepped."""
    ys, state = model.apply(params, first, state=model.start(params, ()), return_state=True)

    def body(carry: tuple[Array, State], key: Array) -> tuple[tuple[Array, State], Array]:
        logits, state = carry
        token = jax.random.categorical(key, logits / temperature).astype(jnp.int32)
        return model.step(params, token, state), token

    return lax.scan(body, (ys[-1], state), jax.random.split(key, count))[1]


def write(
    model: Model, params: ModelParams, symbols: str, prompt: str, count: int, key: Array, temperature: float = 0.8
) -> str:
    """The prompt followed by count characters that the model writes; see ``sample``.

    Raises:
        ValueError: a prompt that is empty or has a character that is not in symbols.
    """
    if not prompt:
        raise ValueError("prompt must have at least one character; got ''.")
    if unknown := sorted(set(prompt) - set(symbols)):
        raise ValueError(f"prompt must consist of the model's symbols; got {unknown[0]!r}.")
    first = np.array([symbols.index(symbol) for symbol in prompt], np.int32)
    return prompt + "".join(symbols[token] for token in sample(model, params, first, count, key, temperature))
