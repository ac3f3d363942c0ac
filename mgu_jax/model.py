"""``Model``: a stack of recurrent layers with a linear readout, as a frozen specification with pure functions.

    hs^0 = xs, or embedding[xs]
    hs^l = scan(layers[l], hs^{l-1})    if bidirectional, also in reverse; the two are put side by side or added
    ys   = rows W_y + b_y               rows are all states of the last layer, their mean, or the last one; with tie,
                                        W_y is the embedding transposed

To add an option, add a field to ``Model`` and check it in ``__post_init__``. It acts in ``_compute``, or in
``_read_out`` if it concerns the outputs; ``apply`` and ``step`` call both.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, export
from jax.sharding import PartitionSpec

from mgu_jax import checks
from mgu_jax.layer import mesh
from mgu_jax.layer.family import MGU, Cell, check_cell
from mgu_jax.layer.initial import INITIALIZERS, init
from mgu_jax.layer.noise import dropout_mask, is_off
from mgu_jax.layer.params import (
    Params,
    check_features,
    check_lengths,
    check_resets,
    check_state,
    check_time_first,
    time_first,
)
from mgu_jax.layer.products import repeated, wide
from mgu_jax.sequence import Execution, run
from mgu_jax.widths import as_width, check_same, resized


class ModelParams(NamedTuple):
    """The parameters of a model; a part that the model does not have is ``None``."""

    layers: tuple[Params, ...]
    W_y: Any  # [F, K], or None if tied; F is the width of the last layer's output: H, or 2H for two side by side
    b_y: Any  # [K]
    backward: Any = None  # the layers that run in reverse
    h0: Any = None  # learned initial state, a ``State`` of [H] arrays
    embedding: Any = None  # [V, D]

    @property
    def readout(self) -> Any:
        """W_y [F, K], which is the embedding transposed where the two are tied."""
        return self.W_y if self.W_y is not None or self.embedding is None else jnp.swapaxes(self.embedding, -1, -2)


class State(NamedTuple):
    """The state of a model: [..., H] for every layer, and for every reverse layer of a bidirectional model."""

    layers: tuple[Array, ...]
    backward: tuple[Array, ...] | None = None


@dataclass(frozen=True)
class Model:
    """A stack of recurrent layers with a linear readout, whose methods are pure functions.

    A model holds no parameters: ``init`` draws them, and the other methods take them. Models with equal attributes are
    equal, and ``jit`` compiles once for all of them.

    Attributes:
        input_size: D, or with an embedding the number V of different tokens.
        hidden_sizes: H of every layer, from the first to the last.
        output_size: K.
        cell: the member of the family, the same in all layers.
        readout: "all" gives ys [T, ..., K], one output per step; "last" gives ys [..., K] from the last valid step (of
            reverse layers: the first); "mean" gives ys [..., K] from the mean over the valid steps.
        bidirectional: every layer also runs in reverse, and the two outputs are put side by side ("concatenate") or
            added ("sum"); ``None`` runs forward only.
        residual: add a layer's input to its output, from the second layer on and where the widths agree.
        embedding_size: D of an embedding of tokens; xs are then whole numbers [T, ...].
        tie: read out with the embedding transposed instead of a W_y of its own, for a model that predicts tokens of its
            inputs: K = V, and the last layer's output is as wide as the embedding (Press and Wolf 2017, arXiv
            1608.05859).
        learned_h0: make the state before the first step a parameter, initially zero.
        dropout: rate on each layer's output, before the next layer or the readout.
        recurrent_dropout, zoneout, dropconnect: rates as in ``scan``.
        initializer, dtype: as in ``mgu_jax.init``; a W_y is always drawn by Glorot's scheme, and b_y is zero.
        implementation, save, segment, precision, compute_dtype: as in ``scan``.

    Raises:
        TypeError: cell is not a ``Cell``, dtype is not a floating dtype, compute_dtype is not a dtype, or a rate is
            traced.
        ValueError: a size below 1, no hidden size, an unknown name, a rate outside [0, 1), tie without an embedding or
            with other widths, an implementation that cannot serve the cell, or save or segment with an implementation
            that ignores them.
    """

    input_size: int
    hidden_sizes: tuple[int, ...]
    output_size: int
    cell: Cell = MGU
    readout: str = "all"
    bidirectional: str | None = None
    residual: bool = False
    embedding_size: int | None = None
    tie: bool = False
    learned_h0: bool = False
    dropout: float = 0.0
    recurrent_dropout: float = 0.0
    zoneout: float = 0.0
    dropconnect: float = 0.0
    initializer: str = "orthogonal"
    implementation: str | None = None
    save: str = "gates"
    segment: int | None = None
    precision: Any = None
    compute_dtype: Any = None
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        check_cell(self.cell)
        checks.check_size("input_size", self.input_size)
        checks.check_size("output_size", self.output_size)
        if self.embedding_size is not None:
            checks.check_size("embedding_size", self.embedding_size)
        if not isinstance(self.hidden_sizes, tuple | list) or not self.hidden_sizes:
            raise ValueError(f"hidden_sizes must be a tuple of at least one width; got {self.hidden_sizes!r}.")
        for i, size in enumerate(self.hidden_sizes):
            checks.check_size(f"hidden_sizes[{i}]", size)
        checks.check_choice("readout", self.readout, ("all", "last", "mean"))
        checks.check_choice("bidirectional", self.bidirectional, (None, "concatenate", "sum"))
        checks.check_choice("residual", self.residual, (False, True))
        checks.check_choice("learned_h0", self.learned_h0, (False, True))
        checks.check_choice("tie", self.tie, (False, True))
        checks.check_choice("initializer", self.initializer, INITIALIZERS)
        checks.check_floating("dtype", self.dtype)
        for name, rate in self.rates.items():
            checks.check_rate(name, rate)
            if not checks.is_concrete(rate):
                raise TypeError(
                    f"{name} must be a known number when the model is made (apply takes a traced one); "
                    f"got {checks.describe(rate)}."
                )
        self._check_tie()
        for size in self.hidden_sizes:
            self.execution.check(self.cell, size, self.dtype)
        # NumPy's numbers become Python's, because files store a model as JSON.
        for name in ("input_size", "output_size", "embedding_size", "segment"):
            self._set(name, None if getattr(self, name) is None else int(getattr(self, name)))
        for name, rate in self.rates.items():
            self._set(name, float(rate))
        self._set("hidden_sizes", tuple(map(int, self.hidden_sizes)))
        self._set("residual", bool(self.residual))
        self._set("learned_h0", bool(self.learned_h0))
        self._set("tie", bool(self.tie))
        self._set("compute_dtype", self.execution.compute_dtype)
        self._set("dtype", jnp.dtype(self.dtype))

    def _check_tie(self) -> None:
        width = self._width(len(self.hidden_sizes) - 1)
        came = self.embedding_size, width, self.input_size, self.output_size
        if self.tie and (came[0] != came[1] or came[2] != came[3]):
            sizes = f"embedding_size {came[0]} and width {came[1]}, input_size {came[2]} and output_size {came[3]}"
            rule = "an embedding as wide as the last layer's output, and output_size = input_size"
            raise ValueError(f"tie must have {rule}; got {sizes}.")

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    @property
    def rates(self) -> dict[str, float]:
        """The model's noise rates, by name."""
        return {name: getattr(self, name) for name in ("dropout", "recurrent_dropout", "zoneout", "dropconnect")}

    @property
    def execution(self) -> Execution:
        """The five options of how the layers are run, as one value."""
        return Execution(self.implementation, self.save, self.segment, self.precision, self.compute_dtype)

    def init(
        self, key: Array, *, forget_bias: Any = -1.0, initial_scale: Any = 1.0, hidden_size: int | None = None
    ) -> ModelParams:
        """The initial parameters.

        Args:
            key: one PRNG key.
            forget_bias: as in ``mgu_jax.init``; may be traced.
            initial_scale: a factor for W_y and for the W and U of every layer, but not for biases or the embedding;
                may be traced.
            hidden_size: the number of units of each layer that are drawn, as a model of this width draws them. The
                others are zero, and stay zero in training (``narrowed``).

        Raises:
            TypeError: key is not one PRNG key, or initial_scale or hidden_size is not a known number.
            ValueError: hidden_size is above the width of a layer, the cell has layer_norm, or the model has tie.
        """
        checks.check_key("key", key)
        checks.check_number("initial_scale", initial_scale)
        if hidden_size is not None:
            hidden_size = as_width(self, hidden_size)
            narrow = replace(self, hidden_sizes=(hidden_size,) * len(self.hidden_sizes))
            return resized(narrow.init(key, forget_bias=forget_bias, initial_scale=initial_scale), self.hidden_sizes)
        count = len(self.hidden_sizes)
        *keys, readout_key, embedding_key = jax.random.split(key, 2 * count + 2)

        def scaled(w: Array | None) -> Any:
            return None if w is None else w * jnp.asarray(initial_scale, w.dtype)

        def layer(key: Array, D: int, H: int) -> Params:
            drawn = init(key, D, H, self.cell, initializer=self.initializer, forget_bias=forget_bias, dtype=self.dtype)
            return drawn._replace(**{name: scaled(getattr(drawn, name)) for name in ("W_f", "U_f", "W_h", "U_h")})

        def direction(keys: list[Array]) -> tuple[Params, ...]:
            sizes = [(self._width(i - 1), H) for i, H in enumerate(self.hidden_sizes)]
            return tuple(layer(k, D, H) for k, (D, H) in zip(keys, sizes, strict=True))

        zeros = tuple(jnp.zeros(H, self.dtype) for H in self.hidden_sizes)
        glorot, width = jax.nn.initializers.glorot_uniform(), self._width(count - 1)
        return ModelParams(
            layers=direction(keys[:count]),
            W_y=None if self.tie else scaled(glorot(readout_key, (width, self.output_size), self.dtype)),
            b_y=jnp.zeros(self.output_size, self.dtype),
            backward=direction(keys[count:]) if self.bidirectional else None,
            h0=State(zeros, zeros if self.bidirectional else None) if self.learned_h0 else None,
            embedding=self._draw_embedding(embedding_key),
        )

    def apply(
        self,
        params: ModelParams,
        xs: Array,
        *,
        state: State | None = None,
        lengths: Array | None = None,
        mask: Array | None = None,
        resets: Array | None = None,
        key: Array | None = None,
        training: bool | None = None,
        return_state: bool = False,
        return_hidden: bool = False,
        time_axis: int = 0,
        **rates: Any,
    ) -> Any:
        """The outputs ys of whole sequences, or ``(ys, state)``, ``(ys, hs)`` or ``(ys, state, hs)``.

        Args:
            params: as ``init`` makes them.
            xs: [T, ..., D], or tokens [T, ...]. Only tokens in a NumPy array are checked to be in range: to check a
                JAX array, the call would have to wait for the device.
            state: the state before the first step; ``start(params)`` if ``None``.
            lengths, mask: as in ``scan``. With readout "last", a sequence of length 0 reads out its state before the
                first step, and with "mean" zeros; training and evaluation refuse it.
            resets: as in ``scan``; a reset goes back to ``start(params)``, even if ``state`` is given.
            key: one PRNG key for the noise; without a key there is no noise.
            training: ``True`` requires a key if any rate is above 0; ``False`` turns the noise off.
            return_state: also return the state after the last valid step.
            return_hidden: also return the hidden states hs, one array [T, ..., H] for each layer, as ``scan`` gives
                them: before dropout and the residual sum, with two directions merged, and zero at steps left out.
            time_axis: the axis of time in xs, mask, resets, ys and hs, as in ``scan``.
            rates: ``dropout``, ``recurrent_dropout``, ``zoneout`` or ``dropconnect`` for this call, instead of the
                model's own; may be traced.

        Returns:
            ys [T, ..., K] for readout "all", and [..., K] for "last" and "mean".

        Raises:
            ValueError: training with noise but without a key, tokens out of range, params or a state of a different
                model; and as ``scan`` raises it.
            TypeError: an argument of the wrong type; and as ``scan`` raises it.
        """
        checks.check_choice("training", training, (None, False, True))
        rates = self._check_rates(rates, key, training)
        key = None if training is False else key
        in_front = isinstance(time_axis, int) and time_axis == 0
        if not in_front:
            self._check_inputs(params, xs, "xs", "..., ")
            xs, mask, resets = time_first(time_axis, xs, len(self._batch(xs)) + 1, mask=mask, resets=resets)
        self._check_inputs(params, xs, "xs", "T, ..., ", lengths, mask)
        if in_front:
            first = getattr(state, "layers", None) or (None,)
            check_time_first((xs.shape[0], *self._batch(xs)), {"lengths": lengths, "state": first[0]})
        ys, last, hidden = self._run(params, xs, state, lengths, mask, resets, key, rates)
        if not in_front:
            ys = jnp.moveaxis(ys, 0, time_axis) if self.readout == "all" else ys
            hidden = tuple(jnp.moveaxis(hs, 0, time_axis) for hs in hidden)
        chosen = [value for value, wanted in ((last, return_state), (hidden, return_hidden)) if wanted]
        return (ys, *chosen) if chosen else ys

    def step(
        self, params: ModelParams, x: Any, state: State | None = None, *, reset: Array | None = None
    ) -> tuple[Array, State]:
        """The output and the state after one input, (y [..., K], state), as ``apply`` gives them for a sequence.

        Args:
            params: as ``init`` makes them.
            x: [..., D], or tokens [...].
            state: the state before the step; ``start(params)`` if ``None``.
            reset: bool [...]; where true, the step starts from ``start(params)``, whatever ``state`` holds.

        Raises:
            ValueError: a bidirectional model or readout "mean", which need the whole sequence; and as ``apply`` raises
                it.
            TypeError: an argument of the wrong type.
        """
        if self.bidirectional:
            raise ValueError("a bidirectional model cannot be stepped: its reverse layers begin at the end.")
        if self.readout == "mean":
            raise ValueError("a model with readout 'mean' cannot be stepped: it reads out the whole sequence.")
        x = np.asarray(x) if isinstance(x, int | np.generic) else x  # a single token
        self._check_inputs(params, x, "x", "..., ")
        check_resets(reset, self._batch(x[None]), "x", "reset")
        resets = None if reset is None else reset[None]
        ys, new_state, _ = self._run(params, x[None], state, None, None, resets, None, self.rates)
        return (ys[0] if self.readout == "all" else ys), new_state

    def start(self, params: ModelParams, batch: tuple[int, ...] = ()) -> State:
        """The state before the first step, [*batch, H] for every layer: zeros, or the learned one.

        Raises:
            TypeError: params are not a ModelParams, or batch is not a tuple.
            ValueError: params of a different model, or a size below 0.
        """
        self._check_params(params)
        if not isinstance(batch, tuple | list):
            raise TypeError(f"batch must be a tuple of sizes; got {checks.describe(batch)}.")
        for i, size in enumerate(batch):
            if not export.is_symbolic_dim(size):
                checks.check_size(f"batch[{i}]", size, 0)
        return self._initial_state(params, batch)

    def _run(self, *arguments: Any) -> tuple[Array, State, tuple[Array, ...]]:
        """``_compute`` on any mesh."""
        return mesh.automatic(self._compute, arguments, self._placed)

    def _placed(
        self, params: ModelParams, xs: Array, state: State | None, lengths: Any, mask: Any, resets: Any, *_: Any
    ) -> tuple[PartitionSpec, State, tuple[PartitionSpec, ...]]:
        """How ys, the last state and the hidden states are split on a mesh with explicit axes: as the arguments are."""
        axes = len(self._batch(xs)) + 1
        states = ((None, *mesh.spec(h)[:-1]) for h in jax.tree.leaves(state))
        steps = mesh.spec(xs)[:axes], mesh.spec(mask), mesh.spec(resets)
        where = mesh.merged(*steps, (None, *mesh.spec(lengths)), *states)

        def rows(where: tuple[Any, ...], W: Array) -> PartitionSpec:
            return PartitionSpec(*mesh.merged(where, (*[None] * len(where), mesh.spec(W)[-1])))

        def last(layers: Any) -> Any:
            return layers and tuple(rows(where[1:], layer.W_h) for layer in layers)

        ys = rows(where if self.readout == "all" else where[1:], params.readout)
        both = self.bidirectional == "concatenate"
        hidden = tuple(PartitionSpec(*where) if both else rows(where, layer.W_h) for layer in params.layers)
        return ys, State(last(params.layers), last(params.backward)), hidden

    def _batch(self, xs: Array) -> tuple[int, ...]:
        """The batch axes of inputs, [T, ..., D] or tokens [T, ...]."""
        return xs.shape[1:-1] if self.embedding_size is None else xs.shape[1:]

    def _compute(
        self,
        params: ModelParams,
        xs: Array,
        state: State | None,
        lengths: Array | None,
        mask: Array | None,
        resets: Array | None,
        key: Array | None,
        rates: dict[str, Any],
    ) -> tuple[Array, State, tuple[Array, ...]]:
        """ys, the last state and the hidden states of every layer, for inputs xs that are checked."""
        hs = xs if self.embedding_size is None else _rows_of(params.embedding, xs)
        batch = hs.shape[1:-1]
        initial = self._initial_state(params, batch)
        state = initial if state is None else self._check_state(state, params, batch)
        noise = {name: rate for name, rate in rates.items() if name != "dropout"}

        def run_layer(name: str, i: int, hs: Array) -> tuple[Array, Array]:
            """Layer i of ``params.layers``, or in reverse of ``params.backward``, over hs."""
            reverse = name == "backward"
            return run(
                getattr(params, name)[i],
                hs,
                getattr(state, name)[i],
                cell=self.cell,
                execution=self.execution,
                lengths=lengths,
                mask=mask,
                resets=resets,
                # A reset goes back to the model's own initial state, even if another state was given.
                reset_to=None if resets is None else getattr(initial, name)[i],
                reverse=reverse,
                key=_fold(key, 3 * i + reverse),
                **noise,
            )

        end: Any = None
        last, last_backward, hidden = [], [], []
        for i in range(len(params.layers)):
            new, new_end = run_layer("layers", i, hs)
            last.append(new_end)
            if self.bidirectional:
                backward, backward_end = run_layer("backward", i, hs)
                last_backward.append(backward_end)
                new, new_end = self._merge(new, backward), self._merge(new_end, backward_end)
            hidden.append(new)
            if self.residual and i > 0 and new.shape == hs.shape:
                new, new_end = new + hs, new_end + end
            if key is not None and not is_off(rates["dropout"]):
                # The steps and the end of a sequence have separate masks; the readout uses only one of them.
                shape = (len(new) + 1, *new.shape[1:])
                kept = dropout_mask(jax.random.fold_in(key, 3 * i + 2), rates["dropout"], shape, new.dtype)
                new, new_end = new * kept[:-1], new_end * kept[-1]
            hs, end = new, new_end
        ys = self._read_out(params, hs, end, _steps(hs, lengths, mask))
        return ys, State(tuple(last), tuple(last_backward) or None), tuple(hidden)

    def _width(self, layer: int) -> int:
        """The width of a layer's output; layer -1 is the input."""
        if layer < 0:
            return self.embedding_size or self.input_size
        return self.hidden_sizes[layer] * (2 if self.bidirectional == "concatenate" else 1)

    def _draw_embedding(self, key: Array) -> Array | None:
        if self.embedding_size is None:
            return None
        return jax.random.normal(key, (self.input_size, self.embedding_size), self.dtype) * self.embedding_size**-0.5

    def _initial_state(self, params: ModelParams, batch: Any) -> State:
        if params.h0 is None:
            zeros = tuple(jnp.zeros((*batch, H), params.b_y.dtype) for H in self.hidden_sizes)
            return State(zeros, zeros if self.bidirectional else None)
        return jax.tree.map(lambda h: repeated(h, (*batch, *h.shape)), params.h0)

    def _merge(self, forward: Array, backward: Array) -> Array:
        return forward + backward if self.bidirectional == "sum" else jnp.concatenate([forward, backward], -1)

    def _check_inputs(
        self, params: Any, xs: Any, name: str, leading: str, lengths: Any = None, mask: Any = None
    ) -> None:
        """Raise TypeError or ValueError unless params and xs fit the model; ``leading`` are the axes before D."""
        self._check_params(params)
        if self.embedding_size is None:
            if isinstance(xs, jax.Array | np.ndarray) and not jnp.issubdtype(xs.dtype, jnp.inexact):
                dtype = checks.dtype_of(params.layers[0].W_h)
                raise TypeError(
                    f"{name} must be {dtype}, the dtype of params (tokens need Model(embedding_size=...), and images a "
                    f"conversion such as {name}.astype('{dtype}') / 255); got {checks.describe(xs)}."
                )
            check_features(name, xs, leading, params.layers[0], "W_h")
            return
        if getattr(xs, "dtype", None) == np.uint8 and xs.ndim > 2:
            raise TypeError(
                f"{name} must be tokens, and uint8 of three axes or more looks like images, which need a Model without "
                f"embedding_size (if they are tokens, convert them to int32); got {checks.describe(xs)}."
            )
        whole = isinstance(xs, jax.Array | np.ndarray) and jnp.issubdtype(xs.dtype, jnp.integer)
        if not whole or (leading.startswith("T") and xs.ndim < 1):
            shape = leading.removesuffix(", ")
            raise TypeError(f"{name} must be tokens, whole numbers [{shape}]; got {checks.describe(xs)}.")
        if lengths is not None:
            check_time_first(xs.shape, {"lengths": lengths})
            check_lengths(lengths, xs.shape[0], xs.shape[1:])
        check_resets(mask, xs.shape, name="mask")
        if isinstance(xs, np.ndarray):  # reading a JAX array would wait for the device
            counted = checks.steps_within(len(xs), lengths, mask) if leading.startswith("T") else None
            checks.check_below(name, xs, self.input_size, "tokens of this model", counted)

    def _read_out(self, params: ModelParams, hs: Array, end: Any, steps: Any) -> Array:
        """ys of the last layer's outputs, hs at all steps and end at the end of each sequence of so many steps."""
        rows = end if self.readout == "last" else hs
        if self.readout == "mean":
            total = jnp.sum(hs, 0, dtype=wide(hs))
            rows = (total / jnp.maximum(steps, 1).astype(total.dtype)[..., None]).astype(hs.dtype)
        ys = self.execution.product(rows, params.readout)
        return ys + repeated(params.b_y, ys.shape)

    def _check_rates(self, given: dict[str, Any], key: Any, training: bool | None) -> dict[str, Any]:
        """The rates of a call: the given ones, and the model's own for the others."""
        for name, rate in given.items():
            checks.check_choice("a rate", name, tuple(self.rates))
            checks.check_rate(name, rate)
        rates = self.rates | given
        noisy = [name for name, rate in rates.items() if not is_off(rate)]
        if training and key is None and noisy:
            raise ValueError(f"key must be given to train with {' and '.join(noisy)}; got None.")
        if key is not None:
            checks.check_key("key", key)
        return rates

    def _check_params(self, params: Any) -> None:
        """Raise TypeError or ValueError unless params have this model's parts and sizes; ``scan`` checks each layer."""
        check_model_params(params)
        widths, K = _widths(params.layers), self.output_size
        readout = tuple(getattr(a, "shape", None) for a in (params.W_y, params.b_y))
        shape = None if self.tie else (self._width(len(self.hidden_sizes) - 1), K)
        if widths != self.hidden_sizes or readout != (shape, (K,)):
            W_y, b_y = map(checks.describe, (params.W_y, params.b_y))
            raise ValueError(
                f"params must have the hidden sizes {self.hidden_sizes} and {K} outputs of this model; "
                f"got {widths}, W_y {W_y} and b_y {b_y}."
            )
        for name in ("b_y",) if self.tie else ("W_y", "b_y"):
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
        if self.embedding_size is not None:  # without one, params may have an embedding that the caller applies
            came["embedding"] = None if params.embedding is None else jnp.shape(params.embedding)
            wanted["embedding"] = (self.input_size, self.embedding_size)
        for name, rule in wanted.items():
            if came[name] != rule:
                sizes = "be None" if rule is None else f"have sizes {rule}"
                raise ValueError(f"params.{name} must {sizes} in this model; got {came[name]}.")

    def _check_state(self, state: Any, params: ModelParams, batch: tuple[int, ...]) -> State:
        """The same state. Raise TypeError or ValueError unless it is one of this model and of this batch."""
        if not isinstance(state, State):
            raise TypeError(f"state must be an mgu_jax.State, as apply returns it; got {checks.describe(state)}.")
        came, layers = (len(state.layers or ()), len(state.backward or ())), len(self.hidden_sizes)
        wanted = (layers, layers if self.bidirectional else 0)
        if came != wanted:
            raise ValueError(f"state must have {wanted} layers (forward, backward); got {came}.")
        for name in State._fields:
            for i, layer in enumerate(getattr(params, name) or ()):
                check_state(f"state.{name}[{i}]", getattr(state, name)[i], batch, layer)
        return state


def narrowed(model: Model, params: ModelParams, hidden_size: int) -> tuple[Model, ModelParams]:
    """The model with ``hidden_size`` units in each layer, and its parameters: (model, params) without the zero units.

    ``Hyper(hidden_size=...)`` trains models of several widths in the arrays of the widest. The units that a narrow one
    lacks are zero, have a gradient of exactly zero, and change no output; here they are cut off.

    Args:
        model: the wide model. Its cell may be any member of the family without ``layer_norm``, but it has no tie.
        params: its parameters, which may have further leading axes, such as that of the members of a sweep.
        hidden_size: the number of units that are kept, the first ones of each layer.

    Raises:
        TypeError: model is not a ``Model``, params are not a ``ModelParams``, or hidden_size is not a known number.
        ValueError: hidden_size is above the width of a layer, the cell has layer_norm, the model has tie, or a unit
            that would be cut off is not zero.
    """
    if not isinstance(model, Model):
        raise TypeError(f"model must be a Model; got {checks.describe(model)}.")
    check_model_params(params)
    sizes = (as_width(model, hidden_size),) * len(model.hidden_sizes)
    narrow = resized(params, sizes)
    check_same("params", params, narrow)
    return replace(model, hidden_sizes=sizes), narrow


def detach(state: Any) -> Any:
    """The same state, through which no gradient flows: truncated BPTT carries it from window to window."""
    return jax.tree.map(jax.lax.stop_gradient, state)


def check_model(model: Any, *needed: str) -> None:
    """Raise TypeError unless model has the needed methods."""
    if isinstance(model, type) or not all(callable(getattr(model, name, None)) for name in needed):
        raise TypeError(f"model must be a Model of mgu_jax; got {checks.describe(model)}.")


def check_reads_on(state: Any) -> None:
    """Raise ValueError if a layer runs in reverse, since the state cannot be carried from window to window then."""
    if getattr(state, "backward", None) is not None:
        raise ValueError("a bidirectional model cannot read a stream in windows: its reverse layers begin at the end.")


def check_model_params(params: Any) -> None:
    """Raise TypeError unless params are a ``ModelParams``."""
    if not isinstance(params, ModelParams):
        raise TypeError(f"params must be a ModelParams, as Model.init returns it; got {checks.describe(params)}.")


def _widths(layers: Any) -> tuple[Any, ...]:
    """H of each layer, or ``None`` for an entry that is not a layer."""
    layers = layers if isinstance(layers, tuple | list) else (layers,)
    return tuple((getattr(getattr(layer, "b_h", None), "shape", ()) or (None,))[-1] for layer in layers)


def _steps(hs: Array, lengths: Any, mask: Any) -> Array:
    """The number of valid steps of each sequence, [...], for hs [T, ..., H]."""
    if mask is None:
        return jnp.full(hs.shape[1:-1], hs.shape[0]) if lengths is None else jnp.asarray(lengths)
    if lengths is not None:
        steps = jnp.arange(len(hs), dtype=jnp.int32).reshape(-1, *[1] * (hs.ndim - 2))
        mask = mask & (steps < jnp.asarray(lengths, jnp.int32)[None])
    return jnp.sum(mask, 0, dtype=jnp.int32)


def _rows_of(embedding: Array, tokens: Array) -> Array:
    """The rows of the tokens. The gradient of a row is a sum over all places where its token stands."""
    return jnp.take(embedding.astype(wide(embedding)), tokens, axis=0).astype(embedding.dtype)


def _fold(key: Array | None, number: int) -> Array | None:
    return None if key is None else jax.random.fold_in(key, number)
