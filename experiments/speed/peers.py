"""Layers of several libraries, each as its library provides it; all do the same work.

A ``Layer`` computes the states of all steps. The benchmark differentiates all of them in the same way, except for
PyTorch, which differentiates by itself.
"""

# pyright: reportMissingImports=false
# (types can be checked without installing every peer)

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import mgu_jax as mgu
from experiments.speed.timing import Size, Timed


@dataclass(frozen=True)
class Layer:
    """A layer of one library.

    Attributes:
        package: the package that must be installed.
        build: (B, T, D, H) -> (run, params) with run(params, xs [T, B, D]) -> states.
        batch_first: whether run takes xs [B, T, D] instead.
    """

    package: str
    build: Callable[[Size], tuple[Callable[[Any, Any], Any], Any]]
    batch_first: bool = False


def ours(size: Size, cell: mgu.Cell = mgu.MGU, **options: Any) -> Any:
    _, _, D, H = size
    return lambda params, xs: mgu.scan(params, xs, cell=cell, **options)[0], mgu.init(jax.random.key(0), D, H, cell)


def _flax(size: Size, name: str) -> Any:
    from flax import linen

    B, T, D, H = size
    layer = linen.RNN(getattr(linen, name)(features=H), time_major=True)
    return layer.apply, layer.init(jax.random.key(0), jnp.zeros((T, B, D)))


def _equinox(size: Size) -> Any:
    import equinox

    _, _, D, H = size
    params, static = equinox.partition(equinox.nn.GRUCell(D, H, key=jax.random.key(0)), equinox.is_array)

    def run(params: Any, xs: Any) -> Any:
        cell = jax.vmap(equinox.combine(params, static))

        def body(h: Any, x: Any) -> Any:
            h = cell(x, h)
            return h, h

        return lax.scan(body, jnp.zeros((xs.shape[1], H)), xs)[1]

    return run, params


def _haiku(size: Size) -> Any:
    import haiku

    B, T, D, H = size

    def layer(xs: Any) -> Any:
        core = haiku.GRU(H)
        return haiku.dynamic_unroll(core, xs, core.initial_state(xs.shape[1]))[0]

    pair = haiku.without_apply_rng(haiku.transform(layer))
    return pair.apply, pair.init(jax.random.key(0), jnp.zeros((T, B, D)))


def _keras(size: Size) -> Any:
    os.environ.setdefault("KERAS_BACKEND", "jax")
    import keras

    B, T, D, H = size
    keras.utils.set_random_seed(0)
    layer = keras.layers.GRU(H, return_sequences=True)
    layer.build((B, T, D))
    rest = [v.value for v in layer.non_trainable_variables]
    return lambda params, xs: layer.stateless_call(params, rest, xs)[0], [v.value for v in layer.trainable_variables]


OURS = {
    "MGU": Layer("mgu_jax", ours),
    "MGU, manual": Layer("mgu_jax", partial(ours, implementation="manual")),
    "MGU, states": Layer("mgu_jax", partial(ours, save="states")),
    "MGU, states, one segment": Layer("mgu_jax", partial(ours, save="states", segment=1_000_000)),
    "MGU, segments": Layer("mgu_jax", partial(ours, save="segments")),
    "MGU, autodiff": Layer("mgu_jax", partial(ours, implementation="autodiff")),
    "RESET_AFTER_MGU": Layer("mgu_jax", partial(ours, cell=mgu.RESET_AFTER_MGU)),
    "FLAX_MGU": Layer("mgu_jax", partial(ours, cell=mgu.FLAX_MGU)),
    "DIAGONAL_MGU": Layer("mgu_jax", partial(ours, cell=mgu.DIAGONAL_MGU)),
    "MIN_GRU": Layer("mgu_jax", partial(ours, cell=mgu.MIN_GRU)),
}
PEERS = {
    "flax MGU": Layer("flax", partial(_flax, name="MGUCell")),
    "flax GRU": Layer("flax", partial(_flax, name="GRUCell")),
    "flax LSTM": Layer("flax", partial(_flax, name="OptimizedLSTMCell")),
    "equinox GRU": Layer("equinox", _equinox),
    "haiku GRU": Layer("haiku", _haiku),
    "keras GRU": Layer("keras", _keras, batch_first=True),
}
TORCH = {"torch GRU": "GRU", "torch LSTM": "LSTM"}
EVERYTHING = OURS | PEERS


def installed(package: str) -> bool:
    return package == "mgu_jax" or find_spec(package) is not None


def inputs(size: Size, batch_first: bool = False) -> np.ndarray:
    B, T, D, _ = size
    xs = np.random.default_rng(0).standard_normal((T, B, D), np.float32)
    return np.ascontiguousarray(xs.swapaxes(0, 1)) if batch_first else xs


def gradient(run: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """The gradients of the sum of the squared states, with respect to all weights and the inputs."""
    return jax.grad(lambda params, xs: jnp.sum(run(params, xs) ** 2), (0, 1))


def on_one_device(layer: Layer, size: Size) -> dict[str, Timed]:
    """The forward pass, and forward and backward together."""
    run, params = layer.build(size)
    arguments = (params, jnp.asarray(inputs(size, layer.batch_first)))
    return {"forward": (jax.jit(run), arguments), "both": (jax.jit(gradient(run)), arguments)}


def on_devices(layer: Layer, size: Size, devices: int) -> dict[str, Timed]:
    """The same with the batch split over devices; the gradients of the weights are summed over them."""
    run, params = layer.build(size)
    mesh = jax.make_mesh((devices,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = P("batch") if layer.batch_first else P(None, "batch")
    # The loops of the peers start from states that do not declare how they vary over devices, so this is not checked.
    spread = partial(jax.shard_map, mesh=mesh, in_specs=(P(), rows), check_vma=False)

    def both(params: Any, xs: Any) -> Any:
        dparams, dxs = gradient(run)(params, xs)
        return lax.psum(dparams, "batch"), dxs

    place = partial(jax.device_put, device=NamedSharding(mesh, P()))
    xs = jax.device_put(inputs(size, layer.batch_first), NamedSharding(mesh, rows))
    arguments = (place(params), xs)
    return {
        "forward": (jax.jit(spread(run, out_specs=rows)), arguments),
        "both": (jax.jit(spread(both, out_specs=(P(), rows))), arguments),
    }


def products_alone(size: Size) -> dict[str, Timed]:
    """The matrix products of a training step and nothing else: the four of each time step in order, and all others."""
    B, T, D, H = size
    params, xs = mgu.init(jax.random.key(0), D, H), inputs(size)
    h, dz_f, dz_h = np.random.default_rng(0).standard_normal((3, T * B, H), np.float32)

    def inside(h: Any) -> Any:
        def body(h: Any, _: None) -> Any:
            for U in (params.U_f, params.U_h, U_hT, U_fT):
                h = h @ U
            return h, None

        U_fT, U_hT = params.U_f.T, params.U_h.T
        return lax.scan(body, h, None, T)[0]

    def outside(x: Any, h: Any, dz_f: Any, dz_h: Any) -> Any:
        pairs = ((params.W_f, dz_f), (params.W_h, dz_h))
        return [(x @ W, dz @ W.T, x.T @ dz, h.T @ dz) for W, dz in pairs]

    arguments = (jnp.asarray(xs.reshape(T * B, D)), *map(jnp.asarray, (h, dz_f, dz_h)))
    return {
        "products in the loop": (jax.jit(inside), (jnp.asarray(h[:B]),)),
        "products outside": (jax.jit(outside), arguments),
    }


def in_torch(name: str, size: Size) -> dict[str, Timed]:
    """PyTorch's layer, on its GPU if JAX uses one."""
    import torch

    _, _, D, H = size
    device = "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"
    layer = getattr(torch.nn, TORCH[name])(D, H).to(device)
    xs = torch.from_numpy(inputs(size)).to(device).requires_grad_()
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def forward() -> None:
        with torch.no_grad():
            layer(xs)
        wait()

    def both() -> None:
        torch.autograd.grad((layer(xs)[0] ** 2).sum(), (*layer.parameters(), xs))
        wait()

    return {"forward": (forward, ()), "both": (both, ())}
