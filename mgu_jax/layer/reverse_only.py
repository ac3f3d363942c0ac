"""A clear sentence where a hand-written backward pass meets forward-mode differentiation.

``jax.custom_vjp`` has no forward mode, and says so from deep inside JAX, at a place that names neither the function nor
the way out. ``reverse_only`` is the identity, and its derivative is a linear map of its own: reverse mode transposes
that map away before anything runs, forward mode has to run it, and that raises. Derivatives of a gradient in either
mode (``jax.hessian``, Hessian-vector products) never meet it, since the gradient has been through it by then.

A forward mode that is batched inside of ``jit`` (``jit`` of ``jacfwd``, ``jacfwd`` of ``jit``) cannot be told from a
reverse mode that is batched before it is transposed, and still ends in ``custom_vjp``'s own words.
"""

from typing import Any

import jax
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

SENTENCE = (
    "implementation 'manual' has a hand-written backward pass and no forward mode (jvp, jacfwd, linearize): "
    "use implementation='autodiff' there."
)


def _refuse(*_: Any, **__: Any) -> Any:
    raise TypeError(SENTENCE)


_tangent = Primitive("mgu_jax_reverse_only")
_tangent.def_abstract_eval(lambda tangent: tangent)
_tangent.def_impl(_refuse)
mlir.register_lowering(_tangent, _refuse)
ad.deflinear2(_tangent, lambda cotangent, _: [cotangent])
batching.defvectorized(_tangent)


@jax.custom_jvp
def _identity(x: Array) -> Array:
    return x


_identity.defjvp(lambda primals, tangents: (primals[0], _tangent.bind(tangents[0])))


def reverse_only(tree: Any) -> Any:
    """The same arrays; differentiating through them in forward mode raises ``TypeError``."""
    return jax.tree.map(_identity, tree)
