"""The lock of a folder: one process at a time writes into it, and a second one learns which process that is.

    lock = FolderLock(folder)
    lock.take()  # raises Locked if another process has it
    lock.release()

The lock is one of the system (``flock``) on a file in the folder, so the system releases it when its process ends,
however that ends: a lock whose process is dead can be taken. The file names the process that has the lock. It is
removed with the lock; a killed process leaves it, and the next one takes it over.

Within a process the lock is shared: it keeps processes apart, not threads. A forked child does not inherit it. Over NFS
it holds between machines. Where there are no such locks (Windows, and file systems without them), nothing is locked.
"""

import errno
import json
import os
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NAME = ".mgu_jax-lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)


class Locked(RuntimeError):
    """Another process writes into a folder.

    Attributes:
        folder: the folder.
        holder: the process, in words.
    """

    def __init__(self, folder: Path, holder: str):
        super().__init__(f"folder must be written by one process at a time; {folder} is in use by {holder}.")
        self.folder, self.holder = folder, holder

    def __reduce__(self) -> Any:  # pools of processes pickle errors
        return type(self), (self.folder, self.holder)


def lock_file(file: Any) -> bool | None:
    """Whether this process now has the lock of an open file; ``None`` where the system has no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


@dataclass
class _Held:
    """A lock that this process has: its open file, and how many of its ``FolderLock`` objects share it."""

    file: int
    count: int = 1


_held: dict[tuple[int, int], _Held] = {}  # (device, inode) of the file of each lock of this process
_changing = threading.RLock()  # held while _held is changed


def _close_inherited() -> None:
    """In a forked child: close the files, which would otherwise keep the locks when the parent has died."""
    for lock in _held.values():
        os.close(lock.file)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited)


@dataclass
class FolderLock:
    """The lock of a folder that exists."""

    folder: Path
    _taken: tuple[int, int] | None = field(default=None, init=False)

    @property
    def path(self) -> Path:
        """The file of the lock."""
        return self.folder / NAME

    def take(self) -> None:
        """Take the lock, unless this object has it.

        Raises:
            Locked: another process has it.
            OSError: the file cannot be written.
        """
        with _changing:
            self._take()

    def _take(self) -> None:
        if fcntl is None or (self._taken is not None and self._taken in _held):
            return
        while True:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                where = _identity(os.fstat(file))
                if where in _held:
                    _held[where].count += 1
                    self._taken = where
                    return
                locked = lock_file(file)
                if locked is None:
                    with suppress(OSError):
                        self.path.unlink()
                    return
                if not locked:
                    raise Locked(self.folder, _holder(file))
                if self._is_there(where):
                    os.ftruncate(file, 0)
                    os.write(file, json.dumps(_this_process()).encode())
                    _held[where], self._taken, file = _Held(file), where, -1
                    return
                # Its last owner has removed it between the two calls: lock the new one.
            finally:
                if file >= 0:
                    os.close(file)

    def release(self) -> None:
        """Give the lock back and remove its file, if no other object of this process shares it."""
        with _changing:
            where, self._taken = self._taken, None
            if where is None or where not in _held:  # never taken, or by the parent of this process
                return
            lock = _held[where]
            lock.count -= 1
            if not lock.count:
                del _held[where]
                if self._is_there(where):  # and not moved away or replaced
                    with suppress(OSError):
                        self.path.unlink()
                os.close(lock.file)

    def _is_there(self, where: tuple[int, int]) -> bool:
        """Whether the file of this identity is the one in the folder."""
        try:
            return _identity(os.stat(self.path)) == where
        except OSError:
            return False


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _this_process() -> dict[str, Any]:
    since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return {"process": os.getpid(), "machine": socket.gethostname(), "since": since}


def _holder(file: int) -> str:
    """What the file of a lock says of the process that has it."""
    try:
        found = json.loads(os.pread(file, 10_000, 0))
        return f"process {found['process']} on {found['machine']} since {found['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has not written it yet
        return "another process"
