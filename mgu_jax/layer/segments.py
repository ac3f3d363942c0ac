"""Time in segments: what does not have to wait for the previous step is done for all steps of a segment at once.

If it were done for all T steps at once, input products and weight gradients would fill buffers of T*B*H numbers, which
go to memory and back. The buffers of a segment fit a processor's cache.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

SAVE = ("gates", "states", "segments")
_SMALL = 2**21  # bytes of states up to which a whole sequence is one segment
_CACHE = 2**19  # bytes of states in one segment of several


def is_known(size: Any) -> bool:
    """Whether a size is a number and not a symbol of ``jax.export``."""
    return isinstance(size, int)


def length(save: str, steps: int, state_bytes: int, on_cpu: bool = True) -> int:
    """The number of steps in a segment where the user does not choose it; ``state_bytes`` is the size of one h [B, H].

    On a CPU the states of a segment fill half a MiB. Working on a segment takes about ten times that, which stays in
    the cache. With save="states" a segment has at most a sixth of the steps, with save="segments" at most their square
    root, since memory is the aim there; on other devices these are the only bounds. The number of segments may be up
    to twice as large as needed if they can then have equal lengths, and compile to one loop instead of two. All this
    was measured on CPUs.

    Under ``vmap`` the bytes are those of one member. If ``jax.export`` leaves a size open, the result is ``steps``.
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
    """Stacks of segments [number of segments, length, ...], in the order in which they run, from rows [T, ...].

    If length does not divide T, the remaining steps are a second stack with one shorter segment, which runs last.
    """
    steps = jax.tree.leaves(rows)[0].shape[0]
    if not is_known(steps):
        return [jax.tree.map(lambda a: a[None], rows)]
    rest = steps % length
    spans = [(rest, steps), (0, rest)] if reverse else [(0, steps - rest), (steps - rest, steps)]

    def stack(a: Array, first: int, last: int) -> Array:
        count = max(1, (last - first) // length)
        return a[first:last].reshape(count, (last - first) // count, *a.shape[1:])

    # T = 0 gives one segment without steps.
    kept = [(i, j) for i, j in spans if i < j] or spans[:1]
    return [jax.tree.map(lambda a, i=i, j=j: stack(a, i, j), rows) for i, j in kept]


def join(stacks: list[Any], reverse: bool) -> Any:
    """The rows [T, ...] of stacks of segments: the inverse of ``cut``."""
    flat = [jax.tree.map(lambda a: a.reshape(a.shape[0] * a.shape[1], *a.shape[2:]), stack) for stack in stacks]
    if len(flat) == 1:
        return flat[0]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *(flat[::-1] if reverse else flat))


def over(
    segment: Callable[[Any, Any], tuple[Any, Any]], carry: Any, stacks: list[Any], reverse: bool
) -> tuple[Any, list[Any]]:
    """The last carry, and the outputs as stacks, of ``segment(carry, rows)`` for one segment after another."""
    outputs = []
    for stack in stacks:
        if jax.tree.leaves(stack)[0].shape[0] == 1:  # one segment needs no loop
            carry, output = segment(carry, jax.tree.map(lambda a: a[0], stack))
            output = jax.tree.map(lambda a: a[None], output)
        else:
            carry, output = lax.scan(segment, carry, stack, reverse=reverse)
        outputs.append(output)
    return carry, outputs
