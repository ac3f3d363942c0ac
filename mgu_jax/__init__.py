"""The Minimal Gated Unit in JAX: pure functions on plain pytrees. ``mgu_jax.scan`` is the place to start."""

from mgu_jax import dynamics
from mgu_jax.gradients import Comparison, GradientReport, check_gradients
from mgu_jax.layer.family import (
    DIAGONAL_MGU,
    FLAX_MGU,
    JANET,
    MGU,
    MGU1,
    MGU2,
    MGU3,
    MIN_GRU,
    RESET_AFTER_MGU,
    UGRNN,
    Cell,
)
from mgu_jax.layer.initial import chrono, init, uniform_gate
from mgu_jax.layer.newton import Convergence
from mgu_jax.layer.params import Params, count, gru_count, lstm_count, summary
from mgu_jax.layer.step import Residuals, step, step_backward, step_forward
from mgu_jax.model import Model, ModelParams, State, detach, narrowed
from mgu_jax.sequence import convergence, scan, which
from mgu_jax.training import losses
from mgu_jax.training.by_length import by_length
from mgu_jax.training.checkpoint import Checkpoints, Damaged
from mgu_jax.training.data import Data, Parts, Stream
from mgu_jax.training.evaluate import Validation, evaluate, predict
from mgu_jax.training.fit import fit
from mgu_jax.training.halving import Halving, halving
from mgu_jax.training.hyper import Hyper, draw, grid, log_uniform, uniform
from mgu_jax.training.lock import Locked
from mgu_jax.training.loop import NotFinite
from mgu_jax.training.parts import folds
from mgu_jax.training.start import Sweep, start
from mgu_jax.training.step import Best, Recipe, TrainState
from mgu_jax.training.sweep import Member, best_member, sweep
from mgu_jax.training.wrappers import ema, passed_over

__version__ = "0.2.0"

__all__ = [
    "DIAGONAL_MGU",
    "FLAX_MGU",
    "JANET",
    "MGU",
    "MGU1",
    "MGU2",
    "MGU3",
    "MIN_GRU",
    "RESET_AFTER_MGU",
    "UGRNN",
    "Best",
    "Cell",
    "Checkpoints",
    "Comparison",
    "Convergence",
    "Damaged",
    "Data",
    "GradientReport",
    "Halving",
    "Hyper",
    "Locked",
    "Member",
    "Model",
    "ModelParams",
    "NotFinite",
    "Params",
    "Parts",
    "Recipe",
    "Residuals",
    "State",
    "Stream",
    "Sweep",
    "TrainState",
    "Validation",
    "best_member",
    "by_length",
    "check_gradients",
    "chrono",
    "convergence",
    "count",
    "detach",
    "draw",
    "dynamics",
    "ema",
    "evaluate",
    "fit",
    "folds",
    "grid",
    "gru_count",
    "halving",
    "init",
    "log_uniform",
    "losses",
    "lstm_count",
    "narrowed",
    "passed_over",
    "predict",
    "scan",
    "start",
    "step",
    "step_backward",
    "step_forward",
    "summary",
    "sweep",
    "uniform",
    "uniform_gate",
    "which",
]
