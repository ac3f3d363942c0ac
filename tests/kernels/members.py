"""What the kernel serves, and the law that it has to obey, wherever it runs."""

import numpy as np

from tests import laws

# Every member that the kernel serves.
MEMBERS = {name: cell for name, cell in laws.CELLS.items() if "h" in cell.candidate and not cell.layer_norm}
OPTIONS = {
    "plain": {},
    "all forward": {
        "lengths": laws.LENGTHS,
        "resets": laws.RESETS,
        "reset_to": np.random.default_rng(6).standard_normal((3, 5)),
        "recurrent_dropout": 0.4,
        "zoneout": 0.3,
        "dropconnect": 0.5,
        "key": laws.KEY,
        "save": "states",
    },
    "all in reverse": {
        "lengths": laws.LENGTHS,
        "resets": laws.RESETS,
        "zoneout": 0.25,
        "reverse": True,
        "save": "segments",
        "segment": 4,
    },
}


def obeys(cell, H=5, T=6, B=3, tolerance=None, precision="highest", **options):
    """Values and gradients of the kernel are the oracle's."""
    case = laws.case(cell, T=T, batch=(B,), H=H)
    laws.equals_oracle(case, "float32", cell, "mosaic_gpu", tolerance, precision=precision, **options)
