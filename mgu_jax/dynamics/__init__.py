"""What the exact derivatives say about a trained layer.

    jacobian, jvp, vjp                  one step, linearised (``linear``)
    fixed_points, newton                where the state stays, and how it moves nearby (``points``)
    lyapunov                            how fast neighbouring states part or meet (``exponents``)
    memory                              what the last state owes to each earlier step (``remembering``)
    stability, stability_penalty        a certificate that the layer forgets its initial state (``certificate``)

All take the ``Params`` of one layer, such as ``model_params.layers[0]``, and its cell. README.md in this folder shows
each with a figure, drawn by ``plots`` (extra experiments).
"""

from mgu_jax.dynamics import plots
from mgu_jax.dynamics.certificate import Stability, stability, stability_penalty
from mgu_jax.dynamics.exponents import lyapunov
from mgu_jax.dynamics.linear import jacobian, jvp, vjp
from mgu_jax.dynamics.points import FixedPoints, fixed_points, newton
from mgu_jax.dynamics.remembering import Memory, memory

__all__ = [
    "FixedPoints",
    "Memory",
    "Stability",
    "fixed_points",
    "jacobian",
    "jvp",
    "lyapunov",
    "memory",
    "newton",
    "plots",
    "stability",
    "stability_penalty",
    "vjp",
]
