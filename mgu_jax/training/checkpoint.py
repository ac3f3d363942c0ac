"""Saving and restoring a run, by orbax (extra ``experiments``). Only this file knows orbax's API.

    with Checkpoints("runs/x/checkpoints", keep=2) as checkpoints:
        state = checkpoints.restore(like)  # None if there is nothing yet
        checkpoints.save(step, state, metric=loss, config={"hidden_size": 64})

orbax writes the arrays. What it does not do is our own, the sidecar (sidecar.py) in the folder of every checkpoint: it
holds the version of the format; the configuration and the metric; the dtype and shape of every leaf, so that another
model's checkpoint is named before it is read; and the sha256 of every file, since of 300 checkpoints with one bit
flipped, orbax 0.12.8 restored 245 to other numbers without a word and refused 27. A folder without it is refused, and
stays, unless a mark says that it is ours and unfinished.
"""

import atexit
import errno
import json
import logging
import os
import re
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from mgu_jax import checks
from mgu_jax.extras import require
from mgu_jax.training import sidecar


class Damaged(RuntimeError):
    """A checkpoint is not as it was saved, of another format, or of another run than the one to restore.

    ``step`` is its step, ``what`` is wrong with it, ``whole`` the newest other step that can be restored, or ``None``.
    """

    def __init__(self, step: int, what: str, whole: int | None):
        other = f"that of step {whole} is whole: restore(like, step={whole})"
        super().__init__(f"{what}; {'no other there can be restored' if whole is None else other}.")
        self.step, self.what, self.whole = step, what, whole


@contextmanager
def _ctrl_c_waits() -> Iterator[None]:
    """Hold an interrupt back until the block is done: orbax may hang where one comes in the middle of its work."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals go to the main thread alone
        return
    came = []
    before = signal.signal(signal.SIGINT, lambda *_: came.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        signal.raise_signal(signal.SIGINT)  # for whoever handled it before


def _wanted(record: logging.LogRecord) -> bool:
    """Whether to log: not the traces that orbax logs of errors which are raised as one sentence."""
    return not (record.exc_info and "orbax" in record.pathname)


def _reason(error: Exception) -> str:
    """The system's words for an error of the disk, whoever reports it; the first line of another error."""
    code = re.search(r"(?:os_error_code='|Errno )(\d+)", str(error))
    return os.strerror(int(code[1])) if code else f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _copied(leaf: Any) -> Any:
    """The same where nobody else donates or overwrites it. The copy of a JAX array stays on its devices, unawaited."""
    if not isinstance(leaf, jax.Array):
        return np.array(leaf)
    if not leaf.is_fully_addressable:  # device_put takes no array of several processes
        return jnp.copy(leaf)
    return jax.device_put(leaf, leaf.sharding, may_alias=False)


def _abstract(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        return np.asarray(leaf)
    sharding = leaf.sharding or SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _as_in(leaf: Any, value: Any) -> Any:
    """Numbers are saved as arrays."""
    return type(leaf)(value.item()) if isinstance(leaf, bool | int | float | complex | np.generic) else value


class Checkpoints:
    """The checkpoints of one run, in a folder of their own, named by their step.

    Every process of a run makes one and calls it at the same places; process 0 does what is done once.

    Args:
        folder: made if it is not there.
        keep: so many of the newest stay, and the best of those with a metric.
        better: which metric is the better one, the "lower" or the "higher".

    Raises:
        ImportError: orbax is not installed.
        OSError: the folder cannot be written.
        TypeError: folder is no path.
    """

    def __init__(self, folder: str | Path, keep: int = 2, better: str = "lower"):
        checks.check_size("keep", keep)
        checks.check_choice("better", better, ("lower", "higher"))
        orbax = require("orbax.checkpoint", "experiments")
        self.folder, self.keep, self.better = checks.check_path("folder", folder), keep, better
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.folder).close()
        except OSError as error:
            raise OSError(f"folder must be one that can be written; got {folder} ({error.strerror}).") from error
        # Processes that are named meet at the coordinator. Else orbax runs a collective on the devices, which from a
        # thread may come between those of the training.
        processes = set(range(jax.process_count()))
        options = orbax.options.MultiprocessingOptions(active_processes=processes)
        handler = orbax.StandardCheckpointHandler(multiprocessing_options=options)
        self._orbax, self._args = orbax.Checkpointer(handler, multiprocessing_options=options), orbax.args
        self._meet = lambda: orbax.multihost.sync_global_processes("mgu_jax:saved", processes=processes)
        self._thread, self._saving = ThreadPoolExecutor(1, "checkpoints"), None
        self._reached: int | None = None  # the step last saved or restored here
        self._closed = False
        atexit.register(self.wait)  # says what is lost where nobody closes: orbax cannot write while Python ends

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            self.close()
        except OSError as unsaved:
            if error is None:
                raise
            error.add_note(str(unsaved))  # what ended the block goes on, and takes this along

    def _place(self, step: int) -> Path:
        return self.folder.resolve() / str(step)

    @property
    def steps(self) -> list[int]:
        """The steps of the checkpoints that are there, rising; ``wait`` first for the one that is being saved."""
        return sidecar.steps(self.folder)

    @property
    def best(self) -> int | None:
        """The step with the best metric, the first of equals; ``None`` if none has a metric."""
        metrics = {}
        for step in self.steps:
            with suppress(ValueError):  # restore speaks of the damage
                metrics[step] = sidecar.facts(self._place(step))["metric"]
        numbers = {step: metric for step, metric in metrics.items() if metric is not None}
        return (min if self.better == "lower" else max)(numbers, key=numbers.__getitem__, default=None)

    def save(self, step: int, state: Any, *, metric: Any = None, config: Any = None) -> None:
        """Save a state as the checkpoint of this step, in the background; it waits for the save before it.

        Args:
            step: above all that are there, or above the one that was restored: those after that one go.
            state: a pytree of numbers and arrays, of NumPy and JAX (sharded ones and keys too). It is copied, so that
                the caller may donate or overwrite it at once.
            metric: a number for ``better``; nan is none.
            config: whatever JSON can hold.

        Raises:
            OSError: an earlier save failed in the background; this one was not begun.
            TypeError, ValueError: arguments of another kind, a step that is too low, or a folder in the way that was
                not saved here.
        """
        checks.check_size("step", step, 0)
        if metric is not None and not checks.is_number(metric):
            raise TypeError(f"metric must be a number; got {checks.describe(metric)}.")
        try:
            config = json.loads(json.dumps(config))
        except (TypeError, ValueError) as error:
            raise TypeError(f"config must be what JSON can hold; got {checks.describe(config)} ({error}).") from error
        facts = {"step": int(step), "config": config, "state": sidecar.describe("state", state)}
        facts["metric"] = float(metric) if metric is not None and metric == metric else None
        if self._closed:
            raise ValueError(f"save must come before close; the checkpoints in {self.folder} are closed.")
        with _ctrl_c_waits():
            self.wait()
            last = max(self.steps, default=-1)
            if step <= last and (self._reached is None or step <= self._reached):
                raise ValueError(f"step must be above {last}, the last in {self.folder}; got {step}.")
            if in_the_way := [found for found in sidecar.strange(self.folder) if found[0] >= step]:
                what = f"is damaged or another program's (it has no {sidecar.NAME})"
                raise ValueError(f"step must be above what is not a checkpoint of ours; {min(in_the_way)[1]} {what}.")
            copies = jax.tree.map(_copied, state)
            self._saving, self._reached = self._thread.submit(self._write, int(step), copies, facts), int(step)

    def _write(self, step: int, state: Any, facts: dict[str, Any]) -> None:
        first, place, log = jax.process_index() == 0, self._place(step), logging.getLogger("absl")
        log.addFilter(_wanted)
        try:
            if first:
                self._clear(step)
                sidecar.mark_of(place).touch()
            size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
            if shutil.disk_usage(self.folder).free < size + 2**20:  # orbax prints a trace for every leaf without room
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._orbax.save(place, args=self._args.StandardSave({"state": state}))
            if first:
                sidecar.write(place, facts)
                for old in set(self.steps[: -self.keep]) - {self.best}:
                    sidecar.remove(self._place(old))
        except Exception as error:
            if first:
                with suppress(OSError):  # a full disk needs the room
                    self._clear(step + 1)
            what = f"the checkpoint of step {step} could not be saved in {self.folder} ({_reason(error)})"
            raise OSError(f"{what}; those before it are whole.") from error
        finally:
            log.removeFilter(_wanted)
            self._meet()

    def _clear(self, step: int) -> None:
        """Remove what is unfinished, and the checkpoints of this step and after it."""
        sidecar.tidy(self.folder)
        for old in (n for n in self.steps if n >= step):
            sidecar.remove(self._place(old))

    def wait(self) -> None:
        """Return when the last save is on disk. Raises OSError if it failed."""
        with _ctrl_c_waits():
            saving, self._saving = self._saving, None
            if saving is not None:
                saving.result()

    def close(self) -> None:
        """Wait, and end the thread; nothing can be saved after. Raises OSError if the last save failed."""
        atexit.unregister(self.wait)
        try:
            self.wait()
        finally:
            self._closed = True
            self._thread.shutdown()
            self._orbax.close()

    def _wrong(self, step: int, like: dict[str, str] | None) -> str | None:
        try:
            sidecar.check(self._place(step), step, like)
        except ValueError as error:
            return f"the checkpoint of step {step} in {self.folder} {error}"
        return None

    def _chosen(self, step: int | None, like: dict[str, str] | None) -> int | None:
        """The step asked for, once its checkpoint is found whole."""
        self.wait()
        steps = self.steps
        named = sorted({*steps, *(n for n, path in sidecar.strange(self.folder) if path.name == str(n))})
        if step is None and not named:
            return None
        step = named[-1] if step is None else step
        if step not in named:
            raise ValueError(f"step must be one of {steps}, those in {self.folder}; got {step}.")
        if what := self._wrong(step, like):
            others = (other for other in reversed(steps) if other != step and not self._wrong(other, like))
            raise Damaged(step, what, next(others, None))
        return step

    def config(self, step: int | None = None) -> Any | None:
        """The configuration that was saved with a step, as ``restore`` chooses it; raises as it does."""
        chosen = self._chosen(step, None)
        return None if chosen is None else sidecar.facts(self._place(chosen))["config"]

    def restore(self, like: Any, step: int | None = None) -> Any | None:
        """The state of a step, the newest if ``None``; ``None`` if there is no checkpoint yet.

        Args:
            like: has the structure, shapes, dtypes and shardings to restore: a state, or ``jax.eval_shape`` of one.
            step: one of ``steps``.

        Raises:
            Damaged: it is not as it was saved, or not like ``like``; the error names a step that is.
            OSError: the last save failed in the background.
            TypeError, ValueError: arguments of another kind, or a step that is not there.
        """
        chosen = self._chosen(step, sidecar.describe("like", like))
        if chosen is None:
            return None
        with _ctrl_c_waits():
            asked = self._args.StandardRestore({"state": jax.tree.map(_abstract, like)})
            restored = self._orbax.restore(self._place(chosen), args=asked)["state"]
        self._reached = chosen
        return jax.tree.map(_as_in, like, restored)
