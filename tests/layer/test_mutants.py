"""The laws notice every wrong term: a copy of the backward pass with one line changed fails them.

Each mutant is a copy of ``cell.py`` or ``bptt.py`` in which one piece of text is replaced. Every line that carries the
number of an equation of the backward pass, (4) to (11) and (13) to (15), has at least one mutant.
"""

import re
import types
from pathlib import Path
from typing import NamedTuple

import jax
import pytest

from mgu_jax import sequence
from mgu_jax.layer import bptt, cell
from tests import laws

CELL, BPTT = Path(cell.__file__).read_text(), Path(bptt.__file__).read_text()
NUMBERED = re.compile(r"^.*#.*\((?:4|5|6, 7|8|9|10|11|13|14|15)\).*$", re.MULTILINE)
DROPOUT = laws.OPTIONS["recurrent_dropout"]
ZONEOUT = laws.OPTIONS["zoneout"]
RESETS = laws.OPTIONS["resets elsewhere"]


class Mutant(NamedTuple):
    """``old`` is replaced by ``new`` in one of the two files; the named member then fails with these options."""

    equation: str
    old: str
    new: str
    member: str = "MGU"
    options: dict = {}  # noqa: RUF012 (read only)


THROUGH_3 = "dz_f = scaled(dh_next, alpha) * slope_through_3(f, h, c, cell)"
WITH_BETA = "change = w * (1 - w) * c - slope_f * h"
THROUGH_R = "dz_f = dz_f + dr * slope_f * seen"
AFTER = "dz_f = dz_f + ds_h * slope_f * s_r"
BOTH = "dseen = add(product(ds_r, weights.U_hT), product(ds_f, weights.U_fT))"
JOINT = "dseen = product(jnp.concatenate([ds_f, ds_r], -1), weights.UT)"
DH = "return add(dh_next * (1 - u), masked(dseen, weights.mask)), dz_f, dz_h"
DX = "dx = add(product(ds_h, transposed(p.W_h)), product(ds_f, transposed(p.W_f)))"
DH_RESET = "dh_reset = add(dh_reset, jnp.where(reset, dh, 0).astype(wide(dh)))"
DPARAMS = "jax.tree.map(lambda total, part: total + part.astype(wide(part)), dparams, part)"

MUTANTS = [
    Mutant("3", "scaled(w, alpha)", "w", "JANET", ZONEOUT),
    Mutant("4", "dz_h = dh_next * w * slope_c", "dz_h = -dh_next * w * slope_c"),
    Mutant("4", "dz_h = dh_next * w * slope_c", "dz_h = dh_next * slope_c"),
    Mutant("4", "dz_h = dh_next * w * slope_c", "dz_h = dh_next * w"),
    Mutant("4", "dz_h = dh_next * w * slope_c", "dz_h = dh_next * u * slope_c", "JANET"),
    Mutant("5", "dr = product(ds_h, weights.U_hT)", "dr = -product(ds_h, weights.U_hT)"),
    Mutant("5", "dr = product(ds_h, weights.U_hT)", "dr = product(ds_h, p.U_h)"),
    Mutant("6, 7", THROUGH_3, "dz_f = -scaled(dh_next, alpha) * slope_through_3(f, h, c, cell)"),
    Mutant("6, 7", THROUGH_3, "dz_f = dh_next * slope_through_3(f, h, c, cell)", options=ZONEOUT),
    Mutant("6, 7", "change = slope_f * (c - h)", "change = c - h"),
    Mutant("6, 7", "change = slope_f * (c - h)", "change = slope_f * c"),
    Mutant("6, 7", WITH_BETA, "change = slope_f * (c - h)", "JANET"),
    Mutant("6, 7", WITH_BETA, "change = w * (1 - w) * (c - h)", "JANET"),
    Mutant("6, 7", WITH_BETA, "change = w * c - slope_f * h", "JANET"),
    Mutant("6, 7", 'return change if cell.update == "f" else -change', "return change", "FLAX_MGU"),
    Mutant("6, 7", THROUGH_R, "dz_f = dz_f"),
    Mutant("6, 7", THROUGH_R, "dz_f = dz_f - dr * slope_f * seen"),
    Mutant("6, 7", THROUGH_R, "dz_f = dz_f + dr * seen"),
    Mutant("6, 7", THROUGH_R, "dz_f = dz_f + dr * slope_f"),
    Mutant("6, 7", THROUGH_R, "dz_f = dz_f + dr * slope_f * h", options=DROPOUT),
    Mutant("6, 7", AFTER, "dz_f = dz_f", "RESET_AFTER_MGU"),
    Mutant("6, 7", AFTER, "dz_f = dz_f - ds_h * slope_f * s_r", "RESET_AFTER_MGU"),
    Mutant("6, 7", AFTER, "dz_f = dz_f + ds_h * s_r", "RESET_AFTER_MGU"),
    Mutant("8", "dseen = dr * f", "dseen = -dr * f"),
    Mutant("8", "dseen = dr * f", "dseen = dr"),
    Mutant("8", "dseen = add(dseen, product(ds_f, weights.U_fT))", "dseen = dseen"),
    Mutant("8", "dseen = add(dseen, product(ds_f, weights.U_fT))", "dseen = add(dseen, -product(ds_f, weights.U_fT))"),
    Mutant("8", BOTH, "dseen = product(ds_r, weights.U_hT)", "diagonal flax update"),
    Mutant("8", BOTH, "dseen = product(ds_f, weights.U_fT)", "diagonal flax update"),
    Mutant("8", JOINT, "dseen = product(jnp.concatenate([ds_f, ds_h], -1), weights.UT)", "RESET_AFTER_MGU"),
    Mutant("8", JOINT, "dseen = product(jnp.concatenate([ds_r, ds_f], -1), weights.UT)", "UGRNN"),
    Mutant("8", DH, "return add(-dh_next * (1 - u), masked(dseen, weights.mask)), dz_f, dz_h"),
    Mutant("8", DH, "return add(dh_next, masked(dseen, weights.mask)), dz_f, dz_h"),
    Mutant("8", DH, "return masked(dseen, weights.mask), dz_f, dz_h"),
    Mutant("8", DH, "return dh_next * (1 - u), dz_f, dz_h"),
    Mutant("8", DH, "return add(dh_next * (1 - u), dseen), dz_f, dz_h", options=DROPOUT),
    Mutant("9", DX, "dx = product(ds_h, transposed(p.W_h))"),
    Mutant("9", DX, "dx = product(ds_f, transposed(p.W_f))"),
    Mutant("10", "W_f=product.weight(x, ds_f, p.W_f)", "W_f=product.weight(x, ds_h, p.W_f)"),
    Mutant("10", "U_f=product.weight(seen, ds_f, p.U_f)", "U_f=-product.weight(seen, ds_f, p.U_f)"),
    Mutant("10", "U_f=product.weight(seen, ds_f, p.U_f)", "U_f=product.weight(r, ds_f, p.U_f)"),
    Mutant("10", "U_f=product.weight(seen, ds_f, p.U_f)", "U_f=product.weight(h, ds_f, p.U_f)", options=DROPOUT),
    Mutant("9", DX, "dx = add(product(ds_h, transposed(p.W_f)), product(ds_f, transposed(p.W_h)))"),
    Mutant("10", "b_f=summed(dz_f, p.b_f)", "b_f=-summed(dz_f, p.b_f)"),
    Mutant("10", "summed(dz_f * gates.norm_f.n, p.g_f)", "summed(dz_f * gates.norm_h.n, p.g_f)", "norm"),
    Mutant("11", "W_h=product.weight(x, ds_h, p.W_h)", "W_h=product.weight(x, ds_f, p.W_h)"),
    Mutant("11", "U_h=product.weight(r, ds_r, p.U_h)", "U_h=product.weight(seen, ds_r, p.U_h)"),
    Mutant("11", "U_h=product.weight(r, ds_r, p.U_h)", "U_h=product.weight(r, ds_h, p.U_h)", "RESET_AFTER_MGU"),
    Mutant("11", "b_h=summed(dz_h, p.b_h)", "b_h=summed(dz_f, p.b_h)"),
    Mutant("11", "b_r=summed(ds_r, p.b_r)", "b_r=summed(ds_h, p.b_r)", "RESET_AFTER_MGU"),
    Mutant("11", "summed(dz_h * gates.norm_h.n, p.g_h)", "summed(dz_h, p.g_h)", "norm"),
    Mutant("13", "dh_next = add(dhs_t, dh)", "dh_next = dh"),
    Mutant("13", "dh_next = add(dhs_t, dh)", "dh_next = dhs_t"),
    Mutant("14", "weight_gradients(weights, xs, h, gates", "weight_gradients(weights, xs, hs, gates"),
    Mutant("14", DPARAMS, "part", options={"segment": 4}),
    Mutant("15", DH_RESET, "dh_reset = dh_reset", options=RESETS),
    Mutant("15", DH_RESET, "dh_reset = add(dh_reset, dh)", options=RESETS),
    Mutant("15", "dh = jnp.where(reset, 0, dh)", "dh = dh", options=RESETS),
]


def changed(source, old, new):
    """The source with ``old``, which must occur exactly once, replaced by ``new``."""
    assert source.count(old) == 1, f"{old!r} occurs {source.count(old)} times: adapt this test to the line's new text"
    return source.replace(old, new)


def compiled(name, source):
    """A module with this source, apart from all imported ones."""
    module = types.ModuleType(name)
    exec(compile(source, f"{name}.py", "exec"), module.__dict__)
    return module


def backward_pass(monkeypatch, old="", new=""):
    """Let "manual" run on copies of both files, in one of which ``old`` is replaced by ``new``."""
    sources = {"cell": CELL, "bptt": BPTT}
    if old:
        guilty = "cell" if old in CELL else "bptt"
        sources[guilty] = changed(sources[guilty], old, new)
    copy = compiled("copy_of_bptt", sources["bptt"])
    vars(copy).update(
        {name: f for name, f in vars(compiled("copy_of_cell", sources["cell"])).items() if name in vars(copy)}
    )
    monkeypatch.setitem(sequence.IMPLEMENTATIONS, "manual", copy.bptt)


def check_law(member, options):
    """Values and gradients of one small case are the oracle's."""
    with jax.disable_jit():
        laws.equals_oracle(laws.case(laws.CELLS[member], 6), "float64", laws.CELLS[member], "manual", **options)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"({mutant.equation}) {mutant.new}")
def test_the_laws_notice_a_wrong_line(x64, monkeypatch, mutant):
    backward_pass(monkeypatch, mutant.old, mutant.new)
    with pytest.raises(AssertionError, match="relative error"):
        check_law(mutant.member, mutant.options)


CONTROLS = {(mutant.member, str(mutant.options)): mutant for mutant in MUTANTS}


@pytest.mark.parametrize("mutant", CONTROLS.values(), ids=lambda mutant: f"{mutant.member} {list(mutant.options)}")
def test_an_unchanged_copy_fulfils_the_laws(x64, monkeypatch, mutant):
    backward_pass(monkeypatch)
    check_law(mutant.member, mutant.options)


@pytest.mark.parametrize("source", [CELL, BPTT], ids=["cell", "bptt"])
def test_every_numbered_line_has_a_mutant(source):
    code = source.split('"""', 2)[2]
    lines = [line for line in NUMBERED.findall(code) if not line.strip().startswith("#")]
    assert len(lines) >= 5
    for line in lines:
        assert any(mutant.old in line for mutant in MUTANTS), f"no mutant changes {line.strip()!r}"


def test_a_line_that_has_gone_is_reported():
    with pytest.raises(AssertionError, match="adapt this test"):
        changed(CELL, "dz_h = dh_next * f", "dz_h = 0")
