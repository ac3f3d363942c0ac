"""Which run a checkpoint belongs to: a digest of each part of the run that determines its numbers.

The shapes in a checkpoint do not show which of two cells with the same parameters was trained, or with which learning
rate. Steps, data, validation and devices have no digest, since a run may resume with other ones.
"""

import hashlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mgu_jax.training.devices import to_host
from mgu_jax.training.hyper import Hyper
from mgu_jax.training.step import Recipe

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")  # in the repr of a function, and of an object without its own repr

Identity = dict[str, str]


def identity_of(function: str, recipe: Recipe, hyper: Hyper, key: Any = None, **more: Any) -> Identity:
    """The name of the function that trains, and the digest of each part of the run.

    Args:
        function: "fit", "sweep" or "halving".
        recipe: a function in it, such as a loss, counts by its name.
        hyper: its numbers count as float32.
        key: one PRNG key or a row of them; ``None`` if the key may differ, because the state to start from has its own.
        more: further parts; each counts by its repr.
    """
    parts: dict[str, Any] = {"recipe": _ADDRESS.sub("", repr(recipe)), "hyper": _numbers(hyper), **more}
    if key is not None:
        data = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
        parts["key"] = to_host(data).tolist()
    return {"function": function} | {
        name: hashlib.sha256(repr(part).encode()).hexdigest() for name, part in parts.items()
    }


def _numbers(hyper: Hyper) -> dict[str, Any]:
    given = {name: value for name, value in hyper._asdict().items() if value is not None}
    return {name: np.asarray(to_host(value), np.float32).tolist() for name, value in given.items()}


def check_identity(config: Any, identity: Identity, step: int) -> None:
    """Check that the checkpoint of a step, saved with this configuration, belongs to the run.

    One that was saved without an identity, such as by hand, passes.

    Raises:
        ValueError: it belongs to another run.
    """
    saved = config.get("run") if isinstance(config, dict) else None
    if not isinstance(saved, dict):
        return
    different = [name for name in identity if saved.get(name, identity[name]) != identity[name]]
    if different:
        what = f"belongs to a run that differs in its {_row(different)}"
        if "function" in different:
            what = f"belongs to a run of mgu_jax.{saved['function']}"
        raise ValueError(f"checkpoints must belong to this run; that of step {step} {what}.")


def _row(names: list[str]) -> str:
    """The names as in a sentence: "recipe, hyper and key"."""
    return " and ".join([*filter(None, [", ".join(names[:-1])]), names[-1]])
