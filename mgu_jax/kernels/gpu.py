"""The loops over time as one kernel: a whole segment in one launch, by Pallas on Mosaic GPU, for NVIDIA Hopper.

A ``lax.scan`` on a GPU launches several small kernels per time step, and the launches take most of the time. Here one
kernel runs all steps. A block of threads (CTA) takes a tile of N samples through the segment; it has one warpgroup of
128 threads for every 64 hidden units. Nothing is exchanged between the blocks, so they need not wait for each other.

The products of a step are turned around, so that the 64 rows of one tensor core instruction (wgmma) fall on the units
of a warpgroup, and a tile can have as few as 16 samples:

    hU^T [64, N] = U^T [64 rows, H] @ h^T [H, N]

What is where:

    registers        the state h, float32 [64, N], and everything else that a warpgroup computes for its 64 units; the
                     rows of U_f^T and U_h^T, for the whole segment, where they fit (``Tuning.weights``)
    shared memory    h and f*h as bfloat16 [H, N], from which every warpgroup reads all H units; the inputs of the next
                     steps, copied there ahead of time (``Tuning.inputs``)
    global memory    the arrays of all steps, in blocks [T, B/N, H, N]: what a warpgroup reads or writes in one step is
                     one contiguous piece of 64*N numbers

What waits for what, in a step of the paper's cell. The numbers are those of the equations in ``layer.cell``:

    product with U_f^T  ->  f  (1)  ->  share f*h, barrier  ->  product with U_h^T  ->  c  (2)  ->  h  (3)  ->  share h,
    barrier. Back in time: dz_h  (4)  ->  share, barrier  ->  dr, the product with U_h  (5)  ->  dz_f  (6), (7)  ->
    share, barrier  ->  the product with U_f  ->  dh  (8).

A member that resets after the product, or does not reset, has both products behind one barrier. While a product runs,
the results of the step are stored and the inputs of the next step are fetched.

Tensor cores multiply bfloat16 numbers. With ``Tuning.terms`` = 3 every operand is the sum of two of them, and three
products are added, which leaves a relative error near 2^-16.
"""

import functools
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from mgu_jax.layer.bptt import Loops, Plan, backward_loop, forward_loop
from mgu_jax.layer.cell import Gates, InputTerms, StepWeights, add
from mgu_jax.layer.family import Cell
from mgu_jax.layer.products import Products, like

F32, BF16 = jnp.float32, jnp.bfloat16
SHARED_MEMORY = 227 * 1024  # bytes that one block may have
UNITS = 64  # of a warpgroup


@dataclass(frozen=True)
class Tuning:
    """How the kernel computes. The defaults measured best on an H100 for H = 64 and 128."""

    tile: int = 16  # samples of a block
    terms: int = 1  # bfloat16 products per product: 1 or 3
    activation: str = "fast"  # "fast": tanh.approx, error 5e-4; "exact"
    weights: str = "registers"  # or "shared"
    inputs: str = "shared"  # copied ahead into shared memory; or "registers": loaded one step ahead
    depth: int = 4  # steps that are copied ahead
    sync: str = "bar"  # between warpgroups: one bar.sync of the block; or "mbarrier"


def shared_bytes(tuning: Tuning, H: int, arrays: int) -> int:
    """The shared memory of a block, for H units and so many arrays of inputs per step."""
    features, parts = padded(H), 1 if tuning.terms == 1 else 2
    total = 1024 + 2 * 4 * parts * features * tuning.tile  # barriers; what is multiplied, two bytes a number
    if tuning.weights == "shared":
        total += 2 * 2 * parts * features * features
    if tuning.inputs == "shared":
        total += 4 * tuning.depth * arrays * features * tuning.tile
    return total


def fitted(tuning: Tuning, H: int, arrays: int) -> Tuning:
    """The tuning with as many steps copied ahead as fit shared memory, or with inputs in registers."""
    for depth in range(tuning.depth, 1, -1):
        found = replace(tuning, depth=depth)
        if shared_bytes(found, H, arrays) <= SHARED_MEMORY:
            return found
    return replace(tuning, inputs="registers")


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


class _Pallas(NamedTuple):
    """Pallas, imported when it is first needed."""

    pl: Any
    plgpu: Any


@functools.cache
def _pallas() -> _Pallas:
    return _Pallas(
        importlib.import_module("jax.experimental.pallas"),
        importlib.import_module("jax.experimental.pallas.mosaic_gpu"),
    )


def padded(features: int) -> int:
    """H filled up to whole warpgroups. A padded unit stays 0, since all that it meets is 0."""
    return -(-features // UNITS) * UNITS


def _to_blocks(x: Array | None, features: int, tile: int) -> Array | None:
    """[..., B, H] -> [..., B/N, H, N], filled up with zeros."""
    if x is None:
        return None
    *steps, B, H = x.shape
    x = jnp.pad(x, [(0, 0)] * len(steps) + [(0, -B % tile), (0, features - H)])
    return jnp.swapaxes(x.reshape(*steps, -1, tile, features), -1, -2)


def _from_blocks(x: Array, B: int, H: int) -> Array:
    """The inverse of ``_to_blocks``."""
    *steps, tiles, features, tile = x.shape
    return jnp.swapaxes(x, -1, -2).reshape(*steps, tiles * tile, features)[..., :B, :H]


def _parts(U: Array, features: int, terms: int) -> Array:
    """U [H, H] as a sum of ``terms`` // 2 + 1 bfloat16 matrices, [parts, H, H], filled up with zeros."""
    U = jnp.pad(U, [(0, features - size) for size in U.shape])
    high = lax.reduce_precision(U, 8, 7)  # a plain cast and back would be optimised away, and the rest be zero
    return jnp.stack([high.astype(BF16)] if terms == 1 else [high.astype(BF16), (U - high).astype(BF16)])


class _Warpgroup:
    """What both loops do alike, as one warpgroup sees it: 64 units of a tile of N samples."""

    def __init__(self, features: int, tuning: Tuning, barrier: Any):
        self.pl, self.plgpu = _pallas()
        self.features, self.tuning, self.barrier = features, tuning, barrier
        self.tile, self.number = lax.axis_index("tile"), lax.axis_index("warpgroup")
        self.units = self.pl.ds(self.number * UNITS, UNITS)

    def load(self, ref: Any) -> Array:
        return self.plgpu.load(ref, layout=self.plgpu.Layout.WGMMA, optimized=False)

    def constant(self, ref: Any) -> Any:
        """[64, N] of an array [B/N, H, N]."""
        return None if ref is None else self.load(ref.at[self.tile, self.units])

    def left(self, ref: Any, shared: Any) -> Any:
        """The rows of a weight [parts, H, H] that this warpgroup multiplies with; ``None`` if there is no weight."""
        if ref is None:
            return None
        parts = [self.load(ref.at[i, self.units]) for i in range(ref.shape[0])]
        if shared is None:
            return parts
        for i, part in enumerate(parts):
            shared[i, self.number] = part
        return [shared.at[i, self.number] for i in range(len(parts))]

    def share(self, *pairs: tuple[Array, Any]) -> None:
        """Give every x [64, N] to all warpgroups, as rows of its shared [parts, H, N]."""
        for x, shared in pairs:
            high = x.astype(BF16)
            shared[0, self.units] = high
            if self.tuning.terms == 3:
                shared[1, self.units] = (x - high.astype(F32)).astype(BF16)
        if self.features == UNITS:
            self.plgpu.commit_smem()
        elif self.tuning.sync == "bar":
            _synchronise(self.plgpu, 2 * self.features)
        else:
            self.plgpu.commit_smem()
            self.plgpu.barrier_arrive(self.barrier)
            self.plgpu.barrier_wait(self.barrier)

    def products(self, *sums: list[tuple[Any, Any]], meanwhile: Callable[[], Any] = lambda: None) -> tuple[Any, ...]:
        """For every list the sum of left @ shared [H, N]; last, what ``meanwhile`` returns, which runs beside them."""

        def run(*accumulators: Any) -> Any:
            for accumulator, factors in zip(accumulators, sums, strict=True):
                for left, shared in factors:
                    self.plgpu.wgmma(accumulator, left[0], shared.at[0])
                    if self.tuning.terms == 3:
                        self.plgpu.wgmma(accumulator, left[0], shared.at[1])
                        self.plgpu.wgmma(accumulator, left[1], shared.at[0])
            result = meanwhile()
            return *(accumulator[...] for accumulator in accumulators), result

        return self.pl.run_scoped(run, *[self.plgpu.ACC((UNITS, self.tuning.tile), F32)] * len(sums))


def _synchronise(plgpu: Any, threads: int) -> None:
    """Wait until all warpgroups are here, and what they wrote to shared memory can be multiplied.

    One instruction, where an mbarrier takes three. The variables that ``bar_op`` closes over have the names by which
    Pallas's interpreter knows what the function does.
    """
    utils = importlib.import_module("jax.experimental.mosaic.gpu.utils")
    nvvm = importlib.import_module("jaxlib.mlir.dialects.nvvm")
    operation, barrier_id, num_threads = "sync", 0, threads

    @plgpu.inline_mgpu()
    def bar_op(_: Any) -> None:
        nvvm.fence_proxy(nvvm.ProxyKind.async_shared, space=nvvm.SharedSpace.shared_cta)
        utils.inline_ptx(f"bar.{operation} {barrier_id}, {num_threads};", has_side_effects=True)

    bar_op()


class _Steps:
    """The inputs of the steps, [64, N] each, made ready ahead of the step that needs them."""

    def __init__(
        self, warpgroup: _Warpgroup, refs: Any, order: Callable[[Any], Any], count: int, scratch: dict[str, Any]
    ):
        self.warpgroup, self.kind, self.order, self.count = warpgroup, type(refs), order, count
        self.present = [i for i, ref in enumerate(refs) if ref is not None]
        self.refs = [refs[i] for i in self.present]
        self.ring: Any = scratch.get("ring")
        self.filled: Any = scratch.get("filled")
        self.depth = warpgroup.tuning.depth

    def _sources(self, i: Any) -> list[Any]:
        t = self.order(jnp.minimum(i, self.count - 1))
        return [ref.at[t, self.warpgroup.tile, self.warpgroup.units] for ref in self.refs]

    def _slot(self, i: Any) -> Any:
        return lax.rem(jnp.int32(i), jnp.int32(self.depth))

    def _barrier(self, i: Any) -> Any:
        return self.filled.at[self._slot(i) * (self.warpgroup.features // UNITS) + self.warpgroup.number]

    def _fetch(self, i: Any) -> None:
        for j, source in enumerate(self._sources(i)):
            target = self.ring.at[self._slot(i), j, self.warpgroup.number]
            self.warpgroup.plgpu.copy_gmem_to_smem(source, target, self._barrier(i))

    def _named(self, arrays: list[Array]) -> Any:
        entries: list[Any] = [None] * len(self.kind._fields)
        for i, array in zip(self.present, arrays, strict=True):
            entries[i] = array
        return self.kind(*entries)

    def _take(self, i: Any) -> Any:
        if self.ring is None:
            return self._named([self.warpgroup.load(source) for source in self._sources(i)])
        self.warpgroup.plgpu.barrier_wait(self._barrier(i))
        held = (self.ring.at[self._slot(i), j, self.warpgroup.number] for j in range(len(self.refs)))
        return self._named([self.warpgroup.load(ref) for ref in held])

    def first(self) -> Any:
        """The inputs of step 0."""
        if self.ring is not None:
            for i in range(self.depth):
                self._fetch(i)
        return self._take(0)

    def next(self, i: Any) -> Any:
        """In step i, behind its first barrier: the inputs of step i + 1."""
        if self.ring is not None:
            self._fetch(i + self.depth)  # into the slot that every thread read in step i - 1
        return self._take(i + 1)

    def finish(self) -> None:
        """Wait for the copies that no step waited for: a block must not end before them."""
        if self.ring is not None:
            for i in range(self.count + 1, self.count + self.depth):
                self.warpgroup.plgpu.barrier_wait(self._barrier(i))


def _share(cell: Cell, f: Array, alpha: Array | None) -> Array:
    """u, the share of the candidate in the new state."""
    u = f if cell.update == "f" else 1 - f
    return u if alpha is None else u * alpha


def _entering(h: Array, h_reset: Array | None, reset: Array | None) -> Array:
    return h if reset is None or h_reset is None else jnp.where(reset > 0, h_reset, h)


def _sum(*terms: Any) -> Any:
    """The sum of the terms that are present, of which there is at least one."""
    present = [term for term in terms if term is not None]
    return sum(present[1:], present[0])


class _Buffers:
    """Two places in shared memory for what is multiplied.

    A place may be written again when every warpgroup has read it. With two barriers per step, each of the places is
    safe by the other's barrier. With one, the places of odd and even steps have to be different.
    """

    def __init__(self, shared: Any, barriers: int):
        self.shared, self.barriers = shared, barriers

    def of(self, i: Any) -> tuple[Any, Any]:
        first = 0 if self.barriers == 2 else 2 * lax.rem(jnp.int32(i), jnp.int32(2))
        return self.shared.at[first], self.shared.at[first + 1]


def forward(
    cell: Cell, tuning: Tuning, reverse: bool, steps: Forward, constants: Constants, U_f: Array | None, U_h: Array
) -> tuple[Array, Array, Array, Array | None]:
    """(hs, f, c, s_r) of all steps, [T, B, H] each; s_r is ``None`` unless the cell resets after the product.

    Args:
        cell: a member that ``refusal`` does not refuse.
        tuning: how to compute.
        reverse: run from the last step to the first.
        steps, constants: what the loop reads.
        U_f, U_h: [H, H]; U_f is ``None`` for a gate that does not see the state.
    """
    T = steps.a_h.shape[0]
    activation = {"tanh": jnp.tanh, "relu": lambda z: jnp.maximum(z, 0), "identity": lambda z: z}[cell.activation]
    barriers = 2 if cell.reset == "before" and U_f is not None else 1

    def order(i: Any) -> Any:
        return T - 1 - i if reverse else i

    def body(warpgroup: _Warpgroup, refs: Any, outputs: Any, scratch: dict[str, Any]) -> None:
        steps, constants, U_f, U_h = refs
        hs, fs, cs, s_rs = outputs
        ready = _Steps(warpgroup, steps, order, T, scratch)
        left_f, left_h = warpgroup.left(U_f, scratch.get("U_f")), warpgroup.left(U_h, scratch.get("U_h"))
        h, h_reset, mask, b_r, b_f = map(warpgroup.constant, constants)
        buffers = _Buffers(scratch["shared"], barriers)

        def seen(h: Array) -> Array:
            return h if mask is None else h * mask

        def step(i: Any, carry: tuple[Array, Any]) -> tuple[Array, Any]:
            h, now = carry
            place = (order(i), warpgroup.tile, warpgroup.units)
            one, two = buffers.of(i)
            z_f = z_h = s_r = None
            if cell.reset != "before":
                sums = [[(left, one)] for left in (left_f, left_h) if left is not None]
                *found, ahead = warpgroup.products(*sums, meanwhile=lambda: ready.next(i))
                z_f, z_h = found if left_f is not None else (None, *found)
            elif left_f is not None:
                z_f, ahead = warpgroup.products([(left_f, one)], meanwhile=lambda: ready.next(i))
            else:
                ahead = ready.next(i)
            f = _sigmoid(_sum(z_f, now.a_f, b_f))  # (1)

            def store_f() -> None:
                fs[place] = f

            if cell.reset == "before":
                warpgroup.share((f * seen(h), two))
                z_h, _ = warpgroup.products([(left_h, two)], meanwhile=store_f)
            else:
                store_f()
            if s_rs is not None:
                s_r = _sum(z_h, b_r)
                s_rs[place] = s_r
                z_h = f * s_r
            c = activation(_sum(z_h, now.a_h))  # (2)
            h = h + _share(cell, f, now.alpha) * (c - h)  # (3)
            hs[place] = h
            cs[place] = c
            h = _entering(h, h_reset, ahead.reset)
            if left_f is not None or cell.reset != "before":
                warpgroup.share((seen(h), buffers.of(i + 1)[0]))
            return h, ahead

        start = ready.first()
        h = _entering(h, h_reset, start.reset)
        warpgroup.share((seen(h), buffers.of(0)[0]))
        lax.fori_loop(0, T, step, (h, start))
        ready.finish()

    after = cell.reset == "after"
    weights = (None if U_f is None else U_f.T, U_h.T)
    hs, f, c, s_r = _launch(body, tuning, (steps, constants), weights, (T, T, T, T if after else None))
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
    barriers = 2 if cell.reset == "before" and U_f is not None else 1
    resets = steps.reset is not None

    def order(i: Any) -> Any:
        return i if reverse else T - 1 - i

    def body(warpgroup: _Warpgroup, refs: Any, outputs: Any, scratch: dict[str, Any]) -> None:
        steps, constants, U_f, U_h = refs
        dz_fs, dz_hs, dh0, dh_reset_sum = outputs
        ready = _Steps(warpgroup, steps, order, T, scratch)
        left_f, left_h = warpgroup.left(U_f, scratch.get("U_f")), warpgroup.left(U_h, scratch.get("U_h"))
        dh, _, mask, _, _ = map(warpgroup.constant, constants)
        buffers = _Buffers(scratch["shared"], barriers)

        def masked(x: Array) -> Array:
            return x if mask is None else x * mask

        def step(i: Any, carry: tuple[Any, ...]) -> tuple[Any, ...]:
            dh, dh_reset, now = carry
            place = (order(i), warpgroup.tile, warpgroup.units)
            one, two = buffers.of(i)
            h, f, c = now.h, now.f, now.c
            dh_next = dh if now.dhs is None else dh + now.dhs
            u, slope_f = _share(cell, f, now.alpha), f * (1 - f)
            dz_h = dh_next * u * _slope(cell, c)  # (4)
            toward = c - h if cell.update == "f" else h - c
            dz_f = (dh_next if now.alpha is None else dh_next * now.alpha) * slope_f * toward  # (6), (7)

            def store_h() -> Any:
                dz_hs[place] = dz_h
                return ready.next(i)

            if cell.reset == "before":
                warpgroup.share((dz_h, one))
                dr, ahead = warpgroup.products([(left_h, one)], meanwhile=store_h)  # (5)
                dz_f = dz_f + dr * slope_f * masked(h)
                dseen = dr * f
                if left_f is not None:
                    warpgroup.share((dz_f, two))
                    more, _ = warpgroup.products([(left_f, two)])
                    dseen = dseen + more
            else:
                ds_r = dz_h
                if now.s_r is not None:
                    dz_f, ds_r = dz_f + dz_h * slope_f * now.s_r, dz_h * f
                pairs = [(left_h, ds_r, one)] + ([] if left_f is None else [(left_f, dz_f, two)])
                warpgroup.share(*((x, shared) for _, x, shared in pairs))
                dseen, ahead = warpgroup.products([(left, shared) for left, _, shared in pairs], meanwhile=store_h)
            dz_fs[place] = dz_f
            dh = dh_next * (1 - u) + masked(dseen)  # (8)
            if now.reset is not None:
                dh_reset = dh_reset + jnp.where(now.reset > 0, dh, 0.0)
                dh = jnp.where(now.reset > 0, 0.0, dh)
            return dh, dh_reset, ahead

        dh_reset = dh * 0 if resets else None
        dh, dh_reset, _ = lax.fori_loop(0, T, step, (dh, dh_reset, ready.first()))
        dh0[warpgroup.tile, warpgroup.units] = dh
        if dh_reset is not None:
            dh_reset_sum[warpgroup.tile, warpgroup.units] = dh_reset
        ready.finish()

    sizes = (T, T, 0, 0 if resets else None)
    dz_f, dz_h, dh0, dh_reset = _launch(body, tuning, (steps, constants), (U_f, U_h), sizes)
    return dz_f, dz_h, dh0, dh_reset


def _sigmoid(z: Array) -> Array:
    return 0.5 * jnp.tanh(0.5 * z) + 0.5


def _slope(cell: Cell, c: Array) -> Array | float:
    """The derivative of the candidate's activation, in terms of its value."""
    if cell.activation == "identity":
        return 1.0
    return 1 - c * c if cell.activation == "tanh" else jnp.where(c > 0, 1.0, 0.0)


def _launch(body: Any, tuning: Tuning, inputs: Any, weights: Any, sizes: tuple[int | None, ...]) -> list[Any]:
    """Run ``body`` once per tile of samples and warpgroup.

    Args:
        body: (warpgroup, references of the inputs and weights, references of the outputs, scratch memory).
        tuning: see ``Tuning``.
        inputs: arrays [T, B, H] and [B, H]; ``None`` for one that is absent.
        weights: U [H, H], of which the kernel multiplies by the rows.
        sizes: of each output the number of steps; 0 for one of [B, H], ``None`` for one that is absent.
    """
    _, plgpu = _pallas()
    steps, constants = inputs
    B, H = constants.h.shape
    features = padded(H)
    parts = 1 if tuning.terms == 1 else 2
    groups = features // UNITS
    blocks = jax.tree.map(lambda x: _to_blocks(x, features, tuning.tile), inputs)
    matrices = tuple(None if U is None else _parts(U, features, tuning.terms) for U in weights)
    leaves, structure = jax.tree.flatten((*blocks, *matrices))
    tiles = -(-B // tuning.tile)
    shapes = [None if n is None else ((n,) if n else ()) + (tiles, features, tuning.tile) for n in sizes]
    present = [i for i, shape in enumerate(shapes) if shape is not None]
    arrays = len(jax.tree.leaves(steps))

    scratch: dict[str, Any] = {
        "shared": plgpu.SMEM((4, parts, features, tuning.tile), BF16),
        "barrier": plgpu.Barrier(num_arrivals=groups),
    }
    if tuning.inputs == "shared":
        scratch["ring"] = plgpu.SMEM((tuning.depth, arrays, groups, UNITS, tuning.tile), F32)
        scratch["filled"] = plgpu.Barrier(num_arrivals=arrays, num_barriers=tuning.depth * groups)
    if tuning.weights == "shared":
        for name, matrix in zip(("U_f", "U_h"), matrices, strict=True):
            if matrix is not None:
                scratch[name] = plgpu.SMEM((parts, groups, UNITS, features), BF16)

    def kernel(*refs: Any, **scratch: Any) -> None:
        references = list(refs)
        outputs: list[Any] = [None] * len(sizes)
        for i, ref in zip(present, references[len(leaves) :], strict=True):
            outputs[i] = ref
        warpgroup = _Warpgroup(features, tuning, scratch["barrier"])
        body(warpgroup, jax.tree.unflatten(structure, references[: len(leaves)]), outputs, scratch)

    found = plgpu.kernel(
        kernel,
        out_type=[jax.ShapeDtypeStruct(shapes[i], F32) for i in present],
        grid=(tiles,),
        grid_names=("tile",),
        num_threads=groups,
        thread_name="warpgroup",
        scratch_types=scratch,
        compiler_params=plgpu.CompilerParams(approx_math=tuning.activation == "fast", unsafe_no_auto_barriers=True),
    )(*leaves)
    results: list[Any] = [None] * len(sizes)
    for i, array in zip(present, found, strict=True):
        results[i] = _from_blocks(array, B, H)
    return results


# How the kernel serves as the loops of ``layer.bptt``.

NEWEST_JAX_WITHOUT = (0, 11, 1)
LARGEST = 192
_INTERPRETED = False


@contextmanager
def interpreted(**options: Any) -> Iterator[None]:
    """Inside the block, kernels run on any machine by Pallas's interpreter, which is slow; it is meant for tests.

    It computes all but two things as a GPU does: weights stay in shared memory, and activations are exact.

    Args:
        options: of ``InterpretGPUParams``, such as ``detect_races=True``.
    """
    global _INTERPRETED
    plgpu = _pallas().plgpu
    before, _INTERPRETED = _INTERPRETED, True
    jax.clear_caches()  # what was compiled for a GPU is not what is interpreted
    try:
        with plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams(**options)):
            yield
    finally:
        _INTERPRETED = before
        jax.clear_caches()


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
    if not _INTERPRETED and not _is_hopper():
        return "needs an NVIDIA GPU of the Hopper generation"
    if cell.recurrence != "dense" or "h" not in cell.candidate or cell.layer_norm:
        return "needs a cell with a dense recurrence, a candidate that sees the state, and no layer normalisation"
    if jnp.dtype(dtype) != jnp.float32:
        return f"needs float32 parameters; these are {jnp.dtype(dtype).name}"
    if accuracy(product) is None:
        return "needs compute_dtype None, float32 or bfloat16, and a precision by its name"
    if H > LARGEST:
        return f"needs at most {LARGEST} hidden units, whose weights fit one multiprocessor; this layer has {H}"
    return None


def _is_hopper() -> bool:
    device = jax.devices()[0]
    return device.platform == "gpu" and str(getattr(device, "compute_capability", "")).startswith("9.")


def _tuning(product: Products, H: int, arrays: int) -> Tuning:
    wanted = accuracy(product)
    assert wanted is not None
    # Up to 128 units the rows of both weights fit the registers of a thread. Above, shared memory holds one part.
    if padded(H) > 128 and wanted.terms == 1:
        wanted = replace(wanted, weights="shared")
    found = fitted(wanted, H, arrays)
    return replace(found, weights="shared", sync="mbarrier") if _INTERPRETED else found


def _all(x: Array | None, shape: tuple[int, ...]) -> Array | None:
    return None if x is None else jnp.broadcast_to(x, shape).astype(F32)


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
    tuning = _tuning(plan.product, h.shape[-1], _present(steps))
    U_h: Any = p.U_h
    hs, f, c, s_r = forward(plan.cell, tuning, plan.reverse, steps, constants, p.U_f, U_h)
    return hs[0 if plan.reverse else -1], hs, Gates(f, c, s_r)


def _backward_kernel(
    plan: Plan, weights: StepWeights, carry: tuple[Array, Array | None], rows: Any
) -> tuple[tuple[Array, Array | None], tuple[Array, Array]]:
    (dh, dh_reset), (dhs, h, gates, alpha, reset) = carry, rows
    steps = Backward(dhs, h, gates.f, gates.c, gates.s_r, _all(alpha, h.shape), _all(reset, h.shape))
    tuning = _tuning(plan.product, h.shape[-1], _present(steps))
    constants, U_f, U_h = Constants(dh, mask=weights.mask), weights.params.U_f, weights.params.U_h
    dz_f, dz_h, dh, dh_reset_segment = backward(plan.cell, tuning, plan.reverse, steps, constants, U_f, U_h)
    return (dh, add(dh_reset, dh_reset_segment)), (dz_f, dz_h)


def _as_loop(kernel: Callable[..., Any], definition: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel as a loop of ``layer.bptt``. Its derivative, which second derivatives need, is that of the loop."""

    @functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
    def loop(plan: Plan, *arguments: Any) -> Any:
        empty = any(0 in leaf.shape for leaf in jax.tree.leaves(arguments))
        return (definition if empty else kernel)(plan, *arguments)

    @loop.defjvp
    def _(plan: Plan, primals: Any, tangents: Any) -> Any:
        _, derivative = jax.jvp(functools.partial(definition, plan), primals, tangents)
        return loop(plan, *primals), derivative

    return loop


LOOPS = Loops(_as_loop(_forward_kernel, forward_loop), _as_loop(_backward_kernel, backward_loop))
