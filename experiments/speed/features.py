"""Look up which library has which feature of a recurrent layer.

A claim is a name in a library, or a parameter of it. A cell of the table says yes where the installed version has the
name, and is empty where no claim is made for the library. Needs the extra ``peers``.
"""

import importlib
import inspect
import os
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from experiments.run import BadRequest, Common, Run
from mgu_jax.extras import look_for

# Column -> distribution that it comes from.
PEERS = {
    "mgu_jax": "mgu_jax",
    "flax.linen": "flax",
    "flax.nnx": "flax",
    "equinox": "equinox",
    "haiku": "dm-haiku",
    "torch.nn": "torch",
    "keras": "keras",
}
# Feature -> column -> "module:name", or "module:name(parameter)".
CLAIMS = {
    "Minimal Gated Unit": {"mgu_jax": "mgu_jax:MGU", "flax.linen": "flax.linen:MGUCell"},
    "reset before or after the product": {"mgu_jax": "mgu_jax:Cell(reset)", "keras": "keras.layers:GRU(reset_after)"},
    "backward over time written by hand": {"mgu_jax": "mgu_jax.layer.bptt:bptt", "torch.nn": "torch._VF:gru"},
    "a length for each sequence": {
        "mgu_jax": "mgu_jax:scan(lengths)",
        "flax.linen": "flax.linen:RNN.__call__(seq_lengths)",
        "flax.nnx": "flax.nnx:RNN.__call__(seq_lengths)",
        "torch.nn": "torch.nn.utils.rnn:pack_padded_sequence",
        "keras": "keras.layers:GRU.call(mask)",
    },
    "resets within a sequence": {"mgu_jax": "mgu_jax:scan(resets)", "haiku": "haiku:ResetCore"},
    "reverse": {
        "mgu_jax": "mgu_jax:scan(reverse)",
        "flax.linen": "flax.linen:RNN.__call__(reverse)",
        "flax.nnx": "flax.nnx:RNN.__call__(reverse)",
        "haiku": "haiku:dynamic_unroll(reverse)",
        "keras": "keras.layers:GRU(go_backwards)",
    },
    "bidirectional": {
        "mgu_jax": "mgu_jax:Model(bidirectional)",
        "flax.linen": "flax.linen:Bidirectional",
        "flax.nnx": "flax.nnx:Bidirectional",
        "torch.nn": "torch.nn:RNNBase.__init__(bidirectional)",
        "keras": "keras.layers:Bidirectional",
    },
    "stacked layers": {
        "mgu_jax": "mgu_jax:Model(hidden_sizes)",
        "haiku": "haiku:DeepRNN",
        "torch.nn": "torch.nn:RNNBase.__init__(num_layers)",
        "keras": "keras.layers:StackedRNNCells",
    },
    "initial state in, final state out": {
        "mgu_jax": "mgu_jax:scan(h0)",
        "flax.linen": "flax.linen:RNN.__call__(initial_carry)",
        "flax.nnx": "flax.nnx:RNN.__call__(initial_carry)",
        "equinox": "equinox.nn:GRUCell.__call__(hidden)",
        "haiku": "haiku:dynamic_unroll(initial_state)",
        "torch.nn": "torch.nn:GRU.forward(hx)",
        "keras": "keras.layers:GRU.call(initial_state)",
    },
    "dropout of a layer's input or output": {
        "mgu_jax": "mgu_jax:Model(dropout)",
        "torch.nn": "torch.nn:RNNBase.__init__(dropout)",
        "keras": "keras.layers:GRU(dropout)",
    },
    "recurrent dropout": {
        "mgu_jax": "mgu_jax:scan(recurrent_dropout)",
        "keras": "keras.layers:GRU(recurrent_dropout)",
    },
    "zoneout": {"mgu_jax": "mgu_jax:scan(zoneout)"},
    "DropConnect on U": {"mgu_jax": "mgu_jax:scan(dropconnect)"},
    "layer normalisation in the cell": {"mgu_jax": "mgu_jax:Cell(layer_norm)"},
    "products in bfloat16, state in float32": {"mgu_jax": "mgu_jax:scan(compute_dtype)"},
}


@dataclass(frozen=True)
class Config(Common):
    """The flags of features."""


def _found(claim: str) -> bool:
    """Whether the name exists, and has the parameter if the claim names one."""
    module, _, name = claim.partition(":")
    name, _, parameter = name.removesuffix(")").partition("(")
    value: Any = importlib.import_module(module)
    for part in name.split("."):
        value = getattr(value, part, None)
    return value is not None and (not parameter or parameter in inspect.signature(value).parameters)


def table(found: dict[str, list[str]], versions: dict[str, str]) -> str:
    """The table of experiments/BENCHMARK.md, and the versions of which it is true."""
    lines = ["| | " + " | ".join(PEERS) + " |", "|---" * (len(PEERS) + 1) + "|"]
    for feature, columns in found.items():
        lines.append(f"| {feature} | " + " | ".join("yes" if peer in columns else "" for peer in PEERS) + " |")
    return "\n".join([*lines, "", f"As of {', '.join(f'{name} {version}' for name, version in versions.items())}."])


def main(config: Config) -> None:
    """Look up every claim and print the table."""
    if config.steps is not None:
        raise BadRequest("--steps has no meaning for features, which takes no optimiser step.")
    os.environ.setdefault("KERAS_BACKEND", "jax")
    look_for(("flax", "equinox", "haiku", "torch", "keras"), "peers")
    run = Run("features", config, {})
    run.rewind(0)
    found = {feature: [p for p, claim in by_peer.items() if _found(claim)] for feature, by_peer in CLAIMS.items()}
    lost = [claim for f, by_peer in CLAIMS.items() for p, claim in by_peer.items() if p not in found[f]]
    versions = {name: metadata.version(name) for name in sorted(set(PEERS.values()) - {"mgu_jax"})}
    run.finish({"found": found, "not_found": lost, "peers": versions})
    print(table(found, versions))
    if lost:
        print(f"claimed and not found: {', '.join(lost)}")
    run.close()
