"""Saving and restoring: exact, whole or not at all, and never silently. What a run does with it is tested in
test_train.py and test_experiments.py."""

import json
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as orbax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import mgu_jax as mgu
from mgu_jax.training import sidecar
from mgu_jax.training.checkpoint import Checkpoints, Damaged
from mgu_jax.training.fit import begin
from mgu_jax.training.losses import accuracy
from mgu_jax.training.sweep import begin as begin_sweep
from tests.processes import run_together

ROOT = Path(__file__).parent.parent.parent


class Tree(NamedTuple):
    step: object
    key: object
    rest: object


def tree(step):
    return Tree(jnp.int32(step), jax.random.key(step), {"a": jnp.full((3, 2), step / 3), "b": (jnp.ones(1),)})


def same(a, b):
    """The same structure, kinds, dtypes and bits."""
    leaves, others = jax.tree.leaves(a), jax.tree.leaves(b)
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for one, other in zip(leaves, others, strict=True):
        if isinstance(one, jax.Array):
            assert isinstance(other, jax.Array)
            assert one.sharding == other.sharding
        else:
            assert type(one) is type(other)
        assert getattr(one, "dtype", None) == getattr(other, "dtype", None)
        if isinstance(one, jax.Array) and jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
    return True


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


def data_file(folder):
    """The largest of the files that orbax wrote."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != sidecar.NAME]
    return max(files, key=lambda path: path.stat().st_size)


STATES = {
    "named": tree(3),
    "one array": jnp.arange(3, dtype=jnp.float32),
    "dtypes": [jnp.ones((2, 3), dtype) for dtype in ("bfloat16", "float16", "int8", "uint32", "bool", "complex64")],
    "keys": {name: jax.random.key(3, impl=name) for name in ("threefry2x32", "rbg")}
    | {"many": jax.random.split(jax.random.key(5), (2, 3)), "old": jax.random.PRNGKey(1)},
    "of NumPy": {"double": np.linspace(0, 1, 5), "position": np.int64(2**40), "flag": np.bool_(True)},
    "numbers": {"step": 7, "rate": 0.1, "on": True, "pair": (1j, None), "empty": (), "nan": float("nan")},
}


@pytest.mark.parametrize("name", STATES)
def test_a_round_trip_keeps_all_bits_and_kinds(name, tmp_path):
    state = STATES[name]
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(state) is None
        checkpoints.save(1, state)
        assert same(checkpoints.restore(state), state)
        if name in ("named", "dtypes", "keys"):
            assert same(checkpoints.restore(jax.eval_shape(lambda: state)), state)


def test_double_precision(tmp_path, x64):
    state = {"w": jnp.linspace(0, 1, 5), "n": jnp.arange(3)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        restored = checkpoints.restore(state)
    assert restored["w"].dtype == np.float64
    assert same(restored, state)


def test_the_newest_are_kept(tmp_path):
    saved(tmp_path / "run", (1, 2, 3), keep=2)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["2", "3"]
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.steps == [2, 3]
        restored = checkpoints.restore(tree(0))
        assert type(restored) is Tree
        assert same(restored, tree(3))
        assert same(checkpoints.restore(tree(0), step=2), tree(2))
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
        assert same(checkpoints.restore(tree(0), checkpoints.best), tree(best))


def test_what_is_unfinished_is_passed_over_and_cleaned_up(tmp_path):
    """What a kill leaves behind: marks beside what was begun. What is not ours stays."""
    saved(tmp_path, (3, 4))
    for name in ("1.orbax-checkpoint-tmp", "6.orbax-checkpoint-tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_text("...")
    for name in ("2", "7"):
        shutil.copytree(tmp_path / "4", tmp_path / name)
        (tmp_path / name / sidecar.NAME).rename(tmp_path / name / f"{sidecar.NAME}.part")
    for step in (1, 2, 4, 6, 7, 9):  # killed after the sidecar was in its place, and before there was a folder, too
        sidecar.mark_of(tmp_path / str(step)).touch()
    mine = ["10", f"4.mine{sidecar.MARK}", "8"]
    for name in mine:
        (tmp_path / name).write_text("mine")
    shutil.copytree(tmp_path / "4", tmp_path / "4.mine")
    before = sorted(tmp_path.iterdir())
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps == [3, 4]
        assert int(checkpoints.restore(tree(0)).step) == 4
        assert sorted(tmp_path.iterdir()) == before
        checkpoints.save(5, tree(5))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*mine, "4", "4.mine", "5"])


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_not_ours_is_refused_and_stays(tmp_path):
    """Another program's checkpoint, finished or not, and a folder with a year's photographs."""
    with orbax.StandardCheckpointer() as other:
        other.save(tmp_path / "100", {"w": jnp.ones(3)})
    for name in ("2019", "7.orbax-checkpoint-tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "photo").write_text("mine")
    before = contents(tmp_path)
    why = f"is damaged or another program's (it has no {sidecar.NAME})"
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps == []
        for call in (checkpoints.config, lambda: checkpoints.restore(tree(0))):
            with pytest.raises(Damaged) as caught:
                call()
            what = f"the checkpoint of step 2019 in {tmp_path} {why}"
            assert str(caught.value) == f"{what}; no other there can be restored."
        for step, name in ((1, "7.orbax-checkpoint-tmp"), (7, "7.orbax-checkpoint-tmp"), (100, "100"), (2019, "2019")):
            with pytest.raises(ValueError, match="step must be above") as caught:
                checkpoints.save(step, tree(step))
            place = tmp_path.resolve() / name
            assert str(caught.value) == f"step must be above what is not a checkpoint of ours; {place} {why}."
        assert contents(tmp_path) == before
        checkpoints.save(2020, tree(2020))
        assert same(checkpoints.restore(tree(0)), tree(2020))
    assert contents(tmp_path).items() >= before.items()


def test_a_checkpoint_that_lost_its_sidecar_is_named_and_stays(tmp_path):
    saved(tmp_path)
    (tmp_path / "2" / sidecar.NAME).unlink()
    with Checkpoints(tmp_path) as checkpoints:
        for step in (None, 2):
            with pytest.raises(Damaged, match=r"it has no .*; that of step 1 is whole: restore\(like, step=1\)\.$"):
                checkpoints.restore(tree(0), step)
        assert same(checkpoints.restore(tree(0), step=1), tree(1))
        with pytest.raises(ValueError, match=r"step must be above .*/2 is damaged"):
            checkpoints.save(2, tree(2))
        shutil.rmtree(tmp_path / "2")
        checkpoints.save(2, tree(2))
        assert same(checkpoints.restore(tree(0)), tree(2))


def test_a_sidecar_that_is_half_written_is_none(tmp_path, monkeypatch):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, tree(1))
        checkpoints.wait()
        monkeypatch.setattr("mgu_jax.training.sidecar.os.fsync", fails(OSError(5, "Input/output error")))
        checkpoints.save(2, tree(2))
        with pytest.raises(OSError, match=r"step 2 could not be saved in .* \(Input/output error\)"):
            checkpoints.wait()
        assert checkpoints.steps == [1]


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def rewrite(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


DAMAGE = {  # what happens to the folder of step 2, and what the error says of it
    "truncated": (lambda folder: truncate(data_file(folder)), r"damaged \(\S+ has [\d,]+ bytes of [\d,]+\)"),
    "flipped": (lambda folder: flip(data_file(folder)), r"damaged \(\S+ differs from its checksum\)"),
    "missing": (lambda folder: data_file(folder).unlink(), r"damaged \(\S+: No such file or directory\)"),
    "copied": (
        lambda folder: [shutil.rmtree(folder), shutil.copytree(folder.parent / "1", folder)],
        r"damaged \(it is a copy of that of step 1\)",
    ),
    "truncated sidecar": (
        lambda folder: truncate(folder / sidecar.NAME),
        r"damaged \(mgu_jax\.json cannot be read\)",
    ),
    "changed sidecar": (
        lambda folder: rewrite(folder / sidecar.NAME, facts={"step": 2, "state": {}, "config": None, "metric": 0.0}),
        r"damaged \(mgu_jax\.json differs from its checksum\)",
    ),
    "another version": (
        lambda folder: rewrite(folder / sidecar.NAME, format=2),
        r"of another format \(2; this version of mgu_jax reads 1\)",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_and_the_earlier_one_offered(name, tmp_path):
    """And a run goes on from there: its next checkpoints replace the damaged one."""
    damage, text = DAMAGE[name]
    saved(tmp_path)
    damage(tmp_path / "2")
    with Checkpoints(tmp_path) as checkpoints:
        for call in (lambda: checkpoints.restore(tree(0)), checkpoints.config, lambda: checkpoints.restore(tree(0), 2)):
            with pytest.raises(Damaged) as caught:
                call()
            there = re.escape(str(tmp_path))
            end = r"; that of step 1 is whole: restore\(like, step=1\)\."
            assert re.fullmatch(f"the checkpoint of step 2 in {there} is {text}{end}", str(caught.value))
            assert (caught.value.step, caught.value.whole) == (2, 1)
        assert same(checkpoints.restore(tree(0), step=1), tree(1))
        checkpoints.save(2, tree(20))
        checkpoints.save(3, tree(3))
        assert same(checkpoints.restore(tree(0)), tree(3))
        assert same(checkpoints.restore(tree(0), 2), tree(20))


def test_one_bit_in_any_file_is_noticed(tmp_path):
    saved(tmp_path)
    rng = random.Random(0)
    files = [path for path in (tmp_path / "2").rglob("*") if path.is_file()]
    assert len(files) > 5
    with Checkpoints(tmp_path) as checkpoints:
        for path in files:
            before = path.read_bytes()
            if path.name != sidecar.NAME:
                flip(path, rng.randrange(len(before)), rng.randrange(8))
            else:  # anywhere in what it says
                flip(path, before.index(b'"step": 2') + 8, 0)
            with pytest.raises(Damaged, match="differs from its checksum"):
                checkpoints.restore(tree(0))
            path.write_bytes(before)
        assert same(checkpoints.restore(tree(0)), tree(2))


def test_where_all_are_damaged_none_is_offered(tmp_path):
    saved(tmp_path)
    for step in "12":
        truncate(data_file(tmp_path / step))
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(Damaged, match=r"; no other there can be restored\.$") as caught:
            checkpoints.restore(tree(0))
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
        with pytest.raises(Damaged) as caught:
            checkpoints.restore(like)
        assert str(caught.value) == (
            f"the checkpoint of step 2 in {tmp_path} is of another model (state{text}); "
            "that of step 1 is whole: restore(like, step=1)."
        )
        assert same(checkpoints.restore(like, 1), like)


def test_another_optimiser_and_another_validation_are_told_from_another_model(tmp_path):
    recipe, other = (mgu.Recipe(mgu.Model(2, (3,), 2), optimizer=name) for name in ("adam", "sgd"))
    validation = mgu.Validation(None, (accuracy,))
    key, keys = jax.random.key(0), jax.random.split(jax.random.key(0), 1)

    def sweep(recipe, validation=None):
        return begin_sweep(recipe, mgu.Hyper(), keys, validation)

    kinds = [
        (begin(recipe, key), begin(other, key), "optimiser (state.opt_state"),
        (begin(recipe, key), begin(recipe, key, validation=validation), "validation (state.best.score is not there"),
        (sweep(recipe), sweep(other), "optimiser (state.members.opt_state"),
        (sweep(recipe, validation), sweep(recipe), "validation (state.members.best.score is float32[1]"),
    ]
    for i, (state, like, text) in enumerate(kinds):
        with Checkpoints(tmp_path / str(i)) as checkpoints:
            for step in (1, 2):
                checkpoints.save(step, state)
            with pytest.raises(Damaged) as caught:
                checkpoints.restore(like)
        assert f"is of another {text}" in str(caught.value)
        assert str(caught.value).endswith("; no other there can be restored.")  # though all are whole


def test_nothing_is_saved_after_close(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, tree(1))
    checkpoints.close()
    with pytest.raises(ValueError, match="save must") as caught:
        checkpoints.save(2, tree(2))
    assert str(caught.value) == f"save must come before close; the checkpoints in {tmp_path} are closed."


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
        assert same(checkpoints.restore(state), state)
        for sharding in (columns, everywhere, w.sharding):
            like = {"w": jax.device_put(jnp.zeros_like(w), sharding), "b": state["b"]}
            restored = checkpoints.restore(like)
            assert restored["w"].sharding == sharding
            np.testing.assert_array_equal(restored["w"], w)


def test_saving_ten_megabytes_costs_the_caller_little(tmp_path):
    state = [jax.random.normal(jax.random.key(i), (250_000,)) for i in range(10)]
    times = []
    with Checkpoints(tmp_path) as checkpoints:
        for step in range(6):
            checkpoints.wait()
            began = time.perf_counter()
            checkpoints.save(step, state)
            times.append(time.perf_counter() - began)
    assert np.median(times[1:]) < 0.1


@contextmanager
def held(checkpoints):
    """Saves begin to write when the block is left, or when the event is set that it is given."""
    write, event = checkpoints._orbax.save, threading.Event()

    def later(*arguments, **named):
        event.wait(30)
        write(*arguments, **named)

    checkpoints._orbax.save = later
    try:
        yield event
    finally:
        event.set()


def test_the_next_chunk_begins_before_a_save_has_ended(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        with held(checkpoints):
            checkpoints.save(1, tree(1))
            assert float(jax.jit(lambda x: x + 1)(jnp.float32(1))) == 2
            assert checkpoints.steps == []
        checkpoints.wait()
        assert checkpoints.steps == [1]


def test_an_interrupt_waits_until_a_save_is_whole(tmp_path):
    with Checkpoints(tmp_path) as checkpoints, held(checkpoints) as event:
        checkpoints.save(1, tree(1))
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        threading.Timer(0.5, event.set).start()
        with pytest.raises(KeyboardInterrupt):
            checkpoints.save(2, tree(2))
        assert checkpoints.steps == [1]


FULL = "Error writing: Failed to write 10 bytes to file 14: No space left on device [os_error_code='28']"
ERRORS = {
    "of the system": (OSError(28, "No space left on device"), "No space left on device"),
    "of orbax": (ValueError(FULL), "No space left on device"),
    "of another kind": (RuntimeError("one\ntwo"), "RuntimeError: one"),
}


def fails(error):
    def save(*_, **__):
        raise error

    return save


@pytest.mark.parametrize(
    ("name", "where"),
    [("of the system", "save"), ("of orbax", "wait"), ("of another kind", "close"), ("of the system", "restore")],
)
def test_an_error_in_the_background_is_raised_at_the_next_call(tmp_path, monkeypatch, name, where):
    error, reason = ERRORS[name]
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, tree(1))
    checkpoints.wait()
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints._orbax, "save", fails(error))
        checkpoints.save(2, tree(2))
        arguments = {"save": (3, tree(3)), "restore": (tree(0),)}.get(where, ())
        with pytest.raises(OSError, match="could not be saved") as caught:
            getattr(checkpoints, where)(*arguments)
    what = f"the checkpoint of step 2 could not be saved in {tmp_path} ({reason})"
    assert str(caught.value) == f"{what}; those before it are whole."
    assert caught.value.__cause__ is error
    if where == "close":
        checkpoints = Checkpoints(tmp_path)
    assert same(checkpoints.restore(tree(0)), tree(1))  # said once, and what was whole is
    checkpoints.save(2, tree(2))
    assert same(checkpoints.restore(tree(0)), tree(2))
    checkpoints.close()


def test_an_error_in_the_background_does_not_hide_the_one_that_ends_the_block(tmp_path):
    def run(ending):
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints._orbax.save = fails(OSError(28, "No space left on device"))
            checkpoints.save(1, tree(1))
            ending()

    with pytest.raises(ZeroDivisionError) as caught:
        run(lambda: 1 / 0)
    (note,) = caught.value.__notes__
    assert note.startswith("the checkpoint of step 1 could not be saved")
    with pytest.raises(OSError, match="step 1 could not be saved"):
        run(lambda: None)


@pytest.fixture
def disk(tmp_path):
    """A file system of three megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if sys.platform != "linux" or os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root on Linux")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("seen", [True, False], ids=["seen before", "met in the middle"])
def test_a_full_disk_is_said_and_costs_nothing_that_was_whole(disk, caplog, capfd, monkeypatch, seen):
    if not seen:  # another process takes the room at the same time
        usage = shutil.disk_usage(disk)
        monkeypatch.setattr("mgu_jax.training.checkpoint.shutil.disk_usage", lambda _: usage._replace(free=10**9))
    rng = np.random.default_rng(0)
    small, large = ({"w": rng.standard_normal(size).astype(np.float32)} for size in (200_000, 800_000))
    with Checkpoints(disk / "run", keep=2) as checkpoints, caplog.at_level(logging.ERROR):
        checkpoints.save(1, small)
        checkpoints.save(2, large)
        with pytest.raises(OSError, match="could not be saved") as caught:
            checkpoints.wait()
        assert str(caught.value) == (
            f"the checkpoint of step 2 could not be saved in {disk / 'run'} (No space left on device); "
            "those before it are whole."
        )
        assert [path.name for path in (disk / "run").iterdir()] == ["1"]
        assert same(checkpoints.restore(small), small)
        checkpoints.save(2, small)
        assert same(checkpoints.restore(small), small)
        assert checkpoints.steps == [1, 2]
    assert not caplog.records  # orbax's traces of the same error
    assert not capfd.readouterr().err


def test_a_folder_that_cannot_be_written_is_said_at_once(tmp_path):
    (tmp_path / "file").write_text("mine")
    for folder, reason in ((tmp_path / "file", "File exists"), (tmp_path / "file" / "run", "Not a directory")):
        with pytest.raises(OSError, match="folder must be") as caught:
            Checkpoints(folder)
        assert str(caught.value) == f"folder must be one that can be written; got {folder} ({reason})."
    assert (tmp_path / "file").read_text() == "mine"


def test_a_disk_that_cannot_be_written_is_said_at_once(disk):
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(OSError, match=r"folder must be one that can be written; got .* \(Read-only file system\)\."):
        Checkpoints(disk)


def test_a_step_that_is_there_is_not_replaced_by_mistake(tmp_path):
    saved(tmp_path, (10, 20))
    with Checkpoints(tmp_path) as checkpoints:
        for step in (5, 10, 20):
            with pytest.raises(ValueError, match="step must be above") as caught:
                checkpoints.save(step, tree(step))
            assert str(caught.value) == f"step must be above 20, the last in {tmp_path}; got {step}."
        checkpoints.restore(tree(0), step=10)
        with pytest.raises(ValueError, match="step must be above 20"):
            checkpoints.save(10, tree(10))
        checkpoints.save(15, tree(15))
        checkpoints.wait()
        assert checkpoints.steps == [10, 15]
        with pytest.raises(ValueError, match="step must be above 15"):
            checkpoints.save(15, tree(15))


def test_wrong_arguments_are_one_sentence(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, tree(1))
        wrong = [
            (lambda: checkpoints.save(-1, tree(1)), "step must be a whole number of at least 0; got -1."),
            (lambda: checkpoints.save(2, tree(1), metric="0"), "metric must be a number; got '0'."),
            (
                lambda: checkpoints.save(2, tree(1), config={1}),
                "config must be what JSON can hold; got a set (Object of type set is not JSON serializable).",
            ),
            (
                lambda: checkpoints.save(2, {"a": "text"}),
                "state must hold numbers, and arrays with elements, alone; state['a'] is 'text'.",
            ),
            (
                lambda: checkpoints.restore({"a": jnp.ones((0, 3))}),
                "like must hold numbers, and arrays with elements, alone; like['a'] is float32 [0, 3].",
            ),
            (
                lambda: checkpoints.restore(tree(1), 3),
                f"step must be one of [1], those in {tmp_path}; got 3.",
            ),
            (lambda: Checkpoints(tmp_path, keep=0), "keep must be a whole number of at least 1; got 0."),
            (lambda: Checkpoints(tmp_path, better="min"), "better must be one of 'lower', 'higher'; got 'min'."),
        ]
        for call, text in wrong:
            with pytest.raises((TypeError, ValueError)) as caught:
                call()
            assert str(caught.value) == text


def test_without_orbax_the_sentence_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    with pytest.raises(ImportError) as caught:
        Checkpoints(tmp_path)
    assert str(caught.value) == (
        "orbax.checkpoint is needed here and not installed: pip install 'mgu_jax[experiments]'."
    )


class Instants:
    """Copies of a folder, taken before every operation of Python on files in it: what a kill there would leave."""

    def __init__(self):
        self.folder, self.copies, self.lock = None, [], threading.RLock()
        sys.addaudithook(self.seen)  # for good, so it does nothing where there is no folder to watch

    def seen(self, event, arguments):
        if self.folder is None or event not in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"):
            return
        reads = event == "open" and arguments[1] in ("r", "rb")
        within = str(self.folder) in str(arguments[0])
        relative = event in ("os.remove", "os.rmdir") and arguments[1] != -1  # to the file descriptor of a folder
        if (within or relative) and not reads:
            self.copy()

    def copy(self):
        with self.lock:
            folder, self.folder = self.folder, None  # not the copying
            if folder is not None:
                copy = folder.parent / f"{len(self.copies)}"
                with suppress(shutil.Error):  # orbax's own threads go on in its unfinished folder
                    shutil.copytree(folder, copy)
                self.copies.append(copy)
                self.folder = folder


@pytest.fixture(scope="module")
def instants():
    return Instants()


def test_a_kill_at_any_instant_leaves_the_last_whole_one(tmp_path, instants):
    """The first save of two, one that has an older one removed, and one that replaces what came after step 2."""
    like, after = {"w": jnp.zeros(3)}, []
    with Checkpoints(tmp_path / "run") as checkpoints:
        checkpoints.save(1, {"w": jnp.full(3, 1.0)})
        checkpoints.wait()
        for step, value in ((2, 2.0), (3, 3.0), (3, 4.0)):
            if value == 4:
                checkpoints.restore(like, step=2)
            first = len(instants.copies)
            instants.folder = tmp_path / "run"
            checkpoints.save(step, {"w": jnp.full(3, value)})
            checkpoints.wait()
            instants.copy()
            instants.folder = None
            after.append(instants.copies[first:])
    for copies, values in zip(after, ([1, 2], [2, 3], [3, 2, 4]), strict=True):
        found = []
        for copy in copies:
            with Checkpoints(copy) as checkpoints:
                found.append(float(checkpoints.restore(like)["w"].sum()) / 3)
        assert len(found) > 10
        assert [value for i, value in enumerate(found) if i == 0 or value != found[i - 1]] == values


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


def test_a_killed_process_leaves_whole_checkpoints(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", LOOP, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    for _ in range(3):
        process.stdout.readline()
    time.sleep(random.uniform(0, 0.2))
    process.kill()
    said = [int(line) for line in process.communicate()[0].split()] or [3]
    like = {"w": np.zeros(50_000, int), "step": 0}
    with Checkpoints(tmp_path) as checkpoints:
        assert said[-1] <= checkpoints.steps[-1] <= said[-1] + 1
        for step in checkpoints.steps:
            assert same(checkpoints.restore(like, step), {"w": np.full(50_000, step), "step": step})
        step = checkpoints.steps[-1]
        checkpoints.save(step + 1, like)
    assert len(list(tmp_path.iterdir())) == 2


TWO = """
import sys
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.config.update("jax_num_cpu_devices", 1)
process, folder, address = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.distributed.initialize(address, 2, process)
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from mgu_jax.training.checkpoint import Checkpoints, Damaged
sharding = NamedSharding(jax.make_mesh((2,), ("device",)), P("device"))
x = jax.jit(lambda: jax.numpy.arange(16.0).reshape(8, 2), out_shardings=sharding)()
add, total = jax.jit(lambda x: x + 1, donate_argnums=0), jax.jit(lambda x: x.sum())
with Checkpoints(folder) as checkpoints:
    for step in range(4):
        checkpoints.save(step, {"x": x}, metric=abs(step - 1), config=step)
        x = add(x)
        for _ in range(20):
            total(x)  # collectives of the training while the save goes on
    restored = checkpoints.restore({"x": x}, 2)
    assert checkpoints.steps == [1, 2, 3] and checkpoints.best == 1 and checkpoints.config() == 3
    assert restored["x"].sharding == x.sharding
    for shard in restored["x"].addressable_shards:
        np.testing.assert_array_equal(shard.data, np.arange(16.0).reshape(8, 2)[shard.index] + 2)
    checkpoints.save(3, restored)
print("whole", process, flush=True)
"""


@pytest.mark.slow
def test_two_processes_save_and_restore_one_state(tmp_path):
    def command(i, address):
        return [sys.executable, "-c", TWO, str(i), str(tmp_path), address]

    texts = run_together(2, command, timeout=120, cwd=ROOT)
    assert ["whole 0" in texts[0], "whole 1" in texts[1]] == [True, True]
