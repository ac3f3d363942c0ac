"""The tables of experiments/BENCHMARK.md, made from the rows of a result.json and from nothing else.

A training step is a forward and a backward pass with the gradients of all weights and inputs; the rows call it "both".
"""

from typing import Any

import numpy as np

from experiments.speed.timing import flop

Rows = list[dict[str, Any]]
PASSES = ("forward", "both")
LABELS = {
    "MGU": "MGU",
    "MGU, states": 'MGU, `save="states"`',
    "MGU, states, one segment": 'MGU, `save="states", segment=T`',
    "MGU, segments": 'MGU, `save="segments"`',
    "MGU, autodiff": 'MGU, `implementation="autodiff"`',
    "flax MGU": "Flax's MGU",
    "flax GRU": "Flax's GRU",
}


class Times:
    """The rows of the part "time", by size, name of the layer, devices and "forward" or "both"."""

    def __init__(self, rows: Rows):
        timed = [row for row in rows if row["part"] == "time"]
        self.sizes = list(dict.fromkeys(tuple(row["size"]) for row in timed))
        self.columns = list(dict.fromkeys((row["name"], row["devices"]) for row in timed))
        self.rate = max((row["gflop_s"] for row in timed), default=float("nan"))  # the best of the run
        self._found = {(tuple(r["size"]), r["name"], r["devices"], r["which"]): r for r in timed}

    def row(self, size: Any, name: str, which: str = "both", devices: int = 1) -> dict[str, Any] | None:
        return self._found.get((size, name, devices, which))

    def ratio(self, size: Any, name: str, which: str = "both", devices: int = 1) -> float:
        """Its time relative to our MGU's on the same number of devices; nan if it did not run."""
        row = self.row(size, name, which, devices)
        return row["times_ours"] if row else float("nan")

    def ms(self, size: Any, which: str = "both", devices: int = 1) -> float:
        """Milliseconds of our MGU; nan if it did not run."""
        row = self.row(size, "MGU", which, devices)
        return row["ms"] if row else float("nan")

    def beside_arithmetic(self, size: Any, devices: int = 1, name: str = "MGU") -> float:
        """Time of a training step divided by that of the MGU's multiply-adds at the run's best rate; nan as above."""
        row = self.row(size, name, "both", devices)
        return row["ms"] / (1e-6 * flop(size, "both") / self.rate) if row else float("nan")

    def products(self, size: Any) -> float:
        """The share of our MGU's training step that its matrix products take, measured without anything else."""
        return sum(self.ratio(size, f"products {where}") for where in ("in the loop", "outside"))

    def fastest_gru(self, size: Any, which: str = "both") -> tuple[str, float]:
        """The library whose GRU is fastest, and its time relative to our MGU's."""
        names = [name for name, devices in self.columns if name.endswith("GRU") and " " in name and devices == 1]
        known = {name: self.ratio(size, name, which) for name in names if self.row(size, name, which)}
        name, ratio = min(known.items(), key=lambda item: item[1]) if known else ("", float("nan"))
        return name.removesuffix(" GRU"), ratio


def times(rows: Rows) -> str:
    """Milliseconds, forward / training step, of every layer at every size; for the end of a run."""
    found, lines = Times(rows), []
    for size in found.sizes:
        ours = [found.row(size, "MGU", which) for which in PASSES]
        least = " / ".join(f"{row['floor_ms']:.2f}" for row in ours if row)
        lines.append(f"\nB, T, D, H = {_size(size)}   multiply-adds at the machine's best rate {least} ms")
        for name, devices in found.columns:
            pair = [found.row(size, name, which, devices) for which in PASSES]
            if None not in pair:
                label = name if devices == 1 else f"{name} ({devices} devices)"
                ms, ratios = (" / ".join(f"{row[key]:.2f}" for row in pair if row) for key in ("ms", "times_ours"))
                lines.append(f"  {label:28}{ms:>20} ms   {ratios:>15} relative to our MGU")
    return "\n".join(lines)


def _size(size: Any) -> str:
    return ", ".join(map(str, size))


def _number(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.2f}"


def _pair(numbers: list[float]) -> str:
    """Forward / training step."""
    return "" if np.isnan(numbers[-1]) else " / ".join(map(_number, numbers))


def _table(heads: list[str], lines: list[list[str]]) -> list[str]:
    """A table without the columns in which nothing was measured."""
    kept = [i for i in range(len(heads)) if any(line[i] for line in lines)]
    rows = ["| " + " | ".join(line[i] for i in kept) + " |" for line in [heads, *lines]]
    return [rows[0], "|---" * len(kept) + "|", *rows[1:]] if lines else []


def speed(rows: Rows) -> list[str]:
    """One device: our MGU's time, and the others' relative to it."""
    found, lines = Times(rows), []
    for size in found.sizes:
        fastest = [found.fastest_gru(size, which) for which in PASSES]
        names = ", ".join(dict.fromkeys(name.capitalize() for name, _ in fastest if name))
        ratios = [[found.ratio(size, name, which) for which in PASSES] for name in ("flax MGU", "flax GRU")]
        lines.append([_size(size), _pair([found.ms(size, which) for which in PASSES]), *map(_pair, ratios)])
        lines[-1].append(_pair([ratio for _, ratio in fastest]) + (f" ({names})" if names else ""))
    heads = ["B, T, D, H", "our MGU, ms (forward / training step)"]
    heads += [f"time of Flax's {cell} relative to ours (forward / training step)" for cell in ("MGU", "GRU")]
    return _table([*heads, "time of the fastest GRU of any library relative to ours (forward / training step)"], lines)


def two_devices(rows: Rows) -> list[str]:
    """The batch split over two devices."""
    found, lines = Times(rows), []
    for size in found.sizes:
        one, two = ([found.ms(size, which, devices) for which in PASSES] for devices in (1, 2))
        flax = [found.ratio(size, "flax MGU", which, 2) for which in PASSES]
        if not np.isnan(two[-1]):
            lines.append([_size(size), *map(_pair, (one, two, flax))])
    heads = ["B, T, D, H", *(f"our MGU on {n}, ms (forward / training step)" for n in ("1 device", "2 devices"))]
    return _table([*heads, "time of Flax's MGU relative to ours, both on 2 devices"], lines)


def limits(rows: Rows) -> list[str]:
    """How far a training step of our MGU is from the time of its arithmetic."""
    found = Times(rows)
    lines = []
    for size in found.sizes:
        numbers = [found.beside_arithmetic(size, devices) for devices in (1, 2)]
        numbers += [found.products(size), found.ratio(size, "DIAGONAL_MGU")]
        lines.append([_size(size), *map(_number, numbers)])
    arithmetic = "training step ÷ its multiply-adds at the machine's best rate"
    heads = ["B, T, D, H", *(f"{arithmetic}, {n}" for n in ("1 device", "2 devices"))]
    heads += ["matrix products alone ÷ training step"]
    return _table([*heads, "time of `DIAGONAL_MGU`, which has no product in its loop, relative to `MGU`"], lines)


def _six(found: Times) -> list[tuple[int, ...]]:
    """The sizes with T < 1,000."""
    return [size for size in found.sizes if size[1] < 1000]


def summary(rows: Rows) -> list[str]:
    """Ratios over the sizes with T < 1,000: smallest, geometric mean, largest."""
    found = Times(rows)

    def fastest(which: str) -> list[float]:
        return [found.fastest_gru(size, which)[1] for size in _six(found)]

    def beside(name: str, which: str, ours: str = "MGU") -> list[float]:
        return [found.ratio(size, name, which) / found.ratio(size, ours, which) for size in _six(found)]

    compared = [
        ("Flax's MGU relative to our `MGU`", "both", beside("flax MGU", "both")),
        ("the fastest GRU of any library relative to our `MGU`", "both", fastest("both")),
        ("Flax's GRU relative to our `MGU`", "both", beside("flax GRU", "both")),
        ("Flax's MGU relative to our `MGU`", "forward", beside("flax MGU", "forward")),
        ("the fastest GRU of any library relative to our `MGU`", "forward", fastest("forward")),
        ("Flax's GRU relative to our `MGU`", "forward", beside("flax GRU", "forward")),
    ]
    for ours, note in (("RESET_AFTER_MGU", ""), ("FLAX_MGU", ", the same function")):
        for which in ("forward", "both") if ours == "RESET_AFTER_MGU" else ("both",):
            compared.append((f"Flax's MGU relative to our `{ours}`{note}", which, beside("flax MGU", which, ours)))
    passes, lines = {"forward": "forward", "both": "training step"}, []
    for what, which, ratios in compared:
        if known := [ratio for ratio in ratios if not np.isnan(ratio)]:
            mean = float(np.exp(np.mean(np.log(known))))  # geometric, as ratios need it
            lines.append([f"time of {what}", passes[which], *map(_number, (min(known), mean, max(known)))])
    return _table(["comparison (sizes with T < 1,000)", "pass", "smallest", "geometric mean", "largest"], lines)


def _range(numbers: list[float], shown: str) -> str:
    least, most = shown.format(min(numbers)), shown.format(max(numbers))
    return least if least == most else f"{least} to {most}"


def memory(rows: Rows) -> list[str]:
    """Temporaries and time of a training step, by what is saved for the backward pass."""
    found, lines = Times(rows), []
    for name, label in LABELS.items():
        units = [row["units"] for row in rows if row["part"] == "memory" and row["name"] == name]
        ratios = [found.ratio(size, name) for size in _six(found)]
        if units:
            lines.append([label, _range(units, "{:.1f}"), "1" if name == "MGU" else _range(ratios, "{:.2f}")])
    heads = ["training step of", "temporaries relative to the states of all steps (4 T B H bytes)"]
    return _table([*heads, "time relative to `MGU`"], lines)


def length(rows: Rows) -> list[str]:
    """How the time to compile and the time of a step depend on the number of time steps."""
    columns = [("compilation", "MGU", "seconds"), ("compilation", "flax MGU", "seconds")]
    columns += [("growth", "MGU", "us_per_step"), ("growth", "MGU, segments", "us_per_step")]
    found = {(r["part"], r["name"], r["T"]): r for r in rows if r["part"] in ("compilation", "growth")}
    lines = []
    for T in sorted({T for *_, T in found}):
        rows_at = [(found.get((part, name, T)), value) for part, name, value in columns]
        shown = [(f"{row[v]:.2f}" if v == "seconds" else f"{row[v]:.1f}") if row else "" for row, v in rows_at]
        lines.append([f"{T:,}", *shown])
    heads = ["T", *(f"seconds to compile a training step of {whose}" for whose in ("our MGU", "Flax's MGU"))]
    return _table([*heads, *(f"µs per time step, {label}" for label in ("`MGU`", 'with `save="segments"`'))], lines)


def long_memory(rows: Rows) -> list[str]:
    """Very long sequences with one state kept per segment, and a loss of the last state."""
    lines = []
    for row in rows:
        if row["part"] == "long memory":
            B, T, _, H = row["size"]
            lines.append([f"{B}, {T:,}, {H}", f"{row['bytes'] / 1e6:,.0f}", f"{row['seconds']:.2g}"])
    return _table(["B, T, H", "MB of temporaries", "seconds per training step"], lines)


def native(rows: Rows) -> list[str]:
    """The hand-written backward pass of XLA's loops beside what our MGU runs where nothing is named."""
    found, lines = Times(rows), []
    chosen = {tuple(row["size"]): row["name"] for row in rows if row["part"] == "implementation"}
    for size in found.sizes:
        ratios = [found.ratio(size, "MGU, manual", which) for which in PASSES]
        lines.append([_size(size), f"`{chosen[size]}`" if size in chosen else "", _pair(ratios)])
    known = [found.ratio(size, "MGU, manual") for size in found.sizes if found.row(size, "MGU, manual")]
    if known:
        lines.append(["geometric mean", "", f"{np.exp(np.mean(np.log(known))):.2f} (training step)"])
    heads = ["B, T, D, H", "what `None` takes", 'time of `"manual"` relative to it (forward / training step)']
    return _table(heads, lines) if known else []


def members(rows: Rows) -> list[str]:
    """Many layers under vmap."""
    lines = [[str(row["count"]), _number(row["share"])] for row in rows if row["part"] == "members"]
    return _table(["layers under `vmap`, B, T, H = 32, 8, 32", "time relative to training them one by one"], lines)


def compiler(rows: Rows) -> list[str]:
    """A training step of our MGU under options of the compiler for CPUs."""
    lines = [
        [f"`{row['name']}`", _size(row["size"]), _number(row["share"])]
        for row in rows
        if row["part"] == "compiler options"
    ]
    return _table(["option of XLA for CPUs", "B, T, D, H", "time relative to the default"], lines)


def allocation(rows: Rows) -> list[str]:
    """A training step with memory given back to the system after each call, and with memory kept."""
    found = {(tuple(r["size"]), r["name"], r["memory"]): r for r in rows if r["part"] == "allocation"}
    lines = []
    for size, name, kind in found:
        if kind == "given back":
            pair = [found[size, name, kind] for kind in ("given back", "kept")]
            numbers = [text for row in pair for text in (f"{row['ms']:.0f}", f"{row['pages']:,}")]
            lines.append([LABELS[name], _size(size), *numbers])
    pages = "new memory pages per step"
    heads = ["training step of", "B, T, D, H", "ms, glibc's defaults", pages, "ms, memory kept between calls", pages]
    return _table(heads, lines)


# Name in the page -> what makes it.
TABLES = {
    "speed": speed,
    "summary": summary,
    "native": native,
    "devices": two_devices,
    "limits": limits,
    "memory": memory,
    "length": length,
    "long sequences": long_memory,
    "vmap": members,
    "compiler": compiler,
    "allocation": allocation,
}
