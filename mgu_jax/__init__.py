"""Minimal Gated Units in JAX, with gradients that are proven. ``mgu_jax.scan`` is the place to start."""

from mgu_jax.cell import Residuals, step, step_backward, step_forward
from mgu_jax.family import (
    DIAGONAL_MGU,
    FLAX_MGU,
    MGU,
    MGU1,
    MGU2,
    MGU3,
    MIN_GRU,
    RESET_AFTER_MGU,
    UGRNN,
    Cell,
)
from mgu_jax.gradients import Comparison, GradientReport, check_gradients
from mgu_jax.initial import chrono, init
from mgu_jax.model import Model, detach, model
from mgu_jax.params import Params, count, gru_count, lstm_count, summary
from mgu_jax.sequence import scan
from mgu_jax.stack import ModelParams, State
from mgu_jax.train import Data, Hyper, NotFinite, Recipe, TrainState, evaluate, fit

__version__ = "0.1.0"

__all__ = [
    "DIAGONAL_MGU",
    "FLAX_MGU",
    "MGU",
    "MGU1",
    "MGU2",
    "MGU3",
    "MIN_GRU",
    "RESET_AFTER_MGU",
    "UGRNN",
    "Cell",
    "Comparison",
    "Data",
    "GradientReport",
    "Hyper",
    "Model",
    "ModelParams",
    "NotFinite",
    "Params",
    "Recipe",
    "Residuals",
    "State",
    "TrainState",
    "check_gradients",
    "chrono",
    "count",
    "detach",
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
    "summary",
]
