"""A kernel in the place of the code that defines it: on its platform, and with the derivative of that code."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from mgu_jax.layer.bptt import with_derivative_of


def on_platform(
    platform: str,
    kernel: Callable[..., Any],
    definition: Callable[..., Any],
    everywhere: Callable[[], bool] = lambda: False,
) -> Callable[..., Any]:
    """``definition``, computed by the kernel where XLA compiles for this platform, or everywhere.

    Both take a static plan and then arrays. The definition also serves where an array is empty.
    """

    def function(plan: Any, *arguments: Any) -> Any:
        with_kernel = functools.partial(kernel, plan)
        if any(0 in leaf.shape for leaf in jax.tree.leaves(arguments)):
            return definition(plan, *arguments)
        if everywhere():
            return with_kernel(*arguments)
        others = functools.partial(definition, plan)
        return lax.platform_dependent(*arguments, **{platform: with_kernel}, default=others)

    return with_derivative_of(definition, function)
