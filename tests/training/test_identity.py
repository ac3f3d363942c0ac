"""A run resumes only from checkpoints of its own: with the same recipe, numbers, key and, of a halving, rungs."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

import mgu_jax as mgu
from mgu_jax.training.identity import identity_of
from tests.rejects import rejects
from tests.training.common import KEY, KEYS, LAST, samples
from tests.training.test_sweep import GRID, RECIPE, VALIDATION

pytestmark = pytest.mark.usefixtures("optax_promotes", "quick_compiler")

ROOT = Path(__file__).parent.parent.parent
PLAIN = mgu.Recipe(LAST, batch_size=8)


def squared(ys, targets):
    return (ys**2).mean()


def adam(hyper):
    return optax.adam(hyper.learning_rate)


class Zeros:
    """A model of another class, which has no repr."""

    def init(self, key, forget_bias, initial_scale):
        return np.zeros(2, np.float32)

    def apply(self, params, xs, **rates):
        return xs @ params


def run(name, folder, **changes):
    """Four steps, or six, with checkpoints in the folder."""
    with mgu.Checkpoints(folder) as checkpoints:
        options = {"data": samples(), "steps_per_call": 2, "checkpoints": checkpoints}
        if name == "fit":
            return mgu.fit(**options | {"recipe": PLAIN, "steps": 4, "key": KEY} | changes)
        options |= {"recipe": RECIPE, "hyper": GRID, "keys": KEYS[:1]}
        if name == "sweep":
            return mgu.sweep(**options | {"steps": 4} | changes)
        return mgu.halving(**options | {"rungs": (4, 6), "validation": VALIDATION} | changes)


OTHERS = [
    ("fit", {"recipe": replace(PLAIN, model=replace(LAST, cell=mgu.UGRNN))}, "differs in its recipe"),
    ("fit", {"recipe": replace(PLAIN, loss=squared)}, "differs in its recipe"),
    ("fit", {"hyper": mgu.Hyper(learning_rate=1e-2)}, "differs in its hyper"),
    ("fit", {"key": KEYS[0]}, "differs in its key"),
    ("fit", {"key": KEYS[0], "hyper": mgu.Hyper(dropout=0.1)}, "differs in its hyper and key"),
    ("sweep", {"hyper": GRID._replace(learning_rate=GRID.learning_rate * 2)}, "differs in its hyper"),
    ("sweep", {"keys": KEYS[1:]}, "differs in its key"),
    ("halving", {"rungs": (4, 8)}, "differs in its rungs"),
    ("halving", {"fraction": 0.25, "keys": KEYS[1:]}, "differs in its fraction and key"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The checkpoints of a finished fit, sweep and halving."""
    made = {}

    def folder(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            run(name, made[name])
        return made[name]

    return folder


@pytest.mark.parametrize(("name", "changes", "rule"), OTHERS, ids=[f"{name}-{rule}" for name, _, rule in OTHERS])
def test_a_checkpoint_of_another_run_is_refused(name, changes, rule, folders):
    step = 6 if name == "halving" else 4
    rejects(lambda: run(name, folders(name), **changes), "checkpoints", f"that of step {step}", rule, ValueError)


def test_a_checkpoint_of_another_function_is_refused(folders):
    rejects(lambda: run("sweep", folders("fit")), "checkpoints", "that of step 4", "a run of mgu_jax.fit", ValueError)


def test_steps_calls_devices_and_validation_data_may_change(folders):
    options = {"steps": 6, "steps_per_call": 3, "data": samples(32), "devices": 2}
    state, losses = run("fit", folders("fit"), **options)
    assert (int(state.step), len(losses)) == (6, 2)


def test_a_checkpoint_that_was_saved_by_hand_is_accepted(tmp_path):
    for config in (None, "mine", {"run": "mine"}):
        with mgu.Checkpoints(tmp_path / str(config)) as checkpoints:
            checkpoints.save(2, mgu.start(PLAIN, KEY)._replace(step=np.int32(2)), config=config)
        state, losses = run("fit", tmp_path / str(config), key=KEYS[0])
        assert (int(state.step), len(losses)) == (4, 2)


def test_the_key_does_not_count_where_a_state_is_given(tmp_path):
    """The state has the key of the run."""
    first = mgu.start(PLAIN, KEY)
    run("fit", tmp_path, state=first)
    for changes in ({"key": KEYS[0], "state": first}, {"key": KEYS[0]}):
        state, losses = run("fit", tmp_path, **changes)
        assert (int(state.step), len(losses)) == (4, 0)


def test_functions_and_objects_count_by_their_names():
    def of(**options):
        return identity_of("fit", mgu.Recipe(**{"model": Zeros(), "optimizer": adam} | options), mgu.Hyper())

    assert of() == of(model=Zeros())
    assert of() != of(model=LAST)
    assert of() != of(loss=squared)
    assert of() != of(optimizer=lambda hyper: optax.adam(hyper.learning_rate))
    assert of(optimizer=lambda hyper: optax.adam(1.0)) == of(optimizer=lambda hyper: optax.adam(1.0))


def test_a_number_counts_the_same_in_python_and_in_an_array():
    one, other = (identity_of("fit", PLAIN, mgu.Hyper(learning_rate=rate)) for rate in (1e-3, np.float32(1e-3)))
    assert one == other


PROGRAM = """
import jax
import optax

import mgu_jax as mgu
from mgu_jax.training.identity import identity_of
from tests.training.test_identity import PLAIN, Zeros, adam, squared

recipe = mgu.Recipe(Zeros(), loss=squared, optimizer=adam)
for recipe in (PLAIN, recipe):
    print(identity_of("fit", recipe, mgu.Hyper(), jax.random.key(0)))
"""


def test_every_process_finds_the_same_identity():
    said = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, cwd=ROOT)
    here = [
        identity_of("fit", recipe, mgu.Hyper(), jax.random.key(0))
        for recipe in (PLAIN, mgu.Recipe(Zeros(), loss=squared, optimizer=adam))
    ]
    assert said.stdout == "".join(f"{one}\n" for one in here)
