"""Features of sequences: the energies of sound in bands, and features of mean 0 and deviation 1."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mgu_jax.training.data import Data

FLOOR = 1e-6  # added to the energies before the logarithm, about that of the quietest recordings' silence


def mel_filters(bands: int, size: int, rate: int) -> np.ndarray:
    """[size // 2 + 1, bands]: weights of the frequencies of a Fourier transform of ``size`` samples in each band.

    Band b is a triangle over frequencies. It is 1 at the b-th of ``bands`` points that are spaced evenly on the mel
    scale, 2595 log10(1 + f / 700), between 0 and half the ``rate``, and 0 from its two neighbours on.
    """
    highest = 2595 * np.log10(1 + rate / 2 / 700)
    points = 700 * (10 ** (np.linspace(0, highest, bands + 2) / 2595) - 1)
    low, middle, high = points[:-2], points[1:-1], points[2:]
    f = np.fft.rfftfreq(size, 1 / rate)[:, None]
    return np.maximum(0, np.minimum((f - low) / (middle - low), (high - f) / (high - middle))).astype(np.float32)


@functools.partial(jax.jit, static_argnames=("window", "hop", "bands", "rate"))
def log_mel(signals: Array, *, window: int, hop: int, bands: int, rate: int) -> Array:
    """[N, T, bands]: logarithms of the energies of signals [N, S] in bands of the mel scale.

    Frame t is the ``window`` samples from t * hop on, weighted by a Hann window and padded to a power of two; T is the
    number of frames that lie inside of S samples. ``rate`` is in samples per second.
    """
    size = 2 ** (window - 1).bit_length()
    starts = np.arange(0, signals.shape[1] - window + 1, hop)
    samples = starts[:, None] + np.arange(window)[None]
    weights = jnp.asarray(np.hanning(window + 1)[:-1], signals.dtype)
    filters = jnp.asarray(mel_filters(bands, size, rate), signals.dtype)

    def of_one(signal: Array) -> Array:
        spectrum = jnp.fft.rfft(signal[samples] * weights[None], size)
        return jnp.log((spectrum.real**2 + spectrum.imag**2) @ filters + FLOOR)

    return jax.lax.map(of_one, signals, batch_size=100)


def steps_of(data: Data) -> np.ndarray:
    """[N, T]: whether a step lies inside of its sample."""
    return np.arange(data.xs.shape[1])[None] < data.lengths[:, None]


def scaled(train: Data, test: Data) -> tuple[Data, Data]:
    """Both with features of mean 0 and deviation 1 over the steps of the training set, and zeros after a sample."""
    steps = train.xs[steps_of(train)]
    mean, deviation = steps.mean(0), steps.std(0)

    def part(data: Data) -> Data:
        inside = steps_of(data)[..., None]
        return data._replace(xs=np.where(inside, (data.xs - mean) / deviation, 0).astype(np.float32))

    return part(train), part(test)
