"""The shape of the house: which room imports which, what importing does, what is documented, what the wheel holds."""

import ast
import graphlib
import importlib
import inspect
import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import mgu_jax as mgu
from tests.environments import INTEROP, PAGES, environments
from tests.rejects import rejects

ROOT = Path(__file__).parent.parent

# A room imports from itself and from those above it in this list. interop also leaves training alone, and nothing
# imports interop.
ROOMS = ["checks", "layer", "kernels", "sequence", "model", "dynamics", "training", "interop", "__init__"]
# Files that share a room with another.
BESIDE = {"archive": "checks", "extras": "checks", "gradients": "sequence", "widths": "sequence"}


def room_of(module):
    """The room of a module of mgu_jax, named without "mgu_jax."."""
    first = module.split(".")[0] or "__init__"
    return BESIDE.get(first, first)


def modules(house):
    """Dotted name -> path, for every file of a package."""
    return {".".join(path.relative_to(house).with_suffix("").parts): path for path in house.rglob("*.py")}


def imported(path, known):
    """The modules among ``known`` that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative imports hide where a name comes from"
            package, _, inner = (node.module or "").partition(".")
            if package == "mgu_jax":
                for alias in node.names:
                    full = f"{inner}.{alias.name}".strip(".")
                    yield next((name for name in (full, f"{full}.__init__") if name in known), inner or "__init__")
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "mgu_jax":
                    yield alias.name.partition(".")[2] or "__init__"


def check_rooms(house):
    """Raise AssertionError for an import that runs upward, and graphlib.CycleError for a circle."""
    files = modules(house)
    arrows = {name: set(imported(path, files)) for name, path in files.items()}
    for name, targets in arrows.items():
        for target in targets:
            here, there = room_of(name), room_of(target)
            assert ROOMS.index(there) <= ROOMS.index(here), f"{name} imports {target}, which stands below it"
            assert (here, there) != ("interop", "training"), f"{name} imports {target}"
    graphlib.TopologicalSorter(arrows).prepare()


def test_rooms_import_downward_only_and_without_a_circle():
    check_rooms(ROOT / "mgu_jax")


@pytest.mark.parametrize(
    ("name", "line", "error"),
    [
        ("layer/params.py", "from mgu_jax.training import fit", AssertionError),
        ("layer/params.py", "import mgu_jax", AssertionError),
        ("layer/params.py", "from mgu_jax.layer import cell", graphlib.CycleError),
        ("interop/files.py", "from mgu_jax.training.fit import fit", AssertionError),
        ("interop/files.py", "from . import convert", AssertionError),
        ("model.py", "import mgu_jax.interop.files", AssertionError),
    ],
)
def test_a_wrong_import_is_noticed(name, line, error, tmp_path):
    house = tmp_path / "mgu_jax"
    shutil.copytree(ROOT / "mgu_jax", house, ignore=shutil.ignore_patterns("__pycache__", "*.npz"))
    (house / name).write_text(line + "\n" + (house / name).read_text())
    with pytest.raises(error):
        check_rooms(house)


IMPORT = """
import json, os, sys
EXTRAS = "tqdm tyro matplotlib sklearn flax keras equinox haiku safetensors onnx onnxruntime torch".split()
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
ADAPTERS |= {"scanned_nnx": ("flax.nnx", "flax"), "scanned_linen": ("flax.linen", "flax")}
ADAPTERS |= {name: (name, name) for name in ("equinox", "onnx")}


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_without_its_framework_names_the_extra(name, monkeypatch):
    module, extra = ADAPTERS[name]
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, f"mgu_jax.interop.{name}", raising=False)
    install = f"in a clone of mgu_jax, pip install -e '.[{extra}]'"
    rejects(lambda: importlib.import_module(f"mgu_jax.interop.{name}"), module, install, kind=ImportError)


def public():
    """(name, object) of all that is public: what __all__ names, in the package and in mgu.dynamics."""
    for name, value in [(name, getattr(room, name)) for room in (mgu, mgu.dynamics) for name in room.__all__]:
        if inspect.isfunction(value) or inspect.isclass(value):
            yield name, value


@pytest.mark.parametrize(("name", "value"), list(public()), ids=[name for name, _ in public()])
def test_public_names_are_documented(name, value):
    text = value.__doc__ or ""
    assert text.strip()
    assert not text.startswith(f"{name}("), "a docstring of its own, not the one that NamedTuple makes"


@pytest.mark.parametrize("name", ["init", "step", "step_backward", "scan", "check_gradients", "Model", "fit"])
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
    assert {f"mgu_jax/{name.replace('.', '/')}.py" for name in modules(ROOT / "mgu_jax")} <= set(names)
    assert "mgu_jax/kernels/cpu.cc" in names
    code = f"import sys; sys.path.insert(0, {str(wheel)!r}); import mgu_jax; print(mgu_jax.__file__)"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert ".whl" in done.stdout


def test_ci_runs_the_pages_with_each_extra_alone():
    """tests/environments.py has an environment for every extra that users install, and CI runs them all."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {extra for name in environments() for extra in name.split(",")}
    assert named == {"none", *extras} - {"test", "lint"}
    pages = {str(path.relative_to(ROOT)) for path in ROOT.glob("mgu_jax/**/README.md")}
    assert pages | {"README.md"} == {*PAGES, INTEROP}
    (matrix,) = re.findall(r"extras: \[(.*)\]", (ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert {name.strip('"') for name in re.split(r", ", matrix)} == set(environments())
