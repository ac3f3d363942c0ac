"""One clear sentence where forward-mode differentiation meets the hand-written backward pass.

``jax.custom_vjp`` has no forward mode. Its own error comes from deep inside JAX and names neither the function nor the
alternative. ``reverse_only`` is the identity, with a derivative that is a separate linear primitive: reverse mode
transposes the primitive away before anything runs, and forward mode has to run it, which raises. JAX's
``linear_call`` could not do this, since it traces its function in reverse mode too. Derivatives of a gradient in either
mode (``jax.hessian``, Hessian-vector products) never meet the primitive, since the gradient has removed it.

Under ``jit``, a batched forward mode (``jit`` of ``jacfwd``, ``jacfwd`` of ``jit``) looks like a reverse mode that is
batched before it is transposed, and still raises the error of ``custom_vjp``.
"""

from typing import Any

import jax
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

SENTENCE = (
    "implementation 'manual' has a hand-written backward pass and no forward mode (jvp, jacfwd, linearize): "
    "use implementation='autodiff' instead."
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
    """The same arrays; forward-mode differentiation through them raises ``TypeError``."""
    return jax.tree.map(_identity, tree)
