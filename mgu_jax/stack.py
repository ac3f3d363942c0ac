"""What a model computes: an input, recurrent layers one on the other, and a linear readout.

    hs^0 = xs, or embedding[xs]
    hs^l = scan(layers[l], hs^{l-1})                      and, if bidirectional, the same in reverse beside it or added
    ys   = rows W_y + b_y                                 rows: all of the last hs, their mean, or the end of each

``model.py`` says what each option means, and checks it. A new one is a field of ``Stack``, and acts in ``_run`` or, on
what goes in and comes out, in ``_embed`` and ``_read_out``; ``apply`` and ``step`` share them, so both follow.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, export

from mgu_jax import checks
from mgu_jax.family import Cell
from mgu_jax.initial import init
from mgu_jax.noise import drop, is_off
from mgu_jax.params import Params
from mgu_jax.products import Products, like
from mgu_jax.sequence import scan


class ModelParams(NamedTuple):
    """The parameters of a model; what it has not is ``None``."""

    layers: tuple[Params, ...]
    W_y: Any  # [F, K], where F is the width of what the last layer hands on: H, or 2H of two directions side by side
    b_y: Any  # [K]
    backward: Any = None  # the layers that run in reverse, as many
    h0: Any = None  # learned initial state, a ``State`` of [H] arrays
    embedding: Any = None  # [V, D]


class State(NamedTuple):
    """The state of a model: [..., H] for every layer, of both directions where there are two."""

    layers: tuple[Array, ...]
    backward: tuple[Array, ...] | None = None


@dataclass(frozen=True)
class Stack:
    """The static side of a model."""

    input_size: int
    hidden_sizes: tuple[int, ...]
    output_size: int
    cell: Cell
    readout: str
    bidirectional: str | None
    residual: bool
    embedding_size: int | None
    learned_h0: bool
    initializer: str
    implementation: str | None
    save: str
    chunk: int | None
    precision: Any
    compute_dtype: Any
    dtype: Any
    rates: tuple[tuple[str, Any], ...]

    def _width(self, layer: int) -> int:
        """Features that a layer hands on; layer -1 is the input."""
        if layer < 0:
            return self.embedding_size or self.input_size
        return self.hidden_sizes[layer] * (2 if self.bidirectional == "concatenate" else 1)

    def init(self, key: Array, *, forget_bias: Any = -1.0, initial_scale: Any = 1.0) -> ModelParams:
        checks.check_key("key", key)
        checks.check_number("initial_scale", initial_scale)
        count = len(self.hidden_sizes)
        *keys, readout_key, embedding_key = jax.random.split(key, 2 * count + 2)

        def scaled(w: Any) -> Any:
            return None if w is None else w * jnp.asarray(initial_scale, w.dtype)

        def drawn(key: Array, D: int, H: int, options: Any) -> Params:
            layer = init(key, D, H, self.cell, **options)
            return layer._replace(**{name: scaled(getattr(layer, name)) for name in ("W_f", "U_f", "W_h", "U_h")})

        def direction(keys: list[Array]) -> tuple[Params, ...]:
            options: Any = {"initializer": self.initializer, "forget_bias": forget_bias, "dtype": self.dtype}
            sizes = [(self._width(i - 1), H) for i, H in enumerate(self.hidden_sizes)]
            return tuple(drawn(k, D, H, options) for k, (D, H) in zip(keys, sizes, strict=True))

        zeros = tuple(jnp.zeros(H, self.dtype) for H in self.hidden_sizes)
        glorot = jax.nn.initializers.glorot_uniform()
        return ModelParams(
            layers=direction(keys[:count]),
            W_y=scaled(glorot(readout_key, (self._width(count - 1), self.output_size), self.dtype)),
            b_y=jnp.zeros(self.output_size, self.dtype),
            backward=direction(keys[count:]) if self.bidirectional else None,
            h0=State(zeros, zeros if self.bidirectional else None) if self.learned_h0 else None,
            embedding=self._draw_embedding(embedding_key),
        )

    def _draw_embedding(self, key: Array) -> Any:
        if self.embedding_size is None:
            return None
        return jax.random.normal(key, (self.input_size, self.embedding_size), self.dtype) * self.embedding_size**-0.5

    def apply(
        self,
        params: ModelParams,
        xs: Array,
        *,
        state: State | None = None,
        lengths: Array | None = None,
        resets: Array | None = None,
        key: Array | None = None,
        training: bool | None = None,
        return_state: bool = False,
        **rates: Any,
    ) -> Any:
        checks.check_choice("training", training, (None, False, True))
        rates = self._check_rates(rates, key, training)
        key = None if training is False else key
        hs = self._embed(params, xs, "xs", "T, ..., ", lengths)
        ys, last = self._run(params, hs, state, lengths, resets, key, rates)
        return (ys, last) if return_state else ys

    def _run(
        self, params: ModelParams, hs: Array, state: Any, lengths: Any, resets: Any, key: Any, rates: dict[str, Any]
    ) -> tuple[Array, State]:
        """What ``apply`` does with the rows hs [T, ..., D] that the first layer takes."""
        batch = hs.shape[1:-1]
        # Where a sequence begins anew it does so from the first state, whatever is carried on from before.
        fresh = None if resets is None else self._first(params, batch)
        state = self._first(params, batch) if state is None else self._checked(state, params, batch)
        end: Any = None
        last, last_backward = [], []
        for i, layer in enumerate(params.layers):
            chosen = {
                "cell": self.cell,
                "lengths": lengths,
                "resets": resets,
                "implementation": self.implementation,
                "save": self.save,
                "chunk": self.chunk,
                "precision": self.precision,
                "compute_dtype": self.compute_dtype,
            } | {name: rate for name, rate in rates.items() if name != "dropout"}
            reset_to = fresh and fresh.layers[i]
            new, h_last = scan(layer, hs, state.layers[i], reset_to=reset_to, key=_fold(key, 3 * i), **chosen)
            new_end = h_last
            last.append(h_last)
            if params.backward is not None and state.backward is not None:
                chosen |= {"reverse": True, "reset_to": fresh and fresh.backward and fresh.backward[i]}
                other, h_last = scan(params.backward[i], hs, state.backward[i], key=_fold(key, 3 * i + 1), **chosen)
                last_backward.append(h_last)
                new, new_end = self._merge(new, other), self._merge(new_end, h_last)
            if self.residual and i > 0 and new.shape == hs.shape:
                new, new_end = new + hs, new_end + end
            if key is not None and not is_off(rates["dropout"]):
                # The end of a sequence is dropped as a row of its own; which of both is used, the readout says.
                mask = drop(
                    jax.random.fold_in(key, 3 * i + 2), rates["dropout"], (len(new) + 1, *new.shape[1:]), new.dtype
                )
                new, new_end = new * mask[:-1], new_end * mask[-1]
            hs, end = new, new_end
        ys = self._read_out(params, hs, end, lengths)
        return ys, State(tuple(last), tuple(last_backward) or None)

    def step(self, params: ModelParams, x: Any, state: State | None = None) -> tuple[Array, State]:
        if self.bidirectional:
            raise ValueError("a bidirectional model cannot be stepped: its reverse layers begin at the end.")
        if self.readout == "mean":
            raise ValueError("a model with readout 'mean' cannot be stepped: it reads out the whole sequence.")
        x = np.asarray(x) if isinstance(x, int | np.generic) else x  # one token
        row = self._embed(params, x, "x", "..., ")
        ys, new_state = self._run(params, row[None], state, None, None, None, dict(self.rates))
        return (ys[0] if self.readout == "all" else ys), new_state

    def _check_rates(self, given: dict[str, Any], key: Any, training: bool | None) -> dict[str, Any]:
        rates = dict(self.rates)
        for name, rate in given.items():
            checks.check_choice("a rate", name, tuple(rates))
            checks.check_rate(name, rate)
        rates |= given
        noisy = [name for name, rate in rates.items() if not is_off(rate)]
        if training and key is None and noisy:
            raise ValueError(f"key must be given to train with {' and '.join(noisy)}; got None.")
        if key is not None:
            checks.check_key("key", key)
        return rates

    def _check_params(self, params: Any) -> None:
        if not isinstance(params, ModelParams):
            raise TypeError(f"params must be a ModelParams, as model.init makes it; got {checks.describe(params)}.")
        widths, K = _widths(params.layers), self.output_size
        readout = tuple(getattr(a, "shape", None) for a in (params.W_y, params.b_y))
        if widths != self.hidden_sizes or readout != ((self._width(len(self.hidden_sizes) - 1), K), (K,)):
            W_y, b_y = map(checks.describe, (params.W_y, params.b_y))
            raise ValueError(
                f"params must be those of this model, hidden sizes {self.hidden_sizes} and {K} outputs; "
                f"got {widths}, W_y {W_y} and b_y {b_y}."
            )
        for name in ("W_y", "b_y"):
            dtype = checks.dtype_of(params.layers[0].b_h)
            checks.check_array(f"params.{name}", getattr(params, name), dtype, "the dtype of params.layers")
        both = None if self.bidirectional is None else self.hidden_sizes
        came = {
            "backward": params.backward and _widths(params.backward),
            "h0": params.h0 and tuple(tuple(h.shape[-1] for h in layers) for layers in params.h0 if layers),
        }
        wanted = {
            "backward": both,
            "h0": (self.hidden_sizes, both)[: 2 if both else 1] if self.learned_h0 else None,
        }
        if self.embedding_size is not None:  # params of one may serve a model that is given rows of its embedding
            came["embedding"] = None if params.embedding is None else jnp.shape(params.embedding)
            wanted["embedding"] = (self.input_size, self.embedding_size)
        for name, rule in wanted.items():
            if came[name] != rule:
                raise ValueError(f"params must be those of this model, whose {name} is {rule}; got {came[name]}.")

    def _embed(self, params: Any, xs: Any, name: str, leading: str, lengths: Any = None) -> Array:
        self._check_params(params)
        if self.embedding_size is None:
            checks.check_features(name, xs, leading, params.layers[0], "W_h")
            return xs
        whole = isinstance(xs, jax.Array | np.ndarray) and jnp.issubdtype(xs.dtype, jnp.integer)
        if not whole or (leading.startswith("T") and xs.ndim < 1):
            shape = leading.removesuffix(", ")
            raise TypeError(f"{name} must be tokens, whole numbers [{shape}]; got {checks.describe(xs)}.")
        if lengths is not None:
            checks.check_lengths(lengths, xs.shape[0], xs.shape[1:])
        if isinstance(xs, np.ndarray):  # to look at one of JAX's would wait for the device
            checks.check_below(name, xs, self.input_size, "tokens of this model", lengths)
        return jnp.take(params.embedding, xs, axis=0)

    def _checked(self, state: Any, params: ModelParams, batch: tuple[int, ...]) -> State:
        if not isinstance(state, State):
            raise TypeError(f"state must be a State, as the model returns it; got {checks.describe(state)}.")
        came, layers = (len(state.layers or ()), len(state.backward or ())), len(self.hidden_sizes)
        wanted = (layers, layers if self.bidirectional else 0)
        if came != wanted:
            raise ValueError(f"state must hold {wanted} layers, forward and in reverse; got {came}.")
        for name in State._fields:
            for i, layer in enumerate(getattr(params, name) or ()):
                checks.check_state(f"state.{name}[{i}]", getattr(state, name)[i], batch, layer)
        return state

    def start(self, params: ModelParams, batch: tuple[int, ...] = ()) -> State:
        self._check_params(params)
        if not isinstance(batch, tuple | list):
            raise TypeError(f"batch must be a tuple of sizes; got {checks.describe(batch)}.")
        for i, size in enumerate(batch):
            if not export.is_symbolic_dim(size):
                checks.check_size(f"batch[{i}]", size, 0)
        return self._first(params, batch)

    def _first(self, params: ModelParams, batch: Any) -> State:
        if params.h0 is None:
            zeros = tuple(jnp.zeros((*batch, H), params.b_y.dtype) for H in self.hidden_sizes)
            return State(zeros, zeros if self.bidirectional else None)
        return jax.tree.map(lambda h: jnp.broadcast_to(h, (*batch, *h.shape)), params.h0)

    def _merge(self, forward: Array, backward: Array) -> Array:
        return forward + backward if self.bidirectional == "sum" else jnp.concatenate([forward, backward], -1)

    def _read_out(self, params: ModelParams, hs: Array, end: Any, lengths: Any) -> Array:
        rows = end if self.readout == "last" else hs
        if self.readout == "mean":
            steps = jnp.full(hs.shape[1:-1], hs.shape[0]) if lengths is None else jnp.asarray(lengths)
            rows = jnp.sum(hs, 0) / jnp.maximum(steps, 1).astype(hs.dtype)[..., None]
        ys = Products(self.precision, self.compute_dtype)(rows, params.W_y)
        return ys + like(params.b_y, ys)


def _widths(layers: Any) -> tuple[Any, ...]:
    """H of each layer; ``None`` of what is none."""
    layers = layers if isinstance(layers, tuple | list) else (layers,)
    return tuple((getattr(getattr(layer, "b_h", None), "shape", ()) or (None,))[-1] for layer in layers)


def _fold(key: Array | None, number: int) -> Array | None:
    return None if key is None else jax.random.fold_in(key, number)
