"""A batch split over devices, or over processes, gives the same run as on one device."""

import json
import os
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import mgu_jax as mgu
from mgu_jax.training.batch import run_model
from mgu_jax.training.devices import mesh_of
from mgu_jax.training.losses import cross_entropy
from tests.processes import run_together

pytestmark = pytest.mark.usefixtures("optax_promotes", "quick_compiler")

ROOT = Path(__file__).parent.parent.parent
RNG = np.random.default_rng(0)
SAMPLES = mgu.Data(RNG.normal(size=(20, 5, 3)).astype(np.float32), RNG.integers(0, 4, 20).astype(np.int32))
EVERY_STEP = mgu.Data(SAMPLES.xs, RNG.integers(0, 4, (20, 5)).astype(np.int32), RNG.integers(1, 6, 20).astype(np.int32))
TOKENS = RNG.integers(0, 4, 200).astype(np.int32)
STREAM = mgu.Stream(TOKENS[:-1], TOKENS[1:])
LAST = mgu.Model(3, (6,), 4, readout="last")
NOISY = mgu.Model(3, (6,), 4, readout="last", dropout=0.3)
ALL = mgu.Model(3, (6,), 4)
LANGUAGE = mgu.Model(4, (6,), 4, embedding_size=3, learned_h0=True)


def fifth_batch_on(step):
    rows = (np.arange(8) + 5 * step) % 20
    return mgu.Data(SAMPLES.xs[rows], SAMPLES.targets[rows])


RUNS = {
    "samples": (LAST, SAMPLES, None),
    "lengths": (ALL, EVERY_STEP, None),
    "a stream": (LANGUAGE, STREAM, 6),
    "from the host": (LAST, fifth_batch_on, None),
}


def check_close(got, wanted, bound=2e-6):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert np.abs(np.asarray(a) - np.asarray(b)).max() <= bound


@pytest.mark.parametrize("name", RUNS)
def test_a_run_on_two_devices_equals_the_run_on_one(name):
    """Only the order of sums over samples differs: parameters agree within 2e-6 after six steps."""
    model, data, window = RUNS[name]
    recipe = mgu.Recipe(model, optimizer="momentum", batch_size=8, window=window)
    validation = None
    if not callable(data):
        validation = mgu.Validation(data, (cross_entropy,), batch_size=20)
    arguments = {
        "steps": 6,
        "key": jax.random.key(1),
        "steps_per_call": 3,
        "validation": validation,
        "hyper": mgu.Hyper(0.1),
    }
    one, losses = mgu.fit(recipe, data, **arguments)
    two, losses_of_two = mgu.fit(recipe, data, devices=2, **arguments)
    assert all(len(a.sharding.device_set) == 2 for a in jax.tree.leaves(two.params))
    assert not any(a.sharding.is_fully_replicated for a in jax.tree.leaves(two.carry))
    check_close(losses_of_two, losses)
    check_close(
        (two.params, two.carry, two.best and two.best.params), (one.params, one.carry, one.best and one.best.params)
    )


def test_a_run_on_two_devices_resumes_to_the_same_bits():
    recipe = mgu.Recipe(LANGUAGE, batch_size=8, window=6)
    arguments = {"key": jax.random.key(1), "steps_per_call": 3, "devices": 2}
    whole, _ = mgu.fit(recipe, STREAM, steps=6, **arguments)
    half, _ = mgu.fit(recipe, STREAM, steps=3, **arguments)
    half = jax.device_put(half, jax.devices()[0])  # as from another machine
    resumed, _ = mgu.fit(recipe, STREAM, steps=6, state=half, **arguments)
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(resumed.params), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_each_part_of_a_batch_draws_its_own_noise():
    twice = mgu.Data(np.tile(SAMPLES.xs[:4], (2, 1, 1)), np.tile(SAMPLES.targets[:4], 2))
    params, mesh = NOISY.init(jax.random.key(0)), mesh_of(2, "samples of a batch", 8)
    run = jax.jit(lambda noise: run_model(NOISY, params, twice, None, noise, mesh)[0])
    first, second = np.split(np.asarray(run(None)), 2)
    np.testing.assert_array_equal(first, second)
    first, second = np.split(np.asarray(run({"key": jax.random.key(1), "dropout": 0.5})), 2)
    assert (np.abs(first - second).max(1) > 1e-3).all()


def test_a_run_on_two_devices_continues_on_one():
    recipe = mgu.Recipe(LAST, batch_size=8)
    two, _ = mgu.fit(recipe, SAMPLES, steps=2, key=jax.random.key(1), devices=2)
    one, _ = mgu.fit(recipe, SAMPLES, steps=4, key=jax.random.key(1), state=two)
    assert all(len(a.sharding.device_set) == 1 for a in jax.tree.leaves(one))


@pytest.mark.slow
def test_halving_on_devices_that_do_not_divide_the_settings_left():
    hyper, keys = mgu.grid(learning_rate=(1e-3, 1e-2)), jax.random.split(jax.random.key(0), 1)
    validation = mgu.Validation(SAMPLES, (cross_entropy,))
    options = {"hyper": hyper, "keys": keys, "rungs": (1, 2), "validation": validation}
    left = [mgu.halving(mgu.Recipe(LAST, batch_size=8), SAMPLES, devices=n, **options)[2] for n in (1, 2)]
    np.testing.assert_array_equal(*left)
    assert len(left[0]) == 1


# Runs unchanged in one process with four devices, or in two processes with two devices each.
SCRIPT = """
import json, sys
import jax
import numpy as np

which, processes, address, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
jax.config.update("jax_num_cpu_devices", 4 // processes)
if processes > 1:
    jax.distributed.initialize(address, processes, which)

import mgu_jax as mgu
from mgu_jax.training.losses import accuracy
from tests.training.test_devices import LANGUAGE, LAST, SAMPLES, STREAM, fifth_batch_on

def part(step):
    whole = fifth_batch_on(step)
    mine = slice(which * 8 // processes, (which + 1) * 8 // processes)
    return mgu.Data(whole.xs[mine], whole.targets[mine])

fits = {"samples": (LAST, SAMPLES, None), "stream": (LANGUAGE, STREAM, 6), "host": (LAST, part, None)}
found = {}
for name, (model, data, window) in fits.items():
    recipe = mgu.Recipe(model, batch_size=8, window=window)
    arguments = dict(key=jax.random.key(1), steps_per_call=2, devices=4, hyper=mgu.Hyper(0.01))
    if window is None:
        arguments["validation"] = mgu.Validation(SAMPLES, (accuracy,))
    with mgu.Checkpoints(f"{folder}/{name}") as checkpoints:
        mgu.fit(recipe, data, steps=2, checkpoints=checkpoints, **arguments)
        state, losses = mgu.fit(recipe, data, steps=5, checkpoints=checkpoints, **arguments)
    assert len(losses) == 3
    found[name] = [np.asarray(a).tolist() for a in (losses, *jax.tree.leaves(state.params))]

hyper, keys = mgu.grid(learning_rate=(1e-3, 1e-2)), jax.random.split(jax.random.key(0), 2)
validation = mgu.Validation(SAMPLES, (accuracy,))
recipe = mgu.Recipe(LAST, batch_size=8)
arguments = dict(hyper=hyper, keys=keys, validation=validation, devices=4, steps_per_call=2)
with mgu.Checkpoints(f"{folder}/sweep") as checkpoints:
    mgu.sweep(recipe, SAMPLES, steps=2, checkpoints=checkpoints, **arguments)
    state, losses = mgu.sweep(recipe, SAMPLES, steps=4, checkpoints=checkpoints, **arguments)
assert losses.shape == (4, 2)
best = mgu.best_member(state, hyper, validation)
found["sweep"] = [losses.tolist(), best.score, *(a.tolist() for a in jax.tree.leaves(best.params))]
if which == 0:
    print(json.dumps(found))
"""


def run_processes(folder, processes):
    def command(i, address):
        return [sys.executable, "-c", SCRIPT, str(i), str(processes), address, str(folder)]

    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    said = run_together(processes, command, env=environment, cwd=ROOT)
    return json.loads(said[0].splitlines()[-1])  # gloo prints its own lines before it


@pytest.mark.slow
def test_two_processes_give_the_run_of_one(tmp_path):
    """Two processes with two devices each, one process with four: losses and parameters agree within 1e-5."""
    one, two = (run_processes(tmp_path / str(n), n) for n in (1, 2))
    assert one.keys() == two.keys()
    for name in one:
        for a, b in zip(one[name], two[name], strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5, err_msg=name)
