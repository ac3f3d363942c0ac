"""How the loops of ``gpu.py`` run on a Hopper GPU, by Pallas on Mosaic GPU: blocks, warpgroups, memory. No mathematics.

A block of threads (CTA) takes a tile of N samples through all steps of a segment. It has one warpgroup of 128 threads
for every 64 hidden units. The blocks exchange nothing, so none waits for another. The products of a step are turned
around, so that the 64 rows of one tensor core instruction (wgmma) fall on the units of a warpgroup, and a tile can have
as few as 16 samples:

    hU^T [64, N] = U^T [64 rows, H] @ h^T [H, N]

What is where:

    registers        the state, float32 [64, N], and everything else that a warpgroup computes for its 64 units; the
                     rows of U_f^T and U_h^T, for the whole segment, where they fit (``Tuning.weights``)
    shared memory    what is multiplied (the state, f*h, the cotangents) as bfloat16 [H, N], from which every warpgroup
                     reads all H units; the inputs of the next steps, copied there ahead of time (``Tuning.inputs``)
    global memory    the arrays of all steps, in blocks [T, B/N, H, N]: what a warpgroup reads or writes in one step is
                     one contiguous piece of 64*N numbers

Tensor cores multiply bfloat16 numbers. With ``Tuning.terms`` = 3 every operand is the sum of two of them, and three
products are added, which leaves a relative error near 2^-16. A diagonal recurrence multiplies single numbers in
float32, and needs neither tensor cores nor shared memory.
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

F32, BF16 = jnp.float32, jnp.bfloat16
SHARED_MEMORY = 227 * 1024  # bytes that one block may have
UNITS = 64  # of a warpgroup


@dataclass(frozen=True)
class Tuning:
    """How the kernel computes. The defaults measured best on an H100 for H = 64 and 128, in a prototype."""

    tile: int = 16  # samples of a block
    terms: int = 1  # bfloat16 products per product: 1 or 3
    activation: str = "fast"  # "fast": tanh.approx, error 5e-4; "exact"
    # Where the weights are: "registers" or "shared"; or, for three terms, the high parts in shared memory and the low
    # parts in registers ("split"), or loaded anew for every product ("streamed").
    weights: str = "registers"
    inputs: str = "shared"  # copied ahead into shared memory; or "registers": loaded one step ahead
    depth: int = 4  # steps that shared memory holds at a time
    sync: str = "bar"  # between warpgroups: one bar.sync of the block; or "mbarrier"


def parts(tuning: Tuning) -> int:
    """How many bfloat16 numbers stand for one float32 number."""
    return 1 if tuning.terms == 1 else 2


def held_parts(tuning: Tuning) -> int:
    """How many parts of the weights shared memory holds."""
    return {"registers": 0, "shared": parts(tuning), "split": 1, "streamed": 1}[tuning.weights]


def shared_bytes(tuning: Tuning, H: int, arrays: int, places: int = 4) -> int:
    """The shared memory of a block, for H units, so many arrays of inputs per step, and places for what is multiplied.

    places is 0 for a diagonal recurrence.
    """
    features = padded(H)
    total = 1024 + 2 * places * parts(tuning) * features * tuning.tile  # 1024 for the barriers
    if places:
        total += 2 * 2 * features * features * held_parts(tuning)
    if tuning.inputs == "shared":
        total += 4 * tuning.depth * arrays * features * tuning.tile
    return total


def fitted(tuning: Tuning, H: int, arrays: int, places: int = 4) -> Tuning:
    """The tuning with as many steps copied ahead as fit shared memory, or with inputs in registers."""
    for depth in range(tuning.depth, 1, -1):
        found = replace(tuning, depth=depth)
        if shared_bytes(found, H, arrays, places) <= SHARED_MEMORY:
            return found
    return replace(tuning, inputs="registers")


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


_interpreted = False


def is_interpreted() -> bool:
    """Whether kernels run by the interpreter."""
    return _interpreted


@contextmanager
def interpreted(**options: Any) -> Iterator[None]:
    """Inside the block, kernels run on any machine by Pallas's interpreter, which is slow; it is meant for tests.

    It computes all but two things as a GPU does: weights stay in shared memory, and activations are exact.

    Args:
        options: of ``InterpretGPUParams``, such as ``detect_races=True``.
    """
    global _interpreted
    plgpu = _pallas().plgpu
    before, _interpreted = _interpreted, True
    jax.clear_caches()  # what was compiled for a GPU is not what is interpreted
    try:
        with plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams(**options)):
            yield
    finally:
        _interpreted = before
        jax.clear_caches()


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


class Warpgroup:
    """What both loops do alike, as one warpgroup sees it: 64 units of a tile of N samples."""

    def __init__(self, features: int, tuning: Tuning, diagonal: bool, barrier: Any):
        self.pl, self.plgpu = _pallas()
        self.features, self.tuning, self.diagonal, self.barrier = features, tuning, diagonal, barrier
        self.tile, self.number = lax.axis_index("tile"), lax.axis_index("warpgroup")
        self.units = self.pl.ds(self.number * UNITS, UNITS)

    def load(self, ref: Any) -> Array:
        return self.plgpu.load(ref, layout=self.plgpu.Layout.WGMMA, optimized=False)

    def constant(self, ref: Any) -> Any:
        """[64, N] of an array [B/N, H, N]."""
        return None if ref is None else self.load(ref.at[self.tile, self.units])

    def left(self, ref: Any, shared: Any) -> Any:
        """What this warpgroup multiplies with; ``None`` if there is no weight.

        It is the rows of a matrix, [parts, H, H] in memory, or the numbers of a diagonal, [B/N, H, N] there.
        """
        if ref is None or self.diagonal:
            return self.constant(ref)
        rows: list[Any] = [ref.at[i, self.units] for i in range(ref.shape[0])]
        held = held_parts(self.tuning)
        for i in range(held):
            shared[i, self.number] = self.load(rows[i])
            rows[i] = shared.at[i, self.number]
        if self.tuning.weights == "streamed":
            return [*rows[:held], *(functools.partial(self.load, row) for row in rows[held:])]
        return [*rows[:held], *map(self.load, rows[held:])]

    def share(self, *pairs: tuple[Array, Any]) -> None:
        """Give every x [64, N] to all warpgroups, as rows of its place [parts, H, N] in shared memory."""
        if self.diagonal:
            return
        for x, place in pairs:
            high = x.astype(BF16)
            place[0, self.units] = high
            if self.tuning.terms == 3:
                place[1, self.units] = (x - high.astype(F32)).astype(BF16)
        if self.features == UNITS:
            self.plgpu.commit_smem()
        elif self.tuning.sync == "bar":
            _synchronise(self.plgpu, 2 * self.features)
        else:
            self.plgpu.commit_smem()
            self.plgpu.barrier_arrive(self.barrier)
            self.plgpu.barrier_wait(self.barrier)

    def products(self, *sums: list[tuple[Any, Array, Any]], meanwhile: Callable[[], Any] = lambda: None) -> Any:
        """(sum, ..., result): for every list the sum of left @ x, and what ``meanwhile`` returns, which runs beside.

        The entries of a list are (left, x, the place in shared memory that holds x of all units). Where left is
        ``None`` there is no product; the sum of none is ``None``.
        """
        present = [[entry for entry in entries if entry[0] is not None] for entries in sums]
        if self.diagonal:
            products = [[left * x for left, x, _ in entries] for entries in present]
            return *(sum(terms[1:], terms[0]) if terms else None for terms in products), meanwhile()

        def run(*accumulators: Any) -> Any:
            free = iter(accumulators)
            used = [next(free) if entries else None for entries in present]
            for accumulator, entries in zip(used, present, strict=True):
                for left, _, place in entries:
                    self.plgpu.wgmma(accumulator, left[0], place.at[0])
                    if self.tuning.terms == 3:
                        self.plgpu.wgmma(accumulator, left[0], place.at[1])
                        low = left[1]() if callable(left[1]) else left[1]
                        self.plgpu.wgmma(accumulator, low, place.at[0])
            result = meanwhile()
            return *(None if accumulator is None else accumulator[...] for accumulator in used), result

        count = sum(map(bool, present))
        return self.pl.run_scoped(run, *[self.plgpu.ACC((UNITS, self.tuning.tile), F32)] * count) if count else run()


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


class Steps:
    """The inputs of the steps, [64, N] each, made ready ahead of the step that needs them.

    A step calls ``refill`` behind its first barrier, and takes the inputs of every step once, in order. Where inputs
    are loaded into registers, ``refill`` gives those of the next step, and the loop hands them on.
    """

    def __init__(self, warpgroup: Warpgroup, refs: Any, backwards: bool, count: int, scratch: dict[str, Any]):
        self.warpgroup, self.kind, self.backwards, self.count = warpgroup, type(refs), backwards, count
        self.present = [i for i, ref in enumerate(refs) if ref is not None]
        self.refs = [refs[i] for i in self.present]
        self.ring: Any = scratch.get("ring")
        self.filled: Any = scratch.get("filled")
        self.depth = warpgroup.tuning.depth
        if self.ring is not None:
            for i in range(self.depth - 1):
                self._fetch(i)

    def place(self, i: Any) -> tuple[Any, Any, Any]:
        """Where the i-th step to run stands in arrays of all steps."""
        t = self.count - 1 - i if self.backwards else i
        return t, self.warpgroup.tile, self.warpgroup.units

    def refill(self, i: Any) -> Any:
        """In step i: fetch a step to come."""
        if self.ring is None:
            return self._load(i + 1)
        self._fetch(i + self.depth - 1)  # into the slot that every thread read in step i - 1 or before
        return None

    def wait(self, i: Any) -> None:
        """Wait until the inputs of step i are in shared memory; once for every step."""
        if self.ring is not None:
            self.warpgroup.plgpu.barrier_wait(self._barrier(i))

    def get(self, i: Any, loaded: Any, name: str | None = None) -> Any:
        """The inputs of step i, for which ``wait`` has waited, or the one of this name.

        ``loaded`` is what ``refill`` gave in the step before.
        """
        if loaded is None:
            loaded = self._load(i, name)
        return loaded if name is None else getattr(loaded, name)

    def first(self) -> Any:
        """What stands for the result of ``refill`` before step 0."""
        self.wait(0)
        return self._load(0) if self.ring is None else None

    def finish(self) -> None:
        """Wait for the copies that no step waited for: a block must not end before them."""
        for i in range(self.count + 1, self.count + self.depth - 1):
            self.wait(i)

    def _sources(self, i: Any) -> list[Any]:
        place = self.place(jnp.minimum(i, self.count - 1))
        return [ref.at[place] for ref in self.refs]

    def _slot(self, i: Any) -> Any:
        return lax.rem(jnp.int32(i), jnp.int32(self.depth))

    def _barrier(self, i: Any) -> Any:
        return self.filled.at[self._slot(i) * (self.warpgroup.features // UNITS) + self.warpgroup.number]

    def _fetch(self, i: Any) -> None:
        for j, source in enumerate(self._sources(i)):
            target = self.ring.at[self._slot(i), j, self.warpgroup.number]
            self.warpgroup.plgpu.copy_gmem_to_smem(source, target, self._barrier(i))

    def _load(self, i: Any, name: str | None = None) -> Any:
        held = self._sources(i) if self.ring is None else []
        arrays: list[Any] = [None] * len(self.kind._fields)
        for j, field in enumerate(self.present):
            if name in (None, self.kind._fields[field]):
                ref = held[j] if self.ring is None else self.ring.at[self._slot(i), j, self.warpgroup.number]
                arrays[field] = self.warpgroup.load(ref)
        return self.kind(*arrays)


class Places:
    """Places in shared memory for what is multiplied, two for a step.

    A place may be written again when every warpgroup has read it. With two barriers per step, each of the places is
    safe by the other's barrier. With one, the places of odd and even steps have to be different.
    """

    def __init__(self, shared: Any, count: int):
        self.shared, self.count = shared, count

    def of(self, i: Any) -> tuple[Any, Any]:
        if self.shared is None:
            return None, None
        first = 0 if self.count == 2 else 2 * lax.rem(jnp.int32(i), jnp.int32(2))
        return self.shared.at[first], self.shared.at[first + 1]


def launch(
    body: Any, tuning: Tuning, inputs: Any, weights: Any, sizes: tuple[int | None, ...], places: int
) -> list[Any]:
    """Run ``body`` once per tile of samples and warpgroup.

    Args:
        body: (warpgroup, references of the inputs and weights, references of the outputs, scratch memory).
        tuning: see ``Tuning``.
        inputs: arrays [T, B, H] and [B, H]; ``None`` for one that is absent.
        weights: U [H, H], of which the kernel multiplies by the rows, or diagonals [H].
        sizes: of each output the number of steps; 0 for one of [B, H], ``None`` for one that is absent.
        places: for what is multiplied in shared memory.
    """
    _, plgpu = _pallas()
    steps, constants = inputs
    B, H = constants.h.shape
    features = padded(H)
    diagonal = places == 0
    groups = features // UNITS
    blocks = jax.tree.map(lambda x: _to_blocks(x, features, tuning.tile), inputs)
    if diagonal:
        matrices = tuple(
            None if u is None else _to_blocks(jnp.broadcast_to(u, (B, H)), features, tuning.tile) for u in weights
        )
    else:
        matrices = tuple(None if U is None else _parts(U, features, tuning.terms) for U in weights)
    leaves, structure = jax.tree.flatten((*blocks, *matrices))
    tiles = -(-B // tuning.tile)
    shapes = [None if n is None else ((n,) if n else ()) + (tiles, features, tuning.tile) for n in sizes]
    present = [i for i, shape in enumerate(shapes) if shape is not None]
    arrays = len(jax.tree.leaves(steps))

    scratch: dict[str, Any] = {}
    if not diagonal:
        scratch["shared"] = plgpu.SMEM((places, parts(tuning), features, tuning.tile), BF16)
        scratch["barrier"] = plgpu.Barrier(num_arrivals=groups)
    if tuning.inputs == "shared":
        scratch["ring"] = plgpu.SMEM((tuning.depth, arrays, groups, UNITS, tuning.tile), F32)
        scratch["filled"] = plgpu.Barrier(num_arrivals=arrays, num_barriers=tuning.depth * groups)
    if held_parts(tuning) and not diagonal:
        for name, matrix in zip(("U_f", "U_h"), matrices, strict=True):
            if matrix is not None:
                scratch[name] = plgpu.SMEM((held_parts(tuning), groups, UNITS, features), BF16)

    def kernel(*refs: Any, **scratch: Any) -> None:
        references = list(refs)
        outputs: list[Any] = [None] * len(sizes)
        for i, ref in zip(present, references[len(leaves) :], strict=True):
            outputs[i] = ref
        warpgroup = Warpgroup(features, tuning, diagonal, scratch.get("barrier"))
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
