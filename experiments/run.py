"""What all experiments share: the flags, and the folder of a run with its files."""

import contextlib
import dataclasses
import json
import math
import os
import platform
import re
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import jax

import mgu_jax
from mgu_jax.extras import look_for, require
from mgu_jax.training.checkpoint import Checkpoints, Damaged


class Diverged(Exception):
    """The loss or the parameters of every seed ceased to be finite, at these steps; ``saved`` are the checkpoints."""

    def __init__(self, at: dict[int, int], saved: list[int]):
        where = ", ".join(f"seed {seed} at step {step}" for seed, step in at.items())
        last = f"the last checkpoint is that of step {saved[-1]}" if saved else "there is no checkpoint"
        super().__init__(f"a run must stay finite, and none did: {where}; {last}.")


class BadRequest(Exception):
    """What was asked for cannot be done: one sentence, exit status 2, nothing written."""


@dataclass(frozen=True)
class Places:
    """Where data sets are looked for."""

    data_dir: Path | None = None
    """Folder to look for data sets in, before that of MGU_JAX_DATA, ~/.cache/mgu_jax and installed packages."""
    download: bool = False
    """Fetch a data set that is nowhere from its official address into ~/.cache/mgu_jax."""

    def __post_init__(self) -> None:
        if self.data_dir is not None and not self.data_dir.is_dir():
            raise BadRequest(f"--data-dir must be a folder; there is none at {self.data_dir}.")


@dataclass(frozen=True)
class Common(Places):
    """The flags of every experiment."""

    out: Path | None = None
    """Folder of the run; runs/NAME if not given. An earlier run there is kept, under a number."""
    seed: int = 0
    """Everything random follows from it."""
    steps: int | None = None
    """Optimiser steps; the experiment's own number if not given."""
    resume: bool = False
    """Go on with the run in the folder, from its last checkpoint, to the same bits as if it had never stopped."""
    quick: bool = False
    """A small size that ends in seconds."""
    tensorboard: bool = False
    """Write the metrics for TensorBoard too, into the folder of the run (extra tensorboard)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in dataclasses.fields(self):
            value, flag = getattr(self, field.name), "--" + field.name.replace("_", "-")
            if field.name == "seed":
                if not 0 <= value < 2**32:
                    raise BadRequest(f"{flag} must be a whole number in [0, 2^32); got {value}.")
            elif isinstance(value, bool) or not isinstance(value, int | float):
                continue
            elif field.name == "forget_bias":
                if not math.isfinite(value):
                    raise BadRequest(f"{flag} must be a number or chrono; got {value}.")
            elif field.name == "dropout":
                if not 0 <= value < 1:
                    raise BadRequest(f"{flag} must be a number in [0, 1); got {value}.")
            elif field.name == "weight_decay":
                if not 0 <= value < math.inf:
                    raise BadRequest(f"{flag} must be a number of at least 0; got {value}.")
            elif not 0 < value < math.inf:
                raise BadRequest(f"{flag} must be a number above 0; got {value}.")


Config = TypeVar("Config")
_BEGUN = {"metrics.jsonl", "config.json.part"}  # what a run leaves that is killed while it begins
_NO_SETTINGS = ("out", "data_dir", "download", "resume", "tensorboard")
NEEDED = ("sklearn", "matplotlib", "tyro", "tqdm")


def parse(config: type[Config], name: str, flags: list[str], text: str | None) -> Config:
    """The settings that the flags ask for. A wrong flag ends the process with status 2.

    Raises:
        ImportError: something that an experiment may need later is not installed; better now than after training.
        BadRequest: a value that cannot be.
    """
    look_for(NEEDED, "experiments")
    tyro = require("tyro", "experiments")
    return tyro.cli(config, args=flags, prog=f"python -m experiments {name}", description=text)


def _versions() -> dict[str, str]:
    names = ("jax", "jaxlib", "flax", "optax", "numpy", "scikit-learn")
    made_by = {"python": platform.python_version(), "mgu_jax": mgu_jax.__version__}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):  # Flax is an extra
            made_by[name] = metadata.version(name)
    return made_by


def _device() -> str:
    """Devices, cores, and the CPU's name where the system says it."""
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        if found := re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()):
            processor = found[1]
    return f"{jax.devices()[0].device_kind} x {jax.device_count()}, {os.cpu_count()} cores of {processor}"


def _settings(config: Common) -> dict[str, Any]:
    """What must be the same for a run to go on to the same bits."""
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in _NO_SETTINGS}
    return json.loads(json.dumps(settings, default=str))


def _command(arguments: list[str]) -> str:
    """What one types to have the run again: without the folders of this machine."""
    words = (re.sub(r"^--[^=]+", lambda flag: flag[0].replace("_", "-"), word) for word in arguments)
    kept = re.sub(r"--(out|data-dir)(=| )\S+|--resume|--download", "", " ".join(words))
    return " ".join(["python", "-m", "experiments", *kept.split()])


def use_devices(asked: int | None) -> int:
    """How many devices to work on: those of a GPU machine, or cores of a CPU, two of them if nothing is asked for.

    Raises:
        BadRequest: more than there are.
    """
    cores = os.cpu_count() or 1
    if (asked or 1) > cores:
        raise BadRequest(f"--devices must be at most the {cores} cores that there are; got {asked}.")
    with contextlib.suppress(RuntimeError):  # where JAX has started already, with the devices that it has
        jax.config.update("jax_num_cpu_devices", asked or min(2, cores))
    there = jax.device_count()
    if (asked or 1) > there:
        raise BadRequest(f"--devices must be at most the {there} that there are; got {asked}.")
    return asked or min(2, there)


def saved(checkpoints: Checkpoints, like: Any) -> Any | None:
    """The state to go on from. Raises BadRequest, with what to do, where the newest checkpoint is damaged."""
    try:
        return checkpoints.restore(like)
    except Damaged as damage:
        other = "no other there can be restored"
        if damage.whole is not None:
            bad = checkpoints.path(damage.step)
            other = f"that of step {damage.whole} is whole, and --resume goes on from it once {bad} is removed"
        raise BadRequest(f"{damage.what}; {other}.") from damage


def _finite(value: Any) -> Any:
    """JSON has no number that is not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Run:
    """The folder of one run: config.json, metrics.jsonl, result.json, plots and checkpoints.

    Args:
        name: the experiment's.
        config: its settings.
        sources: data source -> sha256, for config.json.
        resolved: settings that follow from the flags, for config.json.

    Raises:
        BadRequest: nothing to resume, a run with other settings, or a folder that cannot be written.
    """

    def __init__(self, name: str, config: Common, sources: dict[str, str], resolved: dict[str, Any] | None = None):
        self.folder = Path(config.out) if config.out else Path("runs") / name
        self._board: Any = require("tensorboardX", "tensorboard") if config.tensorboard else None
        self._writer: Any = None
        self.record = {
            "experiment": name,
            "command": _command(sys.argv[1:]),
            "settings": _settings(config) | (resolved or {}),
            "data_dir": str(config.data_dir or os.environ.get("MGU_JAX_DATA")),
            "versions": _versions(),
            "device": _device(),
            "data": sources,
        }
        try:
            self._open(config.resume, self.record)
        except OSError as error:
            raise BadRequest(
                f"--out must be a folder that can be written; got {self.folder} ({error.strerror})."
            ) from error

    def _open(self, resume: bool, record: dict[str, Any]) -> None:
        present = self.path("config.json").exists()
        if resume:
            if not present:
                raise BadRequest(f"--resume needs a run to go on with; there is none in {self.folder}.")
            try:
                before = json.loads(self.path("config.json").read_text())
                before = {part: before[part] for part in ("experiment", "settings", "data")}
            except (ValueError, KeyError, TypeError):
                raise BadRequest(f"--resume needs the run's config.json; that in {self.folder} is damaged.") from None
            if before["experiment"] != record["experiment"]:
                other = before["experiment"]
                raise BadRequest(f"--resume needs a run of {record['experiment']}; {self.folder} holds one of {other}.")
            for part in ("settings", "data"):
                for key in sorted(before[part].keys() | record[part].keys()):
                    if before[part].get(key) != record[part].get(key):
                        raise BadRequest(
                            f"--resume needs the settings of the run in {self.folder}: {key} was "
                            f"{before[part].get(key)!r}; got {record[part].get(key)!r}."
                        )
            return
        if present:
            number, whole = 1, self.folder.resolve()
            while (kept := whole.with_name(f"{whole.name}.{number}")).exists():
                number += 1
            whole.rename(kept)
            print(f"{self.folder} held a run already; it is now {self.folder.with_name(kept.name)}.")
        elif self.folder.is_dir() and {path.name for path in self.folder.iterdir()} - _BEGUN:
            raise BadRequest(f"--out must be a new or an empty folder, or one of a run; {self.folder} is none of them.")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path("metrics.jsonl").write_text("")
        self.write("config.json", record)  # last, since it says that the folder holds a run

    def finish(self, figures: dict[str, Any]) -> None:
        """Write result.json: the final figures, with what made them."""
        made_by = {k: self.record[k] for k in ("experiment", "command", "versions", "device", "data")}
        self.write("result.json", made_by | figures)
        if self._writer is not None:
            self._writer.close()  # which waits for its thread

    def path(self, name: str) -> Path:
        return self.folder / name

    def write(self, name: str, value: Any) -> None:
        """Write JSON, whole or not at all."""
        draft = self.path(name + ".part")
        draft.write_text(json.dumps(value, indent=2, default=float) + "\n")
        draft.replace(self.path(name))

    def log(self, step: int, split: str, **figures: Any) -> None:
        """Add a line to metrics.jsonl: numbers, and texts and lists that say of what."""
        kept = {k: v if isinstance(v, str | list) else float(v) for k, v in figures.items()}
        known = {k: [*map(_finite, v)] if isinstance(v, list) else _finite(v) for k, v in kept.items()}
        with self.path("metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": int(step), "split": split} | known) + "\n")
        if self._board:
            self._show(step, split, kept)

    def _show(self, step: int, split: str, figures: dict[str, Any]) -> None:
        """The same on TensorBoard, where a run that resumes takes back what was shown from here on."""
        if self._writer is None:
            where = str(self.path("tensorboard"))
            self._writer = self._board.SummaryWriter(where, purge_step=int(step), flush_secs=5)
        names = {k: int(figures[k]) for k in ("setting", "seed") if k in figures}
        member = "".join(f"/{k}_{number}" for k, number in names.items())
        for name, value in figures.items():
            if isinstance(value, float) and name not in names:
                self._writer.add_scalar(f"{split}/{name}{member}", value, int(step))
            elif isinstance(value, list) and name.endswith("_per_seed"):
                for i, one in enumerate(value):
                    self._writer.add_scalar(f"{split}/{name}/{i}", one, int(step))

    def metrics(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path("metrics.jsonl").read_text().splitlines()]

    def rewind(self, step: int) -> None:
        """Drop what was logged after this step, since it will be logged again; a half-written last line too."""
        for name in ("metrics.jsonl", "seconds.jsonl"):
            lines = self.path(name).read_text().splitlines(keepends=True) if self.path(name).exists() else []
            try:
                kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
            except (ValueError, KeyError, TypeError):
                raise BadRequest(f"--resume needs the run's {name}; that in {self.folder} is damaged.") from None
            draft = self.path(name + ".part")
            draft.write_text("".join(kept))
            draft.replace(self.path(name))

    def log_seconds(self, step: int, seconds: float) -> None:
        """How long the run took up to this step; apart from the metrics, which are the same in every run."""
        with self.path("seconds.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "seconds": seconds}) + "\n")

    def seconds(self, step: int) -> float:
        """How long the run took up to this step, in the processes before this one."""
        rows = [json.loads(line) for line in self.path("seconds.jsonl").read_text().splitlines()]
        return next((row["seconds"] for row in reversed(rows) if row["step"] == step), 0.0)
