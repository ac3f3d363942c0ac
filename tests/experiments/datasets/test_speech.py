"""Spoken digits: the set of many files, its splits, and the features of sound beside their definition in NumPy."""

import hashlib
import io
import tarfile
import wave
import zipfile
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from experiments.datasets import features, published, speech
from experiments.datasets.published import find, joined, parted
from experiments.run import BadRequest
from experiments.tasks import speakers
from mgu_jax.training.data import Data
from tests.experiments.common import refuses, result, run
from tests.rejects import rejects

SPEAKERS = get_args(speech.Speaker)


def wav(samples):
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(speech.RATE)
        file.writeframes(np.round(2**15 * np.asarray(samples)).astype("<i2").tobytes())
    return out.getvalue()


def tone(digit, rng, seconds):
    """A tone whose pitch is the digit."""
    t = np.arange(int(seconds * speech.RATE)) / speech.RATE
    return 0.3 * np.sin(2 * np.pi * 300 * (digit + 1) * t + rng.uniform(0, 6)) + 0.01 * rng.standard_normal(len(t))


def small_set(numbers=(0, 5, 10, 11), digits=(0, 1)):
    rng = np.random.default_rng(0)
    return {
        f"{digit}_{speaker}_{number}.wav": wav(tone(digit, rng, rng.uniform(0.1, 0.2)))
        for digit in digits
        for speaker in SPEAKERS
        for number in numbers
    }


FILES = small_set()


@pytest.fixture
def fsdd(monkeypatch, tmp_path):
    """A set with few and short recordings in place of the published one, found nowhere."""
    monkeypatch.delenv("MGU_JAX_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    content = joined(FILES.items())
    small = replace(speech.FSDD, size=len(content), digest=hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(speech, "FSDD", small)
    return small


def put(folder, holder, files, name=speech.FSDD.name):
    """The files, beside others, as an archive or as a folder."""
    inside = {f"{name}/recordings/{file}": content for file, content in files.items()}
    inside |= {f"{name}/README.md": b"about", f"{name}/recordings/._0_theo_0.wav": b"", f"{name}/x/0_theo_0.wav": b"x"}
    path = folder / holder
    if holder.endswith(".zip"):
        with zipfile.ZipFile(path, "w") as archive:
            for file, content in reversed(inside.items()):
                archive.writestr(file, content)
    elif holder.endswith(".tar.gz"):
        with tarfile.open(path, "w:gz") as archive:
            for file, content in inside.items():
                member = tarfile.TarInfo(file)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    else:
        for file, content in inside.items():
            target = path / file.partition("/")[2]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
    return path


HOLDERS = (*speech.FSDD.holders, speech.FSDD.name)


def test_joined_files_part_again():
    files = {"b": b"", "a 1": b"a 5\nb", "c": b"\n"}
    assert parted(joined(files.items())) == files
    assert joined(files.items()) == joined(reversed(files.items())) == b"a 1 5\na 5\nbb 0\nc 1\n\n"
    assert parted(joined([])) == {}


@pytest.mark.parametrize("holder", HOLDERS)
def test_the_set_is_found_in_every_form_and_verified(holder, fsdd, tmp_path):
    path = put(tmp_path, holder, FILES)
    found = find(fsdd, "get it", tmp_path)
    assert parted(found.content) == FILES
    assert found.where == str(path)


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("damage", ["a sample", "a name", "one missing", "one more"])
def test_a_damaged_set_is_named(holder, damage, fsdd, tmp_path):
    files, name = dict(FILES), next(iter(FILES))
    content = files.pop(name)
    if damage == "one more":
        files |= {name: content, "9_theo_50.wav": content}
    elif damage == "a name":
        files["0_theo_49.wav"] = content
    elif damage == "a sample":
        files[name] = content[:-1] + bytes([content[-1] ^ 1])
    path = put(tmp_path, holder, files)
    rejects(lambda: speech.splits(tmp_path, []), path, "damaged or another file", "v1.0.10.tar.gz", BadRequest)


@pytest.mark.parametrize("holder", HOLDERS)
def test_a_file_that_is_no_archive_is_named(holder, fsdd, tmp_path):
    (tmp_path / holder).write_bytes(b"no archive")
    rejects(lambda: speech.splits(tmp_path, []), tmp_path / holder, "damaged or another file", "", BadRequest)


def test_a_download_is_verified_by_its_members(fsdd, tmp_path, monkeypatch):
    packed = put(tmp_path, fsdd.saved_as, FILES).read_bytes()
    asked = []

    def fetch(url, path, good):
        asked.append((url, path.name, good(packed[:-100]), good(packed)))

    monkeypatch.setattr(published, "fetch", fetch)
    empty = tmp_path / "empty"
    empty.mkdir()
    speech.splits(empty, [], download=True)
    assert asked == [(fsdd.url, fsdd.saved_as, False, True)]


def test_the_wrong_hop_is_one_sentence(tmp_path, capsys):
    refuses(capsys, ["speech", "--hop", 26, "--out", tmp_path / "run"], "--hop", "a whole number in [1, 25]", 26)


def test_recordings_are_read_and_parted():
    found = speech.recordings(FILES | {"7_theo_3.wav": wav([0.5, -1, 0.25])})
    last = found[-1]
    assert (last.digit, last.speaker, last.number) == (7, "theo", 3)
    np.testing.assert_array_equal(last.samples, np.array([0.5, -1, 0.25], np.float32))

    def numbers(split):
        return [{found[i].number for i in np.flatnonzero(part)} for part in speech.parts_of(found, split)]

    found.pop()
    assert numbers("official") == [{5, 10, 11}, {0}]
    assert numbers("choice") == [{10, 11}, {5}]
    train, test = speech.parts_of(found, "theo")
    assert {found[i].speaker for i in np.flatnonzero(test)} == {"theo"}
    np.testing.assert_array_equal(train, ~test)


def test_features_are_those_of_the_definition():
    """A loop over frames and bands, in float64."""
    rng = np.random.default_rng(0)
    signals = 0.1 * rng.standard_normal((3, 700))
    window, hop, bands, rate = 200, 120, 5, 8_000
    wanted = np.zeros((3, 5, bands))
    mel = lambda f: 2595 * np.log10(1 + f / 700)  # noqa: E731
    points = [700 * (10 ** (mel(4000) * b / (bands + 1) / 2595) - 1) for b in range(bands + 2)]
    for n, signal in enumerate(signals):
        for t in range(5):
            frame = np.zeros(256)
            for i in range(window):
                frame[i] = signal[t * hop + i] * np.sin(np.pi * i / window) ** 2
            energies = np.abs(np.fft.fft(frame)) ** 2
            for b in range(bands):
                low, middle, high = points[b : b + 3]
                total = 0
                for k in range(129):
                    f = k * rate / 256
                    if low < f <= middle:
                        total += energies[k] * (f - low) / (middle - low)
                    elif middle < f < high:
                        total += energies[k] * (high - f) / (high - middle)
                wanted[n, t, b] = np.log(total + features.FLOOR)
    got = features.log_mel(signals.astype(np.float32), window=window, hop=hop, bands=bands, rate=rate)
    np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=2e-5)


def test_a_tone_is_loudest_in_its_band():
    filters = features.mel_filters(40, 256, speech.RATE)
    assert filters.shape == (129, 40)
    assert (filters.max(0) > 0.3).all()  # each band has a frequency of the transform
    rng = np.random.default_rng(0)
    for digit in range(10):
        signal = tone(digit, rng, 0.1)[None].astype(np.float32)
        seen = features.log_mel(signal, window=200, hop=80, bands=40, rate=speech.RATE)
        frequencies = np.fft.rfftfreq(256, 1 / speech.RATE) @ filters / filters.sum(0)
        loudest = np.abs(frequencies - 300 * (digit + 1)).argmin()
        assert np.all(np.abs(seen.argmax(-1) - loudest) <= 1)


def test_samples_have_their_lengths_and_are_cut():
    found = [speech.Recording(d, "theo", 0, np.ones(n, np.float32)) for d, n in ((1, 200), (2, 439), (3, 20_000))]
    data = speech.samples_of(found, bands=4, hop=10)
    assert data.xs.shape == (3, 114, 4)
    assert data.lengths.tolist() == [1, 3, 114]  # a fourth frame would end at 440 samples
    assert data.targets.tolist() == [1, 2, 3]


def test_scaled_features_have_mean_0_over_the_steps_of_the_training_set():
    rng = np.random.default_rng(0)
    train, test = (
        Data(3 + 2 * rng.standard_normal((n, 9, 4)).astype(np.float32), np.zeros(n), rng.integers(1, 10, n))
        for n in (50, 5)
    )
    scaled = features.scaled(train, test)
    steps = scaled[0].xs[features.steps_of(train)]
    np.testing.assert_allclose(steps.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(steps.std(0), 1, atol=1e-6)
    mean, deviation = (f(train.xs[features.steps_of(train)], 0) for f in (np.mean, np.std))
    inside = features.steps_of(test)
    np.testing.assert_allclose(scaled[1].xs[inside], ((test.xs - mean) / deviation)[inside], rtol=1e-5)
    assert not scaled[1].xs[~inside].any()


@pytest.mark.usefixtures("as_a_user", "quick_compiler")
def test_the_experiment_learns_tones(fsdd, tmp_path):
    """Two tones, from the archive to the result."""
    put(tmp_path, speech.FSDD.saved_as, FILES)
    flags = ["speech", "--data-dir", tmp_path, "--hidden-size", 8, "--batch-size", 12, "--bands", 8, "--quick"]
    assert run(*flags, "--dropout", 0, "--out", tmp_path / "run") == 0
    made = result(tmp_path / "run")
    assert made["accuracy"] == 1
    assert made["test_samples"] == 12
    assert made["data"] == {fsdd.name: fsdd.digest}


@pytest.mark.slow
@pytest.mark.usefixtures("as_a_user", "quick_compiler")
def test_every_speaker_is_left_out_once(fsdd, tmp_path, capsys, monkeypatch):
    """Tones do not depend on the speaker. A speaker whose digits are swapped is misheard; a resumed run repeats it."""
    found = speech.recordings(FILES)
    swapped = [r._replace(digit=1 - r.digit) if r.speaker == "lucas" else r for r in found]
    monkeypatch.setattr(speech, "recordings", lambda _: swapped)
    monkeypatch.setattr(speakers, "CELLS", {"MGU": ("mgu", None), "GRU, same parameter count": ("gru", "mgu")})
    put(tmp_path, speech.FSDD.saved_as, FILES)
    flags = ["speakers", "--data-dir", tmp_path, "--hidden-size", 8, "--seeds", 2, "--steps", 60]
    assert run(*flags, "--out", tmp_path / "run") == 0
    made = result(tmp_path / "run")
    assert [row["cell"] for row in made["rows"]] == list(speakers.CELLS)
    for row in made["rows"]:
        scores = np.array(row["accuracy"])
        assert scores.shape == (2, 6)
        assert scores[:, SPEAKERS.index("lucas")].max() < 0.2
        assert np.delete(scores, SPEAKERS.index("lucas"), 1).min() > 0.8
    assert made["rows"][1]["hidden_size"] < 8
    assert speakers.table(made) in capsys.readouterr().out
    assert run(*flags, "--out", tmp_path / "run", "--resume") == 0
    assert result(tmp_path / "run")["rows"] == made["rows"]


@pytest.mark.slow
def test_the_real_recordings():
    try:
        (found,) = speech.splits(None, ["official"])
    except BadRequest as reason:
        pytest.skip(str(reason))
    assert found.train.xs.shape == (2700, 57, 40)
    assert np.bincount(found.train.targets).tolist() == [270] * 10
    assert np.bincount(found.test.targets).tolist() == [30] * 10
    assert (found.train.lengths.min(), found.train.lengths.max()) == (6, 57)
    assert (found.test.lengths.min(), found.test.lengths.max()) == (6, 57)
