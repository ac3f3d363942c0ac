"""What the benchmark's rows say: the tables of the README, made from a result file and from nothing else."""

from typing import Any

import numpy as np

from experiments.speed.timing import flop

Rows = list[dict[str, Any]]


class Times:
    """The rows of the part "time", found by size, contestant, devices and "forward" or "both"."""

    def __init__(self, rows: Rows):
        timed = [row for row in rows if row["part"] == "time"]
        self.sizes = list(dict.fromkeys(tuple(row["size"]) for row in timed))
        self.columns = list(dict.fromkeys((row["name"], row["devices"]) for row in timed))
        self.rate = max((row["gflop_s"] for row in timed), default=float("nan"))  # the best of the run
        self._found = {(tuple(r["size"]), r["name"], r["devices"], r["which"]): r for r in timed}

    def row(self, size: Any, name: str, which: str = "both", devices: int = 1) -> dict[str, Any] | None:
        return self._found.get((size, name, devices, which))

    def ratio(self, size: Any, name: str, which: str = "both", devices: int = 1) -> float:
        """How many times as long as our MGU on as many devices; nan where it did not run."""
        row = self.row(size, name, which, devices)
        return row["times_ours"] if row else float("nan")

    def ms(self, size: Any, which: str = "both", devices: int = 1) -> float:
        """Of our MGU; nan where it did not run."""
        row = self.row(size, "MGU", which, devices)
        return row["ms"] if row else float("nan")

    def floors(self, size: Any, devices: int = 1, name: str = "MGU") -> float:
        """Forward and backward in the time of the MGU's multiply-adds at the best rate of the run; nan as above."""
        row = self.row(size, name, "both", devices)
        return row["ms"] / (1e-6 * flop(size, "both") / self.rate) if row else float("nan")

    def products(self, size: Any) -> float:
        """The products of our step alone, those in the loop and those outside, in the time of the whole step."""
        return sum(self.ratio(size, f"products {where}") for where in ("in the loop", "outside"))

    def fastest_gru(self, size: Any, which: str = "both") -> tuple[str, float]:
        """Whose GRU takes the least time, and how many times as long as our MGU that is."""
        names = [name for name, devices in self.columns if name.endswith("GRU") and " " in name and devices == 1]
        known = {name: self.ratio(size, name, which) for name in names if self.row(size, name, which)}
        return min(known.items(), key=lambda item: item[1]) if known else ("", float("nan"))


def times(rows: Rows) -> str:
    """Milliseconds, forward / both, of every contestant at every size."""
    found, lines = Times(rows), []
    for size in found.sizes:
        ours = [found.row(size, "MGU", which) for which in ("forward", "both")]
        floors = " / ".join(f"{row['floor_ms']:.2f}" for row in ours if row)
        lines.append(f"\nB, T, D, H = {', '.join(map(str, size))}   floor {floors} ms")
        for name, devices in found.columns:
            pair = [found.row(size, name, which, devices) for which in ("forward", "both")]
            if None not in pair:
                label = name if devices == 1 else f"{name} ({devices} devices)"
                ms, ratios = (" / ".join(f"{row[key]:.2f}" for row in pair if row) for key in ("ms", "times_ours"))
                lines.append(f"  {label:28}{ms:>20} ms   {ratios:>15} times ours")
    return "\n".join(lines)


def _number(value: float, digits: int = 2) -> str:
    return "" if np.isnan(value) else f"{value:.{digits}f}"


def beside_the_peers(rows: Rows) -> list[str]:
    """The README's first table: a size a line."""
    found = Times(rows)
    heads = ["B, T, D, H", "ms", "ms, 2 devices", "flax MGU", "flax MGU, 2 devices", "fastest GRU", "flax GRU"]
    heads += ["floors", "floors, 2 devices", "products alone", "no products in the loop"]
    table = [heads]
    for size in found.sizes:
        cells = [", ".join(map(str, size))]
        for devices in (1, 2):
            cells.append(_pair(*(found.ms(size, which, devices) for which in ("forward", "both"))))
        for devices in (1, 2):
            cells.append(_pair(*(found.ratio(size, "flax MGU", which, devices) for which in ("forward", "both"))))
        fastest = [found.fastest_gru(size, which) for which in ("forward", "both")]
        names = list(dict.fromkeys(name.split()[0] for name, _ in fastest if name))
        cells.append(_pair(*(ratio for _, ratio in fastest)) + (f" ({', '.join(names)})" if names else ""))
        cells.append(_pair(*(found.ratio(size, "flax GRU", which) for which in ("forward", "both"))))
        cells += [_number(found.floors(size)), _number(found.floors(size, 2)), _number(found.products(size))]
        cells.append(_number(found.ratio(size, "DIAGONAL_MGU")))
        table.append(cells)
    kept = [i for i in range(len(heads)) if any(cells[i] for cells in table[1:])]  # what was measured at all
    lines = ["| " + " | ".join(cells[i] for i in kept) + " |" for cells in table]
    return [lines[0], "|---" * len(kept) + "|", *lines[1:]]


def _pair(forward: float, both: float) -> str:
    return "" if np.isnan(both) else f"{_number(forward)} / {_number(both)}"


def _mean(values: list[float]) -> float:
    """The geometric mean, as ratios want it."""
    return float(np.exp(np.mean(np.log(values)))) if values else float("nan")


def figures(rows: Rows) -> list[str]:
    """The README's second table: what else was measured, in one line each."""
    found = Times(rows)
    six = [size for size in found.sizes if size[1] < 1000]
    of = {part: [row for row in rows if row["part"] == part] for part in {row["part"] for row in rows}}
    lines = ["| what | measured |", "|---|---|"]

    def line(what: str, measured: str) -> None:
        lines.append(f"| {what} | {measured} |")

    reset_after = {which: [] for which in ("forward", "both")}
    for size in six:
        for which, ratios in reset_after.items():
            ratios.append(found.ratio(size, "flax MGU", which) / found.ratio(size, "RESET_AFTER_MGU", which))
    same = [found.ratio(size, "flax MGU") / found.ratio(size, "FLAX_MGU") for size in six]
    for what, ratios in {
        "flax's MGU, forward and backward": [found.ratio(size, "flax MGU") for size in six],
        "the fastest GRU of any library, forward and backward": [found.fastest_gru(size)[1] for size in six],
        "flax's MGU, forward": [found.ratio(size, "flax MGU", "forward") for size in six],
        "flax's GRU, forward and backward": [found.ratio(size, "flax GRU") for size in six],
        "flax's MGU, forward, in our RESET_AFTER_MGU": reset_after["forward"],
        "flax's MGU, forward and backward, in our RESET_AFTER_MGU": reset_after["both"],
        "flax's MGU, forward and backward, in our FLAX_MGU, the same function": same,
    }.items():
        known = [ratio for ratio in ratios if not np.isnan(ratio)]
        if known:
            text = f"{min(known):.2f} to {max(known):.2f}, geometric mean {_mean(known):.2f}"
            line(f"time of {what}{'' if 'in our' in what else ', in ours'}, T < 1,000", text)
    for name in (
        "MGU",
        "MGU, states",
        "MGU, states, one chunk",
        "MGU, chunks",
        "MGU, autodiff",
        "flax MGU",
        "flax GRU",
    ):
        units = [row["units"] for row in of["memory"] if row["name"] == name]
        ratios = [found.ratio(size, name) for size in six]
        if units:
            text = f"{min(units):.1f} to {max(units):.1f}"
            time = "" if name == "MGU" else f"; {min(ratios):.2f} to {max(ratios):.2f} of the time of MGU"
            line(f"temporaries of a training step of {name}, in states of all steps", text + time)
    for row in of["long memory"]:
        B, T, _, H = row["size"]
        text = f"{row['bytes'] / 1e6:,.0f} MB of temporaries, {row['seconds']:.2g} s"
        line(f'a training step of B = {B}, T = {T:,}, H = {H} on h_last, save="segments"', text)
    for name in ("MGU", "flax MGU"):
        took = [f"{row['seconds']:.2f} (T = {row['T']:,})" for row in of["compilation"] if row["name"] == name]
        if took:
            line(f"seconds to compile a training step of {name}", ", ".join(took))
    for name in ("MGU", "MGU, chunks"):
        steps = [row for row in of["growth"] if row["name"] == name]
        text = ", ".join(f"{row['us_per_step']:.1f} (T = {row['T']:,})" for row in steps)
        line(f"microseconds a time step of {name}, B = 8, D = 16, H = 64, least of three", text)
    for row in of["members"]:
        line(
            f"{row['count']} members under vmap, in {row['count']} times one (B = 32, T = 8, H = 32)",
            f"{row['share']:.2f}",
        )
    for row in of.get("compiler options", []):
        line(
            f"{row['name']}, B, T, D, H = {', '.join(map(str, row['size']))}", f"{row['share']:.2f} of the time without"
        )
    pairs = {(tuple(row["size"]), row["name"], row["memory"]): row for row in of.get("allocation", [])}
    for (size, name, memory), row in pairs.items():
        if memory == "given back":
            kept, what = (
                pairs[size, name, "kept"],
                f"a training step of {name}, B, T, D, H = {', '.join(map(str, size))}",
            )
            text = f"{row['ms']:.0f} ms, {row['pages']:,} new pages; memory kept {kept['ms']:.0f} ms, {kept['pages']:,}"
            line(what, text)
    return lines
