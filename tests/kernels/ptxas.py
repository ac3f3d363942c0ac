"""Compiles the two kernels of a layer for an H100 with ptxas, and prints registers and spilled bytes of each as JSON.

It runs in a process of its own, on any machine, with the stand-in for the driver (driver.c) on LD_LIBRARY_PATH:

    python -m tests.kernels.ptxas MEMBER H COMPUTE_DTYPE OPTIONS
"""

import ctypes
import importlib
import json
import os
import re
import sys
import tempfile

import jax
import jax.numpy as jnp

import mgu_jax as mgu
from mgu_jax.kernels import gpu
from tests.kernels.members import MEMBERS


def modules(function, *arguments):
    """The code of every kernel in the program of the function."""
    from jaxlib.mlir import ir

    found = []

    def visit(operation):
        if operation.name == "stablehlo.custom_call":
            target = ir.StringAttr(operation.attributes["call_target_name"]).value
            if target.startswith("mosaic_gpu"):
                settings = ir.DictAttr(operation.attributes["mhlo.backend_config"])
                found.append(ir.StringAttr(settings["module"]).value_bytes)
        return ir.WalkResult.ADVANCE

    lowered = jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",))
    lowered.compiler_ir("stablehlo").operation.walk(visit)
    return found


def said(call):
    """What the call prints, from C as well."""
    with tempfile.TemporaryFile() as file:
        sys.stdout.flush()
        before = os.dup(1), os.dup(2)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            call()
        finally:
            os.dup2(before[0], 1)
            os.dup2(before[1], 2)
        file.seek(0)
        return file.read().decode()


def main(member, H, compute_dtype, with_options):
    plugin = importlib.import_module("jax_plugins.xla_cuda13")
    compiler = ctypes.CDLL(plugin._get_library_path()).MosaicGpuCompile
    compiler.argtypes = [ctypes.c_char_p, ctypes.c_int]
    compiler.restype = ctypes.c_void_p
    gpu._is_hopper = lambda: True
    cell, H, T, B = MEMBERS[member], int(H), 5, 20
    params = jax.eval_shape(lambda: mgu.init(jax.random.key(0), 8, H, cell))
    given = {"lengths": jnp.zeros(B, jnp.int32), "resets": jnp.zeros((T, B), bool)} if with_options == "options" else {}

    def loss(params, xs, options):
        dtype = None if compute_dtype == "none" else compute_dtype
        return jnp.sum(mgu.scan(params, xs, cell=cell, compute_dtype=dtype, **options)[0] ** 2)

    rows = []
    for code in modules(jax.grad(loss), params, jnp.zeros((T, B, 8)), given):
        text = said(lambda code=code: compiler(code, len(code)))
        registers = re.search(r"Used (\d+) registers", text)
        spilled = re.search(r"(\d+) bytes spill stores", text)
        rows.append([int(registers[1]), int(spilled[1])] if registers and spilled else text)
    print(json.dumps(rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
