"""Measure the overhead of training: the loop on the host, sweeps, several devices, checkpoints and padding."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

import mgu_jax as mgu
from experiments.run import BadRequest, Common, Run, use_devices
from experiments.speed import timing
from mgu_jax.training.checkpoint import Checkpoints
from mgu_jax.training.devices import mesh_of, put
from mgu_jax.training.hyper import as_settings, per_member
from mgu_jax.training.step import Recipe, TrainState, run_steps

CLASSES = 10
HYPER = mgu.Hyper()


@dataclass(frozen=True)
class Config(Common):
    """The flags of training."""

    devices: int | None = None
    """Number of devices to split work over; by default two, if there are two."""
    budget: float = 20.0
    """Seconds for each comparison."""


def _work(B: int, T: int, D: int, H: int, steps: int) -> tuple[Recipe, mgu.Data]:
    """A classifier of one layer, and data for it."""
    rng, samples = np.random.default_rng(0), B * min(steps, 4)
    xs = rng.normal(size=(samples, T, D)).astype(np.float32)
    data = mgu.Data(xs, rng.integers(0, CLASSES, samples).astype(np.int32))
    return Recipe(mgu.Model(D, (H,), CLASSES, readout="last"), batch_size=B), jax.device_put(data)


def _first(recipe: Recipe) -> TrainState:
    return mgu.start(recipe, jax.random.key(0))


def host_loop(quick: bool, budget: float) -> dict[str, Any]:
    """The time of ``fit`` with a progress bar, relative to the same calls of the compiled loop without it."""
    size, steps, calls = ((2, 3, 4, 5), 2, 2) if quick else ((32, 8, 8, 64), 100, 30)
    recipe, data = _work(*size, steps)
    first = _first(recipe)

    def alone() -> TrainState:
        state = first
        for _ in range(calls):
            state, losses = run_steps(state, HYPER, data, recipe=recipe, steps=steps)
            np.asarray(losses)  # any training looks at the loss
        return state

    def fit() -> TrainState:
        return mgu.fit(
            recipe, data, steps=calls * steps, key=jax.random.key(0), state=first, steps_per_call=steps, progress=True
        )[0]

    times = timing.alternate({"fit": (fit, ()), "loop": (alone, ())}, budget)
    return {"part": "host loop", "size": list(size), "steps": steps, "ms_of_a_call": _ms(times["loop"]) / calls} | {
        "relative_to_the_loop": timing.ratio(times["fit"], times["loop"])
    }


def devices_beside_one(quick: bool, budget: float, devices: int) -> dict[str, Any]:
    """Speed with the batch split over devices, relative to one device."""
    size, steps = ((2, 3, 4, 5), 2) if quick else ((64, 128, 64, 128), 10)
    recipe, data = _work(*size, steps)

    def on(devices: int) -> timing.Timed:
        mesh = mesh_of(devices, "samples of a batch", size[0])
        state, hyper, there = (put(tree, mesh) for tree in (_first(recipe), HYPER, data))
        return lambda: run_steps(state, hyper, there, recipe=recipe, steps=steps, mesh=mesh), ()

    times = timing.alternate({"one": on(1), "all": on(devices)}, budget)
    return {"part": "devices", "size": list(size), "devices": devices, "ms_of_a_step": _ms(times["all"]) / steps} | {
        "speedup": timing.ratio(times["one"], times["all"])
    }


def members(quick: bool, budget: float, devices: int) -> dict[str, Any]:
    """The time of a sweep over 64 members on all devices, relative to 64 times one member on one device."""
    size, steps, count = ((2, 3, 4, 5), 2, 4) if quick else ((32, 8, 8, 32), 40, 64)
    recipe, data = _work(*size, steps)
    state = mgu.start(recipe, jax.random.split(jax.random.key(0), count), HYPER)
    each = per_member(as_settings(HYPER)[0], count)
    found = timing.members_beside_one(recipe, state, each, data, steps=steps, devices=devices, budget=budget)
    return {"part": "members", "size": list(size), "count": count, "devices": devices} | {
        "ms": 1e3 * found["seconds"],
        "relative_to_one_by_one": found["share"],
    }


def checkpoints(quick: bool, budget: float, run: Run) -> dict[str, Any]:
    """For a state of 10 MB: the time of the call that saves it, and of the next call of the compiled loop."""
    size, steps = ((2, 3, 4, 5), 2) if quick else ((16, 32, 128, 590), 20)
    recipe, data = _work(*size, steps)
    state = jax.block_until_ready(_first(recipe))
    one_call = partial(timing.seconds, partial(run_steps, recipe=recipe, steps=steps), state, HYPER, data)
    saves, alone, beside = [], [], []
    one_call()
    with Checkpoints(run.path("checkpoints")) as saved:
        rounds = int(min(50, max(5, budget / (3 * one_call()))))
        for i in range(rounds):
            saved.wait()
            alone.append(one_call())
            began = time.perf_counter()
            saved.save(i, state)
            saves.append(time.perf_counter() - began)
            beside.append(one_call())
    bytes_saved = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    return {"part": "checkpoint", "size": list(size), "megabytes": bytes_saved / 1e6, "ms_of_save": _ms(saves)} | {
        "ms_of_a_call": _ms(alone),
        "ms_of_a_call_while_writing": _ms(beside),
    }


def lengths(quick: bool, budget: float) -> dict[str, Any]:
    """The time of an epoch in batches of similar length, relative to whole samples.

    The lengths are those of folk tunes as piano rolls: 254 steps in the mean and 1,788 at most.
    """
    count, longest, B, D, H = (12, 30, 2, 4, 5) if quick else (694, 1788, 16, 88, 100)
    rng = np.random.default_rng(0)
    ends = np.clip(rng.lognormal(np.log(longest / 9), 0.7, count), 1, longest).astype(np.int32)
    xs, labels = rng.random((count, longest, D), np.float32), rng.integers(0, CLASSES, count).astype(np.int32)
    data, recipe = mgu.Data(xs, labels, ends), Recipe(mgu.Model(D, (H,), CLASSES, readout="last"), batch_size=B)
    batches, key, first = mgu.by_length(recipe, data, key=jax.random.key(0)), jax.random.key(0), _first(recipe)
    steps = batches.per_epoch

    def epoch(data: Any) -> timing.Timed:
        return lambda: mgu.fit(recipe, data, steps=steps, key=key, state=first, steps_per_call=steps)[0], ()

    times = timing.alternate({"similar": epoch(batches), "whole": epoch(jax.device_put(data))}, budget)
    padded = sum(batches(step).xs.shape[1] for step in range(steps)) / (steps * longest)
    return {"part": "lengths", "size": [B, longest, D, H], "mean_length": float(ends.mean()), "steps": padded} | {
        "seconds": float(np.median(times["similar"])),
        "relative_to_whole": timing.ratio(times["similar"], times["whole"]),
    }


def _ms(seconds: Any) -> float:
    return 1e3 * float(np.median(seconds))


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The table of experiments/BENCHMARK.md."""
    loop, split, many, saving, *more = rows
    B, T, _, H = split["size"]
    members_B, members_T, _, members_H = many["size"]
    overhead = 100 * (loop["relative_to_the_loop"] - 1)
    return [
        "| what | measured |",
        "|---|---|",
        f"| overhead of `fit` over calling the compiled loop directly ({loop['steps']} steps per call, "
        f"{loop['ms_of_a_call']:.0f} ms) | {overhead:.1f} % |",
        f"| speed-up of training on {split['devices']} CPU devices over one, B, T, H = {B}, {T}, {H} "
        f"| {split['speedup']:.2f} |",
        f"| time of a sweep over {many['count']} members on {many['devices']} CPU devices, relative to "
        f"{many['count']} times one member on one device, B, T, H = {members_B}, {members_T}, {members_H} "
        f"| {many['relative_to_one_by_one']:.2f} |",
        f"| time for which saving a checkpoint of {saving['megabytes']:.1f} MB stops the training "
        f"| {saving['ms_of_save']:.1f} ms |",
        f"| the next call of the compiled loop, while the checkpoint is being written "
        f"| {saving['ms_of_a_call_while_writing']:.0f} ms ({saving['ms_of_a_call']:.0f} ms otherwise) |",
        *(
            f"| time of an epoch in batches of similar length (`mgu.by_length`), relative to whole samples of "
            f"{row['mean_length']:.0f} steps in the mean and {row['size'][1]:,} at most "
            f"| {row['relative_to_whole']:.2f} |"
            for row in more
        ),
    ]


def main(config: Config) -> None:
    """Measure the five parts, one after another, in one process."""
    if config.steps is not None or config.seed or config.resume:
        raise BadRequest("--steps, --seed and --resume have no meaning for training, which measures seconds.")
    devices, quick = use_devices(config.devices), config.quick
    if (4 if quick else 64) % devices or (quick and devices > 2):
        raise BadRequest(f"--devices must divide the batch and the members; got {devices}.")
    run, budget = Run("training", config, {}, {"devices": devices}), 0.01 if quick else config.budget
    rows = []
    for row in _rows(quick, budget, devices, run):
        rows.append(row)
        run.log(len(rows), row["part"], **{k: v for k, v in row.items() if k != "part"})
    run.finish({"rows": rows})
    print("\n".join(table(rows)))
    run.close()


def _rows(quick: bool, budget: float, devices: int, run: Run) -> Iterator[dict[str, Any]]:
    yield host_loop(quick, budget)
    yield devices_beside_one(quick, budget, devices)
    yield members(quick, budget, devices)
    yield checkpoints(quick, budget, run)
    yield lengths(quick, budget)
