"""Measure the error of the hand-written gradient, against autodiff and finite differences.

Each size is checked with random inputs and random cotangents on all outputs, in float64 and in float32. Errors are
relative errors of whole arrays; a row shows that of the worst array. Finite differences always use float64.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

import mgu_jax as mgu
from experiments.run import BadRequest, Common, Run

# B, T, D, H
SIZES = ((1, 256, 16, 64), (16, 256, 16, 64), (32, 128, 64, 128), (100, 28, 28, 100), (64, 128, 128, 256))


@dataclass(frozen=True)
class Config(Common):
    """The flags of gradients."""


def main(config: Config) -> None:
    """Check all sizes and print the table."""
    if config.steps is not None:
        raise BadRequest("--steps has no meaning for gradients, which takes no optimiser step.")
    run = Run("gradients", config, {})
    run.rewind(0)  # a run that resumes starts again and repeats the same bits
    sizes = ((3, 7, 4, 5),) if config.quick else SIZES
    print(f"{'B, T, D, H':20}{'dtype':10}{'against autodiff':>18}{'against differences':>21}")
    rows = []
    for dtype in (jnp.float64, jnp.float32):
        with jax.enable_x64(dtype == jnp.float64):
            for size in sizes:
                B, T, D, H = size
                keys = jax.random.split(jax.random.key(config.seed), 4)
                params = mgu.init(keys[0], D, H, dtype=dtype)
                xs, h0 = jax.random.normal(keys[1], (T, B, D), dtype), jax.random.normal(keys[2], (B, H), dtype)
                report = mgu.check_gradients(params, xs, h0, key=keys[3])
                worst = {"autodiff": report.worst, "differences": report.worst_differences}
                rows.append({"size": size, "dtype": report.dtype} | worst)
                run.log(len(rows), report.dtype, **worst)
                name = ", ".join(map(str, size))
                print(f"{name:20}{report.dtype:10}{report.worst:18.1e}{report.worst_differences:21.1e}", flush=True)
    worst = {dtype: max(r["autodiff"] for r in rows if r["dtype"] == dtype) for dtype in ("float64", "float32")}
    run.finish({"rows": rows, "worst_against_autodiff": worst})
    print(f"\nworst against autodiff: {worst['float64']:.1e} in float64, {worst['float32']:.1e} in float32")
    run.close()
