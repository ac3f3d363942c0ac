"""Spoken digits: recordings of six speakers, as sequences of logarithms of energies in bands of the mel scale.

The Free Spoken Digit Dataset (https://github.com/Jakobovski/free-spoken-digit-dataset, CC BY-SA 4.0), version 1.0.10:
six speakers say each digit 50 times, at 8,000 samples per second. Its authors test on the recordings 0 to 4 of each
speaker and digit, and train on the recordings 5 to 49.
"""

import io
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import jax
import numpy as np

from experiments.datasets.features import log_mel, scaled
from experiments.datasets.published import DataSet, Published, find, parted
from mgu_jax.training.data import Data

_FOLDER = "free-spoken-digit-dataset-1.0.10"
FSDD = Published(
    _FOLDER,
    21_191_995,
    "8fed8b0b058a7efa7544bbb3e8e98607ecdcbd47a2f0ea31139cab18a6b679c9",
    (f"{_FOLDER}.tar.gz", f"{_FOLDER}.zip", "free-spoken-digit-dataset"),
    "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/v1.0.10.tar.gz",
    f"{_FOLDER}.tar.gz",
    members="recordings/[0-9]_*.wav",
)
HOW_FSDD = (
    f"get {FSDD.url} as {FSDD.saved_as} into a folder, unpacked or not, and name the folder with --data-dir or "
    "MGU_JAX_DATA, or give --download"
)
RATE = 8_000
WINDOW = RATE // 40  # samples of a frame
LONGEST = RATE * 29 // 25  # samples of a recording that are used, all of every official test recording

Speaker = Literal["george", "jackson", "lucas", "nicolas", "theo", "yweweler"]
Split = Literal["official", "choice"] | Speaker


class Recording(NamedTuple):
    """One digit, said once."""

    digit: int
    speaker: str
    number: int
    samples: np.ndarray  # in [-1, 1)


def recordings(files: dict[str, bytes]) -> list[Recording]:
    """The recordings in the WAV files 7_jackson_32.wav, ..., name -> content, of one channel and 16 bits."""
    found = []
    for name, content in files.items():
        digit, speaker, number = Path(name).stem.split("_")
        with wave.open(io.BytesIO(content)) as file:
            samples = np.frombuffer(file.readframes(file.getnframes()), "<i2") / np.float32(2**15)
        found.append(Recording(int(digit), speaker, int(number), samples))
    return found


def parts_of(found: list[Recording], split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Which of the recordings are for training, and which for the test, bool [N] each.

    "official" tests on the recordings 0 to 4 of each speaker and digit. "choice", for choosing settings, leaves these
    out and tests on 5 to 9. The name of a speaker tests on this speaker, and trains on the other five.
    """
    numbers, speakers = (np.array([getattr(recording, name) for recording in found]) for name in ("number", "speaker"))
    if split in get_args(Speaker):
        return speakers != split, speakers == split
    first = 5 if split == "choice" else 0
    return numbers >= first + 5, (numbers >= first) & (numbers < first + 5)


def samples_of(found: list[Recording], bands: int, hop: int) -> Data:
    """xs [N, T, bands], targets [N] and lengths [N], with a frame every ``hop`` milliseconds."""
    signals, every = np.zeros((len(found), LONGEST), np.float32), hop * RATE // 1000
    for signal, recording in zip(signals, found, strict=True):
        used = recording.samples[:LONGEST]
        signal[: len(used)] = used
    lengths = [1 + (min(len(recording.samples), LONGEST) - WINDOW) // every for recording in found]
    xs = np.asarray(log_mel(signals, window=WINDOW, hop=every, bands=bands, rate=RATE))
    return Data(xs, np.array([recording.digit for recording in found], np.int32), np.array(lengths, np.int32))


def splits(
    data_dir: Path | None, names: Sequence[Split], download: bool = False, bands: int = 40, hop: int = 20
) -> list[DataSet]:
    """The set in each of these splits: xs [N, T, bands], targets [N] in 0..9 and lengths [N].

    Frames of 25 ms, one every ``hop`` milliseconds; each band has mean 0 and deviation 1 over the steps of the training
    set. Of ten recordings that are longer than 1.16 s the rest is cut; all are for training in the official split.

    Raises:
        BadRequest: the set is missing or differs from the published one.
    """
    found = recordings(parted(find(FSDD, HOW_FSDD, data_dir, download).content))
    whole, made = samples_of(found, bands, hop), []
    for name in names:
        train, test = (jax.tree.map(lambda a, part=part: a[part], whole) for part in parts_of(found, name))
        made.append(DataSet(*scaled(train, test), {FSDD.name: FSDD.digest}))
    return made
