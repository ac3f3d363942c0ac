"""The cells that experiments compare, by the names of ``--cell``, each as a model of one layer; and their sizes."""

from dataclasses import dataclass
from typing import Any, Literal

import jax

import mgu_jax as mgu
from experiments.harness import baselines
from mgu_jax.layer.initial import Chrono

FAMILY = {
    "mgu": mgu.MGU,
    "mgu1": mgu.MGU1,
    "mgu2": mgu.MGU2,
    "mgu3": mgu.MGU3,
    "reset-after-mgu": mgu.RESET_AFTER_MGU,
    "flax-mgu": mgu.FLAX_MGU,
    "ugrnn": mgu.UGRNN,
    "diagonal-mgu": mgu.DIAGONAL_MGU,
    "min-gru": mgu.MIN_GRU,
}
# Ours, then Flax's own.
CellName = Literal[
    "mgu",
    "mgu1",
    "mgu2",
    "mgu3",
    "reset-after-mgu",
    "flax-mgu",
    "ugrnn",
    "diagonal-mgu",
    "min-gru",
    "gru",
    "lstm",
    "linen-mgu",
]


@dataclass(frozen=True)
class WithChrono:
    """A model whose ``init`` draws its forget biases by chrono initialisation, whatever number it is given."""

    model: Any
    chrono: Chrono

    def init(self, key: Any, *, forget_bias: Any = None, initial_scale: Any = 1.0) -> Any:
        return self.model.init(key, forget_bias=self.chrono, initial_scale=initial_scale)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


def build(
    name: str, input_size: int, hidden_size: int, output_size: int, chrono: Chrono | None = None, **options: Any
) -> Any:
    """A model of one layer.

    Args:
        name: one of ``CellName``.
        input_size, hidden_size, output_size: D or the number of tokens, H, K.
        chrono: forget biases for memories of many lengths, in place of the number that ``init`` gets.
        options: ``readout``, ``embedding_size`` and ``dropout``, as ``mgu_jax.Model`` takes them; and those that only
            ``mgu_jax.Model`` takes, for our own cells.

    Raises:
        ValueError: chrono for a cell without a forget bias, or what the model does not take.
    """
    if name in FAMILY:
        model: Any = mgu.Model(input_size, (hidden_size,), output_size, FAMILY[name], **options)
    else:
        model = baselines.baseline(name, input_size, hidden_size, output_size, **options)
    if chrono is None:
        return model
    if not has_forget_bias(name):
        raise ValueError(f"forget_bias can be chrono only for a cell with a forget bias; got {name}.")
    return WithChrono(model, chrono)


def has_forget_bias(name: str) -> bool:
    return name not in FAMILY or "b" in FAMILY[name].gate


def counts(model: Any) -> dict[str, int]:
    """How many parameters a model has: all of them, and those of the recurrent layer alone."""
    params = jax.eval_shape(model.init, jax.random.key(0))
    layer = params.cell if isinstance(params, baselines.BaselineParams) else params.layers
    return {"all": mgu.count(params), "recurrent": mgu.count(layer)}


def width_of(name: str, parameters: int, *sizes: int, **options: Any) -> int:
    """The H at which the layer of a model of this cell has as many parameters as asked for, or as near as can be.

    Args:
        name: of the cell.
        parameters: how many.
        sizes, options: input_size and output_size of the model, and as ``build`` takes them.
    """
    input_size, output_size = sizes

    def of(hidden_size: int) -> int:
        return counts(build(name, input_size, hidden_size, output_size, **options))["recurrent"]

    low, high = 1, 2
    while of(high) < parameters:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if of(middle) < parameters else (low, middle)
    return min((low, high), key=lambda hidden_size: abs(of(hidden_size) - parameters))
