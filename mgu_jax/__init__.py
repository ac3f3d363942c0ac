"""Minimal Gated Units in JAX, with gradients that are proven. ``mgu_jax.scan`` is the place to start."""

from mgu_jax.cell import Residuals, step, step_backward, step_forward
from mgu_jax.evaluation import evaluate
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
from mgu_jax.feed import Data, Stream
from mgu_jax.fit import NotFinite, fit
from mgu_jax.gradients import Comparison, GradientReport, check_gradients
from mgu_jax.halving import halving
from mgu_jax.initial import chrono, init
from mgu_jax.model import Model, detach, model
from mgu_jax.optimizers import Hyper
from mgu_jax.params import Params, count, gru_count, lstm_count, summary
from mgu_jax.sequence import scan
from mgu_jax.settings import draw, grid, log_uniform, uniform
from mgu_jax.stack import ModelParams, State
from mgu_jax.sweep import Member, Sweep, best_member, sweep
from mgu_jax.train import Best, Recipe, TrainState
from mgu_jax.validation import Validation

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
    "Best",
    "Cell",
    "Comparison",
    "Data",
    "GradientReport",
    "Hyper",
    "Member",
    "Model",
    "ModelParams",
    "NotFinite",
    "Params",
    "Recipe",
    "Residuals",
    "State",
    "Stream",
    "Sweep",
    "TrainState",
    "Validation",
    "best_member",
    "check_gradients",
    "chrono",
    "count",
    "detach",
    "draw",
    "evaluate",
    "fit",
    "grid",
    "gru_count",
    "halving",
    "init",
    "log_uniform",
    "lstm_count",
    "model",
    "scan",
    "step",
    "step_backward",
    "step_forward",
    "summary",
    "sweep",
    "uniform",
]
