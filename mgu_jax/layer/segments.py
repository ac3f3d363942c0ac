"""Time in segments: a loop over time does at once, segment by segment, what does not have to wait for the step before.

Done for all steps at once, input products and weight gradients fill buffers of T*B*H numbers that are written to
memory and read back; for a segment of steps whose buffers fit a processor's cache, none of that is needed.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

SAVE = ("gates", "states", "segments")
_SMALL = 2**21  # bytes of the states of a sequence that is best done in one segment
_CACHE = 2**19  # bytes of the states of a segment, where there are several


def is_known(size: Any) -> bool:
    """Whether a size is a number, and not a symbol of ``jax.export``."""
    return isinstance(size, int)


def length(save: str, steps: int, state_bytes: int, on_cpu: bool = True) -> int:
    """How many steps make a segment, if the user does not say.

    A segment's states fill half a MiB: a segment needs about ten times that while it is worked on, and what stays in
    the cache is neither allocated nor fetched. What saves memory takes shorter segments, a sixth of the steps or their
    square root. Segments of equal length, if there are any at up to twice the number, compile to one loop instead of
    two. All this is measured on CPUs; elsewhere a segment is what memory asks for. Under ``vmap`` the bytes are those
    of one member.
    Where ``jax.export`` leaves a size open, nothing can be weighed, and one segment takes all steps.
    """
    if not (is_known(steps) and is_known(state_bytes)):
        return steps
    if save == "gates" and (not on_cpu or steps * state_bytes <= _SMALL):
        return max(1, steps)
    most = max(1, _CACHE // max(1, state_bytes)) if on_cpu else steps
    if save != "gates":
        most = min(most, max(1, steps // 6 if save == "states" else math.isqrt(steps)))
    count = max(1, round(steps / most))
    equal = [n for n in range(count, 2 * count + 1) if steps % n == 0]
    return max(1, math.ceil(steps / (equal or [count])[0]))


def cut(rows: Any, length: int, reverse: bool) -> list[Any]:
    """rows [T, ...] as stacks of segments [C, length, ...], in the order of running.

    Steps that are left over make a stack of one shorter segment, which runs last.
    """
    steps = jax.tree.leaves(rows)[0].shape[0]
    if not is_known(steps):
        return [jax.tree.map(lambda a: a[None], rows)]
    rest = steps % length
    spans = [(rest, steps), (0, rest)] if reverse else [(0, steps - rest), (steps - rest, steps)]

    def stack(a: Array, first: int, last: int) -> Array:
        count = max(1, (last - first) // length)
        return a[first:last].reshape(count, (last - first) // count, *a.shape[1:])

    # Without any step there is one segment of none.
    kept = [(i, j) for i, j in spans if i < j] or spans[:1]
    return [jax.tree.map(lambda a, i=i, j=j: stack(a, i, j), rows) for i, j in kept]


def join(stacks: list[Any], reverse: bool) -> Any:
    """The rows [T, ...] of stacks of segments: the inverse of ``cut``."""
    flat = [jax.tree.map(lambda a: a.reshape(a.shape[0] * a.shape[1], *a.shape[2:]), stack) for stack in stacks]
    if len(flat) == 1:
        return flat[0]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *(flat[::-1] if reverse else flat))


def over(segment: Callable[[Any, Any], tuple[Any, Any]], carry: Any, stacks: list[Any], reverse: bool) -> Any:
    """``lax.scan`` of ``segment`` over all segments of all stacks: the last carry, and the outputs as stacks."""
    outputs = []
    for stack in stacks:
        if jax.tree.leaves(stack)[0].shape[0] == 1:  # no loop around one segment
            carry, output = segment(carry, jax.tree.map(lambda a: a[0], stack))
            output = jax.tree.map(lambda a: a[None], output)
        else:
            carry, output = lax.scan(segment, carry, stack, reverse=reverse)
        outputs.append(output)
    return carry, outputs
