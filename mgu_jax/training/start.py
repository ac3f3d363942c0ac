"""The state before the first step, of one run and of a sweep, and the check of a state to continue from."""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from mgu_jax import checks
from mgu_jax.model import Model, check_reads_on
from mgu_jax.training.devices import on_own_devices, to_host
from mgu_jax.training.evaluate import Validation
from mgu_jax.training.hyper import Hyper, as_settings, check_hyper, check_one_setting, per_member
from mgu_jax.training.step import Best, Recipe, TrainState


class Sweep(NamedTuple):
    """Everything that changes during a sweep of M members."""

    step: Array  # int32, the number of steps done
    members: TrainState  # every entry [M, ...]
    stopped: Array  # int32 [M]: the step at which a member was frozen; -1 if it was not


@on_own_devices
def start(
    recipe: Recipe, key: Array, hyper: Hyper = Hyper(), *, validation: Validation | None = None, parts: int = 1
) -> Any:
    """The state before the first step: a ``TrainState`` for one PRNG key, a ``Sweep`` for keys [seeds].

    ``fit`` and ``sweep`` start from this state by themselves. It is needed to look at the initial parameters, to change
    them, or to say how a checkpoint is restored.

    Args:
        recipe: the static side of the run.
        key: one PRNG key, from which all randomness of the run follows; or keys [seeds], one per seed of a sweep.
        hyper: the numbers of the run; for a sweep, each may be an array [N] of settings.
        validation: that of the run, if it has one. The state then holds the best parameters so far.
        parts: the number of parts of the data of a sweep.

    Raises:
        TypeError: an argument of another type.
        ValueError: numbers out of bounds, or settings of different lengths.
    """
    check_parts(recipe, hyper, validation)
    checks.check_size("parts", parts)
    if checks.is_keys(key):
        return init_sweep(recipe, per_part(checks.as_keys("key", key), parts), hyper, validation)
    key = checks.as_key("key", key)
    check_one_setting(hyper)
    return init_state(recipe, key, hyper, validation)


def check_parts(recipe: Any, hyper: Any, validation: Any) -> None:
    """Check the types of the parts of a run, and the bounds of its numbers.

    Raises:
        TypeError: a part has another type.
        ValueError: a number is out of bounds, or nothing tells which parameters are best.
    """
    for name, value, kind in (("recipe", recipe, Recipe), ("hyper", hyper, Hyper)):
        if not isinstance(value, kind):
            raise TypeError(f"{name} must be a {kind.__name__}; got {checks.describe(value)}.")
    if validation is not None:
        if not isinstance(validation, Validation):
            raise TypeError(f"validation must be a Validation; got {checks.describe(validation)}.")
        validation.is_higher_better(recipe)
    check_hyper(hyper)


def init_state(recipe: Recipe, key: Array, hyper: Hyper, validation: Validation | None = None) -> TrainState:
    """``start`` for one key."""
    init_key, run_key = jax.random.split(key)
    options = {"forget_bias": hyper.forget_bias, "initial_scale": hyper.initial_scale}
    if hyper.hidden_size is not None:
        options["hidden_size"] = checks.as_size("hyper.hidden_size", hyper.hidden_size)
    example = f"model.init({', '.join(['key', *(f'{name}=' for name in options)])})"
    checks.check_takes("model.init", recipe.model.init, example, key, **options)

    def init() -> Any:
        return recipe.model.init(init_key, **options)

    known = isinstance(recipe.model, Model)
    given = " and ".join(filter(None, [", ".join(["a key", *list(options)[:-1]]), list(options)[-1]]))
    params = init() if known else checks.tried("model.init", given, init)
    carry = None if recipe.window is None else recipe.model.start(params, (recipe.batch_size,))
    check_reads_on(carry)
    state = TrainState(jnp.int32(0), params, _init_optimizer(recipe, hyper, params), run_key, carry)
    return with_best(state, validation, recipe)


def _init_optimizer(recipe: Recipe, hyper: Hyper, params: Any) -> Any:
    """The optimiser's first state. What a user wrote of it is tried on shapes, so that it fails here and named.

    Raises:
        TypeError: the optimiser cannot update these parameters, or evaluate_at does not give such parameters.
    """
    if isinstance(recipe.optimizer, str) and recipe.evaluate_at is None:
        return recipe.build(hyper, params).init(params)

    def update(params: Any, opt_state: Any) -> Any:
        def value_fn(params: Any) -> Array:
            return sum((jnp.sum(a * a) for a in jax.tree.leaves(params)), jnp.zeros((), value.dtype))

        value = jax.tree.leaves(params)[0].reshape(-1)[0]
        updates, new = optimizer.update(params, opt_state, params, value=value, grad=params, value_fn=value_fn)
        return optax.apply_updates(params, updates), new

    try:
        optimizer = recipe.build(hyper, params)
        opt_state = optimizer.init(params)
        reached = jax.eval_shape(update, params, opt_state)
        _check_alike((params, opt_state), reached)
    except Exception as error:
        why = f"{type(error).__name__}: {error}".partition("\n")[0].rstrip(".")
        example = "lambda hyper: optax.adam(hyper.learning_rate)"
        rule = f"optimizer must make an update of the model's parameters from a Hyper, as {example} does"
        raise TypeError(f"{rule}; it raised {why}.") from error
    try:
        state = TrainState(jnp.int32(0), params, opt_state, jnp.int32(0))
        _check_alike(params, jax.eval_shape(recipe.eval_params, state))
    except Exception as error:
        why = f"{type(error).__name__}: {error}".partition("\n")[0].rstrip(".")
        rule = "evaluate_at must make the model's parameters from the optimiser's state and the parameters"
        raise TypeError(f"{rule}; it raised {why}.") from error
    return opt_state


def _check_alike(wanted: Any, came: Any) -> None:
    """Raise TypeError unless two trees have the same structure and shapes, and dtypes."""
    wanted, came = checks.leaf_specs("", wanted), checks.leaf_specs("", came)
    for path in wanted | came:
        if wanted.get(path) != came.get(path):
            raise TypeError(f"{path} must stay {wanted.get(path, 'absent')}, and became {came.get(path, 'absent')}")


def per_part(keys: Array, parts: int) -> Array:
    """The keys [seeds] for every part of the data, [seeds * parts]: the parts of a seed are side by side."""
    return jnp.repeat(keys, parts) if parts > 1 else keys


def init_sweep(recipe: Recipe, keys: Array, hyper: Hyper, validation: Validation | None = None) -> Sweep:
    """``start`` for keys [seeds]: the members of one setting are side by side, one per key."""
    hyper, count = as_settings(hyper)
    each, sizes, which = per_member(hyper, len(keys)), None, None
    if hyper.hidden_size is not None:  # each size is drawn by a function of its own
        sizes, which = np.unique(to_host(each.hidden_size).astype(np.int32), return_inverse=True)
        sizes, which = tuple(sizes.tolist()), jnp.asarray(which, jnp.int32)
    members = _init_members(jnp.tile(keys, count), each._replace(hidden_size=None), which, recipe, sizes)
    return Sweep(jnp.int32(0), with_best(members, validation, recipe), jnp.full(count * len(keys), -1, jnp.int32))


@partial(jax.jit, static_argnames=("recipe", "sizes"))
def _init_members(
    keys: Array, hyper: Hyper, which: Array | None, recipe: Recipe, sizes: tuple[int, ...] | None
) -> TrainState:
    def one(member: tuple[Array, Hyper, Array | None]) -> TrainState:
        key, hyper, which = member
        if sizes is None:
            return init_state(recipe, key, hyper)
        draw = [lambda size=size: init_state(recipe, key, hyper._replace(hidden_size=size)) for size in sizes]
        return lax.switch(which, draw)

    # Not vmap: a model's init may call what must not run twice at once, such as the orthogonal initializer.
    return lax.map(one, (keys, hyper, which))


def with_best(state: TrainState, validation: Validation | None, recipe: Recipe) -> TrainState:
    """The state, of a run or of members, with a ``best`` if there is a validation.

    A best that it has is kept, unless it comes from a metric that is better in the other direction.
    """
    if validation is None:
        return state
    higher = validation.is_higher_better(recipe)
    if state.best is not None and bool(np.all(to_host(state.best.higher) == higher)):
        return state
    worst, direction = (
        jnp.full_like(state.step, *how) for how in ((-math.inf if higher else math.inf, jnp.float32), (higher, bool))
    )
    return state._replace(best=Best(worst, state.step, state.params, jnp.zeros_like(state.step), direction))


def improve(state: TrainState, params: Any, score: Any, counts: Any) -> TrainState:
    """The state with these parameters as the best if their score is better; of members, score and counts are [M].

    Where ``counts`` is false, nothing changes. nan is never better.
    """
    best: Any = state.best
    new = Best(score, state.step, params, jnp.zeros_like(state.step), best.higher)
    return state._replace(best=_better(new, best, counts))


@jax.jit
def _better(new: Best, old: Best, counts: Any) -> Best:
    better = jnp.where(old.higher, new.score > old.score, new.score < old.score) & counts

    def chosen(a: Array, b: Array) -> Array:
        return jnp.where(better.reshape(better.shape + (1,) * (a.ndim - better.ndim)), a, b)

    return jax.tree.map(chosen, new, old._replace(waited=old.waited + jnp.asarray(counts, jnp.int32)))


def check_train_state(recipe: Recipe, state: Any, members: bool = False) -> None:
    """Check that a state to continue from fits the recipe's model and optimiser.

    Raises:
        TypeError: it is not a ``TrainState``.
        ValueError: it does not fit the recipe.
    """
    if not isinstance(state, TrainState):
        raise TypeError(f"state must be a TrainState; got {checks.describe(state)}.")
    one = state._replace(best=None)
    if members:
        one = jax.eval_shape(lambda tree: jax.tree.map(lambda a: a[0], tree), one)
    # A state without a key of the new kind is told so by the comparison below.
    new = jnp.issubdtype(getattr(one.key, "dtype", jnp.uint32), jax.dtypes.prng_key)
    first = jax.eval_shape(lambda key: init_state(recipe, key, Hyper()), one.key if new else jax.random.key(0))
    wanted, came = checks.leaf_specs("state", first), checks.leaf_specs("state", one)
    for path in wanted | came:
        if wanted.get(path) != came.get(path):
            right, got = wanted.get(path, "nothing"), came.get(path, "nothing")
            raise ValueError(f"state must match the recipe: {path[1:]} must be {right}; got {got}.")
