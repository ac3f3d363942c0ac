"""Real data sets, each with the sha256 of what was read. A set that is not there is never replaced by another."""

import gzip
import hashlib
import os
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.run import BadRequest
from mgu_jax.extras import require
from mgu_jax.train import Data


class DataSet(NamedTuple):
    """A set split in two, and where it came from."""

    train: Data
    test: Data
    sources: dict[str, str]  # name -> sha256


def digits() -> DataSet:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, a quarter of each class held out.

    xs [N, 8, 8] in [0, 1], row by row; targets [N] in 0..9. The split is the same in every run.
    """
    datasets = require("sklearn.datasets", "experiments")
    selection = require("sklearn.model_selection", "experiments")
    images, labels = datasets.load_digits(return_X_y=True)
    digest = hashlib.sha256(images.tobytes()).hexdigest()
    xs = (images / 16).reshape(-1, 8, 8).astype(np.float32)
    parts = selection.train_test_split(xs, labels.astype(np.int32), test_size=0.25, random_state=0, stratify=labels)
    return DataSet(Data(parts[0], parts[2]), Data(parts[1], parts[3]), {"sklearn.datasets.load_digits": digest})


# Of the unpacked files, since the same file may have been packed anew.
_MNIST = {
    "train-images-idx3-ubyte.gz": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte.gz": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte.gz": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte.gz": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


def mnist(data_dir: Path | None) -> DataSet:
    """MNIST, 60,000 + 10,000 digits of 28 x 28 pixels, read row by row.

    xs [N, 28, 28] in [0, 1]; targets [N] in 0..9.

    Raises:
        BadRequest: a file is missing or is not the published one.
    """
    how = (
        "get the four files train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz and "
        "t10k-labels-idx1-ubyte.gz of MNIST (https://ossci-datasets.s3.amazonaws.com/mnist/) into one folder, and name "
        "it with --data-dir or MGU_JAX_DATA"
    )
    contents = {name: _read(data_dir, name, sha256, how) for name, sha256 in _MNIST.items()}

    def part(prefix: str) -> Data:
        images, labels = (contents[f"{prefix}-{kind}-ubyte.gz"] for kind in ("images-idx3", "labels-idx1"))
        xs = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28)
        return Data(xs.astype(np.float32) / 255, np.frombuffer(labels, np.uint8, offset=8).astype(np.int32))

    return DataSet(part("train"), part("t10k"), dict(_MNIST))


def _read(data_dir: Path | None, name: str, sha256: str, how: str) -> bytes:
    """What the published gzip file of this name holds, checked."""
    named = data_dir or os.environ.get("MGU_JAX_DATA")
    if not named:
        raise BadRequest(f"{name} is needed and no data folder is named: {how}.")
    path = Path(named) / name
    try:
        packed = path.read_bytes()
    except OSError as error:
        raise BadRequest(f"{name} must be in {named} ({error.strerror}): {how}.") from error
    try:
        content = gzip.decompress(packed)
    except (OSError, EOFError, zlib.error):
        content = b""
    if hashlib.sha256(content).hexdigest() != sha256:
        raise BadRequest(f"{path} is damaged or another file than the published one: {how}.")
    return content
