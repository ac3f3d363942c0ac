"""The kernels compile for an H100, and their numbers fit its registers, on a machine that has ptxas but no GPU.

It needs JAX's CUDA plugin, NVIDIA's compiler (``pip install --no-deps jax-cuda13-plugin``, ``pip install
nvidia-cuda-nvcc``) and a C compiler.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest

HERE = Path(__file__).parent
NVIDIA = importlib.util.find_spec("nvidia")
PTXAS = Path(*(getattr(NVIDIA, "submodule_search_locations", None) or ["missing"])[:1], "cu13", "bin", "ptxas")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(jax.__version_info__ < (0, 11, 2), reason="the kernel needs JAX 0.11.2"),
    pytest.mark.skipif(importlib.util.find_spec("jax_plugins") is None, reason="needs the CUDA plugin of JAX"),
    pytest.mark.skipif(not PTXAS.exists(), reason="needs ptxas"),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler"),
]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("driver")
    subprocess.run(["gcc", "-shared", "-fPIC", HERE / "driver.c", "-o", folder / "libcuda.so.1"], check=True)
    return os.environ | {
        "LD_LIBRARY_PATH": str(folder),
        "MOSAIC_GPU_CUDA_ROOT": str(PTXAS.parent.parent),
        "MOSAIC_GPU_DUMP_PTXAS": "1",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(HERE.parent.parent),
    }


@pytest.mark.parametrize("options", ["plain", "options"])
@pytest.mark.parametrize("compute_dtype", ["bfloat16", "none"])
@pytest.mark.parametrize("H", [64, 128, 192])
@pytest.mark.parametrize("member", ["MGU", "MGU3", "UGRNN", "RESET_AFTER_MGU", "FLAX_MGU", "DIAGONAL_MGU", "JANET"])
def test_registers_suffice(member, H, compute_dtype, options, environment):
    """Nothing is spilled to memory but in the loops of over 128 units, where little is, or products are tripled."""
    command = [sys.executable, "-m", "tests.kernels.ptxas", member, str(H), compute_dtype, options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kernels = json.loads(done.stdout.splitlines()[-1])
    assert len(kernels) == 2, "one kernel for each direction"
    allowed = 16 if H <= 128 else 128 if compute_dtype == "bfloat16" else 640
    assert all(spilled <= allowed for _, spilled in kernels), kernels
