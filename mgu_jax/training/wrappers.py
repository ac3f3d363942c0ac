"""What is put around an optimiser: lookahead's second parameters, an average of the parameters, batches passed over.

Each wrapper is a transformation of optax whose parameters are those of the model. What it needs beside them is in its
state, so it is saved, resumed and swept with the rest of the optimiser's state.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from mgu_jax import checks
from mgu_jax.training.devices import to_host
from mgu_jax.training.losses import widened

Transformation = optax.GradientTransformationExtraArgs


class Paired(NamedTuple):
    """The state of an optimiser that works on ``optax.LookaheadParams``; the fast parameters are the model's."""

    inner: Any
    slow: Any


def paired(optimizer: Transformation) -> Transformation:
    """The same optimiser, for which the fast parameters alone are passed and updated."""

    def init(params: Any) -> Paired:
        return Paired(optimizer.init(optax.LookaheadParams.init_synced(params)), params)

    def update(updates: Any, state: Any, params: Any = None, **more: Any) -> tuple[Any, Any]:
        pair: Any = optax.LookaheadParams(params, state.slow)
        moved, inner = optimizer.update(updates, state.inner, pair, **more)
        new: Any = moved
        return new.fast, Paired(inner, optax.apply_updates(state.slow, new.slow))

    return Transformation(init, update)


def needs_pair(optimizer: optax.GradientTransformation, params: Any) -> bool:
    """Whether the optimiser is ``optax.lookahead``, or contains it."""
    try:
        state = jax.eval_shape(lambda params: optimizer.init(optax.LookaheadParams.init_synced(params)), params)
    except Exception:  # one that looks at the structure of the parameters
        return False
    return bool(_states(state, optax.LookaheadState))


class Averaged(NamedTuple):
    """The state of an optimiser, and the average of the parameters after each of its steps."""

    inner: Any
    count: Array  # int32, steps in the average
    average: Any  # in float32 or wider


@dataclass(frozen=True)
class Average:
    """An exponential moving average of the parameters, as ``ema`` makes it for ``Recipe(evaluate_at=)``."""

    decay: float

    def __call__(self, opt_state: Averaged, params: Any) -> Any:
        """The average; params if there was no step yet."""
        return jax.tree.map(lambda average, p: average.astype(p.dtype), opt_state.average, params)

    def around(self, optimizer: Transformation) -> Transformation:
        """The optimiser, with the average in its state."""

        def init(params: Any) -> Averaged:
            return Averaged(optimizer.init(params), jnp.int32(0), jax.tree.map(jnp.asarray, widened(params)))

        def update(updates: Any, state: Any, params: Any = None, **more: Any) -> tuple[Any, Any]:
            updates, inner = optimizer.update(updates, state.inner, params, **more)
            count = state.count + 1
            decay = jnp.float32(self.decay)
            # The weight of the newest is (1 - decay) / (1 - decay^count): without bias, the first average is params.
            weight = (1 - decay) / (1 - decay ** count.astype(jnp.float32))

            def moved(average: Any, new: Any) -> Any:
                return average + weight.astype(average.dtype) * (new.astype(average.dtype) - average)

            average = jax.tree.map(moved, state.average, optax.apply_updates(params, updates))
            return updates, Averaged(inner, count, average)

        return Transformation(init, update)


def ema(decay: float) -> Average:
    """The exponential moving average of the parameters, for ``Recipe(evaluate_at=mgu_jax.ema(0.999))``.

    The validation measures the average, and ``best`` holds it. It is without bias: after n steps, the weights of the n
    parameters add up to 1 (Kingma and Ba 2015, arXiv 1412.6980, section 3). It is kept in float32 or wider.

    Args:
        decay: the weight of the earlier average, in [0, 1); about 1 / (1 - decay) steps are averaged.

    Raises:
        ValueError: decay is not a known number in [0, 1).
    """
    checks.check_rate("decay", decay)
    if not checks.is_concrete(decay):
        raise ValueError(f"decay must be a known number in [0, 1); got {checks.describe(decay)}.")
    return Average(float(decay))


def passes_over(opt_state: Any) -> bool:
    """Whether the optimiser passes over gradients that are not finite, as ``optax.apply_if_finite`` does."""
    return bool(_states(opt_state, optax.ApplyIfFiniteState))


def passed_over(state: Any) -> Any:
    """The number of batches that a run passed over since its beginning; of a sweep, that of each member, [M].

    Args:
        state: the ``TrainState`` or ``Sweep``. It is 0 if the optimiser passes over no batch.
    """
    members = getattr(state, "members", state)
    found = [to_host(s.total_notfinite) for s in _states(members.opt_state, optax.ApplyIfFiniteState)]
    counts = np.sum(found, 0) if found else np.zeros(np.shape(members.step), int)
    return counts if np.ndim(counts) else int(counts)


def _states(tree: Any, kind: type) -> list[Any]:
    """The parts of a tree that are of this kind."""
    leaves = jax.tree.leaves(tree, is_leaf=lambda part: isinstance(part, kind))
    return [leaf for leaf in leaves if isinstance(leaf, kind)]
