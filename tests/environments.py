"""What a page runs, in an environment that has the extra that the page names, and no other.

    python tests/environments.py              # every environment, one after the other
    python tests/environments.py flax export  # these two; "none" has no extra

Each environment is a new virtual environment, so this needs the network. It needs nothing but Python itself.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
INTEROP = "mgu_jax/interop/README.md"
# The other pages, and the extra that their blocks need.
PAGES = {
    "README.md": {"experiments"},
    "mgu_jax/training/README.md": {"experiments"},
    "mgu_jax/dynamics/README.md": {"experiments"},
    "mgu_jax/layer/README.md": set(),
    "mgu_jax/kernels/README.md": set(),
}

# Commands of the pages, by the extras that the page names.
COMMANDS = {
    "experiments": [["digits", "--quick"]],
    "experiments,tensorboard": [["digits", "--quick", "--tensorboard"]],
    "experiments,flax": [["digits", "--quick", "--cell", "gru"]],
}


def blocks(text):
    """(the extras that the paragraph before it names, the code) of every Python block of a text, in order."""
    for before, code in re.findall(r"(.*?)```python\n(.*?)```", text, re.DOTALL):
        *_, paragraph = before.strip().split("\n\n")
        yield set(re.findall(r"extra `(\w+)`", paragraph)), code


def programs():
    """(the extras that it needs, where it stands, the code) of every program of the pages.

    On most pages each block is a program. In a section of the page on frameworks each block
    continues the previous ones. The table at its top names the extra of a section.
    """
    for page, needed in PAGES.items():
        for i, (extras, code) in enumerate(blocks((ROOT / page).read_text())):
            if not code.startswith("# train.py\n"):  # which several machines run
                yield extras | needed, f"{page}, block {i}", code
    text = (ROOT / INTEROP).read_text()
    rows = [[cell.strip(" `") for cell in line.split("|")] for line in text.splitlines() if line.startswith("| ")]
    needed = {row[1]: {row[4]} for row in rows}
    for section in text.split("\n## ")[1:]:
        title = section.partition("\n")[0]
        before = ""
        for i, (extras, code) in enumerate(blocks(section)):
            yield extras | needed.get(title, set()), f"{INTEROP}, {title}, block {i}", before + code
            if not extras:
                before += code


def environments():
    """The extras of each environment -> [(name, arguments of Python, whether in the clone)]."""
    found = {"none": [("import", ["-c", "import mgu_jax"], False)]}
    for extras, name, code in programs():
        found.setdefault(",".join(sorted(extras)) or "none", []).append((name, ["-c", code], False))
    for extras, commands in COMMANDS.items():
        for command in commands:
            found.setdefault(extras, []).append((" ".join(command), ["-m", "experiments", *command], True))
    return found


def run(extras, jobs, folder):
    """Make the environment, run its jobs, and return the names of those that failed."""
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    what = f"{ROOT}" if extras == "none" else f"{ROOT}[{extras}]"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "-e", what], check=True)
    failed = []
    for name, arguments, in_the_clone in jobs:
        own = [] if not in_the_clone else ["--out", folder / "run"]
        place = ROOT if in_the_clone else tempfile.mkdtemp(dir=folder)
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"MPLBACKEND": "agg"}
        done = subprocess.run([python, *arguments, *own], cwd=place, env=environment, capture_output=True, text=True)
        print(f"{extras:24} {'passed' if done.returncode == 0 else 'FAILED'} {name}", flush=True)
        if done.returncode:
            print(done.stderr[-2000:], flush=True)
            failed.append(name)
    return failed


def main(wanted):
    known = environments()
    if wanted == ["--list"]:
        print(json.dumps(list(known)))
        return
    if unknown := set(wanted) - set(known):
        sys.exit(f"environments must be some of {', '.join(known)}; got {', '.join(sorted(unknown))}.")
    failed = []
    for extras in wanted or known:
        with tempfile.TemporaryDirectory() as folder:
            failed += run(extras, known[extras], Path(folder))
    sys.exit(f"failed: {'; '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
