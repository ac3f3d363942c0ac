"""The lock of a folder: one process at a time, and a lock whose process is dead is taken over."""

import errno
import json
import multiprocessing
import os
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import mgu_jax as mgu
from mgu_jax.training import lock
from mgu_jax.training.lock import FolderLock, Locked
from tests.rejects import rejects
from tests.training.common import KEY, KEYS, LAST, samples

pytestmark = pytest.mark.usefixtures("optax_promotes", "quick_compiler")

ROOT = Path(__file__).parent.parent.parent

HOLD = """
import sys
import numpy as np
from mgu_jax.training.checkpoint import Checkpoints
checkpoints = Checkpoints(sys.argv[1])
getattr(checkpoints, sys.argv[2])(*([1, {"w": np.ones(2)}] if sys.argv[2] == "save" else []))
checkpoints.wait()
print("holds", flush=True)
sys.stdin.readline()
if sys.argv[3] == "close":
    checkpoints.close()
    print("closed", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def another_process(folder, how="lock", end=""):
    """A process that has the lock of a folder of checkpoints."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder), how, end], cwd=ROOT, **pipes)
    try:
        assert process.stdout.readline() == "holds\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_second_process_learns_who_writes_and_takes_over_when_that_is_dead(tmp_path):
    """Saving and training are refused, reading is not; a killed process leaves no lock behind."""
    with another_process(tmp_path, "save") as process:
        who = f"{tmp_path} is in use by process {process.pid} on {socket.gethostname()} since 20"
        with mgu.Checkpoints(tmp_path) as checkpoints:
            like = {"w": np.zeros(2)}
            rejects(lambda: checkpoints.save(2, like), "folder", "one process at a time", who, Locked)
            options = {"steps": 2, "checkpoints": checkpoints}
            recipe, grid = mgu.Recipe(LAST, batch_size=8), mgu.grid(learning_rate=(1e-3, 1e-2))
            validation = mgu.Validation(samples(), (mgu.losses.accuracy,))
            rungs = {"rungs": (2, 4), "validation": validation, "checkpoints": checkpoints}
            for call in (
                lambda: mgu.fit(recipe, samples(), key=KEY, **options),
                lambda: mgu.sweep(recipe, samples(), hyper=grid, keys=KEYS, **options),
                lambda: mgu.halving(recipe, samples(), hyper=grid, keys=KEYS, **rungs),
            ):
                rejects(call, "folder", "one process at a time", who, Locked)
            assert checkpoints.restore(like)["w"].tolist() == [1, 1]
            process.kill()
            process.wait()
            checkpoints.save(2, like)
            assert json.loads((tmp_path / lock.NAME).read_text())["process"] == os.getpid()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["1.npz", "2.npz"]


def test_close_unlocks(tmp_path):
    with another_process(tmp_path, end="close") as process, mgu.Checkpoints(tmp_path) as checkpoints:
        rejects(checkpoints.lock, "folder", "one process", process.pid, Locked)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "closed\n"
        checkpoints.lock()
    rejects(checkpoints.lock, "lock", "before close", tmp_path)


def test_a_process_that_ends_without_closing_leaves_no_file(tmp_path):
    with another_process(tmp_path) as process:
        process.communicate("\n")
    assert not list(tmp_path.iterdir())


def test_two_locks_of_one_process_are_shared(tmp_path):
    """As when the cell of a notebook runs again. The file stays until both are released, however often."""
    one, other = FolderLock(tmp_path), FolderLock(tmp_path / "." / "")
    for each in (one, other, one):
        each.take()
    one.release()
    one.release()
    assert other.path.exists()
    other.release()
    assert not list(tmp_path.iterdir())


def _take_in_child(folder, said):
    try:
        FolderLock(folder).take()
    except Locked as error:
        said.put(error.holder)
    else:
        said.put("taken")


@pytest.mark.filterwarnings("ignore")  # of a fork beside JAX's threads
def test_a_forked_child_does_not_have_the_lock(tmp_path):
    """It cannot take it while the parent has it, and does not keep it when the parent gives it back."""
    context = multiprocessing.get_context("fork")
    said, mine = context.SimpleQueue(), FolderLock(tmp_path)
    mine.take()
    child = context.Process(target=_take_in_child, args=(tmp_path, said))
    child.start()
    child.join()
    assert said.get().startswith(f"process {os.getpid()} on ")
    waits, release = context.Process(target=context.Event().wait), Path(tmp_path)
    waits.start()
    try:
        mine.release()
        with another_process(release):  # takes it while the child still lives
            pass
    finally:
        waits.kill()
        waits.join()


def test_the_lock_of_a_folder_that_was_moved_or_removed_does_not_hold_the_new_one(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    first = FolderLock(folder)
    first.take()
    folder.rename(tmp_path / "old")
    folder.mkdir()
    with another_process(folder):
        first.release()
        assert (folder / lock.NAME).exists()  # it is the other's
        rejects(FolderLock(folder).take, "folder", "one process", folder, Locked)


def test_a_lock_that_says_nothing_of_its_process(tmp_path):
    with another_process(tmp_path):
        os.truncate(tmp_path / lock.NAME, 0)
        rejects(FolderLock(tmp_path).take, "folder", "one process", "in use by another process", Locked)


@pytest.mark.parametrize("missing", ["the system's", "the file system's"])
def test_without_locks_nothing_is_locked(missing, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    if missing == "the system's":
        monkeypatch.setattr(lock, "fcntl", None)
    else:
        monkeypatch.setattr(lock.fcntl, "flock", refuse)
    with mgu.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"w": np.ones(2)})
    assert [path.name for path in tmp_path.iterdir()] == ["1.npz"]
