"""Checkpoints of a run: one file STEP.npz each (archive.py), written in the background, whole or not at all.

    with Checkpoints("runs/x/checkpoints", keep=2) as checkpoints:
        state = checkpoints.restore(like)  # None if there is no checkpoint yet
        checkpoints.save(step, state, metric=loss, config={"hidden_size": 64})

A file gets its name when all of it is on the disk. So a process that is killed at any moment leaves whole checkpoints,
and at most one unfinished file, which the next save removes.

Several processes: each makes a ``Checkpoints`` of one folder, which all of them see, and calls ``save``, ``restore``,
``config``, ``wait`` and ``close`` at the same places. Process 0 writes. All processes meet before a save, because each
looks at the folder and process 0 then changes it. They meet before a read, so that process 0 has finished the file, and
after it, so that process 0 may remove the file. They meet, and gather arrays, in the main thread alone: collectives of
another thread could run in a different order in each process.

Two runs: the first save locks the folder (lock.py) until ``close``; a run locks it when it starts. Reading needs no
lock, so the checkpoints of a run can be looked at while it works.
"""

import atexit
import json
import re
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import SingleDeviceSharding

from mgu_jax import archive, checks
from mgu_jax.training.devices import together
from mgu_jax.training.lock import FolderLock

_KIND = "checkpoint"
_ASK = "better must be 'lower' or 'higher' where checkpoints have a metric; got None."
_NAME = re.compile(rf"(0|[1-9]\d*)\.npz({re.escape(archive.UNFINISHED)})?")
_PARTS = {"best": "validation", "opt_state": "optimiser"}  # fields of a state that do not depend on the model alone


class Damaged(RuntimeError):
    """A checkpoint cannot be restored: it is damaged, of another format, or of another model, optimiser or validation.

    Attributes:
        step: the step of this checkpoint.
        what: what is wrong with it, in words.
        whole: the newest other step that can be restored, or ``None``.
        newer: the steps after ``whole``, whose files must be removed before a run resumes from it.
    """

    def __init__(self, step: int, what: str, whole: int | None, newer: tuple[int, ...] = ()):
        other = "no other checkpoint can be restored"
        if whole is not None:
            files = " and ".join(f"{later}.npz" for later in newer)
            remove = f"remove {files} to resume from it, or " if newer else ""
            other = f"that of step {whole} is whole: {remove}restore(like, step={whole})"
        super().__init__(f"{what}; {other}.")
        self.step, self.what, self.whole, self.newer = step, what, whole, newer

    def __reduce__(self) -> Any:  # pools of processes pickle errors
        return type(self), (self.step, self.what, self.whole, self.newer)


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _copied(leaf: Any) -> Any:
    """A copy that the caller cannot donate or overwrite. A JAX array is copied on its devices, without waiting."""
    if not isinstance(leaf, jax.Array):
        return np.array(leaf)
    leaf = jax.random.key_data(leaf) if _is_key(leaf) else leaf
    if not leaf.is_fully_addressable:
        if not leaf.is_fully_replicated:
            return multihost_utils.process_allgather(leaf, tiled=True)
        leaf = leaf.addressable_data(0)
    return jax.device_put(leaf, leaf.sharding, may_alias=False)


def _restored(like: Any, value: np.ndarray, impl: Any) -> Any:
    """A leaf of the kind, and with the sharding, of ``like``. ``impl`` names the implementation of PRNG keys."""
    if isinstance(like, bool | int | float | complex):
        return type(like)(value.item())
    if not isinstance(like, jax.Array | jax.ShapeDtypeStruct):
        return value[()] if isinstance(like, np.generic) else value
    if impl is not None and isinstance(like, jax.Array):
        impl = jax.random.key_impl(like)  # which may be the user's own, and has no name that JAX knows
    whole = value if impl is None else jax.random.wrap_key_data(jnp.asarray(value), impl=impl)
    sharding = like.sharding or SingleDeviceSharding(jax.local_devices()[0])
    if sharding.is_fully_addressable:
        return jax.device_put(whole, sharding)
    return jax.make_array_from_callback(whole.shape, sharding, lambda part: whole[part])


def _difference(saved: dict[str, str], like: dict[str, str]) -> str | None:
    """The first leaf in which two states differ, and the part that it belongs to; ``None`` if all agree."""
    for path in saved | like:
        there, here = saved.get(path, "not there"), like.get(path, "not there")
        if there != here:
            part = re.match(r"(?:\.members)?\.(best|opt_state)\b", path)
            other = _PARTS[part[1]] if part else "model"
            return f"is of another {other} (state{path} is {there}, like{path} is {here})"
    return None


class Checkpoints:
    """The checkpoints of one run, in a folder.

    Args:
        folder: made if it does not exist. Files in it that are not checkpoints are never touched.
        keep: how many of the newest checkpoints stay. The best of those with a metric stays too.
        better: which metrics are better, the "lower" or the "higher"; needed if checkpoints are saved with a metric.

    Raises:
        OSError: the folder cannot be written.
        TypeError, ValueError: wrong arguments.
    """

    def __init__(self, folder: str | Path, keep: int = 2, better: str | None = None):
        checks.check_size("keep", keep)
        checks.check_choice("better", better, (None, "lower", "higher"))
        self.folder, self.keep, self.better = checks.check_path("folder", folder), keep, better
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.folder).close()
        except OSError as error:
            raise OSError(f"folder must be one that can be written; got {folder} ({error.strerror}).") from error
        self._lock = FolderLock(self.folder)
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        self._thread.submit(int).result()  # starts it: an interrupt in the middle of that would lose the thread
        self._saving: Future[None] | None = None
        self._reached: int | None = None  # the step last saved or restored here
        self._closed = False
        # Python finishes the last save before it ends, even if nobody closes. Only its error would be lost.
        atexit.register(self._finish_and_unlock)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None:
            self.close()
            return
        try:
            self._end()  # without a meeting, since the other processes may not have this error
        except OSError as unsaved:
            error.add_note(str(unsaved))

    def lock(self) -> None:
        """Reserve the folder for this process until ``close``, as the first ``save`` does.

        Raises:
            Locked: another process writes checkpoints into it.
            OSError: the folder cannot be written.
        """
        if self._closed:
            raise ValueError(f"lock must come before close; the checkpoints in {self.folder} are closed.")
        together(self._take_lock)

    def _take_lock(self) -> None:
        if jax.process_index() == 0:  # which writes for all processes of a run
            self._lock.take()

    def path(self, step: int) -> Path:
        """The file of a checkpoint."""
        return self.folder / f"{step}.npz"

    def _found(self) -> dict[int, bool]:
        """Step -> whether its file is a checkpoint, perhaps a damaged one; in ascending order."""
        found = {}
        for path in self.folder.iterdir():
            name = _NAME.fullmatch(path.name)
            if not name or name[2]:
                continue
            try:
                found[int(name[1])] = archive.is_marked(path, _KIND)
            except FileNotFoundError:  # process 0 has removed it meanwhile
                pass
            except OSError:  # a folder, or a file that cannot be read
                found[int(name[1])] = False
        return dict(sorted(found.items()))

    @property
    def steps(self) -> list[int]:
        """The steps of all checkpoints, in ascending order. Call ``wait`` first to include one that is being saved."""
        return [step for step, ours in self._found().items() if ours]

    @property
    def best(self) -> int | None:
        """The step with the best metric, the first of equals; ``None`` if no checkpoint has a metric.

        Raises:
            ValueError: checkpoints have a metric, and ``better`` was not given.
        """
        numbers = self._metrics()
        if numbers and self.better is None:
            raise ValueError(_ASK)
        return (min if self.better == "lower" else max)(numbers, key=numbers.__getitem__, default=None)

    def _metrics(self) -> dict[int, float]:
        """The metric of every checkpoint that has one, by its step."""
        metrics = {}
        for step in self.steps:
            with suppress(archive.Unreadable, OSError):  # restore reports damage
                metrics[step] = archive.read_header(self.path(step), _KIND)["metric"]
        return {step: metric for step, metric in metrics.items() if metric is not None}

    def save(self, step: int, state: Any, *, metric: Any = None, config: Any = None) -> None:
        """Save a state as the checkpoint of a step, in the background. Waits for an earlier save first.

        Args:
            step: above the steps of all checkpoints; or above the one restored, and then later ones are removed.
            state: a pytree of numbers and of NumPy and JAX arrays, also sharded ones and PRNG keys. It is copied, so
                the caller may donate or overwrite it at once.
            metric: a number for ``better``, or ``None`` or nan if there is no metric.
            config: whatever JSON can hold.

        Raises:
            Locked: another process writes checkpoints into the folder.
            OSError: an earlier save failed in the background. This one has not begun.
            TypeError, ValueError: wrong arguments, a step that is too low, or a file in the way that is not a
                checkpoint.
        """
        checks.check_size("step", step, 0)
        if metric is not None and not checks.is_number(metric):
            raise TypeError(f"metric must be a number; got {checks.describe(metric)}.")
        if metric is not None and self.better is None:
            raise ValueError(_ASK)
        try:
            config = json.loads(json.dumps(config))
        except (TypeError, ValueError) as error:
            raise TypeError(f"config must be what JSON can hold; got {checks.describe(config)} ({error}).") from error
        specs, leaves = checks.leaf_specs("state", state), jax.tree.leaves(state)
        if self._closed:
            raise ValueError(f"save must come before close; the checkpoints in {self.folder} are closed.")
        header = {
            "step": int(step),
            "state": specs,
            "keys": {p: str(jax.random.key_impl(leaf)) for p, leaf in zip(specs, leaves, strict=True) if _is_key(leaf)},
            "metric": float(metric) if metric is not None and metric == metric else None,
            "config": config,
        }
        together(lambda: self._prepare(step))
        copies = dict(zip((f"state{path}" for path in specs), map(_copied, leaves), strict=True))
        if jax.process_index() == 0:
            self._saving = self._thread.submit(self._write, int(step), copies, header)
        self._reached = int(step)

    def _prepare(self, step: int) -> None:
        """Lock, and finish the last save. Raise ValueError for a step that is too low, and for a file in the way."""
        self._take_lock()
        self._finish()
        found = self._found()
        last = max((other for other, ours in found.items() if ours), default=-1)
        if step <= last and (self._reached is None or step <= self._reached):
            raise ValueError(f"step must be above {last}, the last in {self.folder}; got {step}.")
        if in_the_way := [other for other, ours in found.items() if other >= step and not ours]:
            what = f"{self.path(in_the_way[0])} is damaged, or not a checkpoint that mgu_jax wrote"
            raise ValueError(f"step must be above all files that are not checkpoints; {what}.")

    def _write(self, step: int, state: dict[str, Any], header: dict[str, Any]) -> None:
        try:
            for path in self.folder.iterdir():
                if (name := _NAME.fullmatch(path.name)) and name[2] and path.is_file():
                    path.unlink()  # begun by a process that was killed
            for later in reversed(self.steps):
                if later > step:
                    self.path(later).unlink(missing_ok=True)
            arrays = {name: np.asarray(value) for name, value in state.items()}
            archive.write(self.path(step), _KIND, arrays, header)
            best = set(self._metrics()) if self.better is None else {self.best}  # any of them may be the best
            for old in set(self.steps[: -self.keep]) - best:
                self.path(old).unlink(missing_ok=True)
        except Exception as error:
            first_line = str(error).partition("\n")[0]
            reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {first_line}"
            what = f"the checkpoint of step {step} could not be saved in {self.folder} ({reason})"
            raise OSError(f"{what}; those before it are whole.") from error

    def _finish(self) -> None:
        """Wait for the last save of this process, and raise its error once."""
        if self._saving is not None:
            error = self._saving.exception()
            self._saving = None
            if error is not None:
                raise error

    def wait(self) -> None:
        """Return when the last save is on the disk. Raises OSError if it failed."""
        together(self._finish)

    def _finish_and_unlock(self) -> None:
        try:
            self._finish()
        finally:
            self._lock.release()

    def _end(self) -> None:
        self._closed = True
        self._thread.shutdown()
        atexit.unregister(self._finish_and_unlock)
        self._finish_and_unlock()

    def close(self) -> None:
        """Wait for the last save, end the thread and unlock the folder; nothing can be saved after.

        Raises:
            OSError: the save failed.
        """
        together(self._end)

    def _load(self, step: int, like: dict[str, str] | None) -> tuple[archive.Arrays, dict[str, Any]]:
        """(arrays, header) of a checkpoint. The arrays are read last. Raises OSError or Unreadable."""
        header = archive.read_header(self.path(step), _KIND)
        if header["step"] != step:
            raise archive.Unreadable(f"is damaged (it is a copy of the one of step {header['step']})")
        if like is not None and (difference := _difference(header["state"], like)):
            raise archive.Unreadable(difference)
        return archive.read(self.path(step), _KIND)

    def _is_whole(self, step: int, like: dict[str, str] | None) -> bool:
        try:
            self._load(step, like)
        except (OSError, archive.Unreadable):
            return False
        return True

    def _chosen(self, step: int | None, like: dict[str, str] | None) -> tuple[archive.Arrays, dict[str, Any]] | None:
        """What ``_load`` gives for a step, the newest if ``None``; ``None`` if there is no checkpoint."""
        found = self._found()
        if step is None and not found:
            return None
        step = max(found) if step is None else step
        if step not in found:
            raise ValueError(f"step must be one of {self.steps}, those in {self.folder}; got {step}.")
        try:
            return self._load(step, like)
        except (OSError, archive.Unreadable) as error:
            why = f"cannot be read ({error.strerror})" if isinstance(error, OSError) else error
            others = (other for other in reversed(self.steps) if other != step and self._is_whole(other, like))
            whole, what = next(others, None), f"the checkpoint of step {step} in {self.folder} {why}"
            newer = () if whole is None else tuple(other for other in found if other > whole)
            raise Damaged(step, what, whole, newer) from error

    def config(self, step: int | None = None) -> Any | None:
        """The configuration that was saved with a step. The step is chosen and verified as by ``restore``."""
        self.wait()
        chosen = together(lambda: self._chosen(step, None))
        return None if chosen is None else chosen[1]["config"]

    def restore(self, like: Any, step: int | None = None) -> Any | None:
        """The state of a step, the newest if ``None``; ``None`` if there is no checkpoint yet.

        Args:
            like: has the structure, shapes, dtypes and shardings to restore: a state, or ``jax.eval_shape`` of one.
            step: one of ``steps``.

        Raises:
            Damaged: the checkpoint is not as it was saved, or differs from ``like``. The error suggests another one.
            OSError: the last save failed in the background.
            TypeError, ValueError: wrong arguments, or a step that is not there.
        """
        specs = checks.leaf_specs("like", like)
        self.wait()
        chosen = together(lambda: self._chosen(step, specs))
        if chosen is None:
            return None
        arrays, header = chosen
        self._reached = header["step"]
        leaves, structure = jax.tree.flatten(like)
        values = [
            _restored(leaf, arrays[f"state{path}"], header["keys"].get(path))
            for path, leaf in zip(specs, leaves, strict=True)
        ]
        return jax.tree.unflatten(structure, values)
