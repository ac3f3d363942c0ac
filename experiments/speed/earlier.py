"""Measure a training step of our MGU beside Flax's GRU, with this JAX and with an earlier one in another environment.

JAX 0.4.31 was the last with the old CPU runtime by default, and projects such as jax-sysid stayed with it, because the
next versions made the training of recurrent layers slower. ``--python`` names the Python of an environment with that
JAX and Flax:

    python3.11 -m venv earlier && earlier/bin/pip install jax==0.4.31 jaxlib==0.4.31 flax==0.9.0 "numpy<2.1"
    python -m experiments earlier --python earlier/bin/python

Both processes stay alive and take turns, round after round; times are medians. Two minutes on two cores.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import mgu_jax as mgu
from experiments.run import BadRequest, Common, Run
from experiments.speed import peers, timing
from experiments.speed.benchmark import LONG, SIZES
from experiments.speed.timing import Size

# Runs in the other environment, whose JAX is too old for mgu_jax: one timed call for each size that it is sent.
THERE = """
import json, sys, time
from importlib.metadata import version
import jax, numpy as np
from flax import linen
print(json.dumps({name: version(name) for name in ("jax", "jaxlib", "flax", "numpy")}), flush=True)
made = {}
for line in sys.stdin:
    B, T, D, H = size = tuple(json.loads(line))
    if size not in made:
        xs = jax.numpy.asarray(np.random.default_rng(0).standard_normal((T, B, D), np.float32))
        layer = linen.RNN(linen.GRUCell(features=H), time_major=True)
        params = layer.init(jax.random.key(0), xs)
        step = jax.jit(jax.grad(lambda params, xs: jax.numpy.sum(layer.apply(params, xs) ** 2), (0, 1)))
        made = {size: lambda: jax.block_until_ready(step(params, xs))}
        made[size]()
    began = time.perf_counter()
    made[size]()
    print(time.perf_counter() - began, flush=True)
"""


@dataclass(frozen=True)
class Config(Common):
    """The flags of earlier."""

    python: Path | None = None
    """The Python of the environment with the earlier JAX; needed."""
    budget: float = 10.0
    """Seconds for each size, after compilation."""


class Other:
    """A process with the earlier JAX, and its versions."""

    def __init__(self, python: Path):
        self._process = subprocess.Popen(
            [str(python), "-c", THERE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.versions = json.loads(self._line())

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise BadRequest("--python must be the Python of an environment with JAX and Flax; it printed an error.")
        return line

    def seconds(self, size: Size) -> float:
        """The seconds of one training step there."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(size) + "\n")
        self._process.stdin.flush()
        return float(self._line())

    def close(self) -> None:
        self._process.communicate()


def measured(size: Size, other: Other, budget: float, least: int = 5) -> dict[str, Any]:
    """The row of one size: milliseconds of each contestant, and times relative to our MGU's."""
    here = {name: peers.on_one_device(peers.EVERYTHING[name], size)["both"] for name in ("MGU", "flax GRU")}
    runs = {name: partial(timing.seconds, function, *arguments) for name, (function, arguments) in here.items()}
    runs["earlier flax GRU"] = partial(other.seconds, size)
    found = timing.alternate_runs(runs, budget, least)
    ratios = {name: timing.ratio(of_name, found["MGU"]) for name, of_name in found.items()}
    return {"size": list(size), "ms": {n: timing.spread(t)["ms"] for n, t in found.items()}, "times_ours": ratios}


def main(config: Config) -> None:
    """Measure all sizes, and print the table."""
    if config.steps is not None:
        raise BadRequest("--steps has no meaning for earlier, which takes no optimiser step.")
    if config.python is None:
        raise BadRequest("--python must name the Python of an environment with the earlier JAX; got none.")
    run = Run("earlier", config, {})
    run.rewind(0)
    try:
        other = Other(config.python)
    except OSError as error:
        raise BadRequest(f"--python must be a Python that runs; got {config.python} ({error.strerror}).") from None
    sizes = ((2, 6, 3, 4),) if config.quick else (*SIZES, LONG[0])
    rows = []
    for size in sizes:
        rows.append(measured(size, other, 0.01 if config.quick else config.budget, 2 if config.quick else 5))
        run.log(len(rows), "time", **rows[-1]["times_ours"])
        print(*rows[-1].values(), file=sys.stdout, flush=True)
    other.close()
    run.finish({"rows": rows, "implementation": implementation(sizes), "earlier": other.versions})
    print(f"\n{table(rows, run.record['versions'], other.versions)}\n")
    run.close()


def implementation(sizes: tuple[Size, ...]) -> list[str]:
    """What ``mgu.scan`` runs at these sizes."""
    return [mgu.which(mgu.init(jax.random.key(0), s[2], s[3]), jnp.asarray(peers.inputs(s))) for s in sizes]


def table(rows: list[dict[str, Any]], here: dict[str, str], there: dict[str, str]) -> str:
    """One row per size."""
    now, before = f"JAX {here['jax']}", f"JAX {there['jax']}"
    lines = [
        f"| B, T, D, H | our MGU on {now}, ms | time of Flax's GRU on {now} relative to ours "
        f"| time of Flax's GRU on {before} relative to ours |",
        "|---|---|---|---|",
    ]
    for row in rows:
        ratios = [row["times_ours"][name] for name in ("flax GRU", "earlier flax GRU")]
        shown = [", ".join(map(str, row["size"])), f"{row['ms']['MGU']:.2f}", *(f"{ratio:.2f}" for ratio in ratios)]
        lines.append(f"| {' | '.join(shown)} |")
    return "\n".join(lines)
