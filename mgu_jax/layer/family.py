"""The family of one-gate cells: ``Cell``, the specification of a member, and the named members."""

import math
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any

from mgu_jax import checks
from mgu_jax.layer.params import Params

ACTIVATIONS = ("tanh", "relu", "identity")


@dataclass(frozen=True)
class Cell:
    """A member of the family. It is frozen and hashable, so ``jit`` treats it as a constant.

    Attributes:
        gate: what feeds the gate: the letters of input x, state h and bias b, in this order ("xhb", "xh", "h", ...).
        reset: whether f scales the state "before" its product with U_h, the product "after" it, or "none".
        update: the share of the state that the candidate takes, "f" (the paper's sign) or "1-f" (Flax's).
        candidate: what feeds the candidate, "xhb", or "xb" for a candidate that does not see the state.
        recurrence: "dense" (U is [H, H]) or "diagonal" (U is [H], the recurrence is elementwise).
        activation: of the candidate, "tanh", "relu" or "identity".
        beta: from -3 to 3; where it is positive, the update writes more of the candidate than it takes from the state,
            and where negative less: with f = sigmoid(z_f), the new state is (1 - f)*h + sigmoid(beta + z_f)*c, or
            f*h + sigmoid(beta - z_f)*c for the update "1-f" (van der Westhuizen and Lasenby 2018, arXiv 1804.04849).
        layer_norm: whether each pre-activation is normalised over its H features before the bias, with gains g_f and
            g_h: z = g*(s - mean)/std + b (Ba, Kiros and Hinton 2016, arXiv 1607.06450).

    Raises:
        ValueError: an unknown value, a beta that is not a number from -3 to 3, or a reset for a candidate that does
            not see the state.
    """

    gate: str = "xhb"
    reset: str = "before"
    update: str = "f"
    candidate: str = "xhb"
    recurrence: str = "dense"
    activation: str = "tanh"
    layer_norm: bool = False
    beta: float = 0.0

    def __post_init__(self) -> None:
        checks.check_choice("gate", self.gate, ("xhb", "xh", "xb", "hb", "x", "h", "b"))
        checks.check_choice("reset", self.reset, ("before", "after", "none"))
        checks.check_choice("update", self.update, ("f", "1-f"))
        checks.check_choice("candidate", self.candidate, ("xhb", "xb"))
        checks.check_choice("recurrence", self.recurrence, ("dense", "diagonal"))
        checks.check_choice("activation", self.activation, ACTIVATIONS)
        checks.check_choice("layer_norm", self.layer_norm, (False, True))
        # The share written is computed from f, whose error a large beta would multiply by e^|beta|.
        if isinstance(self.beta, bool) or not isinstance(self.beta, Real) or not -3 <= self.beta <= 3:
            raise ValueError(f"beta must be a number from -3 to 3; got {checks.describe(self.beta)}.")
        object.__setattr__(self, "beta", float(self.beta))  # equal cells are written alike
        if "h" not in self.candidate and self.reset != "none":
            raise ValueError(f"reset must be 'none' for a candidate that does not see the state; got {self.reset!r}.")

    def __repr__(self) -> str:
        """The attributes that differ from the paper's cell."""
        changed = (f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if getattr(self, f.name) != f.default)
        return f"Cell({', '.join(changed)})"

    def shapes(self, input_size: int, hidden_size: int) -> Params:
        """A ``Params`` of the shapes for D input and H hidden features, ``None`` for a term that the member lacks."""
        W, b = (input_size, hidden_size), (hidden_size,)
        U = b if self.recurrence == "diagonal" else (hidden_size, hidden_size)
        return Params(
            W_f=W if "x" in self.gate else None,
            U_f=U if "h" in self.gate else None,
            b_f=b if "b" in self.gate else None,
            W_h=W,
            U_h=U if "h" in self.candidate else None,
            b_h=b,
            b_r=b if self.reset == "after" else None,
            g_f=b if self.layer_norm and self.gate != "b" else None,
            g_h=b if self.layer_norm else None,
        )

    @property
    def linear(self) -> bool:
        """Whether the new state is linear in the old one: neither gate nor candidate sees it."""
        return "h" not in self.gate and "h" not in self.candidate

    @property
    def bound(self) -> float | None:
        """The size that no state exceeds if the state before did not; ``None`` where the cell alone sets none.

        tanh bounds the candidate by 1, and the share written is at most exp(beta) times the share given up.
        """
        return max(1.0, math.exp(self.beta)) if self.activation == "tanh" else None

    @property
    def elementwise(self) -> bool:
        """Whether the new state of a unit depends on no other unit's old state, so that the Jacobian is diagonal."""
        return self.linear or (self.recurrence == "diagonal" and not self.layer_norm)

    @property
    def joint(self) -> bool:
        """Whether U_f and U_h multiply the same rows in a step, so that one product of width 2H can replace the two."""
        both_see_h = "h" in self.gate and "h" in self.candidate
        return self.reset != "before" and self.recurrence == "dense" and both_see_h


MGU = Cell()  # Zhou et al. 2016, arXiv 1603.09420
MGU1 = Cell(gate="hb")  # Heck and Salem 2017, arXiv 1701.03452
MGU2 = Cell(gate="h")  # "
MGU3 = Cell(gate="b")  # "
RESET_AFTER_MGU = Cell(reset="after")  # the form that cuDNN, PyTorch and Keras give their GRU
FLAX_MGU = Cell(reset="after", update="1-f")  # flax.linen.MGUCell(reset_gate=True)
UGRNN = Cell(reset="none")  # Collins, Sohl-Dickstein and Sussillo 2016, arXiv 1611.09913
DIAGONAL_MGU = Cell(recurrence="diagonal")  # the paper's cell with an elementwise recurrence
JANET = Cell(reset="none", update="1-f", beta=1.0)  # van der Westhuizen and Lasenby 2018, arXiv 1804.04849
MIN_GRU = Cell(gate="xb", candidate="xb", reset="none", activation="identity")  # Feng et al. 2024, arXiv 2410.01201


def check_cell(cell: Any) -> None:
    """Raise TypeError unless cell is a member of the family."""
    if not isinstance(cell, Cell):
        raise TypeError(f"cell must be an mgu_jax.Cell, such as mgu_jax.MGU; got {checks.describe(cell)}.")
