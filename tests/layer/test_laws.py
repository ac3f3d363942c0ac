"""The laws of ``laws.py`` for all implementations, cells and options."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

import mgu_jax as mgu
from mgu_jax.layer import segments
from tests import laws
from tests.conftest import double_precision

KINDS = ("MGU", "RESET_AFTER_MGU", "DIAGONAL_MGU", "MIN_GRU")  # one for each kind of program


def pairs_of(*names, among=laws.PAIRS):
    """A parametrization by (implementation, name) over all pairs; those with other cells than ``names`` are slow.

    So are those of Newton's method and of the affine backward, of which ``test_parallel.py`` tests the kinds, and those
    of autodiff, whose derivative nobody wrote, but for one cell of each kind.
    """

    def slow(implementation, name):
        solved = implementation == "parallel_backward" or (implementation == "parallel" and not laws.CELLS[name].linear)
        derived = implementation == "autodiff" and name not in KINDS
        return [pytest.mark.slow] if solved or derived or name not in names else []

    return pytest.mark.parametrize(
        ("implementation", "name"), [pytest.param(*pair, marks=slow(*pair)) for pair in among]
    )


named_pairs = pairs_of(*laws.NAMED)
few_pairs = pairs_of(*KINDS)
other_pairs = pairs_of(*laws.OTHERS, among=laws.OTHER_PAIRS)
SIZES = ((0, 4), (0, 3), (1, 3), (1, 4))  # of T, B, D and H
both_ways = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])


@named_pairs
@pytest.mark.parametrize(("T", "reverse"), [(0, False), (1, False), (2, True), (37, True), (37, False)])
def test_equals_oracle(x64, implementation, name, reverse, T):
    cell = laws.CELLS[name]
    laws.equals_oracle(laws.case(cell, T), "float64", cell, implementation, reverse=reverse)


@named_pairs
@both_ways
def test_equals_oracle_in_float32(implementation, name, reverse):
    cell = laws.CELLS[name]
    laws.equals_oracle(laws.case(cell, 37), "float32", cell, implementation, reverse=reverse)


@other_pairs
def test_members_that_a_user_might_write(dtype, implementation, name):
    cell = laws.CELLS[name]
    laws.equals_oracle(laws.case(cell), dtype, cell, implementation)


# Which options are on, and what "manual" saves, with the number of steps in a segment (T is 6). Every two options occur
# together, and each without the other; and every way to save occurs with every option (tested below).
ROWS = [
    ((), "gates", None),
    (("reverse", "lengths", "mask", "resets elsewhere", "recurrent_dropout", "zoneout", "dropconnect"), "gates", None),
    (("lengths", "resets", "recurrent_dropout", "zoneout expected", "dropconnect"), "gates", None),
    (("reverse", "resets", "recurrent_dropout", "zoneout expected", "mask"), "gates", 4),
    (("lengths", "mask", "resets elsewhere", "dropconnect"), "gates", 2),
    (("lengths", "resets elsewhere", "recurrent_dropout"), "states", 4),
    (("reverse", "zoneout", "dropconnect", "mask"), "states", 2),
    (("resets elsewhere", "zoneout", "mask"), "segments", 4),
    (("reverse", "lengths", "recurrent_dropout", "dropconnect"), "segments", 2),
]
ALL = ROWS[1][0]


def options(names):
    return {k: v for name in names for k, v in laws.OPTIONS[name].items()}


def test_rows_cover_all_pairs_of_options():
    names = [name for name in laws.OPTIONS if name not in ("zoneout expected", "resets elsewhere")]
    on = [{n.removesuffix(" expected").removesuffix(" elsewhere") for n in row} for row, *_ in ROWS]
    for a, b in itertools.combinations(names, 2):
        assert {(a in row, b in row) for row in on} == set(itertools.product((False, True), repeat=2)), (a, b)
    for kind in ("zoneout", "zoneout expected", "resets", "resets elsewhere"):
        others = [name for name in names if not kind.startswith(name)]
        with_kind = [plain for (row, *_), plain in zip(ROWS, on, strict=True) if kind in row]
        assert all(any(other in plain for plain in with_kind) for other in others), kind
    for save, in_one in (("gates", True), *((save, False) for save in segments.SAVE)):
        chosen = [
            plain for (_, way, steps), plain in zip(ROWS, on, strict=True) if (way, steps is None) == (save, in_one)
        ]
        assert set(names) <= set().union(*chosen), save
        assert not all("reverse" in plain for plain in chosen), save


def pairs_and_rows():
    """Every pair with every row of options; of cells that stand for no kind, the rows after the second are slow."""
    for pair in named_pairs.args[1]:
        for i, row in enumerate(ROWS[1:]):
            more = [pytest.mark.slow] if i > 1 and pair.values[1] not in KINDS else []
            yield pytest.param(*pair.values, *row, marks=pair.marks or more)


@pytest.mark.parametrize(
    ("implementation", "name", "row", "save", "segment"), [*pairs_and_rows()], ids=lambda value: str(value).strip("()")
)
def test_options_together(x64, implementation, name, row, save, segment):
    cell = laws.CELLS[name]
    by_hand = implementation != "autodiff" and (implementation != "parallel" or not cell.linear)
    saving = {"save": save, "segment": segment} if by_hand else {}
    laws.equals_oracle(laws.case(cell, 6), "float64", cell, implementation, **options(row), **saving)


@other_pairs
def test_all_options_of_members_that_a_user_might_write(x64, implementation, name):
    cell = laws.CELLS[name]
    laws.equals_oracle(laws.case(cell, 6), "float64", cell, implementation, **options(ALL))


@few_pairs
def test_lengths_are_a_mask_without_holes(x64, implementation, name):
    """Whatever stands in the steps that are left out."""
    cell = laws.CELLS[name]
    case = laws.case(cell, 6)
    mask = np.arange(6)[:, None] < laws.LENGTHS
    spoilt = case._replace(xs=np.where(mask[..., None], case.xs, np.nan))
    wanted = laws.gradients(case, "float64", cell, implementation=implementation, lengths=laws.LENGTHS)
    got = laws.gradients(spoilt, "float64", cell, implementation=implementation, mask=mask)
    for mine, right in zip(got, wanted, strict=True):
        laws.assert_close(mine, right, 0)


@few_pairs
def test_all_options_in_float32_under_jit(implementation, name):
    cell = laws.CELLS[name]
    case = laws.case(cell, 6)
    laws.equals_oracle(case, "float32", cell, implementation, transform=jax.jit, **options(ALL))


@few_pairs
@pytest.mark.parametrize(
    ("compute_dtype", "names"),
    [("bfloat16", ALL), pytest.param("float16", (), marks=pytest.mark.slow)],
    ids=["bfloat16", "float16"],
)
def test_compute_dtype_rounds_products_alone(implementation, name, compute_dtype, names):
    """The results are close to the exact ones and differ from them, and keep the dtype of the parameters."""
    cell = laws.CELLS[name]
    case, tolerance = laws.case(cell, 6), laws.rounded(cell, compute_dtype)
    chosen = options(names) | {"compute_dtype": compute_dtype}
    (outputs, grads), exact = (
        laws.gradients(case, "float32", cell, implementation=implementation, **chosen),
        laws.gradients(case, "float32", cell, implementation=implementation, **options(names)),
    )
    laws.assert_close(outputs, exact[0], tolerance)
    laws.assert_close(grads, exact[1], 2 * tolerance)
    assert all(a.dtype == jnp.float32 for a in (*outputs.values(), *grads.values()))
    assert laws.relative_error(outputs["hs"], exact[0]["hs"]) > 1e-6


@named_pairs
@pytest.mark.parametrize("precision", ["highest", jax.lax.Precision.HIGH])
def test_precision_reaches_forward_and_backward(implementation, name, precision):
    """Every product of the program has it, in both directions."""
    cell = laws.CELLS[name]
    params, xs, h0 = laws.cast(laws.case(cell)[:3], "float32")

    def loss(params, xs):
        hs, _ = mgu.scan(params, xs, h0, cell=cell, implementation=implementation, precision=precision)
        return jnp.sum(hs**2)

    program = str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(params, xs))
    wanted = jax.lax.Precision(precision).name
    assert program.count("dot_general[") >= 3  # xs W_h, dxs and dW_h
    assert program.count("dot_general[") == program.count(f"precision=(Precision.{wanted}, Precision.{wanted})")


@few_pairs
@pytest.mark.parametrize("batch", [(), (0,), (1,), (2, 3)], ids=str)
def test_any_batch(x64, implementation, name, batch):
    cell = laws.CELLS[name]
    laws.equals_oracle(laws.case(cell, 5, batch), "float64", cell, implementation)


@few_pairs
@pytest.mark.parametrize(("D", "H"), [(1, 1), (1, 6), (6, 1)])
def test_any_width(x64, implementation, name, D, H):
    cell = laws.CELLS[name]
    laws.equals_oracle(laws.case(cell, 5, D=D, H=H), "float64", cell, implementation)


@few_pairs
def test_without_h0_is_zeros(x64, implementation, name):
    cell = laws.CELLS[name]
    case = laws.case(cell)
    params, xs = laws.cast((case.params, case.xs), "float64")
    without = mgu.scan(params, xs, cell=cell, implementation=implementation)
    zeros = mgu.scan(params, xs, jnp.zeros((3, 5)), cell=cell, implementation=implementation)
    np.testing.assert_array_equal(without[0], zeros[0])
    np.testing.assert_array_equal(without[1], zeros[1])


@few_pairs
@pytest.mark.parametrize("output", ["hs", "h_last"])
def test_one_cotangent_alone(x64, implementation, name, output):
    cell = laws.CELLS[name]
    case = laws.case(cell)
    case = case._replace(dhs=0 * case.dhs) if output == "h_last" else case._replace(dh_last=0 * case.dh_last)
    laws.equals_oracle(case, "float64", cell, implementation)


@few_pairs
def test_finite_differences_first_and_second_order(x64, implementation, name):
    cell, chosen = laws.CELLS[name], options(("reverse", "resets", "zoneout expected"))
    if cell.activation == "relu":
        pytest.skip("finite differences do not see the second derivative at the kink of relu")
    case = laws.cast(laws.case(cell, 6, (3,), 2, 3), "float64")

    def outputs(params, xs, h0):
        return mgu.scan(params, xs, h0, cell=cell, implementation=implementation, **chosen)

    check_grads(jax.jit(outputs), (case.params, case.xs, case.h0), order=2, modes=["rev"], atol=5e-5, rtol=5e-5)


def scalar(cell, implementation, **options):
    """A loss that is nonlinear in both outputs."""

    def loss(params, xs, h0):
        hs, h_last = mgu.scan(params, xs, h0, cell=cell, implementation=implementation, **options)
        return jnp.sum(jnp.sin(hs)) + jnp.sum(h_last**2)

    return loss


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name == "MGU" else pytest.mark.slow) for name in laws.CELLS],
)
def test_second_derivatives(x64, name):
    """grad of grad, Hessian-vector products in both modes and the whole Hessian equal those of autodiff."""
    cell = laws.CELLS[name]
    shape = (6, (3,), 2, 3)
    arguments = laws.cast(laws.case(cell, *shape)[:3], "float64")
    tangents = laws.cast(laws.case(cell, *shape, seed=1)[:3], "float64")
    places = (0, 1, 2)

    def second(implementation):
        loss = scalar(cell, implementation, **options(ALL) | {"reset_to": tangents[2]})
        gradient = jax.grad(loss, places)

        def along(*arguments):
            leaves = zip(jax.tree.leaves(gradient(*arguments)), jax.tree.leaves(tangents), strict=True)
            return sum(jnp.vdot(g, t) for g, t in leaves)

        return {
            "reverse over reverse": jax.grad(along, places)(*arguments),
            "forward over reverse": jax.jvp(gradient, arguments, tangents)[1],
            "hessian": jax.hessian(loss, 2)(*arguments),
        }

    manual, autodiff = second("manual"), second("autodiff")
    for mode in manual:
        for got, wanted in zip(jax.tree.leaves(manual[mode]), jax.tree.leaves(autodiff[mode]), strict=True):
            assert laws.relative_error(got, wanted) <= 1e-11, mode
    two = zip(*(jax.tree.leaves(manual[mode]) for mode in list(manual)[:2]), strict=True)
    assert max(laws.relative_error(a, b) for a, b in two) <= 1e-10


def stack(axis, *arrays):
    return jnp.stack(arrays, axis)


@few_pairs
@pytest.mark.parametrize("axes", [(0, None, None), (None, 0, None), (None, None, 0), (0, 1, 1)], ids=str)
def test_vmap_over_any_argument(x64, implementation, name, axes):
    """Values and gradients of every member equal those of a separate call."""
    cell = laws.CELLS[name]
    members = [laws.cast(laws.case(cell, 4, (2,), seed=seed)[:3], "float64") for seed in range(3)]
    stacked = tuple(
        members[0][i] if axis is None else jax.tree.map(partial(stack, axis), *(member[i] for member in members))
        for i, axis in enumerate(axes)
    )
    gradient = jax.value_and_grad(scalar(cell, implementation), (0, 1, 2))
    together = jax.vmap(gradient, axes)(*stacked)
    for i, member in enumerate(members):
        arguments = tuple(members[0][j] if axis is None else member[j] for j, axis in enumerate(axes))
        alone = gradient(*arguments)
        for got, wanted in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            assert laws.relative_error(got[i], wanted) <= 1e-12


@few_pairs
def test_vmap_over_lengths_resets_keys_and_rates(x64, implementation, name):
    """Everything that may be traced is mapped over; each result equals that of a separate call."""
    cell = laws.CELLS[name]
    params, xs, h0 = laws.cast(laws.case(cell, 6)[:3], "float64")
    rng = np.random.default_rng(0)
    mapped = {
        "lengths": jnp.asarray(rng.integers(0, 7, (4, 3))),
        "resets": jnp.asarray(rng.random((4, 6, 3)) < 0.3),
        "key": jax.random.split(laws.KEY, 4),
        "zoneout": jnp.asarray(rng.random(4) * 0.5),
        "recurrent_dropout": jnp.asarray(rng.random(4) * 0.5),
        "dropconnect": jnp.asarray(rng.random(4) * 0.5),
    }

    def gradient(chosen):
        return jax.grad(scalar(cell, implementation, **chosen), (0, 1, 2))(params, xs, h0)

    together = jax.vmap(gradient)(mapped)
    for i in range(4):
        alone = gradient({k: v[i] for k, v in mapped.items()})
        for got, wanted in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            assert laws.relative_error(got[i], wanted) <= 1e-11


@few_pairs
def test_gradient_through_vmap(x64, implementation, name):
    """The gradient of weights that a vmap over the data shares is the sum over the data."""
    cell = laws.CELLS[name]
    params, xs, h0 = laws.cast(laws.case(cell, 4, (6,))[:3], "float64")
    loss = scalar(cell, implementation)
    mapped = jax.grad(lambda p: jnp.sum(jax.vmap(loss, (None, 1, 0))(p, xs, h0)))(params)
    batched = jax.grad(loss)(params, xs, h0)
    for got, wanted in zip(jax.tree.leaves(mapped), jax.tree.leaves(batched), strict=True):
        assert laws.relative_error(got, wanted) <= 1e-12


@few_pairs
def test_resets_return_to_reset_to(x64, implementation, name):
    """Two parts that pass the state on equal the whole sequence, also with resets in the second part."""
    cell, resets = laws.CELLS[name], np.random.default_rng(4).random((9, 3)) < 0.4
    params, xs, h0 = laws.cast(laws.case(cell, 9)[:3], "float64")
    chosen = {"cell": cell, "implementation": implementation}

    def whole(params, xs, h0):
        return mgu.scan(params, xs, h0, resets=resets, **chosen)[0]

    def parts(params, xs, h0):
        first, middle = mgu.scan(params, xs[:4], h0, resets=resets[:4], **chosen)
        second, _ = mgu.scan(params, xs[4:], middle, resets=resets[4:], reset_to=h0, **chosen)
        return jnp.concatenate([first, second])

    one, other = (
        jax.value_and_grad(lambda *a, f=f: jnp.sum(jnp.sin(f(*a))), (0, 1, 2))(params, xs, h0) for f in (whole, parts)
    )
    for got, wanted in zip(jax.tree.leaves(other), jax.tree.leaves(one), strict=True):
        assert laws.relative_error(got, wanted) <= 1e-12


@few_pairs
def test_inside_another_scan(x64, implementation, name):
    """A loop may run and differentiate the whole sequence in its body."""
    cell = laws.CELLS[name]
    params, xs, h0 = laws.cast(laws.case(cell, 3, (2,), 3, 4)[:3], "float64")

    def outer(implementation):
        loss = scalar(cell, implementation)

        def body(h, _):
            h = h - 0.1 * jax.grad(loss, 2)(params, xs, h)
            return mgu.scan(params, xs, h, cell=cell, implementation=implementation)[1], jnp.sum(h)

        return jax.value_and_grad(lambda h: jnp.sum(jax.lax.scan(body, h, None, length=3)[1]))(h0)

    (a, da), (b, db) = outer(implementation), outer("autodiff")
    assert laws.relative_error(a, b) <= 1e-12
    assert laws.relative_error(da, db) <= 1e-12


@both_ways
@settings(max_examples=15, deadline=None, derandomize=True)
@given(pair=st.sampled_from(laws.PAIRS), shape=st.tuples(*(st.integers(*r) for r in SIZES)), data=st.data())
def test_any_shape_lengths_and_resets(reverse, pair, shape, data):
    """hypothesis draws implementation, cell, T, B, D, H, lengths and resets."""
    (implementation, name), (T, B, D, H) = pair, shape
    lengths = data.draw(st.none() | st.lists(st.integers(0, T), min_size=B, max_size=B))
    resets = data.draw(st.none() | st.lists(st.lists(st.booleans(), min_size=B, max_size=B), min_size=T, max_size=T))
    chosen = {
        "lengths": None if lengths is None else np.array(lengths, int).reshape(B),
        "resets": None if resets is None else np.array(resets, bool).reshape(T, B),
        "reverse": reverse,
    }
    with double_precision():
        cell = laws.CELLS[name]
        # With one or two features, the derivative of a normalised layer nearly vanishes by cancellation.
        tolerance = 1e-7 if cell.layer_norm else 1e-12
        laws.equals_oracle(laws.case(cell, T, (B,), D, H), "float64", cell, implementation, tolerance, **chosen)


@few_pairs
def test_two_parts_equal_the_whole(x64, implementation, name):
    cell = laws.CELLS[name]
    params, xs, h0 = laws.cast(laws.case(cell, 9)[:3], "float64")
    chosen = {"cell": cell, "implementation": implementation}
    whole, last = mgu.scan(params, xs, h0, **chosen)
    first, middle = mgu.scan(params, xs[:4], h0, **chosen)
    second, end = mgu.scan(params, xs[4:], middle, **chosen)
    np.testing.assert_allclose(jnp.concatenate([first, second]), whole, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(end, last, rtol=1e-12, atol=1e-12)


@few_pairs
def test_samples_do_not_mix(x64, implementation, name):
    """A permutation of the batch permutes the result."""
    cell = laws.CELLS[name]
    params, xs, h0 = laws.cast(laws.case(cell, 6)[:3], "float64")
    order, chosen = np.array([2, 0, 1]), {"cell": cell, "implementation": implementation}
    hs, h_last = mgu.scan(params, xs, h0, lengths=laws.LENGTHS, resets=laws.RESETS, **chosen)
    moved_hs, moved_last = mgu.scan(
        params, xs[:, order], h0[order], lengths=laws.LENGTHS[order], resets=laws.RESETS[:, order], **chosen
    )
    np.testing.assert_allclose(moved_hs, hs[:, order], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(moved_last, h_last[order], rtol=1e-12, atol=1e-12)


@few_pairs
def test_reverse_is_the_flipped_run(x64, implementation, name):
    cell = laws.CELLS[name]
    params, xs, h0 = laws.cast(laws.case(cell, 6)[:3], "float64")
    hs, h_last = mgu.scan(params, xs, h0, cell=cell, implementation=implementation, reverse=True)
    flipped, flipped_last = mgu.scan(params, xs[::-1], h0, cell=cell, implementation=implementation)
    np.testing.assert_allclose(hs, flipped[::-1], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(h_last, flipped_last, rtol=1e-12, atol=1e-12)


@few_pairs
@both_ways
def test_padding_changes_nothing(implementation, name, reverse):
    """Values and gradients keep every bit whatever the padding holds, and are never NaN."""
    cell = laws.CELLS[name]
    params, xs, h0 = laws.cast(laws.case(cell, 6)[:3], "float32")
    padding = np.arange(6)[:, None, None] >= laws.LENGTHS[:, None]
    chosen = {"lengths": laws.LENGTHS, "reverse": reverse, "resets": laws.RESETS}
    gradient = jax.value_and_grad(scalar(cell, implementation, **chosen), (0, 1, 2))
    clean = gradient(params, xs, h0)
    for content in (0.0, np.nan, np.inf, 1e30):
        spoilt = gradient(params, jnp.where(padding, content, xs), h0)
        for a, b in zip(jax.tree.leaves(spoilt), jax.tree.leaves(clean), strict=True):
            np.testing.assert_array_equal(a, b)
    assert np.all(np.asarray(clean[1][1])[np.broadcast_to(padding, xs.shape)] == 0)
    hs, h_last = mgu.scan(
        params, xs, h0, cell=cell, implementation=implementation, lengths=laws.LENGTHS, reverse=reverse
    )
    assert np.all(np.asarray(hs)[np.broadcast_to(padding, hs.shape)] == 0)
    np.testing.assert_array_equal(h_last[1], h0[1])  # length 0


@few_pairs
@both_ways
def test_appended_padding_and_a_mask_of_ones(x64, implementation, name, reverse):
    cell = laws.CELLS[name]
    params, xs, h0 = laws.cast(laws.case(cell, 6)[:3], "float64")
    chosen = {"cell": cell, "implementation": implementation, "reverse": reverse}
    plain = mgu.scan(params, xs, h0, **chosen)
    full = mgu.scan(params, xs, h0, lengths=np.full(3, 6), resets=np.zeros((6, 3), bool), **chosen)
    longer = mgu.scan(params, jnp.concatenate([xs, jnp.ones((4, 3, 4))]), h0, lengths=np.full(3, 6), **chosen)
    for a, b in zip(plain, full, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(longer[0][:6], plain[0], rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(longer[0][6:], np.zeros((4, 3, 5)))
    np.testing.assert_allclose(longer[1], plain[1], rtol=1e-12, atol=1e-12)
