"""Print which kernels this machine can run, and why not the others; the native program is compiled if it is not yet.

Usage: python -m mgu_jax.kernels
"""

import sys
import time

import jax

from mgu_jax.kernels import cpu, gpu
from mgu_jax.layer.family import MGU
from mgu_jax.layer.products import Products


def main() -> int:
    """Print one line per kernel."""
    print(f"JAX {jax.__version__}, default backend {jax.default_backend()}")
    why = gpu.refusal(MGU, 64, "float32", Products())
    print("mosaic_gpu: ready" if why is None else f"mosaic_gpu: {why}")
    began = time.perf_counter()
    why = cpu.refusal(MGU, 64, "float32", Products())
    if why is None:
        print(f"native: ready after {time.perf_counter() - began:.1f} s, {cpu.library()}")
    else:
        print(f"native: {why}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
