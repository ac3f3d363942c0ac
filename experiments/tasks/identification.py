"""Identify a nonlinear system from its inputs and noisy outputs, in float64: Adam, then L-BFGS.

The system is of the Wiener-Hammerstein kind: a linear filter, a saturation, and a second linear filter, so the
nonlinear part is hidden between two memories. Trajectories start anywhere, and the initial state of each is learned
with the weights. What counts is the error of the simulation, in which a model sees the inputs and never an output. Two
kinds of linear models, fitted by least squares, show what a linear model can reach. About a minute on one core.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import mgu_jax as mgu
from experiments.run import BadRequest, Common, Run

NOISE = 0.01  # standard deviation of the noise, relative to that of the outputs
TRANSIENT = 50  # steps of a test trajectory after which the unknown initial state no longer matters
# Denominator and numerator of the two filters: y_t = sum_i b_i u_(t-i) - sum_(i>0) a_i y_(t-i).
FIRST = (np.poly([0.85 + 0.25j, 0.85 - 0.25j, 0.7]).real, np.array([0.02, 0.02, 0.005]))
SECOND = (np.poly([0.9, 0.6 + 0.3j, 0.6 - 0.3j]).real, np.array([0.02, 0.01, 0.0]))


@dataclass(frozen=True)
class Config(Common):
    """The flags of identification."""

    hidden_size: int = 16
    """H, the width of the layer."""
    newton_steps: int = 1000
    """Steps of L-BFGS after those of Adam, which --steps gives."""


class Trajectories(NamedTuple):
    """Inputs u and outputs y, [T, N] each; both have mean 0 and variance 1 over the training trajectories."""

    u: np.ndarray
    y: np.ndarray


def filtered(coefficients: tuple[np.ndarray, np.ndarray], u: np.ndarray) -> np.ndarray:
    """The outputs [T, N] of a linear filter at rest for inputs [T, N]."""
    a, b = coefficients
    y = np.zeros_like(u)
    for t in range(len(u)):
        y[t] = sum(b[i] * u[t - i] for i in range(min(t + 1, len(b))))
        y[t] -= sum(a[i] * y[t - i] for i in range(1, min(t + 1, len(a))))
    return y


def system(rng: np.random.Generator, count: int, steps: int) -> Trajectories:
    """Trajectories of the system, without noise: random levels as inputs, each cut from a longer run."""
    before = 200
    levels, hold = rng.normal(0, 1, (before + steps, count)), rng.random((before + steps, count)) < 0.8
    for t in range(1, before + steps):
        levels[t] = np.where(hold[t], levels[t - 1], levels[t])
    inside = filtered(FIRST, levels)
    inside /= 1.5
    saturated = np.where(inside < 0.3, inside, 0.3 + 0.1 * (inside - 0.3))
    return Trajectories(levels[before:], filtered(SECOND, saturated)[before:])


def trajectories(seed: int, count: int, steps: int) -> tuple[Trajectories, Trajectories]:
    """Trajectories for training, with noise on the outputs, and others for testing, without."""
    rng = np.random.default_rng(seed)
    train, test = system(rng, count, steps), system(rng, count, steps)
    means, deviations = ([function(part) for part in train] for function in (np.mean, np.std))
    scaled = [
        Trajectories(*((part - m) / s for part, m, s in zip(found, means, deviations, strict=True)))
        for found in (train, test)
    ]
    return scaled[0]._replace(y=scaled[0].y + rng.normal(0, NOISE, train.y.shape)), scaled[1]


def regressors(u: np.ndarray, y: np.ndarray, t: int, inputs: int, outputs: int) -> np.ndarray:
    """What a linear model sees at step t, [N, inputs + outputs + 1]: the last inputs, the last outputs, and 1."""
    return np.stack([*u[t - inputs + 1 : t + 1], *y[t - outputs : t], np.ones(u.shape[1])], 1)


def linear(train: Trajectories, inputs: int, outputs: int) -> Callable[[Trajectories], np.ndarray]:
    """A linear model of the last inputs and outputs, fitted by least squares, as a simulator: u -> y."""
    first = max(inputs - 1, outputs)
    rows = [regressors(train.u, train.y, t, inputs, outputs) for t in range(first, len(train.u))]
    weights = np.linalg.lstsq(np.concatenate(rows), train.y[first:].reshape(-1), rcond=None)[0]

    def simulate(given: Trajectories) -> np.ndarray:
        y = np.zeros_like(given.y)
        for t in range(first, len(y)):
            y[t] = regressors(given.u, y, t, inputs, outputs) @ weights
        return y

    return simulate


def output(weights: dict[str, Any], u: Any, h0: Any) -> Any:
    """The simulated outputs [T, N] for inputs [T, N] and initial states [N, H]."""
    hs, _ = mgu.scan(weights["layer"], u[..., None], h0)
    return hs @ weights["W_y"] + weights["b_y"]


def loss(weights: dict[str, Any], u: Any, y: Any) -> Any:
    """The mean squared error of the simulation; the initial states are among the weights."""
    return jnp.mean((output(weights, u, weights["h0"]) - y) ** 2)


def minimised(method: str, weights: Any, u: Any, y: Any, steps: int) -> tuple[Any, Any]:
    """The weights after steps of a method, Adam or L-BFGS, and the loss before each step."""

    def value_of(weights: Any) -> Any:
        return loss(weights, u, y)

    if method == "Adam":
        optimiser, measured = optax.adam(optax.cosine_decay_schedule(1e-2, steps)), jax.value_and_grad(value_of)
    else:
        optimiser, measured = optax.lbfgs(), optax.value_and_grad_from_state(value_of)

    def step(carry: Any, _: None) -> Any:
        weights, state = carry
        value, gradient = measured(weights) if method == "Adam" else measured(weights, state=state)
        more = {"value": value, "grad": gradient, "value_fn": value_of}
        updates, state = optax.with_extra_args_support(optimiser).update(gradient, state, weights, **more)
        return (optax.apply_updates(weights, updates), state), value

    (weights, _), losses = lax.scan(step, (weights, optimiser.init(weights)), None, steps)
    return weights, losses


def error(simulated: np.ndarray, right: np.ndarray) -> float:
    """The root mean squared error after the transient, relative to the standard deviation of the outputs."""
    return float(np.sqrt(np.mean((simulated[TRANSIENT:] - right[TRANSIENT:]) ** 2)) / np.std(right[TRANSIENT:]))


def main(config: Config) -> None:
    """Fit the linear models and the MGU, and compare their simulations of new trajectories."""
    if config.resume:
        raise BadRequest("--resume has no meaning for identification, which takes a minute.")
    steps, newton_steps = config.steps or 1500, config.newton_steps
    count, length, orders = 10, 400, (3, 6, 10)
    if config.quick:
        steps, newton_steps, count, length = config.steps or 60, 20, 4, 120
    train, test = trajectories(config.seed, count, length)
    source = {"a Wiener-Hammerstein system": f"made by numpy {np.__version__}"}
    run = Run("identification", config, source, {"steps": steps, "newton_steps": newton_steps})
    run.rewind(0)

    simulated = {f"linear, the last {n + 1} inputs and {n} outputs": linear(train, n + 1, n)(test) for n in orders}
    simulated[f"linear, the last {TRANSIENT} inputs"] = linear(train, TRANSIENT, 0)(test)
    H, seconds, logged = config.hidden_size, {}, 0
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(config.seed), 2)
        weights = {
            "layer": mgu.init(keys[0], 1, H, dtype="float64"),
            "W_y": jax.random.normal(keys[1], (H,), "float64") / H**0.5,
            "b_y": jnp.zeros((), "float64"),
            "h0": jnp.zeros((count, H), "float64"),
        }
        for name, number in (("Adam", steps), ("L-BFGS", newton_steps)):
            jitted = jax.jit(minimised, static_argnums=(0, 4))
            compiled = jitted.lower(name, weights, train.u, train.y, number).compile()
            began = time.perf_counter()
            weights, losses = jax.block_until_ready(compiled(weights, train.u, train.y))
            seconds[name] = time.perf_counter() - began
            for i, value in enumerate(np.asarray(losses), logged + 1):
                run.log(i, name, loss=value)
            logged += number
            label = f"MGU, H = {H}, {' and '.join(seconds)}"
            simulated[label] = np.asarray(output(weights, test.u, jnp.zeros((count, H))))
            print(f"{name}: {number} steps, loss {losses[0]:.2e} to {losses[-1]:.2e}", flush=True)
    rows = [{"model": name, "error": error(found, test.y)} for name, found in simulated.items()]
    run.finish({"settings": run.record["settings"], "rows": rows, "seconds": seconds, "noise": NOISE})
    print(f"\n{table(rows)}\n")
    run.close()


def table(rows: list[dict[str, Any]]) -> str:
    """One row per model."""
    lines = ["| model | error of the simulation, relative to the outputs' standard deviation |", "|---|---|"]
    return "\n".join([*lines, *(f"| {row['model']} | {100 * row['error']:.1f} % |" for row in rows)])
