"""Experiments that train, in small sizes: their data, their files, their seeds and their parameter counts."""

import os

import jax
import numpy as np
import pytest

import mgu_jax as mgu
from experiments.datasets import text
from experiments.datasets.published import DataSet
from experiments.harness import cells, measures
from experiments.harness import learn as learning
from experiments.tasks import adding, copying, mnist_pixels, tune
from mgu_jax.interop import pretrained
from tests.experiments.common import drop_newest_checkpoint, is_png, lines, refuses, result, run

pytestmark = pytest.mark.usefixtures("as_a_user")


@pytest.mark.parametrize("length", [None, 7])
def test_the_targets_of_adding_are_sums_of_one_number_of_each_half(length):
    made = adding.sequences(np.random.default_rng(0), 500, length)
    lengths = np.full(500, length) if length else made.lengths
    assert made.xs.shape == (500, length or 55, 2)
    assert set(lengths.tolist()) == ({7} if length else set(range(50, 56)))
    numbers, marks = made.xs[..., 0], made.xs[..., 1]
    np.testing.assert_allclose(made.targets[:, 0], (numbers * marks).sum(1))
    for mark, steps in zip(marks, lengths, strict=True):
        first, second = np.flatnonzero(mark)
        assert first < steps // 2 <= second < steps
    np.testing.assert_allclose(made.targets.var(), 1 / 6, rtol=0.15)


def test_the_step_that_solves_it_is_the_first_below_a_hundredth():
    def line(step, *errors, split="test"):
        return {"step": step, "split": split, "squared_error_per_seed": list(errors)}

    metrics = [line(200, 0.02, 0.17, None), line(400, 0.009, 0.011, None), line(600, 0.02, 0.01, None)]
    assert adding.solved([line(100, 0, 0, 0, split="train"), *metrics]) == [400, None, None]


ADDING = ["adding", "--quick", "--hidden-size", 8, "--length", 6, "--steps", 100]


@pytest.mark.slow
def test_seeds_trained_together_equal_separate_runs(tmp_path, capsys):
    """The result has the score of each seed, their mean and deviation; seed 1 of two equals a run with seed 1."""
    assert run(*ADDING, "--seeds", 2, "--out", tmp_path / "two") == 0
    both = result(tmp_path / "two")
    assert "over 2 seeds" in capsys.readouterr().out
    assert (both["seeds"], both["frozen"], both["cell"]) == ([0, 1], [], "mgu")
    each = both["squared_error_per_seed"]
    assert each[0] != each[1]
    assert both["squared_error"] == pytest.approx(np.mean(each))
    assert both["squared_error_std"] == pytest.approx(np.std(each, ddof=1))
    assert both["parameters"] == {"all": 2 * 8 * (8 + 2 + 1) + 9, "recurrent": 2 * 8 * (8 + 2 + 1)}
    assert both["seconds"] > 0
    assert both["solved"] == [None, None]
    rows = lines(tmp_path / "two")
    assert [(row["step"], row["split"]) for row in rows] == [(s, p) for s in (50, 100) for p in ("train", "test")]
    assert len(rows[0]["loss_per_seed"]) == 2
    assert is_png(tmp_path / "two" / "learning_curve.png")

    assert run(*ADDING, "--seed", 1, "--out", tmp_path / "one") == 0
    one = result(tmp_path / "one")
    assert one["squared_error_std"] is None
    assert one["squared_error"] == pytest.approx(each[1], rel=1e-4)


@pytest.mark.slow
def test_the_average_over_the_steps_is_measured_in_the_place_of_the_last(tmp_path):
    """After a warm-up of nearly all steps: the average lags behind the parameters that begin to move."""
    flags = ["adding", "--quick", "--hidden-size", 4, "--length", 4, "--steps", 50, "--warmup", 49]
    assert run(*flags, "--out", tmp_path / "last") == 0
    assert run(*flags, "--ema", 0.99, "--out", tmp_path / "average") == 0
    last, average = result(tmp_path / "last"), result(tmp_path / "average")
    losses = [
        [row["loss"] for row in lines(tmp_path / name) if row["split"] == "train"] for name in ("last", "average")
    ]
    assert losses[0] == losses[1]
    assert last["loss"] < average["loss"]


@pytest.mark.slow
def test_a_batch_whose_gradient_is_not_finite_is_passed_over(tmp_path, monkeypatch, capsys):
    made = adding.sequences

    def spoilt(rng, count, length):
        batch = made(rng, count, length)
        return batch if count == 1000 or rng.random() < 0.7 else batch._replace(targets=batch.targets * 1e30)

    monkeypatch.setattr(adding, "sequences", spoilt)
    assert run(*ADDING, "--pass-over", 20, "--out", tmp_path / "passed over") == 0
    trained = result(tmp_path / "passed over")
    assert trained["loss"] < 0.2
    assert 0 < trained["passed_over"][0] < trained["steps"]
    assert run(*ADDING, "--out", tmp_path / "stopped") == 1
    assert "must stay finite" in capsys.readouterr().err


def test_copy_asks_for_the_ten_symbols_after_the_delay():
    made = copying.sequences(np.random.default_rng(0), 300, 7)
    assert made.xs.shape == (300, 27, 10)
    assert (made.xs.sum(-1) == 1).all()
    tokens = made.xs.argmax(-1)
    assert (tokens[:, :10] < 8).all()
    assert np.bincount(tokens[:, :10].ravel()).min() > 300
    assert (tokens[:, 10:16] == 8).all()
    assert (tokens[:, 16] == 9).all()
    assert (tokens[:, 17:] == 8).all()
    np.testing.assert_array_equal(made.targets[:, 17:], tokens[:, :10])
    np.testing.assert_array_equal(made.weights.sum(0), [0] * 17 + [300] * 10)


def alphabet(symbols="abcd", repeats=(200, 40, 60)):
    """A text that repeats its letters in order, as streams."""
    parts = [np.tile(np.arange(len(symbols), dtype=np.int32), n) for n in repeats]
    train, valid, test = (mgu.Stream(part[:-1], part[1:]) for part in parts)
    return DataSet(train, test, {"alphabet": "0" * 64}, valid, tuple(symbols))


CHARS = ["chars", "--hidden-size", 12, "--embedding-size", 4, "--window", 8, "--batch-size", 4, "--characters", 40]
CHARS += ["--steps", 96, "--learning-rate", 0.02, "--dropout", 0.1, "--temperature", 0.1]


@pytest.mark.slow
def test_chars_learn_choose_write_and_resume(tmp_path, capsys, monkeypatch):
    """A model learns the letters in order; a run killed before its end resumes to the same bits."""
    monkeypatch.setattr(text, "shakespeare", lambda *_, **__: alphabet("\nabc"))
    assert run(*CHARS, "--out", tmp_path / "run") == 0
    whole = result(tmp_path / "run")
    assert whole["bits_per_character"] < 0.1
    assert "abc\nabc\nabc" in whole["samples"][0]
    assert whole["samples"][0] in capsys.readouterr().out
    assert len(whole["samples"][0]) == 40
    assert whole["test_samples"] == 239  # all of it: one window
    best = min((row for row in lines(tmp_path / "run") if row["split"] == "valid"), key=lambda row: row["loss"])
    assert whole["best_step"] == [best["step"]]
    before = lines(tmp_path / "run")
    step = drop_newest_checkpoint(tmp_path / "run")
    assert run(*CHARS, "--out", tmp_path / "run", "--resume") == 0
    assert f"continuing from step {step} of 96." in capsys.readouterr().out
    again = result(tmp_path / "run")
    assert lines(tmp_path / "run") == before
    assert (again["loss"], again["samples"]) == (whole["loss"], whole["samples"])
    assert again["resumed_from"] == step


@pytest.mark.slow
def test_chars_in_two_parts_have_no_validation(tmp_path, monkeypatch):
    asked = {}

    def two(*_, validate):
        asked["validate"] = validate
        return alphabet("\nabc")._replace(valid=None)

    monkeypatch.setattr(text, "shakespeare", two)
    assert run(*CHARS, "--quick", "--split", "nanogpt", "--forget-bias", "uniform", "--out", tmp_path / "run") == 0
    assert asked == {"validate": False}
    assert "best_step" not in result(tmp_path / "run")
    assert {row["split"] for row in lines(tmp_path / "run")} == {"train", "test"}


@pytest.mark.slow
@pytest.mark.parametrize("flags", [["--cell", "gru", "--match", "mgu"], ["--forget-bias", "chrono"]])
def test_every_model_of_characters_writes(flags, tmp_path, monkeypatch):
    monkeypatch.setattr(text, "shakespeare", lambda *_, **__: alphabet("\nabc"))
    assert run(*CHARS, *flags, "--out", tmp_path / "run") == 0
    assert "abc\nabc\nabc" in result(tmp_path / "run")["samples"][0]


def test_a_batch_too_large_for_a_stream_is_one_sentence(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(text, "shakespeare", lambda *_, **__: alphabet("\nabc"))
    flags = ["chars", "--window", 8, "--batch-size", 50, "--out", tmp_path / "run"]
    refuses(capsys, flags, "--batch-size", "a window of 8 of 159 tokens", "50")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_resumes_only_with_its_own_dropout(tmp_path, capsys):
    flags = [*ADDING, "--out", tmp_path / "run"]
    assert run(*flags, "--dropout", 0.1) == 0
    refuses(capsys, [*flags, "--dropout", 0.2, "--resume"], "dropout", "was 0.1", "0.2")


def test_a_cell_without_a_forget_bias_learns_where_others_have_chrono(tmp_path):
    assert run(*ADDING, "--seeds", 1, "--cell", "mgu2", "--out", tmp_path / "run") == 0
    assert result(tmp_path / "run")["settings"]["forget_bias"] is None


def test_samples_follow_the_model_and_the_temperature():
    """A model whose next token is certain writes only that; at a high temperature all tokens appear."""
    model = mgu.Model(3, (4,), 3, readout="all", embedding_size=3)
    params = model.init(jax.random.key(0))
    certain = params._replace(W_y=0 * params.W_y, b_y=jax.numpy.array([0.0, 9.0, 0.0]))
    assert pretrained.sample(model, certain, [0], 20, jax.random.key(1), 0.1).tolist() == [1] * 20
    hot = pretrained.sample(model, certain, [0], 300, jax.random.key(1), 100.0)
    assert np.bincount(hot, minlength=3).min() > 60
    cold = pretrained.sample(model, certain, [0, 2], 300, jax.random.key(1), 9.0)
    np.testing.assert_allclose((cold == 1).mean(), np.e / (np.e + 2), atol=0.08)


@pytest.mark.slow
def test_words_with_a_baseline_of_the_same_parameter_count(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "kjv", lambda *_: alphabet())
    flags = ["words", "--text", "kjv", "--cell", "gru", "--match", "mgu", "--hidden-size", 12, "--embedding-size", 3]
    assert (
        run(*flags, "--window", 5, "--batch-size", 4, "--steps", 36, "--learning-rate", 0.03, "--out", tmp_path / "run")
        == 0
    )
    made = result(tmp_path / "run")
    mgu_count = cells.counts(cells.build("mgu", 4, 12, 4, readout="all", embedding_size=3))["recurrent"]
    assert made["hidden_size"] == cells.width_of("gru", mgu_count, 4, 4, readout="all", embedding_size=3) < 12
    assert made["perplexity"] == pytest.approx(np.exp(made["loss"]))
    assert made["perplexity"] < 3


def test_words_with_a_tied_embedding(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(text, "kjv", lambda *_: alphabet())
    flags = ["words", "--text", "kjv", "--tie", "--hidden-size", 6, "--window", 5, "--batch-size", 4, "--steps", 36]
    assert run(*flags, "--learning-rate", 0.03, "--dropout", 0, "--out", tmp_path / "run") == 0
    made = result(tmp_path / "run")
    assert made["parameters"]["all"] == made["parameters"]["recurrent"] + 4 * 6 + 4
    assert made["perplexity"] < 3
    refuses(capsys, [*flags, "--embedding-size", 3, "--out", tmp_path / "other"], "--tie", "--hidden-size", "3")


@pytest.mark.slow
def test_validation_reviews_choose_the_step(tmp_path, monkeypatch):
    """With tokens, lengths and a mean of states; the best step is that of the validation reviews."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, 80).astype(np.int32)
    xs = np.where(rng.random((80, 6)) < 0.5, 1, 2 + targets[:, None]).astype(np.int32)
    whole = mgu.Data(xs, targets, rng.integers(3, 7, 80).astype(np.int32))
    parts = [jax.tree.map(lambda a, i=i, j=j: a[i:j], whole) for i, j in ((0, 40), (40, 60), (60, 80))]
    monkeypatch.setattr(
        text, "imdb", lambda *_, **__: DataSet(parts[0], parts[2], {}, parts[1], ("<pad>", "<unk>", "bad", "good"))
    )
    flags = ["--hidden-size", 8, "--embedding-size", 4, "--batch-size", 10, "--learning-rate", 0.03, "--epochs", 12]
    assert run("imdb", *flags, "--dropout", 0, "--out", tmp_path / "run") == 0
    made = result(tmp_path / "run")
    assert made["accuracy"] > 0.8
    watched = [row for row in lines(tmp_path / "run") if row["split"] == "valid"]
    best = max(watched, key=lambda row: row["accuracy"])
    assert made["best_step"] == [best["step"]]


def test_permuted_images_have_all_pixels_in_one_order():
    xs = np.arange(2 * 784, dtype=np.float32).reshape(2, 28, 28)
    images = DataSet(mgu.Data(xs, np.zeros(2, np.int32)), mgu.Data(xs[:1], np.zeros(1, np.int32)), {})
    plain, permuted = (mnist_pixels.pixels(images, permuted) for permuted in (False, True))
    np.testing.assert_array_equal(plain.train.xs[1, :, 0], xs[1].ravel())
    order = permuted.test.xs[0, :, 0].astype(int)
    assert sorted(order) == list(range(784)) != order.tolist()
    np.testing.assert_array_equal(permuted.train.xs[1, :, 0], xs[1].ravel()[order])
    assert mnist_pixels.pixels(images, False, every=28).train.xs.shape == (2, 28, 1)


def test_a_frozen_seed_is_left_out_and_named():
    seen = measures.spread("loss", [1.0, 5.0, 3.0], np.array([False, True, False]))
    assert seen["loss"] == 2.0
    assert seen["loss_per_seed"] == [1.0, None, 3.0]


def test_a_window_drops_at_most_two_steps_of_a_test_text():
    for steps in (82_429, 55_769, 47_235, 999, 7):
        window = learning._window(steps)
        assert window <= min(steps, 1000)
        assert steps % window <= 2


@pytest.mark.parametrize("name", ["mnist-pixels", "words", "chars", "imdb", "vowels", "speech"])
def test_a_missing_data_set_is_one_sentence(name, tmp_path, capsys):
    refuses(capsys, [name, "--out", tmp_path / "run"], "is in none of the folders", "--data-dir or MGU_JAX_DATA")
    assert list(tmp_path.iterdir()) == []


def lines_of_images(count):
    """Images of one bright row, whose class is the row."""
    xs, targets = np.zeros((count, 28, 28), np.float32), np.arange(count, dtype=np.int32) % 10
    xs[np.arange(count), 2 * targets] = 1
    return mgu.Data(xs, targets)


@pytest.mark.parametrize(
    ("flags", "warmup"), [(["--cell", "gru"], 10), pytest.param(["--warmup", 7], 7, marks=pytest.mark.slow)]
)
def test_the_warm_up_by_pixels_is_a_quarter_of_a_short_training(flags, warmup, tmp_path, monkeypatch, capsys):
    """And the initial W of our cells, which nobody asked for, does not hinder a GRU."""
    images = lines_of_images(40)
    monkeypatch.setattr(mnist_pixels.data, "mnist", lambda *_: DataSet(images, images, {}))
    small = ["mnist-pixels", "--quick", "--hidden-size", 4, "--batch-size", 10, *flags]
    assert run(*small, "--out", tmp_path / "run") == 0
    settings = result(tmp_path / "run")["settings"]
    assert (settings["warmup_steps"], settings["initializer"]) == (warmup, "lecun")
    if "gru" in flags:
        refuses(capsys, [*small, "--initializer", "glorot"], "--initializer", "our own cells", "gru")


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["mgu", "gru"])
def test_tune_halves_the_settings_without_the_test_images(cell, tmp_path, monkeypatch, capsys):
    """Three rungs, and a resumed run repeats the same bits."""
    images = lines_of_images(60)
    monkeypatch.setattr(tune.data, "mnist", lambda *_: DataSet(images, None, {}))
    monkeypatch.setattr(tune, "HELD_OUT", 20)
    compare = "starts" if cell == "gru" else "scales"
    monkeypatch.setitem(tune.RATES, compare, (0.01, 0.02))
    monkeypatch.setattr(tune, "SCALES", tune.SCALES[:2])
    flags = ["tune", "--quick", "--cell", cell, "--hidden-size", 5, "--batch-size", 10, "--out", tmp_path / "run"]
    flags += ["--compare", compare]
    assert run(*flags) == 0
    whole = result(tmp_path / "run")
    reached = [max(map(int, row["accuracy"])) for row in whole["settings"]]
    assert sorted(reached) == ([10] * 4 + [20] * 2 + [40] * 2 if cell == "gru" else [10] * 2 + [20] + [40])
    assert all("40" in row["accuracy"] for row in whole["settings"][: reached.count(40)])
    step = drop_newest_checkpoint(tmp_path / "run")
    capsys.readouterr()
    assert run(*flags, "--resume") == 0
    assert result(tmp_path / "run")["settings"] == whole["settings"]
    assert step < 40


REAL = os.environ.get("MGU_JAX_DATA")


@pytest.mark.slow
@pytest.mark.skipif(not REAL, reason="MGU_JAX_DATA names no folder with the published files")
@pytest.mark.parametrize("name", ["mnist-pixels", "words", "chars", "imdb", "vowels"])
def test_quick_sizes_on_the_real_sets(name, tmp_path):
    assert run(name, "--quick", "--hidden-size", 16, "--data-dir", REAL, "--out", tmp_path / "run") == 0
    assert np.isfinite(result(tmp_path / "run")["loss"])


@pytest.mark.slow
@pytest.mark.skipif(not REAL, reason="MGU_JAX_DATA names no folder with the published files")
def test_vowels_reach_93_percent(tmp_path):
    assert run("vowels", "--data-dir", REAL, "--out", tmp_path / "run") == 0
    assert result(tmp_path / "run")["accuracy"] > 0.93


@pytest.mark.slow
def test_adding_learns_in_2000_steps(tmp_path):
    """Far below the paper's 0.0045."""
    assert run("adding", "--steps", 2000, "--out", tmp_path / "run") == 0
    assert result(tmp_path / "run")["squared_error"] < 0.001
