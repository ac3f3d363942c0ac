"""All steps of a segment as one native program on a CPU: ``cpu.cc``, compiled once for the processor that runs it.

XLA runs the two dependent products of a time step on one core, and copies what a step reads and writes. Here each of
XLA's threads takes a part of the samples through all steps: the products of a step, its elementwise work and, on the
way back, the gradients of all weights, for which the rows are still in the cache.

The program is compiled with the system's C++ compiler and the headers that jaxlib ships. It is kept in the user's cache
folder under a name that depends on the source, the compiler, jaxlib and the processor.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from mgu_jax.kernels.differentiated import on_platform
from mgu_jax.layer.bptt import Plan, Saved, Segments, backward_segment, forward_segment, states_segment
from mgu_jax.layer.cell import Gates, StepWeights, add
from mgu_jax.layer.family import ACTIVATIONS, Cell
from mgu_jax.layer.params import Params
from mgu_jax.layer.products import Products, transposed

SOURCE = Path(__file__).with_name("cpu.cc")
FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
    *("-shared", "-fPIC", "-pthread", "-w"),
)
TARGETS = ("mgu_jax_forward", "mgu_jax_backward")


class NotBuilt(Exception):
    """Why there is no native program, as the end of a sentence."""


def compiler() -> str:
    """The path of the system's C++ compiler: the one that CXX names, c++, g++ or clang++."""
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and (found := shutil.which(name)):
            return os.path.realpath(found)
    raise NotBuilt("needs a C++ compiler (c++, g++, clang++, or the one that CXX names), and there is none")


def folder() -> Path:
    """Where compiled programs are kept: mgu_jax in the user's cache folder, or the folder MGU_JAX_CACHE."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("MGU_JAX_CACHE") or os.path.join(cache, "mgu_jax")).expanduser()


def _flags() -> list[str]:
    wide_vectors = ["-mprefer-vector-width=512"] if platform.machine() == "x86_64" else []
    return [*FLAGS, *wide_vectors, *os.environ.get("MGU_JAX_CXXFLAGS", "").split()]


def _processor() -> str:
    """What distinguishes this processor's instructions from those of others."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))


def library() -> Path:
    """The path of the compiled program, whether it exists or not."""
    if sys.platform != "linux":
        raise NotBuilt(f"needs Linux; this is {sys.platform}")
    path = compiler()
    stat = os.stat(path)  # as a rule, another version of the compiler has another size or date
    parts = (SOURCE.read_text(), path, stat.st_size, stat.st_mtime_ns, version("jaxlib"), _processor(), _flags())
    return folder() / f"cpu-{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}.so"


def build() -> Path:
    """The path of the compiled program, which is compiled unless it exists.

    Raises:
        NotBuilt: there is no compiler, it failed, the folder cannot be written, or this is not Linux.
    """
    path = library()
    if path.exists():
        return path
    partial = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(suffix=".so", dir=path.parent)
        os.close(handle)
        command = [compiler(), *_flags(), "-I", jax.ffi.include_dir(), str(SOURCE), "-o", partial]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if "error" in line] or ["no message"]
            raise NotBuilt(f"could not be compiled by {command[0]}: {errors[0].strip().rstrip('.')}")
        os.replace(partial, path)  # another process sees the whole file or none
    except OSError as error:
        raise NotBuilt(f"could not be kept in {path.parent}: {error.strerror}") from None
    finally:
        if partial is not None and os.path.exists(partial):
            os.remove(partial)
    return path


_registered: list[ctypes.CDLL] = []  # XLA knows one program per process


@functools.cache
def _load(environment: tuple[str | None, ...]) -> str | None:
    try:
        program = ctypes.CDLL(str(build()))
    except NotBuilt as why:
        return str(why)
    except OSError as error:
        return f"could not be loaded: {error}"
    if not _registered:
        _registered.append(program)
        for name in TARGETS:
            jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(program, name)), platform="cpu")
    _exists.cache_clear()
    return None


@functools.cache
def _exists(environment: tuple[str | None, ...]) -> bool:
    try:
        return library().exists()
    except (NotBuilt, OSError):
        return False


def _environment() -> tuple[str | None, ...]:
    """What decides which program it is; it is looked up once for each."""
    names = ("MGU_JAX_CACHE", "MGU_JAX_CXXFLAGS", "XDG_CACHE_HOME", "HOME", "CXX", "PATH")
    return (sys.platform, *map(os.environ.get, names))


def load() -> str | None:
    """Compile the program unless it exists, and make it known to XLA; why that failed, or ``None``."""
    return _load(_environment())


def exists() -> bool:
    """Whether the program has been compiled, so that its use costs no time to compile."""
    return _exists(_environment())


def refusal(cell: Cell, H: int, dtype: Any, product: Products) -> str | None:
    """Why the program cannot serve, as the end of a sentence; ``None`` if it can, and then it is loaded."""
    if jax.default_backend() != "cpu":
        return f"needs a CPU as the default backend; it is {jax.default_backend()}"
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.auto_axes or mesh.explicit_axes:
        return "needs a mesh whose axes are all manual, as inside jax.shard_map"
    if "h" not in cell.candidate or cell.layer_norm or cell.recurrence != "dense":
        return "needs a dense cell with a candidate that sees the state, and no layer normalisation"
    name = jnp.dtype(dtype).name
    if name not in ("float32", "float64"):
        return f"needs float32 or float64 parameters; these are {name}"
    if product.compute_dtype not in (None, name) or isinstance(product.precision, lax.DotAlgorithmPreset):
        return "needs compute_dtype None or that of the parameters, and a precision by its name"
    return load()


def is_faster(samples: int) -> bool:
    """Whether the program is faster than the loops of ``layer.bptt``, as measured with JAX 0.10.2 and 0.12.0.1."""
    return samples > 1 or jax.__version_info__ < (0, 11)


def _shapes(*shapes: tuple[int, ...] | None, dtype: Any) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct((0,) if shape is None else shape, dtype) for shape in shapes]


def _call(
    target: str, results: list[jax.ShapeDtypeStruct], plan: Plan, arrays: list[Array | None], **known: Any
) -> Any:
    """The results of the program; a term that is absent goes in, and comes out, as an array without numbers."""
    xs, h, alpha, cell = known["xs"], known["h"], known["alpha"], plan.cell
    given = [jnp.zeros((0,), xs.dtype) if a is None else a for a in arrays]
    is_wide = alpha is not None and alpha.shape[-1] > 1
    sizes = (*xs.shape[:2], xs.shape[2], h.shape[-1], ("before", "after", "none").index(cell.reset))
    sizes += (cell.update == "1-f", ACTIVATIONS.index(cell.activation), plan.reverse, is_wide)
    call = jax.ffi.ffi_call(target, results, vmap_method="broadcast_all")
    found = call(*given, sizes=np.array(sizes, np.int64), beta=np.float64(cell.beta))
    return [None if result.size == 0 else result for result in found]


def _inputs(h: Array, h_reset: Array | None, xs: Array, alpha: Array | None, mask: Array | None) -> list[Any]:
    """The arguments with which both calls begin."""
    T, B, _ = xs.shape
    if alpha is not None:
        alpha = jnp.broadcast_to(alpha, (T, B, alpha.shape[-1]))
    return [xs, h, h_reset, alpha, mask]


def _forward(
    plan: Plan,
    weights: StepWeights,
    h_reset: Array | None,
    h: Array,
    xs: Array,
    alpha: Array | None,
    reset: Array | None,
    *,
    keep: bool = True,
) -> tuple[Array, Array, Gates]:
    """As ``forward_segment``; the gates are ``None`` unless they are to be kept."""
    p, shape = weights.params, (*xs.shape[:2], h.shape[-1])
    gate = shape if keep else None
    s_r = gate if plan.cell.reset == "after" else None
    arrays = [*_inputs(h, h_reset, xs, alpha, weights.mask), p.W_f, p.U_f, p.W_h, p.U_h, _flags_of(reset)]
    results = _shapes(shape, gate, gate, s_r, dtype=h.dtype)
    hs, f, c, s_r = _call(TARGETS[0], results, plan, [*arrays, p.b_f, p.b_h, p.b_r], xs=xs, h=h, alpha=alpha)
    return hs[0 if plan.reverse else -1], hs, Gates(f, c, s_r)


def _states(plan: Plan, *arguments: Any) -> tuple[Array, Array]:
    return _forward(plan, *arguments, keep=False)[:2]


def _flags_of(reset: Array | None) -> Array:
    return jnp.zeros((0,), bool) if reset is None else reset


def _backward(
    plan: Plan,
    weights: StepWeights,
    h_reset: Array | None,
    carry: tuple[Array, Array | None],
    rows: tuple[Array, Array | None, Array | None, Array | None],
    saved: Saved,
) -> tuple[tuple[Array, Array | None], tuple[Params, Array]]:
    (dh, dh_reset), (xs, alpha, reset, dhs), (h, hs, gates), p = carry, rows, saved, weights.params
    assert gates is not None
    turned = map(transposed, (p.W_f, p.U_f, p.W_h, p.U_h))
    arrays = [*_inputs(h, h_reset, xs, alpha, weights.mask), *turned, _flags_of(reset)]
    arrays += [dhs, dh, hs, gates.f, gates.c, gates.s_r]
    order = ("W_f", "U_f", "W_h", "U_h", "b_f", "b_h", "b_r")
    given = (getattr(p, name) for name in order)
    shapes = (*(None if a is None else a.shape for a in given), xs.shape, h.shape, None if reset is None else h.shape)
    found = _call(TARGETS[1], _shapes(*shapes, dtype=h.dtype), plan, arrays, xs=xs, h=h, alpha=alpha)
    dparams = Params(**dict(zip(order, found, strict=False)))
    return (found[8], add(dh_reset, found[9])), (dparams, found[7])


SEGMENTS = Segments(
    on_platform("cpu", _forward, forward_segment),
    on_platform("cpu", _states, states_segment),
    on_platform("cpu", _backward, backward_segment),
)
