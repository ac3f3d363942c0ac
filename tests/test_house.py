"""The shape of the house: the corridor of imports, what importing does, what is documented, what the wheel holds."""

import ast
import importlib
import inspect
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import mgu_jax as mgu

ROOT = Path(__file__).parent.parent

# Each file imports only from those above it.
CORRIDOR = [
    "extras",
    "params",
    "checks",
    "family",
    "initial",
    "products",
    "layer_norm",
    "cell",
    "chunks",
    "reverse_only",
    "bptt",
    "parallel",
    "noise",
    "sequence",
    "gradients",
    "stack",
    "model",
    "losses",
    "optimizers",
    "settings",
    "devices",
    "feed",
    "sidecar",
    "train",
    "evaluation",
    "validation",
    "progress",
    "fit",
    "sweep",
    "halving",
    "checkpoint",
    "__init__",
    "interop.__init__",
    "interop.convert",
    "interop.weights",
    "interop.files",
    "interop.pretrained",
    "interop.export",
    "interop.onnx",
    "interop.layers",
    "interop.flax_layout",
    "interop.flax_nnx",
    "interop.flax_linen",
    "interop.equinox",
]


def imported(path):
    """The modules of mgu_jax that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "mgu_jax":
            inner = node.module.partition(".")[2]
            if inner in ("", "interop"):
                yield from (".".join(filter(None, [inner, alias.name])) for alias in node.names)
            else:
                yield inner
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative imports hide the corridor"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "mgu_jax":
                    yield alias.name.partition(".")[2]


def test_the_corridor_of_imports_is_straight():
    house = ROOT / "mgu_jax"
    files = {".".join(path.relative_to(house).with_suffix("").parts): path for path in house.rglob("*.py")}
    assert sorted(files) == sorted(CORRIDOR)
    for stem, path in files.items():
        place = CORRIDOR.index(stem)
        for name in imported(path):
            assert CORRIDOR.index(name) < place, f"{stem} imports {name}, which does not stand above it"


def test_a_broken_corridor_is_noticed(tmp_path):
    path = tmp_path / "params.py"
    path.write_text(
        "import jax\nfrom mgu_jax import cell\nfrom mgu_jax.bptt import bptt\nimport mgu_jax.train\n"
        "from mgu_jax.interop import files\nfrom mgu_jax.interop.convert import convert\n"
    )
    assert list(imported(path)) == ["cell", "bptt", "train", "interop.files", "interop.convert"]


def test_files_stay_small():
    for path in [*(ROOT / "mgu_jax").rglob("*.py"), *(ROOT / "experiments").glob("*.py")]:
        assert len(path.read_text().splitlines()) <= 300, path.name


IMPORT = """
import json, os, sys
EXTRAS = "tqdm tyro matplotlib orbax sklearn flax keras equinox haiku safetensors onnx onnxruntime torch".split()
environment = dict(os.environ)
import jax
before = dict(jax.config.values)
import mgu_jax
from jax._src import xla_bridge
print(json.dumps({
    "configuration": {k: repr(v) for k, v in before.items() if jax.config.values[k] != v},
    "environment": sorted(set(os.environ.items()) ^ set(environment.items())),
    "backends": list(xla_bridge._backends),
    "extras": [m for m in EXTRAS if m in sys.modules],
}))
"""


def test_importing_changes_no_configuration_and_starts_no_backend():
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True, cwd=ROOT)
    assert json.loads(done.stdout) == {"configuration": {}, "environment": [], "backends": [], "extras": []}


ADAPTERS = {"flax_nnx": ("flax.nnx", "flax"), "flax_linen": ("flax.linen", "flax")}
ADAPTERS |= {name: (name, name) for name in ("equinox", "onnx")}


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_without_its_framework_names_the_extra(name, monkeypatch):
    module, extra = ADAPTERS[name]
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, f"mgu_jax.interop.{name}", raising=False)
    text = f"{module} is needed here and not installed: pip install 'mgu_jax[{extra}]'."
    with pytest.raises(ImportError, match=f"^{re.escape(text)}$"):
        importlib.import_module(f"mgu_jax.interop.{name}")


def public():
    """(name, object) of all that is public: what __all__ names, and its classes' own methods."""
    for name in mgu.__all__:
        value = getattr(mgu, name)
        if inspect.isfunction(value) or inspect.isclass(value):
            yield name, value


@pytest.mark.parametrize(("name", "value"), list(public()), ids=[name for name, _ in public()])
def test_public_names_are_documented(name, value):
    text = value.__doc__ or ""
    assert text.strip()
    assert not text.startswith(f"{name}("), "a docstring of its own, not the one that NamedTuple makes"


@pytest.mark.parametrize("name", ["init", "step", "step_backward", "scan", "check_gradients", "model", "fit"])
def test_docstrings_give_shapes_and_errors(name):
    text = getattr(mgu, name).__doc__
    assert "Raises:" in text
    if name not in ("fit", "check_gradients", "init"):
        assert "[" in text


def test_all_is_sorted_and_true():
    assert mgu.__all__ == sorted(mgu.__all__, key=lambda name: (not name.isupper(), not name[0].isupper(), name))
    assert all(hasattr(mgu, name) for name in mgu.__all__)


@pytest.mark.filterwarnings("ignore")  # of the build's own
def test_the_wheel_holds_the_package_alone_and_imports(tmp_path):
    """Built as ``pip wheel`` builds it, without the network: hatchling is a test dependency."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, check=True, capture_output=True, cwd=ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"mgu_jax", f"mgu_jax-{mgu.__version__}.dist-info"}
    assert {f"mgu_jax/{name.replace('.', '/')}.py" for name in CORRIDOR} <= set(names)
    code = f"import sys; sys.path.insert(0, {str(wheel)!r}); import mgu_jax; print(mgu_jax.__file__)"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert ".whl" in done.stdout
