"""Fair timing on a noisy machine: all functions in one process, in turn, round after round."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mgu_jax.training.data import Data
from mgu_jax.training.devices import AXIS, mesh_of, put
from mgu_jax.training.hyper import Hyper
from mgu_jax.training.start import Sweep
from mgu_jax.training.step import Recipe, run_steps
from mgu_jax.training.sweep import run_members

Size = tuple[int, int, int, int]  # B, T, D, H
Timed = tuple[Callable[..., Any], tuple[Any, ...]]  # a function and its arguments


def seconds(function: Callable[..., Any], *arguments: Any) -> float:
    """The seconds of one call, until its results are computed."""
    began = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - began


def alternate(
    contestants: Mapping[str, Timed], budget: float, least: int = 5, most: int = 200
) -> dict[str, np.ndarray]:
    """The seconds of every round, by name: each function once per round, as many rounds as ``budget`` seconds allow.

    The first two calls of each are not counted: one compiles, one estimates the time of a round. The order changes from
    round to round, since a function that follows a large product finds cold caches. A pause separates the calls, since
    threads may still spin.
    """
    runs = {name: partial(seconds, function, *arguments) for name, (function, arguments) in contestants.items()}
    return alternate_runs(runs, budget, least, most)


def alternate_runs(
    runs: Mapping[str, Callable[[], float]], budget: float, least: int = 5, most: int = 200
) -> dict[str, np.ndarray]:
    """As ``alternate``, for functions that return how many seconds they took."""
    for run in runs.values():
        run()
    once = sum(run() for run in runs.values())
    rounds, order = int(min(most, max(least, budget / once))), np.random.default_rng(0)
    times = {name: np.empty(rounds) for name in runs}
    for i in range(rounds):
        for name in order.permutation(list(runs)):
            time.sleep(0.002)
            times[name][i] = runs[name]()
    return times


def members_beside_one(
    recipe: Recipe, state: Sweep, hyper: Hyper, data: Data, *, steps: int, devices: int, budget: float
) -> dict[str, float]:
    """Seconds of a call for all members, split over devices, and of one member on one device times their number.

    ``hyper`` has one entry per member, [M].
    """
    count = len(state.stopped)
    mesh = mesh_of(devices, "members", count)
    one, its = jax.tree.map(lambda a: a[0], jax.device_put((state.members, hyper), jax.devices()[0]))
    members, stopped, hyper = put((state.members, state.stopped, hyper), mesh, AXIS)
    there, data = put(data, mesh), jax.device_put(data)

    def together() -> Any:
        return run_members(members, stopped, hyper, there, recipe=recipe, steps=steps, mesh=mesh)

    def alone() -> Any:
        return run_steps(one, its, data, recipe=recipe, steps=steps)

    times = alternate({"all": (together, ()), "one": (alone, ())}, budget)
    return {
        "seconds": float(np.median(times["all"])),
        "seconds_one_by_one": count * float(np.median(times["one"])),
        "share": ratio(times["all"], times["one"]) / count,
    }


def spread(times: np.ndarray) -> dict[str, float]:
    """Median and quartiles, in milliseconds."""
    low, median, high = 1e3 * np.quantile(times, [0.25, 0.5, 0.75])
    return {"ms": float(median), "low": float(low), "high": float(high)}


def ratio(times: np.ndarray, ours: np.ndarray) -> float:
    """The time relative to ours: the median of the ratios of all rounds, so that a slow minute affects both."""
    return float(np.median(times / ours))


def product_2048() -> Timed:
    """A product of 2048^3 multiply-adds, which shows what the machine can do at that time."""
    a = jnp.ones((2048, 2048), jnp.float32)
    return jax.jit(jnp.matmul), (a, a)


FLOP_2048 = 2 * 2048**3


def flop(size: Size, which: str) -> int:
    """Multiplications and additions in the products of one MGU layer; a backward pass has twice those of a forward."""
    B, T, D, H = size
    return 2 * B * T * (2 * D * H + 2 * H * H) * {"forward": 1, "both": 3}[which]
