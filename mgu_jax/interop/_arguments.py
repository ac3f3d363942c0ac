"""What the layers of every framework ask of their arguments."""

from typing import Any

from mgu_jax import checks

OPTIONS = (
    "implementation",
    "save",
    "segment",
    "precision",
    "compute_dtype",
    "recurrent_dropout",
    "zoneout",
    "dropconnect",
)


def check_ours(cell: Any, kind: type) -> None:
    """``cell`` is one that ``scan`` can run."""
    if not isinstance(cell, kind):
        article = "an" if kind.__name__.startswith("MGU") else "a"
        raise TypeError(f"cell must be {article} {kind.__name__} of mgu_jax; got {checks.describe(cell)}.")


def check_options(options: Any) -> None:
    """They are static options of ``scan``, and nothing that a call brings."""
    for name in options or {}:
        if name not in OPTIONS:
            raise TypeError(f"options must hold options of mgu_jax.scan, such as save; got {checks.describe(name)}.")
