"""The loops over time as one kernel: a whole segment in one launch on an NVIDIA Hopper GPU.

A ``lax.scan`` on a GPU launches several small kernels per time step, and the launches take most of the time. Here one
kernel runs all steps. ``mosaic.py`` says how the work is divided: a warpgroup computes 64 units of 16 samples, keeps
their state in registers, and shares with the other warpgroups what is multiplied by the weights.

What waits for what, in a step of the paper's cell. The numbers are those of the equations in ``layer.cell``:

    product with U_f^T  ->  f  (1)  ->  share f*h, barrier  ->  product with U_h^T  ->  c  (2)  ->  h  (3)  ->  share h,
    barrier. Back in time: dz_h  (4)  ->  share, barrier  ->  dr, the product with U_h  (5)  ->  dz_f  (6, 7)  ->
    share, barrier  ->  the product with U_f  ->  dh  (8).

A member that resets after the product, or does not reset, has both products behind one barrier. A diagonal recurrence
has no barrier. While a product runs, the results of the step are stored and the inputs of a later step are fetched.
"""

import functools
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from mgu_jax.kernels.differentiated import on_platform
from mgu_jax.kernels.mosaic import Places, Steps, Tuning, Warpgroup, fitted, is_interpreted, launch, padded
from mgu_jax.layer.bptt import Loops, Plan, backward_loop, forward_loop
from mgu_jax.layer.cell import Gates, InputTerms, StepWeights, add, masked, scaled, shares, slope_through_3
from mgu_jax.layer.family import Cell
from mgu_jax.layer.products import Products, like


class Forward(NamedTuple):
    """What the loop forward reads. Arrays of all steps are [T, B, H]; ``None`` is a term that is absent."""

    a_f: Array | None  # x W_f + b_f
    a_h: Array  # x W_h + b_h
    alpha: Array | None  # how much of the update takes place
    reset: Array | None  # 1 where h_reset enters the step, else 0


class Backward(NamedTuple):
    """What the loop back in time reads. Arrays of all steps are [T, B, H]; ``None`` is a term that is absent."""

    dhs: Array | None
    h: Array  # the states that entered the steps
    f: Array
    c: Array
    s_r: Array | None  # of the members that reset after the product
    alpha: Array | None
    reset: Array | None


class Constants(NamedTuple):
    """What is the same in all steps, [B, H]; ``None`` is a term that is absent."""

    h: Array  # the state before the first step; on the way back, the cotangent of the last one
    h_reset: Array | None = None
    mask: Array | None = None  # on what the products see of the state
    b_r: Array | None = None
    b_f: Array | None = None  # where x does not feed the gate; else it is in a_f


# The candidate's activation, and its derivative as a function of its value, in operations that the kernel has.
_ACTIVATION = {"tanh": jnp.tanh, "relu": lambda z: jnp.maximum(z, 0), "identity": lambda z: z}
_SLOPE = {"tanh": lambda c: 1 - c * c, "relu": lambda c: jnp.where(c > 0, 1.0, 0.0), "identity": lambda c: 1.0}


def _sigmoid(z: Array) -> Array:
    return 0.5 * jnp.tanh(0.5 * z) + 0.5


def places_of(cell: Cell) -> int:
    """How many places for what is multiplied a member needs: 2 where a step has two barriers, 4 where it has one."""
    if cell.recurrence == "diagonal":
        return 0
    return 2 if cell.reset == "before" and "h" in cell.gate else 4


def forward(
    cell: Cell, tuning: Tuning, reverse: bool, steps: Forward, constants: Constants, U_f: Array | None, U_h: Array
) -> tuple[Array, Array, Array, Array | None]:
    """(hs, f, c, s_r) of all steps, [T, B, H] each; s_r is ``None`` unless the cell resets after the product.

    Args:
        cell: a member that ``refusal`` does not refuse.
        tuning: how to compute.
        reverse: run from the last step to the first.
        steps, constants: what the loop reads.
        U_f, U_h: [H, H], or [H] where the recurrence is diagonal; U_f is ``None`` for a gate that does not see the
            state.
    """
    T = steps.a_h.shape[0]

    def body(warpgroup: Warpgroup, refs: Any, outputs: Any, scratch: dict[str, Any]) -> None:
        steps, constants, U_f, U_h = refs
        hs, fs, cs, s_rs = outputs
        left_f, left_h = warpgroup.left(U_f, scratch.get("U_f")), warpgroup.left(U_h, scratch.get("U_h"))
        ready = Steps(warpgroup, steps, reverse, T, scratch)
        places = Places(scratch.get("shared"), places_of(cell))
        h, h_reset, mask, b_r, b_f = map(warpgroup.constant, constants)

        def entering(h: Array, i: Any, loaded: Any) -> Array:
            """The state from which step i starts, shared."""
            if steps.reset is not None:
                h = jnp.where(ready.get(i, loaded, "reset") > 0, h_reset, h)
            if left_f is not None or cell.reset != "before":
                warpgroup.share((masked(h, mask), places.of(i)[0]))
            return h

        def step(i: Any, carry: tuple[Array, Any]) -> tuple[Array, Any]:
            h, loaded = carry
            here = ready.place(i)
            one, two = places.of(i)
            seen, s_r = masked(h, mask), None

            def fetch() -> tuple[Any, Any]:
                following = ready.refill(i)
                return ready.get(i, loaded), following

            of_h = [] if cell.reset == "before" else [(left_h, seen, one)]
            z_f, z_h, (now, following) = warpgroup.products([(left_f, seen, one)], of_h, meanwhile=fetch)
            f = _sigmoid(add(z_f, now.a_f, b_f))  # (1)

            def store_f() -> None:
                fs[here] = f

            if cell.reset == "before":
                r = f * seen
                warpgroup.share((r, two))
                z_h, _ = warpgroup.products([(left_h, r, two)], meanwhile=store_f)
            else:
                store_f()
            if s_rs is not None:
                s_r = add(z_h, b_r)
                s_rs[here] = s_r
                z_h = f * s_r
            c = _ACTIVATION[cell.activation](add(z_h, now.a_h))  # (2)
            u, w = shares(f, now.alpha, cell)
            h = h + u * (c - h) if cell.beta == 0 else (1 - u) * h + w * c  # (3)
            hs[here] = h
            cs[here] = c
            ready.wait(i + 1)
            return entering(h, i + 1, following), following

        loaded = ready.first()
        lax.fori_loop(0, T, step, (entering(h, 0, loaded), loaded))
        ready.finish()

    turned = tuple(None if U is None else U.T for U in (U_f, U_h))
    sizes = (T, T, T, T if cell.reset == "after" else None)
    hs, f, c, s_r = launch(body, tuning, (steps, constants), turned, sizes, places_of(cell))
    return hs, f, c, s_r


def backward(
    cell: Cell, tuning: Tuning, reverse: bool, steps: Backward, constants: Constants, U_f: Array | None, U_h: Array
) -> tuple[Array, Array, Array, Array | None]:
    """(dz_f, dz_h) of all steps, [T, B, H], and (dh0, dh_reset) [B, H]; dh_reset is ``None`` without resets.

    Args:
        cell, tuning, reverse, U_f, U_h: as in ``forward``.
        steps, constants: what the loop reads; ``constants.h`` is the cotangent of the last state.
    """
    T = steps.h.shape[0]
    resets = steps.reset is not None

    def body(warpgroup: Warpgroup, refs: Any, outputs: Any, scratch: dict[str, Any]) -> None:
        steps, constants, U_f, U_h = refs
        dz_fs, dz_hs, dh0, dh_reset_sum = outputs
        left_f, left_h = warpgroup.left(U_f, scratch.get("U_f")), warpgroup.left(U_h, scratch.get("U_h"))
        ready = Steps(warpgroup, steps, not reverse, T, scratch)
        places = Places(scratch.get("shared"), places_of(cell))
        dh, _, mask, _, _ = map(warpgroup.constant, constants)

        def step(i: Any, carry: tuple[Any, ...]) -> tuple[Any, ...]:
            dh, dh_reset, now = carry
            here = ready.place(i)
            one, two = places.of(i)
            h, f, c = now.h, now.f, now.c
            dh_next = add(now.dhs, dh)
            (u, w), slope_f = shares(f, now.alpha, cell), f * (1 - f)
            dz_h = dh_next * w * _SLOPE[cell.activation](c)  # (4)
            dz_f = scaled(dh_next, now.alpha) * slope_through_3(f, h, c, cell)  # (6, 7)

            def store_h() -> Any:
                dz_hs[here] = dz_h
                return ready.refill(i)

            def take(following: Any) -> Any:
                ready.wait(i + 1)
                return ready.get(i + 1, following)

            if cell.reset == "before":
                warpgroup.share((dz_h, one))
                dr, following = warpgroup.products([(left_h, dz_h, one)], meanwhile=store_h)  # (5)
                dz_f = dz_f + dr * slope_f * masked(h, mask)
                dseen = dr * f
                if left_f is not None:
                    warpgroup.share((dz_f, two))
                more, ahead = warpgroup.products([(left_f, dz_f, two)], meanwhile=lambda: take(following))
                dseen = add(dseen, more)
            else:
                ds_r = dz_h
                if now.s_r is not None:
                    dz_f, ds_r = dz_f + dz_h * slope_f * now.s_r, dz_h * f
                pairs = [(ds_r, one)] if left_f is None else [(ds_r, one), (dz_f, two)]
                warpgroup.share(*pairs)
                both = [(left_h, ds_r, one), (left_f, dz_f, two)]
                dseen, ahead = warpgroup.products(both, meanwhile=lambda: take(store_h()))
            dz_fs[here] = dz_f
            dh = add(dh_next * (1 - u), masked(dseen, mask))  # (8)
            if now.reset is not None:
                dh_reset = dh_reset + jnp.where(now.reset > 0, dh, 0.0)  # (15)
                dh = jnp.where(now.reset > 0, 0.0, dh)  # (15)
            return dh, dh_reset, ahead

        start = ready.get(0, ready.first())
        dh, dh_reset, _ = lax.fori_loop(0, T, step, (dh, dh * 0 if resets else None, start))
        dh0[warpgroup.tile, warpgroup.units] = dh
        if dh_reset is not None:
            dh_reset_sum[warpgroup.tile, warpgroup.units] = dh_reset
        ready.finish()

    sizes = (T, T, 0, 0 if resets else None)
    dz_f, dz_h, dh0, dh_reset = launch(body, tuning, (steps, constants), (U_f, U_h), sizes, places_of(cell))
    return dz_f, dz_h, dh0, dh_reset


# How the kernel serves as the loops of ``layer.bptt``.

NEWEST_JAX_WITHOUT = (0, 11, 1)
LARGEST = 192


def accuracy(product: Products) -> Tuning | None:
    """The tuning that computes as exactly as these products do; ``None`` if there is none."""
    if product.compute_dtype == "bfloat16":
        return Tuning()
    if product.compute_dtype not in (None, "float32") or isinstance(product.precision, lax.DotAlgorithmPreset):
        return None
    fast = product.precision in (None, "default", lax.Precision.DEFAULT)
    return Tuning(terms=3, activation="fast" if fast else "exact")


def refusal(cell: Cell, H: int, dtype: Any, product: Products) -> str | None:
    """Why the kernel cannot serve, as the end of a sentence; ``None`` if it can."""
    if jax.__version_info__ <= NEWEST_JAX_WITHOUT:
        return f"needs JAX 0.11.2 or newer; this is {jax.__version__}"
    if not is_interpreted() and not _is_hopper():
        return "needs an NVIDIA GPU of the Hopper generation"
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.auto_axes or mesh.explicit_axes:
        return "needs a mesh whose axes are all manual, as inside jax.shard_map"
    if "h" not in cell.candidate or cell.layer_norm:
        return "needs a cell with a candidate that sees the state, and no layer normalisation"
    if jnp.dtype(dtype) != jnp.float32:
        return f"needs float32 parameters; these are {jnp.dtype(dtype).name}"
    if accuracy(product) is None:
        return "needs compute_dtype None, float32 or bfloat16, and a precision by its name"
    if H > LARGEST:
        return f"needs at most {LARGEST} hidden units, whose weights fit one multiprocessor; this layer has {H}"
    return None


def _is_hopper() -> bool:
    default = jax.config.jax_default_device  # pyright: ignore (a device, the name of a platform, or None)
    device = jax.devices(default)[0] if isinstance(default, str) else default or jax.devices()[0]
    return device.platform == "gpu" and str(getattr(device, "compute_capability", "")).startswith("9.")


def tuning_for(product: Products, cell: Cell, H: int, arrays: int) -> Tuning:
    """How to compute these products for H units and so many arrays of inputs per step."""
    wanted = accuracy(product)
    assert wanted is not None
    if wanted.terms == 1 and padded(H) > 128:
        wanted = replace(wanted, weights="shared")
    if wanted.terms == 3 and padded(H) >= 128:
        wanted = replace(wanted, weights="split" if padded(H) == 128 else "streamed")
    found = fitted(wanted, H, arrays, places_of(cell))
    return replace(found, weights="shared", sync="mbarrier") if is_interpreted() else found


def _all(x: Array | None, shape: tuple[int, ...]) -> Array | None:
    return None if x is None else jnp.broadcast_to(x, shape).astype(jnp.float32)


def _present(steps: Any) -> int:
    return sum(x is not None for x in steps)


def _forward_kernel(
    plan: Plan, weights: StepWeights, inputs: InputTerms, h: Array, h_reset: Array | None, reset: Array | None
) -> tuple[Array, Array, Gates]:
    p, shape = weights.params, inputs.xW_h.shape
    a_f = None if inputs.xW_f is None else add(inputs.xW_f, like(p.b_f, inputs.xW_f))
    b_f = like(p.b_f, h) if a_f is None else None
    a_h: Any = add(inputs.xW_h, like(p.b_h, inputs.xW_h))
    steps = Forward(a_f, a_h, _all(inputs.alpha, shape), _all(reset, shape))
    constants = Constants(h, h_reset, weights.mask, like(p.b_r, h), b_f)
    tuning = tuning_for(plan.product, plan.cell, h.shape[-1], _present(steps))
    U_h: Any = p.U_h
    hs, f, c, s_r = forward(plan.cell, tuning, plan.reverse, steps, constants, p.U_f, U_h)
    return hs[0 if plan.reverse else -1], hs, Gates(f, c, s_r)


def _backward_kernel(
    plan: Plan, weights: StepWeights, carry: tuple[Array, Array | None], rows: Any
) -> tuple[tuple[Array, Array | None], tuple[Array, Array]]:
    (dh, dh_reset), (dhs, h, gates, alpha, reset) = carry, rows
    steps = Backward(dhs, h, gates.f, gates.c, gates.s_r, _all(alpha, h.shape), _all(reset, h.shape))
    tuning = tuning_for(plan.product, plan.cell, h.shape[-1], _present(steps))
    constants, U_f, U_h = Constants(dh, mask=weights.mask), weights.params.U_f, weights.params.U_h
    dz_f, dz_h, dh, dh_reset_segment = backward(plan.cell, tuning, plan.reverse, steps, constants, U_f, U_h)
    return (dh, add(dh_reset, dh_reset_segment)), (dz_f, dz_h)


# The machine may have more than its GPU, and only the compiler knows for which part it compiles.
_on_gpu = functools.partial(on_platform, "cuda", everywhere=is_interpreted)
LOOPS = Loops(_on_gpu(_forward_kernel, forward_loop), _on_gpu(_backward_kernel, backward_loop))
