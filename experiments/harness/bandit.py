"""Subjects who choose between two arms, simulated by Q-learning, and the models that are fitted to their choices.

A subject holds a value Q of each arm, 1/2 at first. After arm a gave the reward r,

    Q_a += alpha (r - Q_a)              the arm that was chosen
    Q_b += phi (1/2 - Q_b)              the other one, with forgetting
    logits = beta Q + kappa last        of the next choice; last is 1 for the last choice, with perseveration

(Ito and Doya 2009, J. Neurosci. 29:9861, for forgetting; Lau and Glimcher 2005 for perseveration.) A model reads what
happened in the last trial, [left, right, reward], zeros in the first one, and gives the logits of the next choice.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

import mgu_jax as mgu
from mgu_jax.layer.products import Products, repeated

KINDS = {
    "plain": (False, False),
    "forgetting": (True, False),
    "perseveration": (False, True),
    "both": (True, True),
}
INPUTS = {
    "left, reward": (1.0, 0.0, 1.0),
    "left, none": (1.0, 0.0, 0.0),
    "right, reward": (0.0, 1.0, 1.0),
    "right, none": (0.0, 1.0, 0.0),
}


class QParams(NamedTuple):
    """The numbers of a subject, on scales without bounds; ``None`` for what its kind lacks."""

    alpha: Any  # logit of the learning rate
    beta: Any  # logarithm of the inverse temperature
    phi: Any = None  # logit of the rate of forgetting
    kappa: Any = None  # perseveration


def learn(params: QParams, values: Array, x: Array) -> Array:
    """The values Q [..., 2] after a trial x [..., 3]."""
    chosen, reward = x[..., :2], x[..., 2:]
    values = values + jax.nn.sigmoid(params.alpha) * chosen * (reward - values)
    if params.phi is not None:
        values = values + jax.nn.sigmoid(params.phi) * (1 - chosen) * (0.5 - values)
    return values


def logits_of(params: QParams, values: Array, x: Array) -> Array:
    """The logits [..., 2] of the next choice, if x was the last trial."""
    logits = jnp.exp(params.beta) * values
    return logits if params.kappa is None else logits + params.kappa * x[..., :2]


@dataclass(frozen=True)
class QLearning:
    """Q-learning as a model that ``mgu_jax`` trains. Its first parameters are drawn around typical ones."""

    forgetting: bool = False
    perseveration: bool = False
    readout: str = "all"

    def init(self, key: Array, *, forget_bias: Any = None, initial_scale: Any = None) -> QParams:
        alpha, beta, phi, kappa = jnp.array([0.0, 1.0, -1.0, 0.0]) + 0.5 * jax.random.normal(key, (4,))
        return QParams(alpha, beta, phi if self.forgetting else None, kappa if self.perseveration else None)

    def apply(self, params: QParams, xs: Array, **_: Any) -> Array:
        def step(values: Array, x: Array) -> tuple[Array, Array]:
            values = learn(params, values, x)
            return values, logits_of(params, values, x)

        return lax.scan(step, jnp.full((*xs.shape[1:-1], 2), 0.5, xs.dtype), xs)[1]


class GRUParams(NamedTuple):
    """The parameters of ``GRU``: of the update gate, the reset gate and the candidate, and of the readout."""

    W: tuple[Array, ...]  # [D, H] each
    U: tuple[Array, ...]  # [H, H] each
    b: tuple[Array, ...]  # [H] each
    b_r: Array  # [H], inside the reset
    W_y: Array  # [H, K]
    b_y: Array  # [K]


@dataclass(frozen=True)
class GRU:
    """A GRU of few units with a linear readout, in the form that Flax, PyTorch and Keras give it, as plain JAX.

    z = sigmoid(x W_z + h U_z + b_z), r likewise, c = tanh(x W_c + b_c + r*(h U_c + b_r)), h' = (1 - z)*c + z*h. Units
    beyond ``hidden_size`` of ``init`` are zero for ever, as those of ``mgu_jax.Model``.
    """

    input_size: int
    hidden_size: int
    output_size: int
    readout: str = "all"

    def init(
        self, key: Array, *, forget_bias: Any = -1.0, initial_scale: Any = 1.0, hidden_size: int | None = None
    ) -> GRUParams:
        wide, H = self.hidden_size, hidden_size or self.hidden_size
        glorot, orthogonal = jax.nn.initializers.glorot_uniform(), jax.nn.initializers.orthogonal()
        *keys, last = jax.random.split(key, 7)
        W = [initial_scale * glorot(k, (self.input_size, H)) for k in keys[:3]]
        U = [initial_scale * orthogonal(k, (H, H)) for k in keys[3:]]
        b = [jnp.full(H, -forget_bias), jnp.zeros(H), jnp.zeros(H)]  # as far open as the MGU's gate
        W_y = initial_scale * glorot(last, (H, self.output_size))

        def padded(a: Array, *axes: int) -> Array:
            return jnp.pad(a, [(0, wide - H if axis in axes else 0) for axis in range(a.ndim)])

        return GRUParams(
            W=tuple(padded(w, 1) for w in W),
            U=tuple(padded(u, 0, 1) for u in U),
            b=tuple(padded(a, 0) for a in b),
            b_r=jnp.zeros(wide),
            W_y=padded(W_y, 0),
            b_y=jnp.zeros(self.output_size),
        )

    def apply(self, params: GRUParams, xs: Array, **_: Any) -> Array:
        product = Products()

        def plus(a: Array, b: Array) -> Array:
            return a + repeated(b, a.shape)

        def step(h: Array, x: tuple[Array, ...]) -> tuple[Array, Array]:
            z = jax.nn.sigmoid(x[0] + product(h, params.U[0]))
            r = jax.nn.sigmoid(x[1] + product(h, params.U[1]))
            c = jnp.tanh(x[2] + r * plus(product(h, params.U[2]), params.b_r))
            h = (1 - z) * c + z * h
            return h, h

        inputs: Any = tuple(plus(product(xs, W), b) for W, b in zip(params.W, params.b, strict=True))
        hs = lax.scan(step, jnp.zeros((*xs.shape[1:-1], self.hidden_size), xs.dtype), inputs)[1]
        return plus(product(hs, params.W_y), params.b_y)


class Subjects(NamedTuple):
    """S simulated subjects; subject i is of kind i % 4 in the order of ``KINDS``."""

    data: mgu.Data  # xs [S, blocks, T, 3], targets [S, blocks, T]: the choices, 0 for left
    params: QParams  # [S] each; what a kind lacks is zero in its effect
    nats: np.ndarray  # [S], the mean of -log p of the choices under the subject's own parameters

    def kind(self, name: str) -> np.ndarray:
        """The positions of the subjects of a kind."""
        return np.arange(list(KINDS).index(name), len(self.nats), len(KINDS))

    def own(self, i: int) -> QParams:
        """The parameters of one subject, without those that its kind lacks."""
        forgetting, perseveration = list(KINDS.values())[i % len(KINDS)]
        own = jax.tree.map(lambda a: np.asarray(a[i]), self.params)
        return own._replace(phi=own.phi if forgetting else None, kappa=own.kappa if perseveration else None)


def simulate(key: Array, subjects: int, blocks: int, trials: int, drift: float = 0.1) -> Subjects:
    """Subjects with parameters and rewards of their own. In a trial, each arm's probability of reward moves a little.

    Args:
        key: one PRNG key.
        subjects, blocks, trials: how many, of each subject and of each block. Values are 1/2 again in every block.
        drift: standard deviation of the step by which a probability moves; it is reflected at 0.1 and 0.9.
    """
    with_forgetting, with_perseveration = (jnp.array(flags) for flags in zip(*KINDS.values(), strict=True))
    kind = jnp.arange(subjects) % len(KINDS)

    def one(key: Array, kind: Array) -> tuple[QParams, Array, Array, Array]:
        drawn, key = jax.random.split(key)
        u = jax.random.uniform(drawn, (4,))
        phi = jax.scipy.special.logit(0.1 + 0.4 * u[2])
        params = QParams(
            alpha=jax.scipy.special.logit(0.2 + 0.6 * u[0]),
            beta=jnp.log(2.0 + 4.0 * u[1]),
            phi=jnp.where(with_forgetting[kind], phi, -jnp.inf),
            kappa=jnp.where(with_perseveration[kind], 0.5 + u[3], 0.0),
        )

        def block(key: Array) -> tuple[Array, Array, Array]:
            first, key = jax.random.split(key)

            def trial(state: tuple[Array, Array, Array], key: Array) -> tuple[Any, tuple[Array, Array, Array]]:
                values, x, probabilities = state
                choose, pay, move = jax.random.split(key, 3)
                values = learn(params, values, x)
                logits = logits_of(params, values, x)
                choice = jax.random.categorical(choose, logits)
                reward = jax.random.bernoulli(pay, probabilities[choice])
                new = jnp.append(jax.nn.one_hot(choice, 2), reward.astype(jnp.float32))
                moved = probabilities + drift * jax.random.normal(move, (2,))
                moved = jnp.where(moved > 0.9, 1.8 - moved, jnp.where(moved < 0.1, 0.2 - moved, moved))
                return (values, new, jnp.clip(moved, 0.1, 0.9)), (x, choice, jax.nn.log_softmax(logits)[choice])

            start: Any = jnp.full(2, 0.5), jnp.zeros(3), jax.random.uniform(first, (2,), minval=0.1, maxval=0.9)
            return lax.scan(trial, start, jax.random.split(key, trials))[1]

        return params, *jax.vmap(block)(jax.random.split(key, blocks))

    params, xs, choices, known = jax.jit(jax.vmap(one))(jax.random.split(key, subjects), kind)
    data = mgu.Data(np.asarray(xs), np.asarray(choices, np.int32))
    return Subjects(data, jax.device_get(params), -np.asarray(known).mean((1, 2)))
