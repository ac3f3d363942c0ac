"""Saving and restoring a run, by orbax (extra ``experiments``). Only this file knows orbax's API.

orbax writes a checkpoint beside its final place and renames it when it is whole, so a run that is killed at any moment
leaves the last good one.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from mgu_jax.extras import require


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
        raise KeyboardInterrupt


class Checkpoints:
    """The checkpoints of one run, in a folder of their own, named by their step; the newest ``keep`` stay.

    Raises:
        ImportError: orbax is not installed.
    """

    def __init__(self, folder: str | Path, keep: int = 2):
        self._orbax = require("orbax.checkpoint", "experiments")
        # A state of this size is written in milliseconds, and what save returned from is there for certain.
        options = self._orbax.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
        self._manager = self._orbax.CheckpointManager(Path(folder).resolve(), options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: Any) -> None:
        self._manager.close()

    def save(self, step: int, state: Any) -> None:
        """Save a pytree of arrays as the checkpoint of this step. It is on disk when this returns."""
        with _ctrl_c_waits():
            self._manager.save(step, args=self._orbax.args.StandardSave(state))

    def restore(self, like: Any) -> Any | None:
        """The newest checkpoint, with the structure, shapes and dtypes of ``like``; ``None`` if there is none yet."""
        step = self._manager.latest_step()
        if step is None:
            return None
        abstract = jax.tree.map(self._orbax.utils.to_shape_dtype_struct, like)
        return self._manager.restore(step, args=self._orbax.args.StandardRestore(abstract))
