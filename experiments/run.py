"""What all experiments share: their flags, and the folder of a run with its files."""

import contextlib
import dataclasses
import inspect
import json
import math
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import jax

import mgu_jax
from mgu_jax.extras import look_for, require
from mgu_jax.training.lock import NAME as LOCK
from mgu_jax.training.lock import FolderLock, Locked


class Diverged(Exception):
    """Every seed stopped being finite, at these steps (seed -> step); ``saved`` are the steps with a checkpoint."""

    def __init__(self, at: dict[int, int], saved: list[int]):
        where = ", ".join(f"seed {seed} at step {step}" for seed, step in at.items())
        last = f"the last checkpoint is that of step {saved[-1]}" if saved else "there is no checkpoint"
        super().__init__(f"a run must stay finite, and none did: {where}; {last}.")


class BadRequest(Exception):
    """A request that cannot be met: its one sentence is printed, the exit status is 2, and nothing is written."""


@dataclass(frozen=True)
class Bound:
    """The rule for a number, declared beside its field: ``dropout: Annotated[float, between(0, 1)] = 0.0``."""

    rule: str
    holds: Callable[[float], bool]


def above(low: float) -> Bound:
    return Bound(f"a number above {low}", lambda value: low < value < math.inf)


def at_least(low: float) -> Bound:
    return Bound(f"a number of at least {low}", lambda value: low <= value < math.inf)


def between(low: float, high: float, rule: str | None = None) -> Bound:
    """From ``low``, which is allowed, to ``high``, which is not."""
    return Bound(rule or f"a number in [{low}, {high})", lambda value: low <= value < high)


@dataclass(frozen=True)
class Outside:
    """Marks a flag that changes no result, so a run may resume with another value of it."""


Mark = TypeVar("Mark", Bound, Outside)


def mark_of(config: type, field: str, kind: type[Mark]) -> Mark | None:
    """The mark of this kind that a class of flags, or the class in which it overrides the field, declares for it."""
    for base in config.__mro__:
        for mark in get_args(inspect.get_annotations(base).get(field)):
            if isinstance(mark, kind):
                return mark
    return None


@dataclass(frozen=True)
class Places:
    """Where to look for data sets."""

    data_dir: Annotated[Path | None, Outside()] = None
    """Folder with data sets, searched before that of MGU_JAX_DATA, ~/.cache/mgu_jax and installed packages."""
    download: Annotated[bool, Outside()] = False
    """Fetch a data set that is found nowhere from its official address into ~/.cache/mgu_jax."""

    def __post_init__(self) -> None:
        if self.data_dir is not None and not self.data_dir.is_dir():
            raise BadRequest(f"--data-dir must be a folder; there is none at {self.data_dir}.")


@dataclass(frozen=True)
class Common(Places):
    """The flags of every experiment. A number without a bound of its own must be above 0."""

    out: Annotated[Path | None, Outside()] = None
    """Folder of the run; runs/NAME by default. An earlier run there is kept, under a number."""
    seed: Annotated[int, between(0, 2**32, "a whole number in [0, 2^32)")] = 0
    """All random numbers follow from it."""
    steps: int | None = None
    """Optimiser steps; each experiment has its own default."""
    resume: Annotated[bool, Outside()] = False
    """Continue the run in the folder from its last checkpoint, bit for bit as if it had never stopped."""
    quick: bool = False
    """A small size that ends in seconds."""
    tensorboard: Annotated[bool, Outside()] = False
    """Also write the metrics for TensorBoard, into the folder of the run (extra tensorboard)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            bound = mark_of(type(self), field.name, Bound) or above(0)
            if not bound.holds(value):
                raise BadRequest(f"--{field.name.replace('_', '-')} must be {bound.rule}; got {value}.")


Config = TypeVar("Config")
_BEGUN = {"metrics.jsonl", "config.json.part", LOCK}  # what a run leaves that is killed at its very start
NEEDED = ("sklearn", "matplotlib", "tyro", "tqdm")


def parse(config: type[Config], name: str, flags: list[str], text: str | None) -> Config:
    """The settings that the flags ask for. A wrong flag ends the process with status 2.

    Raises:
        ImportError: a package that an experiment needs is not installed; said now rather than after the training.
        BadRequest: a value out of its bounds.
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
    """Devices, cores, and the name of the CPU where the system tells it."""
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        if found := re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()):
            processor = found[1]
    return f"{jax.devices()[0].device_kind} x {jax.device_count()}, {os.cpu_count()} cores of {processor}"


def _settings(config: Common) -> dict[str, Any]:
    """The flags that must stay the same for a run to resume bit for bit."""
    settings = {k: v for k, v in dataclasses.asdict(config).items() if mark_of(type(config), k, Outside) is None}
    return json.loads(json.dumps(settings, default=str))


def _command(arguments: list[str]) -> str:
    """The command that repeats the run, without folders of this machine."""
    words = (re.sub(r"^--[^=]+", lambda flag: flag[0].replace("_", "-"), word) for word in arguments)
    kept = re.sub(r"--(out|data-dir)(=| )\S+|--resume|--download", "", " ".join(words))
    return " ".join(["python", "-m", "experiments", *kept.split()])


def use_devices(asked: int | None) -> int:
    """The number of devices to work on; ``asked``, or two where there are two. On a CPU they are its cores.

    Raises:
        BadRequest: more than the machine has.
    """
    cores = os.cpu_count() or 1
    if (asked or 1) > cores:
        raise BadRequest(f"--devices must be at most the {cores} cores that there are; got {asked}.")
    with contextlib.suppress(RuntimeError):  # JAX has already started and keeps the devices that it has
        jax.config.update("jax_num_cpu_devices", asked or min(2, cores))
    there = jax.device_count()
    if (asked or 1) > there:
        raise BadRequest(f"--devices must be at most the {there} that there are; got {asked}.")
    return asked or min(2, there)


@contextlib.contextmanager
def damage_refused(checkpoints: mgu_jax.Checkpoints) -> Iterator[None]:
    """A context in which a checkpoint that cannot be restored raises a BadRequest that says what to do."""
    try:
        yield
    except mgu_jax.Damaged as damage:
        other = "no other there can be restored"
        if damage.whole is not None:
            files = " and ".join(str(checkpoints.path(step)) for step in damage.newer)
            other = f"that of step {damage.whole} is whole: remove {files}, and --resume continues from it"
        raise BadRequest(f"{damage.what}; {other}.") from damage


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _finite(value: Any) -> Any:
    """The value, or None where it is not finite, since JSON has no such numbers."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Run:
    """The folder of one run: config.json, metrics.jsonl, seconds.jsonl, result.json, plots and checkpoints.

    Args:
        name: of the experiment.
        config: its flags.
        sources: data source -> sha256, for config.json.
        resolved: settings that follow from the flags, for config.json.

    The folder is locked until the run is closed or its process ends.

    Raises:
        BadRequest: there is no run to resume, or one with other settings; another process writes into the folder; or it
            cannot be written.
    """

    def __init__(self, name: str, config: Common, sources: dict[str, str], resolved: dict[str, Any] | None = None):
        self.folder = Path(config.out) if config.out else Path("runs") / name
        self._board: Any = require("tensorboardX", "tensorboard") if config.tensorboard else None
        self._writer: Any = None
        self._lock = FolderLock(self.folder)
        self.record = {
            "experiment": name,
            "command": _command(sys.argv[1:]),
            "settings": _settings(config) | (resolved or {}),
            "data_dir": _text(config.data_dir or os.environ.get("MGU_JAX_DATA")),
            "versions": _versions(),
            "device": _device(),
            "data": sources,
        }
        try:
            self._open(config.resume, self.record)
        except Locked as error:
            rule = "--out must be a folder that no other run writes into"
            raise BadRequest(f"{rule}; {self.folder} is in use by {error.holder}.") from error
        except OSError as error:
            raise BadRequest(
                f"--out must be a folder that can be written; got {self.folder} ({error.strerror})."
            ) from error

    def _open(self, resume: bool, record: dict[str, Any]) -> None:
        if resume:
            if not self.path("config.json").exists():
                raise BadRequest(f"--resume needs an earlier run; there is none in {self.folder}.")
            self._lock.take()
            try:
                self._check_same(record)
            except BadRequest:
                self._lock.release()
                raise
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock.take()
        if self.path("config.json").exists():
            number, whole = 1, self.folder.resolve()
            while (kept := whole.with_name(f"{whole.name}.{number}")).exists():
                number += 1
            whole.rename(kept)
            (kept / LOCK).unlink(missing_ok=True)
            self._lock.release()  # of the folder that was moved
            print(f"{self.folder} held a run already; it is now {self.folder.with_name(kept.name)}.")
            return self._open(resume, record)
        if {path.name for path in self.folder.iterdir()} - _BEGUN:
            self._lock.release()
            raise BadRequest(
                f"--out must be new, empty, or the folder of an earlier run; {self.folder} has other files in it."
            )
        self.path("metrics.jsonl").write_text("")
        self.write("config.json", record)  # last, since it says that the folder holds a run

    def _check_same(self, record: dict[str, Any]) -> None:
        """Raise BadRequest unless the run in the folder has this experiment, these settings and these data."""
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

    def finish(self, numbers: dict[str, Any]) -> None:
        """Write result.json: the final numbers, and the command, versions and device that made them.

        ``close`` follows when all other files are written.
        """
        made_by = {k: self.record[k] for k in ("experiment", "command", "versions", "device", "data")}
        self.write("result.json", made_by | numbers)
        if self._writer is not None:
            self._writer.close()  # which waits for its thread

    def close(self) -> None:
        """Unlock the folder, and print what is in it. The last line of a run."""
        self._lock.release()
        known = ("config.json", "metrics.jsonl", "seconds.jsonl", "result.json")
        there = [f"{path.name}/" if path.is_dir() else path.name for path in self.folder.iterdir()]
        order = sorted(there, key=lambda name: (known.index(name) if name in known else len(known), name))
        print(f"written to {self.folder}: {', '.join(order)}")

    def path(self, name: str) -> Path:
        return self.folder / name

    def write(self, name: str, value: Any) -> None:
        """Write JSON, whole or not at all."""
        draft = self.path(name + ".part")
        draft.write_text(json.dumps(value, indent=2, default=float) + "\n")
        draft.replace(self.path(name))

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What ``make`` returns, as JSON gives it back; kept in NAME.json, where a run that resumes finds it."""
        path = self.path(f"{name}.json")
        if not path.exists():
            self.write(path.name, make())
        return json.loads(path.read_text())

    def log(self, step: int, split: str, **numbers: Any) -> None:
        """Add a line to metrics.jsonl: numbers, lists with one number per seed, and labels."""
        kept = {k: v if isinstance(v, str | list) else float(v) for k, v in numbers.items()}
        known = {k: [*map(_finite, v)] if isinstance(v, list) else _finite(v) for k, v in kept.items()}
        with self.path("metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": int(step), "split": split} | known) + "\n")
        if self._board:
            self._show(step, split, kept)

    def _show(self, step: int, split: str, numbers: dict[str, Any]) -> None:
        """Write the same for TensorBoard. A run that resumes first takes back what was shown from this step on."""
        if self._writer is None:
            where = str(self.path("tensorboard"))
            self._writer = self._board.SummaryWriter(where, purge_step=int(step), flush_secs=5)
        names = {k: int(numbers[k]) for k in ("setting", "seed") if k in numbers}
        member = "".join(f"/{k}_{number}" for k, number in names.items())
        for name, value in numbers.items():
            if isinstance(value, float) and name not in names:
                self._writer.add_scalar(f"{split}/{name}{member}", value, int(step))
            elif isinstance(value, list) and name.endswith("_per_seed"):
                for i, one in enumerate(value):
                    self._writer.add_scalar(f"{split}/{name}/{i}", one, int(step))

    def metrics(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path("metrics.jsonl").read_text().splitlines()]

    def rewind(self, step: int) -> None:
        """Drop what was logged after this step, since it will be logged again, and a half-written last line."""
        for name in ("metrics.jsonl", "seconds.jsonl"):
            if not self.path(name).exists():
                continue
            lines = self.path(name).read_text().splitlines(keepends=True)
            try:
                kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
            except (ValueError, KeyError, TypeError):
                raise BadRequest(f"--resume needs the run's {name}; that in {self.folder} is damaged.") from None
            draft = self.path(name + ".part")
            draft.write_text("".join(kept))
            draft.replace(self.path(name))

    def log_seconds(self, step: int, seconds: float) -> None:
        """Note how long the run took up to this step, in a file of its own: metrics repeat exactly, times do not."""
        with self.path("seconds.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "seconds": seconds}) + "\n")

    def seconds(self, step: int) -> float:
        """How long the run took up to this step, in all earlier processes."""
        path = self.path("seconds.jsonl")
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return next((row["seconds"] for row in reversed(rows) if row["step"] == step), 0.0)
