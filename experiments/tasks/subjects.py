"""Fit 45,000 networks of one to four units to 500 simulated subjects: how small may a network be for a subject?

Each subject chooses between two arms whose rewards drift (harness/bandit.py). MGUs and GRUs of three widths, and
Q-learning itself, are fitted to each with five folds and three seeds, and measured on blocks that they have not seen.
"""

import math
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import mgu_jax as mgu
from experiments.harness import bandit, portraits
from experiments.harness.bandit import GRU, INPUTS, KINDS, QLearning, Subjects
from experiments.run import BadRequest, Common, Run, damage_refused, use_devices

WIDTHS, FOLDS, SEEDS = (1, 2, 4), 5, 3
CROSS_ENTROPY = (mgu.losses.cross_entropy,)


@dataclass(frozen=True)
class Config(Common):
    """The flags of subjects."""

    subjects: int = 500
    """Number of subjects, a quarter of them of each kind."""
    trials: int = 40
    """Trials in each of a subject's five blocks."""
    devices: int | None = None
    """Number of devices, or cores of a CPU, to split the networks over; by default two, if there are two."""


class Fitted(NamedTuple):
    """A model with its settings, and the subjects that it is fitted to."""

    name: str
    model: Any
    hyper: mgu.Hyper
    subjects: np.ndarray  # positions


def models_of(subjects: Subjects) -> list[Fitted]:
    """All that is fitted. A narrow network is one of the widest, with units that are zero for ever."""
    widths = mgu.grid(hidden_size=WIDTHS, learning_rate=0.03)._replace(clip_norm=1.0)
    everyone, of_q = np.arange(len(subjects.nats)), mgu.Hyper(learning_rate=0.1, clip_norm=1.0)
    return [
        Fitted("mgu", mgu.Model(3, (max(WIDTHS),), 2), widths, everyone),
        Fitted("gru", GRU(3, max(WIDTHS), 2), widths, everyone),
        Fitted("plain", QLearning(), of_q, everyone),
        *(Fitted(f"true {kind}", QLearning(*KINDS[kind]), of_q, subjects.kind(kind)) for kind in KINDS),
    ]


def main(config: Config) -> None:
    """Simulate the subjects, fit all models to each, compare them, and look at the dynamics of a winner."""
    subjects, steps = (8, 20) if config.quick else (config.subjects, config.steps or 120)
    if subjects % len(KINDS):
        raise BadRequest(f"--subjects must be a multiple of {len(KINDS)}, the number of kinds; got {subjects}.")
    devices, key = use_devices(config.devices), jax.random.key(config.seed)
    made_by = {"a two-armed bandit": f"simulated by jax {jax.__version__}"}
    run = Run("subjects", config, made_by, {"subjects": subjects, "total_steps": steps})
    run.rewind(0)
    simulated = bandit.simulate(key, subjects, FOLDS, config.trials)
    rows, known = [], {}
    for fitted in models_of(simulated):
        name = fitted.name.replace(" ", "-")
        row = run.once(name, lambda fitted=fitted: fit(run, config, fitted, simulated, steps, devices))
        known[fitted.name] = row
        run.log(len(known), fitted.name, nats=float(np.mean(row["nats"])), networks=row["networks"])
        rows += summary(row, fitted, simulated)
    rows += [_true(known, simulated), *_references(simulated)]
    networks = {name: row["networks"] for name, row in known.items()}
    numbers = {
        "settings": run.record["settings"],
        "trials": subjects * FOLDS * config.trials,
        "networks": sum(networks[name] for name in ("mgu", "gru")),
        "all_fits": sum(networks.values()),
        "cpu_seconds": {name: row["cpu_seconds"] for name, row in known.items()},
        "seconds": {name: row["seconds"] for name, row in known.items()},
        "rows": [row for row in rows if not row["model"].startswith("true ")],
        "winner": winner(known["mgu"], simulated),
        "beside_one": run.once("beside-one", lambda: beside_one(config, simulated, devices)),
    }
    run.finish(numbers)
    portraits.subjects(run.path("subjects.png"), numbers)
    print(f"\n{table(numbers)}\n")
    run.close()


def recipe_of(model: Any, steps: int) -> mgu.Recipe:
    return mgu.Recipe(model, batch_size=FOLDS - 2, schedule="cosine", total_steps=steps)


def parts_of(subjects: Subjects, which: np.ndarray) -> tuple[mgu.Parts, ...]:
    """(train, validation, test): three, one and one of the five blocks of each subject, in turn."""
    data = jax.tree.map(lambda a: a[which], subjects.data)
    parts: Any = mgu.folds(mgu.Parts(data), FOLDS, validation=True)
    return parts


def sweep(fitted: Fitted, subjects: Subjects, steps: int, devices: int, keys: Any, **more: Any) -> Any:
    """(state, test parts) of all fits of a model, in one program; each stops when its validation says so."""
    train, valid, test = parts_of(subjects, fitted.subjects)
    total = len(train) * len(keys) * np.size(fitted.hyper.hidden_size if fitted.hyper.hidden_size is not None else 1)
    state, _ = mgu.sweep(
        recipe_of(fitted.model, steps),
        train,
        hyper=fitted.hyper,
        keys=keys,
        steps=more.pop("until", steps),
        steps_per_call=20,
        validation=mgu.Validation(valid, CROSS_ENTROPY, patience=3),
        at_once=250,
        devices=math.gcd(devices, total),
        **more,
    )
    return state, test


def fit(run: Run, config: Config, fitted: Fitted, subjects: Subjects, steps: int, devices: int) -> dict[str, Any]:
    """What is kept of all fits of a model: their scores [widths, seeds, subjects * folds], and the parameters."""
    wall, cpu = time.perf_counter(), time.process_time()
    keys = jax.random.split(jax.random.key(config.seed + 1), SEEDS)
    folder = run.path(f"checkpoints-{fitted.name.replace(' ', '-')}")
    with mgu.Checkpoints(folder) as checkpoints, damage_refused(checkpoints):
        print(f"{fitted.name}:")
        state, test = sweep(fitted, subjects, steps, devices, keys, checkpoints=checkpoints, progress=True)
    best = state.members.best
    (nats,) = mgu.evaluate(fitted.model, best.params, test, CROSS_ENTROPY)
    shape = (-1, SEEDS, len(fitted.subjects), FOLDS)
    return {
        "nats": nats.reshape(shape).tolist(),
        "valid": np.asarray(best.score).reshape(shape).tolist(),
        "mean_steps": float(np.mean(state.members.step)),
        "networks": len(nats),
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "params": _kept(best.params, np.asarray(best.score).reshape(shape), fitted, subjects),
    }


def _kept(params: Any, valid: np.ndarray, fitted: Fitted, subjects: Subjects) -> Any:
    """The parameters of the MGUs of two units, the best of each subject on its validation, [subjects, ...]."""
    if fitted.name != "mgu":
        return None
    n = WIDTHS.index(2)
    of_subject = valid[n].transpose(1, 0, 2).reshape(len(subjects.nats), -1).argmin(1)  # seed * FOLDS + fold
    seed, fold = np.divmod(of_subject, FOLDS)
    at = np.ravel_multi_index((np.full_like(seed, n), seed, np.arange(len(seed)), fold), valid.shape)
    _, narrow = mgu.narrowed(fitted.model, jax.tree.map(lambda a: np.asarray(a)[at], params), 2)
    layer = {name: np.asarray(a).tolist() for name, a in narrow.layers[0]._asdict().items() if a is not None}
    return {"layer": layer, "W_y": np.asarray(narrow.W_y).tolist(), "b_y": np.asarray(narrow.b_y).tolist()}


def chosen_nats(row: dict[str, Any]) -> np.ndarray:
    """-log p per held-out trial of each subject, [widths, subjects]: of the seed with the best validation, by fold."""
    nats, valid = np.array(row["nats"]), np.array(row["valid"])
    best = valid.argmin(1, keepdims=True)
    return np.take_along_axis(nats, best, 1)[:, 0].mean(-1)


def row_of(model: str, width: int | None, parameters: int | None, nats: np.ndarray, subjects: Subjects) -> dict:
    """The scores of a model of one width on all subjects, [S], and on those of each kind."""
    gap = nats - subjects.nats  # nats that the subject's own parameters would gain
    kinds = {kind: float(nats[subjects.kind(kind)].mean()) for kind in KINDS}
    numbers = {"nats": float(nats.mean()), "gap": float(gap.mean())}
    numbers["gap_error"] = float(gap.std(ddof=1) / math.sqrt(len(gap)))
    return {"model": model, "width": width, "parameters": parameters, **numbers, "kinds": kinds}


def summary(row: dict[str, Any], fitted: Fitted, subjects: Subjects) -> list[dict[str, Any]]:
    """One row per width; none of a model that only some of the subjects have."""
    if len(fitted.subjects) < len(subjects.nats):
        return []
    widths = WIDTHS if fitted.hyper.hidden_size is not None else (None,)
    return [
        row_of(fitted.name, width, parameters_of(fitted.model, width), nats, subjects)
        for width, nats in zip(widths, chosen_nats(row), strict=True)
    ]


def parameters_of(model: Any, width: int | None) -> int:
    """The number of parameters of a model or, with a width, of a network of this width: without zero units."""
    if width is not None:
        model = GRU(3, width, 2) if isinstance(model, GRU) else mgu.Model(3, (width,), 2)
    return mgu.count(jax.eval_shape(lambda: model.init(jax.random.key(0))))


def _true(known: dict[str, dict[str, Any]], subjects: Subjects) -> dict[str, Any]:
    """The row of Q-learning of each subject's own kind."""
    nats = np.zeros(len(subjects.nats))
    for kind in KINDS:
        nats[subjects.kind(kind)] = chosen_nats(known[f"true {kind}"])[0]
    return row_of("true", None, None, nats, subjects)


def _references(subjects: Subjects) -> list[dict[str, Any]]:
    """What knows nothing, and what knows the subject's own parameters."""
    chance = np.full(len(subjects.nats), math.log(2))
    return [row_of("chance", None, 0, chance, subjects), row_of("subject", None, None, subjects.nats, subjects)]


def winner(row: dict[str, Any], subjects: Subjects) -> dict[str, Any]:
    """The MGU of two units that predicts a subject who forgets best of all, and the fixed points of both.

    At each constant input, the state has one fixed point or several; each is a preference, logit of left minus right.
    """
    who = subjects.kind("forgetting")
    nats = chosen_nats(row)[WIDTHS.index(2)]
    i = int(who[np.argmin(nats[who])])
    params = jax.tree.map(lambda a: jnp.asarray(a[i], jnp.float32), mgu.Params(**_arrays(row["params"]["layer"])))
    W_y, b_y, own = np.array(row["params"]["W_y"][i]), np.array(row["params"]["b_y"][i]), subjects.own(i)
    line, found = jnp.linspace(-0.9, 0.9, 7), {}
    starts = jnp.stack(jnp.meshgrid(line, line), -1).reshape(-1, 2)
    for name, numbers in INPUTS.items():
        x, values = jnp.array(numbers), jnp.array([0.5, 0.5])
        points = mgu.dynamics.fixed_points(params, x, starts)
        values = jax.lax.fori_loop(0, 1000, lambda _, values, x=x: bandit.learn(own, values, x), values)
        found[name] = {
            "mgu": [float(h @ (W_y[:, 0] - W_y[:, 1]) + b_y[0] - b_y[1]) for h in points.states[points.stable]],
            "unstable": int((~points.stable).sum()),
            "eigenvalues": np.abs(points.eigenvalues[points.stable]).tolist(),
            "subject": float(-jnp.diff(bandit.logits_of(own, values, x))[0]),
        }
    return {
        "subject": i,
        "nats": float(nats[i]),
        "own_nats": float(subjects.nats[i]),
        "layer": {name: np.asarray(a).tolist() for name, a in params._asdict().items() if a is not None},
        "W_y": W_y.tolist(),
        "b_y": b_y.tolist(),
        "own": {name: float(a) for name, a in own._asdict().items() if a is not None},
        "points": found,
    }


def _arrays(lists: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.array(a, np.float32) for name, a in lists.items()}


def beside_one(config: Config, subjects: Subjects, devices: int) -> dict[str, float]:
    """The time per network and optimiser step in a sweep of all MGUs, and of one that is trained alone by ``fit``."""
    fitted, until = models_of(subjects)[0], 20
    keys = jax.random.split(jax.random.key(config.seed + 1), SEEDS)
    train, valid, _ = parts_of(subjects, fitted.subjects)
    model = mgu.Model(3, (2,), 2)
    validation = mgu.Validation(valid[0], CROSS_ENTROPY, patience=3)
    how: Any = {"hyper": mgu.Hyper(learning_rate=0.03, clip_norm=1.0), "validation": validation, "steps_per_call": 20}
    times: dict[str, list[float]] = {"sweep": [], "alone": []}
    for _ in range(2):
        began = time.perf_counter()
        state, _ = sweep(fitted, subjects, 120, devices, keys, until=until)
        times["sweep"].append((time.perf_counter() - began) / len(state.stopped) / until)
        began = time.perf_counter()
        for key in keys:
            mgu.fit(recipe_of(model, 120), train[0], steps=until, key=key, **how)
        times["alone"].append((time.perf_counter() - began) / len(keys) / until)
    alone, together = times["alone"][-1], times["sweep"][-1]  # the first ones compile
    return {"alone": alone, "sweep": together, "ratio": alone / together}


LABELS = {
    "mgu": "MGU",
    "gru": "GRU",
    "plain": "Q-learning without forgetting and perseveration",
    "true": "Q-learning of the subject's kind",
    "subject": "the subject's own parameters",
    "chance": "chance",
}
ORDER = ("chance", "mgu", "gru", "plain", "true", "subject")


def ordered(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: (ORDER.index(row["model"]), row["width"] or 0))


def table(result: dict[str, Any]) -> str:
    """One row per model and width: the probability that it gives a held-out choice, and what it lacks."""
    lines = [
        "| model | H | parameters | probability of a choice | nats per trial above the subject's own | "
        f"{' | '.join(KINDS)} |",
        "|---|---|---|---|---|" + "---|" * len(KINDS),
    ]
    for row in ordered(result["rows"]):
        kinds = (f"{math.exp(-row['kinds'][kind]):.4f}" for kind in KINDS)
        gap = f"{row['gap']:.4f} ± {row['gap_error']:.4f}" if row["model"] != "subject" else ""
        parameters = "2 to 4" if row["model"] == "true" else "" if row["parameters"] is None else row["parameters"]
        cells = [LABELS[row["model"]], row["width"] or "", parameters, f"{math.exp(-row['nats']):.4f}", gap, *kinds]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    times, cpu = result["beside_one"], sum(result["cpu_seconds"].values())
    return "\n".join(
        [
            *lines,
            "",
            f"{result['networks']:,} networks and {result['all_fits'] - result['networks']:,} fits of Q-learning, to "
            f"{result['trials']:,} choices: {cpu / 120:.0f} minutes of both cores. An optimiser step takes "
            f"{1e6 * times['sweep']:.0f} microseconds per network in the sweep, and {1e6 * times['alone']:.0f} for one "
            f"that is trained alone: {times['ratio']:.0f} times as long.",
        ]
    )
