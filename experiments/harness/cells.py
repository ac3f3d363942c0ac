"""The cells that experiments compare, by their names in ``--cell``: models of one layer, and their parameter counts."""

from dataclasses import dataclass
from typing import Any, Literal

import jax
from jax import Array

import mgu_jax as mgu
from experiments.harness import baselines
from mgu_jax.layer.initial import Chrono, Drawn, UniformGate

FAMILY = {
    "mgu": mgu.MGU,
    "mgu1": mgu.MGU1,
    "mgu2": mgu.MGU2,
    "mgu3": mgu.MGU3,
    "reset-after-mgu": mgu.RESET_AFTER_MGU,
    "flax-mgu": mgu.FLAX_MGU,
    "ugrnn": mgu.UGRNN,
    "diagonal-mgu": mgu.DIAGONAL_MGU,
    "janet": mgu.JANET,
    "min-gru": mgu.MIN_GRU,
}
FLAGS = {Chrono: "chrono", UniformGate: "uniform"}
# Our cells, then Flax's.
CellName = Literal[
    "mgu",
    "mgu1",
    "mgu2",
    "mgu3",
    "reset-after-mgu",
    "flax-mgu",
    "ugrnn",
    "diagonal-mgu",
    "janet",
    "min-gru",
    "gru",
    "lstm",
    "linen-mgu",
]


@dataclass(frozen=True)
class WithBiases:
    """A model whose forget biases differ from unit to unit; ``init`` ignores the number that it is given."""

    model: Any
    forget_bias: Drawn

    def init(self, key: Array, *, forget_bias: Any = None, initial_scale: Any = 1.0) -> Any:
        return self.model.init(key, forget_bias=self.forget_bias, initial_scale=initial_scale)

    def apply(self, params: Any, xs: Any, **options: Any) -> Any:
        return self.model.apply(params, xs, **options)

    @property
    def readout(self) -> str:
        return self.model.readout

    def step(self, params: Any, x: Any, state: Any = None) -> Any:
        return self.model.step(params, x, state)

    def start(self, params: Any, batch: tuple[int, ...] = ()) -> Any:
        return self.model.start(params, batch)


def build(
    name: str, input_size: int, hidden_size: int, output_size: int, biases: Drawn | None = None, **options: Any
) -> Any:
    """A model of one layer.

    Args:
        name: one of ``CellName``.
        input_size, hidden_size, output_size: D or the number of different tokens, H, K.
        biases: replace the forget bias that ``init`` is given.
        options: ``readout``, ``embedding_size`` and ``dropout``, as ``mgu_jax.Model`` takes them; for our own cells
            also its other options.

    Raises:
        ValueError: biases for a cell without a forget bias, or an option that the model does not take.
    """
    if name in FAMILY:
        model: Any = mgu.Model(input_size, (hidden_size,), output_size, FAMILY[name], **options)
    else:
        model = baselines.baseline(name, input_size, hidden_size, output_size, **options)
    if biases is None:
        return model
    if not has_forget_bias(name):
        raise ValueError(f"forget_bias can be {FLAGS[type(biases)]} only for a cell with a forget bias; got {name}.")
    return WithBiases(model, biases)


def biases(forget_bias: Any, longest: int) -> Drawn | None:
    """What a flag asks for: forget biases that differ from unit to unit, or None for one number.

    Args:
        forget_bias: a number, "chrono" or "uniform".
        longest: steps of the longest sequence.
    """
    return {"chrono": mgu.chrono(max(3, longest)), "uniform": mgu.uniform_gate}.get(forget_bias)


def has_forget_bias(name: str) -> bool:
    return name not in FAMILY or "b" in FAMILY[name].gate


def other_initializer(row: dict[str, Any]) -> str | None:
    """The initial weights of a run, from its result.json; None for our cells' default ones, and for Flax's cells."""
    asked = row["settings"].get("initializer")
    return asked if row["cell"] in FAMILY and asked != "orthogonal" else None


def counts(model: Any) -> dict[str, int]:
    """The number of parameters of a model ("all") and of its recurrent layer ("recurrent")."""
    params = jax.eval_shape(model.init, jax.random.key(0))
    layer = params.cell if isinstance(params, baselines.BaselineParams) else params.layers
    return {"all": mgu.count(params), "recurrent": mgu.count(layer)}


def width_of(name: str, parameters: int, *sizes: int, **options: Any) -> int:
    """The H at which the layer of a model with this cell comes nearest to a number of parameters.

    Args:
        name: of the cell.
        parameters: the number.
        sizes, options: input_size and output_size of the model, and its options, as ``build`` takes them.
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
