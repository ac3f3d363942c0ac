"""Checkpoints: exact, written whole or not at all, and never restored to other numbers without an error.

Their use in a run is tested in test_fit.py and test_run.py, their files in test_archive.py.
"""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import mgu_jax as mgu
from mgu_jax import archive
from mgu_jax.training import lock
from mgu_jax.training.checkpoint import Checkpoints, Damaged
from mgu_jax.training.losses import accuracy
from tests.processes import run_together
from tests.rejects import is_one_sentence, rejects
from tests.same import same

ROOT = Path(__file__).parent.parent.parent


class Tree(NamedTuple):
    step: object
    key: object
    rest: object


def tree(step):
    return Tree(jnp.int32(step), jax.random.key(step), {"a": jnp.full((3, 2), step / 3), "b": (jnp.ones(1),)})


def equal(a, b):
    """``same``, and the leaves have the same types and shardings."""
    kinds, others = ([getattr(x, "sharding", type(x)) for x in jax.tree.leaves(tree)] for tree in (a, b))
    return same(a, b) and kinds == others


def saved(folder, steps=(1, 2), **options):
    """A folder with the checkpoints of these steps."""
    with Checkpoints(folder, **options) as checkpoints:
        for step in steps:
            checkpoints.save(step, tree(step), config={"step": step})
    return folder


def flip(path, where=None, bit=3):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if where is None else where] ^= 1 << bit
    path.write_bytes(content)


DTYPES = ("bfloat16", "float16", "int8", "uint32", "bool", "complex64", "int4", "float8_e4m3fn")
STATES = {
    "named": tree(3),
    "one array": jnp.arange(3, dtype=jnp.float32),
    "dtypes": [jnp.ones((2, 3), dtype) for dtype in DTYPES],
    "keys": {name: jax.random.key(3, impl=name) for name in ("threefry2x32", "rbg")}
    | {"many": jax.random.split(jax.random.key(5), (2, 3)), "old": jax.random.PRNGKey(1)},
    "of NumPy": {"double": np.linspace(0, 1, 5), "position": np.int64(2**40), "flag": np.bool_(True)}
    | {"half": np.float16(0.1), "brain": jnp.bfloat16(0.1), "columns first": np.ones((2, 3), order="F")},
    "numbers": {"step": 7, "rate": 0.1, "on": True, "pair": (1j, None), "empty": (), "nan": float("nan")},
}


@pytest.mark.parametrize("name", STATES)
def test_a_round_trip_keeps_all_bits_and_kinds(name, tmp_path):
    state = STATES[name]
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(state) is None
        checkpoints.save(1, state)
        assert equal(checkpoints.restore(state), state)
        if name in ("named", "one array", "dtypes", "keys"):
            assert equal(checkpoints.restore(jax.eval_shape(lambda: state)), state)


def test_double_precision(tmp_path, x64):
    state = {"w": jnp.linspace(0, 1, 5), "n": jnp.arange(3)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        restored = checkpoints.restore(state)
    assert restored["w"].dtype == np.float64
    assert equal(restored, state)


def test_the_newest_are_kept(tmp_path):
    saved(tmp_path / "run", (1, 2, 3), keep=2)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["2.npz", "3.npz"]
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.steps == [2, 3]
        restored = checkpoints.restore(tree(0))
        assert type(restored) is Tree
        assert equal(restored, tree(3))
        assert equal(checkpoints.restore(tree(0), step=2), tree(2))
        assert checkpoints.config() == {"step": 3}
        assert checkpoints.config(2) == {"step": 2}


@pytest.mark.parametrize(("better", "best"), [("lower", 2), ("higher", 3)])
def test_the_best_is_kept(tmp_path, better, best):
    with Checkpoints(tmp_path, keep=1, better=better) as checkpoints:
        assert checkpoints.best is None
        for step, metric in enumerate((None, 3.0, 1.0, np.float32(5), jnp.float32(2), float("nan"), 5.0, 1.0), -1):
            if step >= 0:
                checkpoints.save(step + 1, tree(step + 1), metric=metric)
        checkpoints.wait()
        assert checkpoints.best == best
        assert checkpoints.steps == [best, 7]
        assert equal(checkpoints.restore(tree(0), checkpoints.best), tree(best))


def names(folder):
    """All files but the lock of a run that is at work."""
    return sorted({path.name for path in folder.iterdir()} - {lock.NAME})


def test_an_unfinished_file_is_ignored_and_then_removed(tmp_path):
    """A killed process leaves one, and the next save removes it. Files with similar names stay."""
    saved(tmp_path, (3, 4))
    whole = (tmp_path / "4.npz").read_bytes()
    for step in (1, 4, 6, 10):
        (tmp_path / f"{step}.npz{archive.UNFINISHED}").write_bytes(whole[:step])
    mine = ["10", "4.mine.npz", "8.txt", "7.npz.part", "05.npz", f"notes{archive.UNFINISHED}"]
    for name in mine:
        (tmp_path / name).write_bytes(whole)
    before = contents(tmp_path)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps == [3, 4]
        assert int(checkpoints.restore(tree(0)).step) == 4
        assert contents(tmp_path) == before
        checkpoints.save(5, tree(5))
    assert names(tmp_path) == sorted([*mine, "4.npz", "5.npz"])


def contents(folder):
    """The bytes of all files but the lock."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != lock.NAME]
    return {path.relative_to(folder): path.read_bytes() for path in files}


def test_other_files_are_refused_and_stay(tmp_path):
    """Arrays of NumPy, a model that mgu_jax saved, a text and a folder, all named as checkpoints are."""
    np.savez(tmp_path / "100.npz", w=np.ones(3))
    archive.write(tmp_path / "7.npz", "model", {"w": np.ones(3)}, {})
    (tmp_path / "90.npz").write_text("mine")
    (tmp_path / "2019.npz").mkdir()
    (tmp_path / "2019.npz" / "photo").write_text("mine")
    before = contents(tmp_path)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps == []
        for call in (checkpoints.config, lambda: checkpoints.restore(tree(0))):
            rejects(call, f"step 2019 in {tmp_path} cannot be read (Is a directory)", "no other", kind=Damaged)
        for step in (7, 90, 100):
            what = f"step {step} in {tmp_path} is damaged, or not a checkpoint that mgu_jax wrote"
            rejects(lambda step=step: checkpoints.restore(tree(0), step), what, "no other", kind=Damaged)
        for step, name in ((1, "7.npz"), (7, "7.npz"), (8, "90.npz"), (100, "100.npz"), (2019, "2019.npz")):
            rejects(
                lambda step=step: checkpoints.save(step, tree(step)),
                "step",
                "above all files that are not checkpoints",
                tmp_path / name,
            )
        assert contents(tmp_path) == before
        checkpoints.save(2020, tree(2020))
        assert equal(checkpoints.restore(tree(0)), tree(2020))
    assert contents(tmp_path).items() >= before.items()


def test_a_checkpoint_that_cannot_be_recognised_is_named_and_stays(tmp_path):
    """One bit of the mark at the beginning has flipped, so that it could be another program's."""
    saved(tmp_path)
    flip(tmp_path / "2.npz", 35)
    with Checkpoints(tmp_path) as checkpoints:
        for step in (None, 2):
            call = lambda step=step: checkpoints.restore(tree(0), step)  # noqa: E731
            rejects(call, "step 2", "that of step 1 is whole: remove 2.npz to resume from it", kind=Damaged)
        assert equal(checkpoints.restore(tree(0), step=1), tree(1))
        rejects(lambda: checkpoints.save(2, tree(2)), "step", "above all files", "2.npz is damaged")
        (tmp_path / "2.npz").unlink()
        checkpoints.save(2, tree(2))
        assert equal(checkpoints.restore(tree(0)), tree(2))


def resealed(path, **changes):
    """The same arrays with another header, in a file that zip finds whole."""
    with np.load(path) as held:
        entries = dict(held)
    body = json.loads(bytes(entries["mgu_jax_checkpoint"])) | changes
    entries["mgu_jax_checkpoint"] = np.frombuffer(json.dumps(body).encode(), np.uint8)
    archive.write_npz(path, entries)


DAMAGE = {  # what happens to the file of step 2, and what the error says of it
    "truncated": (lambda path: os.truncate(path, path.stat().st_size // 2), "damaged (its end is missing)"),
    "flipped": (
        lambda path: flip(path, path.read_bytes().index(np.float32(2 / 3).tobytes())),
        "damaged (Bad CRC-32 for file \"state.rest['a'].npy\")",
    ),
    "another number": (
        lambda path: archive.write_npz(path, dict(np.load(path)) | {"state.step": np.int32(5)}),
        "damaged (state.step differs from its checksum)",
    ),
    "copied": (
        lambda path: path.write_bytes(path.with_name("1.npz").read_bytes()),
        "damaged (it is a copy of the one of step 1)",
    ),
    "changed header": (
        lambda path: resealed(path, header={"step": 2, "state": {}, "config": None, "metric": 0.0}),
        "damaged (its header differs from its checksum)",
    ),
    "another version": (
        lambda path: resealed(path, format=2),
        "of another format (2; this version of mgu_jax reads 1)",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_and_an_earlier_checkpoint_suggested(name, tmp_path):
    """A run that continues from the earlier one replaces the damaged one."""
    damage, text = DAMAGE[name]
    saved(tmp_path)
    damage(tmp_path / "2.npz")
    with Checkpoints(tmp_path) as checkpoints:
        for call in (lambda: checkpoints.restore(tree(0)), checkpoints.config, lambda: checkpoints.restore(tree(0), 2)):
            with pytest.raises(Damaged) as caught:
                call()
            other = "that of step 1 is whole: remove 2.npz to resume from it, or restore(like, step=1)"
            is_one_sentence(str(caught.value), f"step 2 in {tmp_path}", f"is {text}", other)
            assert (caught.value.step, caught.value.whole, caught.value.newer) == (2, 1, (2,))
        assert equal(checkpoints.restore(tree(0), step=1), tree(1))
        checkpoints.save(2, tree(20))
        checkpoints.save(3, tree(3))
        assert equal(checkpoints.restore(tree(0)), tree(3))
        assert equal(checkpoints.restore(tree(0), 2), tree(20))


def test_damage_names_every_file_to_remove(tmp_path):
    """All that are newer than the one that is whole; none if that is the newest."""
    saved(tmp_path, (1, 2, 3), keep=3)
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        DAMAGE["truncated"][0](tmp_path / "2.npz")
        said = rejects(lambda: checkpoints.restore(tree(0), 2), "step 2", kind=Damaged)
        assert said.endswith("; that of step 3 is whole: restore(like, step=3).")
        DAMAGE["truncated"][0](tmp_path / "3.npz")
        said = rejects(lambda: checkpoints.restore(tree(0)), "step 3", kind=Damaged)
        assert said.endswith("step 1 is whole: remove 2.npz and 3.npz to resume from it, or restore(like, step=1).")


def test_of_300_checkpoints_with_one_bit_flipped_not_one_is_restored_to_other_numbers(tmp_path):
    """A flip in a field of the zip format that says nothing of the content, such as a date, may pass."""
    saved(tmp_path)
    path, rng, refused = tmp_path / "2.npz", random.Random(0), 0
    content = path.read_bytes()
    with Checkpoints(tmp_path) as checkpoints:
        for _ in range(300):
            flip(path, rng.randrange(len(content)), rng.randrange(8))
            try:
                assert equal(checkpoints.restore(tree(0)), tree(2))
                assert checkpoints.config() == {"step": 2}
            except Damaged as damage:
                refused += (damage.step, damage.whole) == (2, 1)
            path.write_bytes(content)
        assert equal(checkpoints.restore(tree(0)), tree(2))
    assert refused > 200


def test_no_checkpoint_is_suggested_if_all_are_damaged(tmp_path):
    saved(tmp_path)
    for step in (1, 2):
        DAMAGE["truncated"][0](tmp_path / f"{step}.npz")
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(Damaged) as caught:
            checkpoints.restore(tree(0))
        is_one_sentence(str(caught.value), "step 2", "is damaged (its end is missing)", "no other checkpoint")
        assert caught.value.whole is None


FOREIGN = {
    "shape": (tree(0)._replace(step=jnp.zeros(2, jnp.int32)), ".step is int32[], like.step is int32[2]"),
    "dtype": (tree(0)._replace(step=jnp.float32(0)), ".step is int32[], like.step is float32[]"),
    "key": (
        tree(0)._replace(key=jax.random.key(0, impl="rbg")),
        ".key is key<fry>[], like.key is key<rbg>[]",
    ),
    "less": (
        tree(0)._replace(rest={"a": jnp.ones((3, 2))}),
        ".rest['b'][0] is float32[1], like.rest['b'][0] is not there",
    ),
    "more": (
        tree(0)._replace(rest=tree(0).rest | {"c": np.ones(1)}),
        ".rest['c'] is not there, like.rest['c'] is float64[1]",
    ),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_another_model_is_refused(name, tmp_path):
    like, text = FOREIGN[name]
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, like)
        checkpoints.save(2, tree(2))
        rule, other = f"is of another model (state{text})", "restore(like, step=1)"
        rejects(lambda: checkpoints.restore(like), f"step 2 in {tmp_path}", rule, other, Damaged)
        assert equal(checkpoints.restore(like, 1), like)


def test_the_error_says_whether_the_optimiser_the_validation_or_the_model_differs(tmp_path, quick_compiler):
    recipe, other = (mgu.Recipe(mgu.Model(2, (3,), 2), optimizer=name) for name in ("adam", "sgd"))
    validation = mgu.Validation(None, (accuracy,))
    key, keys = jax.random.key(0), jax.random.split(jax.random.key(0), 1)

    run, row = mgu.start(recipe, key), mgu.start(recipe, keys)
    validated, validated_row = (mgu.start(recipe, one, validation=validation) for one in (key, keys))
    kinds = [
        (run, mgu.start(other, key), "optimiser (state.opt_state"),
        (run, validated, "validation (state.best.score is not there"),
        (row, mgu.start(other, keys), "optimiser (state.members.opt_state"),
        (validated_row, row, "validation (state.members.best.score is float32[1]"),
    ]
    for i, (state, like, text) in enumerate(kinds):
        with Checkpoints(tmp_path / str(i)) as checkpoints:
            for step in (1, 2):
                checkpoints.save(step, state)
            rule, other = f"is of another {text}", "no other checkpoint can be restored"  # though all are whole
            rejects(lambda: checkpoints.restore(like), "step 2", rule, other, Damaged)  # noqa: B023


def test_a_checkpoint_of_another_model_is_refused_before_its_arrays_are_read(tmp_path, monkeypatch):
    saved(tmp_path, (1,))
    monkeypatch.setattr(archive, "read", fails(AssertionError("the arrays were read")))
    with Checkpoints(tmp_path) as checkpoints:
        like, rule = tree(0)._replace(step=0.5), "is of another model (state.step is int32[], like.step"
        rejects(lambda: checkpoints.restore(like), "step 1", rule, kind=Damaged)


def test_nothing_is_saved_after_close(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, tree(1))
    checkpoints.close()
    checkpoints.close()
    rejects(lambda: checkpoints.save(2, tree(2)), "save", "before close", tmp_path)


def test_the_caller_may_donate_and_overwrite_at_once(tmp_path):
    add = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    roll = jax.jit(lambda key: jax.random.split(key, 1)[0], donate_argnums=0)
    state, key, host = {"w": jnp.zeros(100_000), "n": jnp.int32(0)}, jax.random.key(0), np.zeros(100_000)
    expected = []
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        for step in (1, 2, 3):
            expected.append((step - 1, jax.random.key_data(key).tolist()))
            checkpoints.save(step, (state, key, host))
            state, key = add(state), roll(key)
            host += 1
        for step, (value, words) in zip((1, 2, 3), expected, strict=True):
            restored, restored_key, restored_host = checkpoints.restore((state, key, host), step)
            assert np.all(restored["w"] == value)
            assert int(restored["n"]) == value
            assert np.all(restored_host == value)
            assert jax.random.key_data(restored_key).tolist() == words


def test_sharded_arrays_come_back_as_like_has_them(tmp_path):
    mesh = jax.make_mesh((2,), ("device",))
    rows, columns, everywhere = (NamedSharding(mesh, P(*axes)) for axes in (("device",), (None, "device"), ()))
    w = jnp.arange(24, dtype=jnp.float32).reshape(4, 6)
    state = {"w": jax.device_put(w, rows), "b": jax.device_put(w[0], everywhere)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        assert equal(checkpoints.restore(state), state)
        for sharding in (columns, everywhere, w.sharding):
            like = {"w": jax.device_put(jnp.zeros_like(w), sharding), "b": state["b"]}
            restored = checkpoints.restore(like)
            assert restored["w"].sharding == sharding
            np.testing.assert_array_equal(restored["w"], w)


@contextmanager
def held(monkeypatch):
    """No save writes before the block ends."""
    write, event = archive.write, threading.Event()

    def later(*arguments):
        assert event.wait(60)
        write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(archive, "write", later)
        try:
            yield
        finally:
            event.set()


def test_training_continues_before_a_save_has_ended(tmp_path, monkeypatch):
    with Checkpoints(tmp_path) as checkpoints:
        with held(monkeypatch):
            checkpoints.save(1, tree(1))
            assert float(jax.jit(lambda x: x + 1)(jnp.float32(1))) == 2
            assert checkpoints.steps == []
        checkpoints.wait()
        assert checkpoints.steps == [1]


def test_an_interrupt_damages_no_save(tmp_path, monkeypatch):
    """Ctrl-C while one save is being written and the next one waits for it."""
    write, may_write = archive.write, threading.Event()

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        assert may_write.wait(60)
        write(*arguments)

    monkeypatch.setattr(archive, "write", interrupted)
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012 (it may be raised in either line)
            checkpoints.save(1, tree(1))
            checkpoints.save(2, tree(2))
        assert checkpoints.steps == []
        may_write.set()
    assert checkpoints.steps == [1]
    assert equal(checkpoints.restore(tree(0)), tree(1))
    assert names(tmp_path) == ["1.npz"]


ERRORS = {
    "of the system": (OSError(28, "No space left on device"), "No space left on device"),
    "of another kind": (RuntimeError("one\ntwo"), "RuntimeError: one"),
}


def fails(error):
    def save(*_, **__):
        raise error

    return save


@pytest.mark.parametrize(
    ("name", "where"),
    [("of the system", "save"), ("of the system", "wait"), ("of another kind", "close"), ("of the system", "restore")],
)
def test_an_error_in_the_background_is_raised_at_the_next_call(tmp_path, monkeypatch, name, where):
    error, reason = ERRORS[name]
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, tree(1))
    checkpoints.wait()
    with monkeypatch.context() as patch:
        patch.setattr(archive, "write", fails(error))
        checkpoints.save(2, tree(2))
        arguments = {"save": (3, tree(3)), "restore": (tree(0),)}.get(where, ())
        rule, others = f"could not be saved in {tmp_path} ({reason})", "those before it are whole"
        rejects(lambda: getattr(checkpoints, where)(*arguments), "step 2", rule, others, OSError)
    if where == "close":
        checkpoints = Checkpoints(tmp_path)
    assert equal(checkpoints.restore(tree(0)), tree(1))  # the error is raised once, and the first is whole
    checkpoints.save(2, tree(2))
    assert equal(checkpoints.restore(tree(0)), tree(2))
    checkpoints.close()


def test_an_error_in_the_background_does_not_hide_the_one_that_ends_the_block(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "write", fails(OSError(28, "No space left on device")))

    def run(ending):
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(1, tree(1))
            ending()

    with pytest.raises(ZeroDivisionError) as caught:
        run(lambda: 1 / 0)
    (note,) = caught.value.__notes__
    assert note.startswith("the checkpoint of step 1 could not be saved")
    with pytest.raises(OSError, match="step 1 could not be saved"):
        run(lambda: None)


def test_a_full_disk_is_reported_and_leaves_earlier_checkpoints_whole(tmp_path, capfd, monkeypatch):
    """The disk is full in the middle of an array. Nothing is printed beside the error."""
    write = np.lib.format.write_array

    def full(entry, array, **options):
        if array.size < 800_000:
            return write(entry, array, **options)
        entry.write(array[: array.size // 2].tobytes())
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    rng = np.random.default_rng(0)
    small, large = ({"w": rng.standard_normal(size).astype(np.float32)} for size in (200_000, 800_000))
    with Checkpoints(tmp_path / "run", keep=2) as checkpoints:
        checkpoints.save(1, small)
        checkpoints.save(2, large)
        rejects(checkpoints.wait, "step 2", "could not be saved", "No space left on device", OSError)
        assert names(tmp_path / "run") == ["1.npz"]
        assert equal(checkpoints.restore(small), small)
        checkpoints.save(2, small)
        assert equal(checkpoints.restore(small), small)
        assert checkpoints.steps == [1, 2]
    assert not capfd.readouterr().err


def test_a_folder_that_cannot_be_written_is_reported_at_once(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    for folder, reason in ((tmp_path / "file", "File exists"), (tmp_path / "file" / "run", "Not a directory")):
        rejects(lambda folder=folder: Checkpoints(folder), "folder", "can be written", f"{folder} ({reason})", OSError)
    assert (tmp_path / "file").read_text() == "mine"
    monkeypatch.setattr("tempfile.TemporaryFile", fails(OSError(30, "Read-only file system")))
    rejects(lambda: Checkpoints(tmp_path), "folder", "can be written", f"{tmp_path} (Read-only", OSError)


def test_a_checkpoint_that_the_disk_cannot_read_is_named(tmp_path, monkeypatch):
    saved(tmp_path)
    read = archive.read_header

    def unreadable(path, kind):
        if path.name == "2.npz":
            raise OSError(5, "Input/output error")
        return read(path, kind)

    monkeypatch.setattr(archive, "read_header", unreadable)
    with Checkpoints(tmp_path) as checkpoints:
        what, other = "step 2", "restore(like, step=1)"
        rejects(lambda: checkpoints.restore(tree(0)), what, "cannot be read (Input/output error)", other, Damaged)


def test_an_existing_step_is_not_replaced_by_mistake(tmp_path):
    saved(tmp_path, (10, 20))
    with Checkpoints(tmp_path) as checkpoints:
        for step in (5, 10, 20):
            rejects(lambda step=step: checkpoints.save(step, tree(step)), "step must be", "above 20", step)
        checkpoints.restore(tree(0), step=10)
        rejects(lambda: checkpoints.save(10, tree(10)), "step must be", "above 20", "10")
        checkpoints.save(15, tree(15))
        checkpoints.wait()
        assert checkpoints.steps == [10, 15]
        rejects(lambda: checkpoints.save(15, tree(15)), "step must be", "above 15", "15")


def test_a_wrong_argument_gets_one_sentence(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, tree(1))
        rejects(lambda: checkpoints.save(-1, tree(1)), "step", "whole number of at least 0", "-1")
        rejects(lambda: checkpoints.save(2, tree(1), metric="0"), "metric", "a number", "'0'")
        rejects(lambda: checkpoints.save(2, tree(1), config={1}), "config", "JSON", "a set")
        rejects(lambda: checkpoints.save(2, {"a": "text"}), "state['a']", "numbers", "'text'")
        rejects(lambda: checkpoints.restore({"a": jnp.ones((0, 3))}), "like['a']", "numbers", "float32 [0, 3]")
        rejects(lambda: checkpoints.restore(tree(1), 3), "step", f"one of [1], those in {tmp_path}", "3")
        rejects(lambda: Checkpoints(tmp_path, keep=0), "keep", "whole number of at least 1", "0")
        rejects(lambda: Checkpoints(tmp_path, better="min"), "better", "'lower', 'higher'", "'min'")


def test_which_metrics_are_better_has_to_be_said(tmp_path):
    """Until then, every checkpoint with a metric stays, since it may be the best."""
    with Checkpoints(tmp_path, better="higher", keep=1) as checkpoints:
        for step, metric in enumerate((1.0, 3.0, 2.0)):
            checkpoints.save(step, tree(step), metric=metric)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(3, tree(3))
        checkpoints.wait()
        assert checkpoints.steps == [1, 2, 3]
        rejects(lambda: checkpoints.best, "better", "'lower' or 'higher'", "None", ValueError)
        rejects(lambda: checkpoints.save(4, tree(4), metric=0.5), "better", "'lower' or 'higher'", "None", ValueError)


@contextmanager
def instants(folder, monkeypatch):
    """The contents of a folder before each change of a file in it: what a process killed there would leave."""
    copies, taking = [], threading.Lock()

    def copied_before(function):
        def call(*arguments, **options):
            with taking:
                copies.append(contents(folder))
            return function(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for owner, name in ((Path, "replace"), (Path, "unlink"), (os, "fsync"), (np.lib.format, "write_array")):
            patch.setattr(owner, name, copied_before(getattr(owner, name)))
        yield copies
    copies.append(contents(folder))


def test_a_kill_at_any_instant_leaves_the_last_whole_one(tmp_path, monkeypatch):
    """The first save of two; one that removes an older one; one that replaces, and one that removes, later ones."""
    like = {"w": jnp.zeros(3), "b": jnp.zeros(2)}

    def state(value):
        return {"w": jnp.full(3, value), "b": jnp.full(2, value)}

    cases = [(None, 2, 2.0, [1, 2]), (None, 3, 3.0, [2, 3]), (2, 3, 4.0, [3, 4]), (None, 7, 7.0, [4, 7])]
    cases += [(3, 5, 8.0, [7, 4, 8])]
    with Checkpoints(tmp_path / "run") as checkpoints:
        checkpoints.save(1, state(1.0))
        checkpoints.wait()
        for number, (restored, step, value, expected) in enumerate(cases):
            if restored is not None:
                checkpoints.restore(like, step=restored)
            with instants(tmp_path / "run", monkeypatch) as copies:
                checkpoints.save(step, state(value))
                checkpoints.wait()
            assert len(copies) > 5
            found = []
            for i, files in enumerate(copies):
                folder = tmp_path / f"{number} {i}"
                folder.mkdir()
                for path, content in files.items():
                    (folder / path).write_bytes(content)
                with Checkpoints(folder) as left:
                    found.append(float(left.restore(like)["w"].sum()) / 3)
            assert [value for i, value in enumerate(found) if i == 0 or value != found[i - 1]] == expected


LOOP = """
import sys
import numpy as np
from mgu_jax.training.checkpoint import Checkpoints
with Checkpoints(sys.argv[1]) as checkpoints:
    for step in range(1, 10_000):
        checkpoints.save(step, {"w": np.full(50_000, step), "step": step})
        checkpoints.wait()
        print(step, flush=True)
"""


SLOW = [pytest.param(signum, i, marks=pytest.mark.slow) for i in range(1, 10) for signum in ("SIGKILL", "SIGINT")]


@pytest.mark.parametrize(("signum", "moment"), [("SIGKILL", 0), ("SIGINT", 0), *SLOW])
def test_a_process_that_ends_at_any_moment_leaves_whole_checkpoints(tmp_path, signum, moment):
    """A signal kills it, or Ctrl-C interrupts it."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", LOOP, str(tmp_path)], cwd=ROOT, **pipes)
    for _ in range(3):
        process.stdout.readline()
    time.sleep(random.Random(moment).uniform(0, 0.1))
    process.send_signal(getattr(signal, signum))
    said = [int(line) for line in process.communicate(timeout=60)[0].split()] or [3]
    like = {"w": np.zeros(50_000, int), "step": 0}
    with Checkpoints(tmp_path) as checkpoints:
        assert said[-1] <= checkpoints.steps[-1] <= said[-1] + 1
        for step in checkpoints.steps:
            assert equal(checkpoints.restore(like, step), {"w": np.full(50_000, step), "step": step})
        step = checkpoints.steps[-1]
        checkpoints.save(step + 1, like)
    assert len(names(tmp_path)) == 2


FORGOTTEN = """
import sys
import jax
import numpy as np
from mgu_jax import archive
from mgu_jax.training import lock
from mgu_jax.training.checkpoint import Checkpoints
if sys.argv[2] == "full":
    def full(*_):
        raise OSError(28, "No space left on device")
    archive.write = full
checkpoints = Checkpoints(sys.argv[1])
checkpoints.save(1, {"w": np.arange(300_000), "x": jax.numpy.arange(3)})
"""


@pytest.mark.parametrize("disk", ["free", "full"])
def test_a_process_that_never_closes_finishes_its_save(tmp_path, disk):
    done = subprocess.run(
        [sys.executable, "-c", FORGOTTEN, str(tmp_path), disk], capture_output=True, text=True, cwd=ROOT, check=True
    )
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps == ([1] if disk == "free" else [])
    sentence = f"OSError: the checkpoint of step 1 could not be saved in {tmp_path} (No space left on device)"
    assert (sentence in done.stderr) == (disk == "full")


TWO = """
import sys
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.config.update("jax_num_cpu_devices", 1)
process, folder, address = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.distributed.initialize(address, 2, process)
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from mgu_jax import archive
from mgu_jax.training import lock
from mgu_jax.training.checkpoint import Checkpoints, Damaged
mesh = jax.make_mesh((2,), ("device",))
split, whole = NamedSharding(mesh, P("device")), NamedSharding(mesh, P())
x = jax.jit(lambda: jax.numpy.arange(16.0).reshape(8, 2), out_shardings=split)()
keys = jax.jit(lambda: jax.random.split(jax.random.key(0), 2), out_shardings=split)()
both = jax.jit(lambda: jax.numpy.float32(7), out_shardings=whole)()
add, total = jax.jit(lambda x: x + 1, donate_argnums=0), jax.jit(lambda x: x.sum())
def state():
    return {"x": x, "keys": keys, "both": both, "mine": process, "host": np.ones(3)}
def raised(kind, call):
    try:
        call()
    except kind as error:
        return str(error)
    raise AssertionError("no error")
with Checkpoints(folder, better="lower") as checkpoints:
    for step in range(4):
        checkpoints.save(step, state(), metric=abs(step - 1), config=step)
        x = add(x)
        for _ in range(20):
            total(x)  # collectives of the training while the save is written
    restored = checkpoints.restore(state(), 2)
    assert checkpoints.steps == [1, 2, 3] and checkpoints.best == 1 and checkpoints.config() == 3
    for name in ("x", "keys", "both"):
        assert restored[name].sharding == state()[name].sharding
    for shard in restored["x"].addressable_shards:
        np.testing.assert_array_equal(shard.data, np.arange(16.0).reshape(8, 2)[shard.index] + 2)
    for mine, theirs in zip(restored["keys"].addressable_shards, keys.addressable_shards):
        assert (jax.random.key_data(mine.data) == jax.random.key_data(theirs.data)).all()
    assert float(restored["both"]) == 7 and restored["mine"] == 0  # as process 0 has it
    assert "above 3" in raised((ValueError, OSError), lambda: checkpoints.save(1, restored))
    checkpoints.save(3, restored)
    checkpoints.wait()
    write = archive.write
    def full(*_):
        raise OSError(28, "No space left on device")
    archive.write = full
    checkpoints.save(4, restored)
    said = raised(OSError, checkpoints.wait)
    assert ("could not be saved" if process == 0 else "process 0 raised an error") in said, said
    archive.write = write
    assert "another model" in raised(Damaged, lambda: checkpoints.restore({"x": x}))
    if process == 1:
        archive.read = full
    said = raised((Damaged, OSError), lambda: checkpoints.restore(restored))
    assert ("process 1 raised an error" if process == 0 else "cannot be read") in said, said
    checkpoints.save(5, restored)
print("whole", process, flush=True)
"""


@pytest.mark.slow
def test_two_processes_save_and_restore_one_state(tmp_path):
    def command(i, address):
        return [sys.executable, "-c", TWO, str(i), str(tmp_path), address]

    texts = run_together(2, command, timeout=120, cwd=ROOT)
    assert ["whole 0" in texts[0], "whole 1" in texts[1]] == [True, True]
