"""Minimal Gated Units in JAX, with gradients that are proven. ``mgu_jax.scan`` is the place to start."""

from mgu_jax.cell import MGU, Cell, Residuals, init, step, step_backward, step_forward
from mgu_jax.gradients import GradientReport, check_gradients
from mgu_jax.model import Model, ModelParams, model
from mgu_jax.params import Params, count, gru_count, lstm_count
from mgu_jax.sequence import scan
from mgu_jax.train import Data, Hyper, Recipe, TrainState, evaluate, fit

__version__ = "0.1.0"

__all__ = [
    "MGU",
    "Cell",
    "Data",
    "GradientReport",
    "Hyper",
    "Model",
    "ModelParams",
    "Params",
    "Recipe",
    "Residuals",
    "TrainState",
    "check_gradients",
    "count",
    "evaluate",
    "fit",
    "gru_count",
    "init",
    "lstm_count",
    "model",
    "scan",
    "step",
    "step_backward",
    "step_forward",
]
