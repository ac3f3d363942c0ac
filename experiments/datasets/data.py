"""List the data sets and where they are found; --download fetches the others from their official addresses.

    digits       1,797 images          scikit-learn 1.9.1
    mnist        70,000 images         /data/train-images-idx3-ubyte.gz and 3 more
    ptb          not found
                 ptb.zip is in none of the folders ...

A missing set is never replaced by another, and a file that differs from the published one is never used.
"""

import hashlib
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from experiments.datasets import speech, text
from experiments.datasets.features import scaled
from experiments.datasets.published import DataSet, Found, Published, find
from experiments.run import BadRequest, Places
from mgu_jax.extras import require
from mgu_jax.training.data import Data

# sha256 of the images, as float64, and of the labels, as int64.
_DIGITS = [
    "20def7f70a702f0af9732fbba4375e147a7d54fe70d8c45569b8e7c1c7010c10",
    "a3c91c262eddcf7ba8f0e37507c30284493c9b20412ffe4af30d536401f7ba21",
]


def digits() -> DataSet:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels; a quarter of each class is the test.

    xs [N, 8, 8] in [0, 1], row by row; targets [N] in 0..9. The split is the same in every run.

    Raises:
        BadRequest: they differ from those that were published.
    """
    datasets = require("sklearn.datasets", "experiments")
    selection = require("sklearn.model_selection", "experiments")
    images, labels = datasets.load_digits(return_X_y=True)
    contents = images.astype(np.float64), labels.astype(np.int64)
    if [hashlib.sha256(content.tobytes()).hexdigest() for content in contents] != _DIGITS:
        raise BadRequest("scikit-learn's load_digits gives other digits than were published; install it again.")
    xs = (images / 16).reshape(-1, 8, 8).astype(np.float32)
    parts = selection.train_test_split(xs, labels.astype(np.int32), test_size=0.25, random_state=0, stratify=labels)
    return DataSet(Data(parts[0], parts[2]), Data(parts[1], parts[3]), {"sklearn.datasets.load_digits": _DIGITS[0]})


def _mnist_file(name: str, size: int, digest: str) -> Published:
    packed = name + ".gz"
    url = f"https://ossci-datasets.s3.amazonaws.com/mnist/{packed}"
    return Published(name, size, digest, (packed,), url, packed)


MNIST = (
    _mnist_file(
        "train-images-idx3-ubyte", 47_040_016, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
    ),
    _mnist_file("train-labels-idx1-ubyte", 60_008, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
    _mnist_file(
        "t10k-images-idx3-ubyte", 7_840_016, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
    ),
    _mnist_file("t10k-labels-idx1-ubyte", 10_008, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
)
HOW_MNIST = (
    "get the four files train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz and "
    "t10k-labels-idx1-ubyte.gz of MNIST (https://ossci-datasets.s3.amazonaws.com/mnist/) into one folder, and name "
    "it with --data-dir or MGU_JAX_DATA, or give --download"
)


def mnist(data_dir: Path | None, download: bool = False) -> DataSet:
    """MNIST, 60,000 + 10,000 digits of 28 x 28 pixels, read row by row.

    xs [N, 28, 28] in [0, 1]; targets [N] in 0..9.

    Raises:
        BadRequest: a file is missing or differs from the published one.
    """
    found = [find(file, HOW_MNIST, data_dir, download) for file in MNIST]

    def part(images: Found, labels: Found) -> Data:
        xs = np.frombuffer(images.content, np.uint8, offset=16).reshape(-1, 28, 28)
        return Data(xs.astype(np.float32) / 255, np.frombuffer(labels.content, np.uint8, offset=8).astype(np.int32))

    return DataSet(part(*found[:2]), part(*found[2:]), {file.name: file.digest for file in MNIST})


def _vowels_file(part: str, size: int, digest: str) -> Published:
    name, packed = f"JapaneseVowels_{part}.ts", f"JapaneseVowels_{part}.ts.gz"
    url = "https://www.timeseriesclassification.com/aeon-toolkit/JapaneseVowels.zip"
    inside = f"datasets/data/JapaneseVowels/{name}"
    installed = (f"aeon/{inside}", f"sktime/{inside}")
    return Published(name, size, digest, (packed, "JapaneseVowels.zip"), url, "JapaneseVowels.zip", installed)


VOWELS = (
    _vowels_file("TRAIN", 487_971, "68a430eabd919cc77f40b1f5f3bc0dcafacc1486bca9260785aeb7d262cc78cd"),
    _vowels_file("TEST", 649_132, "b3d41d6a0ca3bcad3afb9ca7d4365382aa51341e2e58bae2a574babdda5b9462"),
)
HOW_VOWELS = (
    "get JapaneseVowels.zip from https://www.timeseriesclassification.com/aeon-toolkit/ into a folder and name it with "
    "--data-dir or MGU_JAX_DATA, install aeon, whose wheel holds the files, or give --download"
)


def vowels(data_dir: Path | None, download: bool = False) -> DataSet:
    """JapaneseVowels of the UEA archive: nine speakers say /ae/, 270 + 370 utterances of 12 channels and 7 to 29 steps.

    xs [N, 29, 12], each channel with mean 0 and deviation 1 over the steps of the training set; targets [N] in 0..8;
    lengths [N].

    Raises:
        BadRequest: a file is missing or differs from the published one.
    """
    train, test = (_series(find(file, HOW_VOWELS, data_dir, download).content.decode()) for file in VOWELS)
    return DataSet(*scaled(train, test), {file.name: file.digest for file in VOWELS})


def _series(content: str, longest: int = 29) -> Data:
    """The samples of a file of the archive: one per line, channels and class separated by colons, numbers by commas."""
    lines = content[content.index("@data") :].split("\n")[1:]
    rows = [line.split(":") for line in lines if line.strip()]
    samples = [np.array([channel.split(",") for channel in row[:-1]], np.float32).T for row in rows]
    xs = np.zeros((len(samples), longest, samples[0].shape[1]), np.float32)
    for x, sample in zip(xs, samples, strict=True):
        x[: len(sample)] = sample
    labels = np.array([row[-1] for row in rows]).astype(np.int32) - 1
    return Data(xs, labels, np.array([len(sample) for sample in samples], np.int32))


# Name -> (what it is, its files, how to get them).
SETS: dict[str, tuple[str, tuple[Published, ...], str]] = {
    "digits": ("1,797 images", (), ""),
    "mnist": ("70,000 images", MNIST, HOW_MNIST),
    "vowels": ("640 utterances", VOWELS, HOW_VOWELS),
    "speech": ("3,000 spoken digits", (speech.FSDD,), speech.HOW_FSDD),
    "ptb": ("1,085,779 words", text.PTB, text.HOW_PTB),
    "kjv": ("31,102 verses", text.KJV, text.HOW_KJV),
    "shakespeare": ("1,115,394 characters", text.SHAKESPEARE, text.HOW_SHAKESPEARE),
    "imdb": ("50,000 reviews", text.IMDB, text.HOW_IMDB),
}


WHOLE_WORDS: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}  # so that a path can be copied


@dataclass(frozen=True)
class Config(Places):
    """The flags of data."""

    sets: tuple[str, ...] = tuple(SETS)
    """Names of the sets to look for; all by default."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.sets:
            if name not in SETS:
                raise BadRequest(f"--sets must name some of {', '.join(SETS)}; got {name}.")


def where(name: str, look: Callable[[Published, str], Found]) -> str:
    """A phrase that says where a set was found. Raises BadRequest if it was not."""
    _, files, how = SETS[name]
    if not files:
        digits()
        return f"scikit-learn {metadata.version('scikit-learn')}"
    places = list(dict.fromkeys(look(file, how).where for file in files))
    return places[0] + (f" and {len(places) - 1} more" if len(places) > 1 else "")


def main(config: Config) -> None:
    """Look for the sets and print a list."""
    missing = 0
    for name in config.sets:
        try:
            place = where(name, lambda file, how: find(file, how, config.data_dir, config.download))
            print(f"  {name:13}{SETS[name][0]:22}{place}")
        except BadRequest as reason:
            missing += 1
            print(f"  {name:13}not found")
            print(textwrap.fill(str(reason), 100, initial_indent=15 * " ", subsequent_indent=15 * " ", **WHOLE_WORDS))
    if config.download and missing:
        raise BadRequest(f"--download could not get {missing} of the {len(config.sets)} sets.")
