"""Measure speed and memory beside other libraries' recurrent layers; a quarter of an hour on two cores.

All layers run in one process, in rounds; the numbers are medians over the rounds. ``forward`` gives the states of all
steps; ``both`` is a training step, which gives the gradients of all weights and inputs for the sum of the squared
states. The arithmetic of a size is timed as the MGU's multiply-adds at the rate of a 2048^3 product in the same rounds.
Needs the extra ``peers``; a library that is not installed is left out, and the output says so.
"""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import mgu_jax as mgu
from experiments.run import BadRequest, Common, Run, use_devices
from experiments.speed import gpu, peers, tables, timing
from experiments.speed import plots as speed_plots
from experiments.speed.timing import Size
from mgu_jax.kernels import cpu

SIZES: tuple[Size, ...] = (
    (1, 256, 16, 64),
    (16, 256, 16, 64),
    (32, 128, 64, 128),
    (100, 28, 28, 100),
    (64, 128, 128, 256),
    (32, 256, 128, 512),
)
LONG: tuple[Size, ...] = ((8, 1000, 64, 64), (8, 10_000, 64, 64))
ON_DEVICES = ("MGU", "RESET_AFTER_MGU", "flax MGU", "flax GRU", "equinox GRU", "haiku GRU", "keras GRU")
MEMORY = ("MGU", "MGU, states", "MGU, states, one segment", "MGU, segments", "MGU, autodiff", "flax MGU", "flax GRU")
Rows = Iterator[dict[str, Any]]


@dataclass(frozen=True)
class Config(Common):
    """The flags of benchmark."""

    devices: int | None = None
    """Number of devices to split the batch over; by default two, if there are two."""
    budget: float = 10.0
    """Seconds for each size and pass, after compilation."""


def _timed(
    size: Size, contestants: dict[str, dict[str, timing.Timed]], devices: int, budget: float, least: int
) -> Rows:
    """One row per layer and pass."""
    for which in ("forward", "both"):
        at_work = {name: pair[which] for name, pair in contestants.items()}
        if which == "both" and devices == 1:
            at_work |= peers.products_alone(size)
        times = timing.alternate({"product": timing.product_2048()} | at_work, budget, least)
        rate = timing.FLOP_2048 / np.median(times.pop("product"))
        floor = 1e3 * timing.flop(size, which) / rate
        for name, seconds in times.items():
            row = {"part": "time", "size": list(size), "devices": devices, "which": which, "name": name}
            numbers = timing.spread(seconds) | {"rounds": len(seconds), "floor_ms": floor, "gflop_s": rate / 1e9}
            yield row | numbers | {"times_ours": timing.ratio(seconds, times["MGU"])}


def time_of(sizes: tuple[Size, ...], devices: int, budget: float, least: int = 5) -> Rows:
    """All layers at every size, on one device; then some of them with the batch split over several devices."""
    present = {name: layer for name, layer in peers.EVERYTHING.items() if peers.installed(layer.package)}
    for size in sizes:
        contestants = {name: peers.on_one_device(layer, size) for name, layer in present.items()}
        if peers.installed("torch"):
            contestants |= {name: peers.in_torch(name, size) for name in peers.TORCH}
        layer, xs = mgu.init(jax.random.key(0), size[2], size[3]), jnp.asarray(peers.inputs(size))
        yield {"part": "implementation", "size": list(size), "name": mgu.which(layer, xs)}
        yield from _timed(size, contestants, 1, budget, least)
        if devices > 1 and size[0] % devices == 0:
            split = {n: peers.on_devices(layer, size, devices) for n, layer in present.items() if n in ON_DEVICES}
            yield from _timed(size, split, devices, budget / 2, least)
        jax.clear_caches()


COMPILER_OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "xla_cpu_prefer_vector_width=512": {"xla_cpu_prefer_vector_width": 512},
    "xla_cpu_use_xnnpack=false": {"xla_cpu_use_xnnpack": False},
    "xla_cpu_enable_concurrency_optimized_scheduler": {"xla_cpu_enable_concurrency_optimized_scheduler": True},
}


def compiler_options(sizes: tuple[Size, ...], budget: float, least: int = 5) -> Rows:
    """The time of a training step of the MGU with options of XLA for CPUs, relative to the time without any."""
    if jax.default_backend() != "cpu":
        return
    for size in sizes:
        run, params = peers.OURS["MGU"].build(size)
        arguments = (params, jnp.asarray(peers.inputs(size)))
        compiled = {
            name: (jax.jit(peers.gradient(run), compiler_options=chosen), arguments)
            for name, chosen in COMPILER_OPTIONS.items()
        }
        times = timing.alternate(compiled, budget, least)
        for name in list(compiled)[1:]:
            share = timing.ratio(times[name], times["none"])
            yield {"part": "compiler options", "size": list(size), "name": name, "share": share}


# glibc returns large blocks to the system, and the next call takes every page anew. These settings make it keep them.
KEEP_MEMORY = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(2**34), "MALLOC_TRIM_THRESHOLD_": str(2**34)}


def one_step(size: Size, name: str, budget: float, least: int) -> None:
    """Print the milliseconds of a training step, and the number of pages that it takes from the system."""
    import resource

    pair = peers.on_one_device(peers.EVERYTHING[name], size)["both"]
    ms = timing.spread(timing.alternate({name: pair}, budget, least)[name])["ms"]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    timing.seconds(pair[0], *pair[1])
    print(json.dumps({"ms": ms, "pages": resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before}))


def allocation(sizes: tuple[Size, ...], names: tuple[str, ...], budget: float, least: int = 5) -> Rows:
    """A training step in separate processes, with memory returned to the system between calls and with memory kept."""
    if not sys.platform.startswith("linux") or jax.default_backend() != "cpu":
        return
    for size in sizes:
        for name in names:
            if peers.installed(peers.EVERYTHING[name].package):
                call = f"from {__name__} import one_step; one_step({size}, {name!r}, {budget}, {least})"
                for memory, added in {"given back": {}, "kept": KEEP_MEMORY}.items():
                    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")} | added
                    command = [sys.executable, "-c", call]
                    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
                    row = {"part": "allocation", "size": list(size), "name": name, "memory": memory}
                    yield row | json.loads(done.stdout)


def memory(sizes: tuple[Size, ...]) -> Rows:
    """Temporaries of a training step, relative to the states of all steps, 4*T*B*H bytes."""
    for size in sizes:
        for name in MEMORY:
            layer = peers.EVERYTHING[name]
            if peers.installed(layer.package):
                function, arguments = peers.on_one_device(layer, size)["both"]
                bytes_ = function.lower(*arguments).compile().memory_analysis().temp_size_in_bytes  # pyright: ignore
                units = bytes_ / (4 * size[0] * size[1] * size[3])
                yield {"part": "memory", "size": list(size), "name": name, "bytes": bytes_, "units": units}
        jax.clear_caches()


def _last_state(size: Size, **options: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The gradient of a loss that depends on the last state only, and its arguments."""
    _, _, D, H = size
    params, xs = mgu.init(jax.random.key(0), D, H), jnp.asarray(peers.inputs(size))
    return jax.jit(jax.grad(lambda p, xs: jnp.sum(mgu.scan(p, xs, **options)[1] ** 2), (0, 1))), (params, xs)


def long_memory(steps: tuple[int, ...]) -> Rows:
    """One state kept per segment: temporaries and seconds of a training step on the last state, B = 8, H = 128."""
    for T in steps:
        size = (8, T, 16, 128)
        function, arguments = _last_state(size, save="segments")
        bytes_ = function.lower(*arguments).compile().memory_analysis().temp_size_in_bytes  # pyright: ignore
        timing.seconds(function, *arguments)
        took = timing.seconds(function, *arguments)
        yield {"part": "long memory", "size": list(size), "name": "MGU, segments", "bytes": bytes_, "seconds": took}


def compilation(steps: tuple[int, ...]) -> Rows:
    """Seconds to trace and compile a training step for some numbers of time steps; medians of three."""
    for T in steps:
        for name in ("MGU", "flax MGU"):
            if peers.installed(peers.EVERYTHING[name].package):
                took = []
                for _ in range(3):
                    jax.clear_caches()
                    function, arguments = peers.on_one_device(peers.EVERYTHING[name], (8, T, 64, 64))["both"]
                    took.append(timing.seconds(lambda f, a: f.lower(*a).compile() and None, function, arguments))
                yield {"part": "compilation", "T": T, "name": name, "seconds": float(np.median(took))}
    jax.clear_caches()


def growth(steps: tuple[int, ...]) -> Rows:
    """Microseconds per time step of a training step, for some numbers of time steps; the least of three calls."""
    for T in steps:
        for name in ("MGU", "MGU, segments"):
            function, arguments = peers.on_one_device(peers.EVERYTHING[name], (8, T, 16, 64))["both"]
            timing.seconds(function, *arguments)
            least = min(timing.seconds(function, *arguments) for _ in range(3))
            yield {"part": "growth", "T": T, "name": name, "us_per_step": 1e6 * least / T}
        jax.clear_caches()


def members(count: int, budget: float) -> Rows:
    """The time of a training step of many layers under vmap, relative to as many steps of one layer."""
    size = (32, 8, 8, 32)
    xs = jnp.asarray(peers.inputs(size))
    step = jax.grad(lambda params: jnp.sum(mgu.scan(params, xs)[0] ** 2))
    many = jax.vmap(lambda key: mgu.init(key, 8, 32))(jax.random.split(jax.random.key(0), count))
    one = jax.tree.map(lambda a: a[0], many)
    single = jax.jit(step)

    def one_by_one(params: Any) -> Any:
        return [single(params) for _ in range(count)]

    contestants = {"vmap": (jax.jit(jax.vmap(step)), (many,)), "one by one": (one_by_one, (one,))}
    times = timing.alternate(contestants, budget)
    share = timing.ratio(times["vmap"], times["one by one"])
    yield {"part": "members", "count": count, "ms": timing.spread(times["vmap"])["ms"], "share": share}


def main(config: Config) -> None:
    """Run all parts, and print the tables."""
    if config.steps is not None:
        raise BadRequest("--steps has no meaning for benchmark, which takes no optimiser step.")
    if config.seed:
        raise BadRequest("--seed has no meaning for benchmark, whose times do not depend on the numbers.")
    devices = use_devices(config.devices)
    if jax.default_backend() == "gpu":
        print("This machine has a GPU, so this is benchmark-gpu.")
        shared = {field.name: getattr(config, field.name) for field in dataclasses.fields(Common)}
        return gpu.main(gpu.Config(**shared))
    packages = {"flax": "flax", "equinox": "equinox", "haiku": "dm-haiku", "keras": "keras", "torch": "torch"}
    missing = [name for module, name in packages.items() if not peers.installed(module)]
    if missing:
        print(
            f"not installed and left out: {', '.join(missing)}; pip install -e '.[peers]' in a clone brings them all."
        )
    if config.quick:
        print("--quick only shows that everything runs: its sizes are tiny, and its numbers mean nothing.")
    if why := cpu.load():  # compiles it, so that our layers take it where it is faster
        print(f"implementation 'native' {why}, and is left out.")
    run = Run("benchmark", config, {}, {"devices": devices})
    run.rewind(0)
    rows: list[dict[str, Any]] = []
    quick = config.quick
    sizes: tuple[Size, ...] = ((2, 6, 3, 4),) if quick else SIZES
    budget, least = (0.01, 2) if quick else (config.budget, 5)
    long = (
        ((10, 20), (10, 20), (10, 20))
        if quick
        else ((1000, 100_000), (10, 1000, 100_000), (100, 1000, 10_000, 100_000))
    )
    parts = (
        time_of(sizes if quick else sizes + LONG, devices, budget, least),
        memory(sizes),
        long_memory(long[0]),
        compilation(long[1]),
        growth(long[2]),
        members(4 if quick else 64, budget),
        compiler_options(sizes if quick else SIZES[2:5:2], budget, least),
        allocation(sizes if quick else SIZES[4:], ("MGU",) if quick else ("MGU", "flax MGU"), budget, least),
    )
    for part in parts:
        for row in part:
            rows.append(row)
            run.log(len(rows), row["part"], **{k: v for k, v in row.items() if k != "part"})
            print("  ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()), flush=True)
    versions = {name: metadata.version(name) for name in packages.values() if name not in missing}
    run.finish({"rows": rows, "peers": versions})
    for name, draw in speed_plots.PICTURES.items():
        if not draw(run.path(f"{name}.png"), rows):
            print(f"{name}.png is left out: no other library was measured.")
    print(tables.times(rows), *(line for make in tables.TABLES.values() for line in ("", *make(rows))), sep="\n")
    run.close()
