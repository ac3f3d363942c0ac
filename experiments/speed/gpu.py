"""Measure the kernel on a GPU beside lax.scan, Flax, and the layers that cuDNN computes; under four minutes.

Microseconds per time step, of the forward pass and of a training step (the gradients of all weights and inputs for the
sum of the squared states), T = 512, D = H. All layers of a size run in one process, in rounds; the numbers are medians
over the rounds. Then many layers under vmap, beside one. ``python -m experiments benchmark`` runs this on a GPU.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import mgu_jax as mgu
from experiments.harness.plots import WIDTH, digest_of, figure_of, save
from experiments.run import BadRequest, Common, Run
from experiments.speed import peers, timing
from experiments.speed.timing import Size

STEPS = 512
SIZES: tuple[Size, ...] = tuple((B, STEPS, H, H) for B in (16, 64, 512) for H in (64, 128, 192, 256))
MEMBERS = (1, 4, 16, 64, 256)
MEMBER: Size = (16, STEPS, 64, 64)
SLOW = ("MGU, lax.scan", "flax MGU", "flax GRU")  # measured at B up to 64 and H up to 128, to save time
# Okabe and Ito's palette, safe for the colour-blind, and two more; each with a mark of its own.
COLOURS = ["#0072B2", "#56B4E9", "#000000", "#009E73", "#999999", "#E69F00", "#D55E00", "#CC79A7", "#F0E442", "#882255"]
Rows = Iterator[dict[str, Any]]

OURS: dict[str, dict[str, Any]] = {
    "MGU": {},
    "MGU, bfloat16": {"compute_dtype": "bfloat16"},
    "MGU, highest": {"precision": "highest"},
    "RESET_AFTER_MGU": {"cell": mgu.RESET_AFTER_MGU},
    "MGU, lax.scan": {"implementation": "manual"},
}


@dataclass(frozen=True)
class Config(Common):
    """The flags of benchmark-gpu."""

    budget: float = 0.5
    """Seconds for each size and pass, after compilation."""


def _cudnn_lstm(size: Size) -> tuple[Callable[..., Any], Any]:
    """JAX's own layer that cuDNN computes."""
    from jax.experimental import rnn

    B, T, D, H = size
    weights = rnn.init_lstm_weight(jax.random.key(0), D, H, 1, False)
    zeros, lengths = jnp.zeros((1, B, H)), jnp.full((B,), T, jnp.int32)

    def run(weights: Any, xs: Any) -> Any:
        states: Any = rnn.lstm(xs, zeros, zeros, weights, lengths, D, H, 1, 0.0, False)
        return states[0]

    return run, weights


def _us(seconds: np.ndarray, size: Size) -> float:
    """Microseconds per time step, the median of the rounds."""
    return 1e6 * float(np.median(seconds)) / size[1]


def layers(size: Size) -> dict[str, peers.Layer]:
    """The layers in JAX that are measured at a size."""
    B, _, _, H = size
    found = {name: peers.Layer("mgu_jax", partial(peers.ours, **options)) for name, options in OURS.items()}
    found |= {name: peers.PEERS[name] for name in ("flax MGU", "flax GRU") if peers.installed("flax")}
    if B > 64 or H > 128:
        found = {name: layer for name, layer in found.items() if name not in SLOW}
    if jax.default_backend() == "gpu":
        found["cuDNN LSTM, JAX"] = peers.Layer("jax", _cudnn_lstm, batch_first=True)
    return found


def implementation(name: str, *arguments: Any) -> str:
    """What ``scan`` runs for a layer of ours; nothing for others."""
    return mgu.which(*arguments, **OURS[name]) if name in OURS else ""


def time_of(sizes: tuple[Size, ...], budget: float, least: int = 5) -> Rows:
    """Every layer at every size, forward and training."""
    for size in sizes:
        contestants = {name: peers.on_one_device(layer, size) for name, layer in layers(size).items()}
        if peers.installed("torch"):
            contestants |= {name: peers.in_torch(name, size) for name in peers.TORCH}
        for which in ("forward", "both"):
            times = timing.alternate({name: pair[which] for name, pair in contestants.items()}, budget, least)
            for name, seconds in times.items():
                row = {"part": "time", "size": list(size), "which": which, "name": name}
                ran = {"implementation": implementation(name, *contestants[name][which][1]), "rounds": len(seconds)}
                ratio = timing.ratio(seconds, times["MGU"])
                yield row | ran | {"us_per_step": _us(seconds, size), "times_ours": ratio}
        jax.clear_caches()


def members(counts: tuple[int, ...], size: Size, budget: float) -> Rows:
    """The time of a training step of many layers under vmap, relative to that of one layer."""
    step = jax.grad(lambda params: jnp.sum(mgu.scan(params, xs, compute_dtype="bfloat16")[0] ** 2))
    xs = jnp.asarray(peers.inputs(size))
    first = jax.vmap(lambda key: mgu.init(key, size[2], size[3]))
    many = {n: first(jax.random.split(jax.random.key(0), n)) for n in counts}
    contestants = {str(n): (jax.jit(jax.vmap(step)), (params,)) for n, params in many.items()}
    times = timing.alternate(contestants, budget)
    for n in counts:
        seconds = times[str(n)]
        row = {"part": "members", "count": n, "size": list(size), "us_per_step": _us(seconds, size)}
        yield row | {"times_one": timing.ratio(seconds, times[str(counts[0])])}


def table(rows: list[dict[str, Any]]) -> str:
    """Microseconds per time step, forward / training, and the training step relative to ours."""
    timed = [row for row in rows if row["part"] == "time"]
    found = {(tuple(row["size"]), row["name"], row["which"]): row for row in timed}
    lines = []
    for size in dict.fromkeys(tuple(row["size"]) for row in timed):
        lines.append(f"\nB, T, D, H = {', '.join(map(str, size))}: microseconds per time step, forward and training")
        for name in dict.fromkeys(row["name"] for row in timed):
            if row := found.get((size, name, "both")):
                forward = found[size, name, "forward"]["us_per_step"]
                text = f"  {name:20}{forward:9.2f}{row['us_per_step']:9.2f}   "
                ran = f"   ({row['implementation']})" if row["implementation"] else ""
                lines.append(f"{text}training: {row['times_ours']:.2f} of our MGU's time{ran}")
    for row in rows:
        if row["part"] == "members":
            taken = f"{row['us_per_step']:.2f} microseconds per time step, {row['times_one']:.2f} of one member's time"
            lines.append(f"{row['count']} members under vmap: {taken}")
    return "\n".join(lines)


def picture(path: Path, rows: list[dict[str, Any]]) -> None:
    """Microseconds per time step of a training step, by size, one panel per B."""
    timed = [row for row in rows if row["part"] == "time" and row["which"] == "both"]
    batches = list(dict.fromkeys(row["size"][0] for row in timed))
    figure, axes = figure_of(1, len(batches), figsize=(WIDTH, 2.8), sharey=True, squeeze=False)
    names = list(dict.fromkeys(row["name"] for row in timed))
    looks = list(zip(COLOURS, "osD^vP*X<>", strict=True))
    for panel, B in zip(axes[0], batches, strict=True):
        for name, (colour, mark) in zip(names, looks, strict=False):
            found = [row for row in timed if row["name"] == name and row["size"][0] == B]
            x, y = [row["size"][3] for row in found], [row["us_per_step"] for row in found]
            panel.plot(x, y, marker=mark, color=colour, label=name, linewidth=1)
        panel.set(title=f"B = {B}", xlabel="hidden units H", yscale="log")
        panel.set_xticks(sorted({row["size"][3] for row in timed}))
        panel.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("microseconds per time step\n(training step)")
    axes[0][-1].legend(fontsize=6, frameon=False)
    save(figure, path, digest_of(rows))


def main(config: Config) -> None:
    """Run both parts, draw the picture, and print the table last."""
    if config.steps is not None:
        raise BadRequest("--steps has no meaning for benchmark-gpu, which takes no optimiser step.")
    if jax.default_backend() != "gpu" and not config.quick:
        raise BadRequest("benchmark-gpu needs a GPU; --quick shows on any machine that it runs.")
    run = Run("benchmark-gpu", config, {}, {})
    run.rewind(0)
    quick = config.quick
    sizes = ((2, 6, 4, 4), (2, 6, 5, 5)) if quick else SIZES
    parts = (
        time_of(sizes, 0.01 if quick else config.budget, 2 if quick else 5),
        members((1, 2) if quick else MEMBERS, sizes[0] if quick else MEMBER, 0.01 if quick else 2.0),
    )
    rows: list[dict[str, Any]] = []
    for part in parts:
        for row in part:
            rows.append(row)
            run.log(len(rows), row["part"], **{k: v for k, v in row.items() if k != "part"})
    run.finish({"rows": rows})
    picture(run.path("times.png"), rows)
    print(table(rows))
    run.close()
