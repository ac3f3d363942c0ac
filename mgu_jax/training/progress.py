"""How far a run is: a bar on a terminal, plain lines elsewhere."""

import time
from typing import Any

from mgu_jax.extras import require


class Progress:
    """A bar if standard error is a terminal, otherwise one line per call of the compiled loop; nothing unless enabled.

    Raises:
        ImportError: it is enabled, and tqdm is not installed.
    """

    def __init__(self, done: int, steps: int, enabled: bool):
        self.done, self.steps, self.enabled = done, steps, enabled
        self.began = time.perf_counter()
        self.rate_since: tuple[int, float] | None = None  # the step and the time from which the rate is measured
        self.bar = None
        if enabled:
            tqdm = require("tqdm", "experiments").tqdm
            bar = tqdm(total=steps, initial=done, unit="step", disable=None, dynamic_ncols=True)
            self.bar = None if bar.disable else bar

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: Any) -> None:
        if self.bar is not None:
            self.bar.close()

    def advance(self, size: int, loss: float, text: str) -> None:
        """Show that ``size`` more steps are done, the loss of the last one, and a text."""
        self.done += size
        note = f"loss {loss:.4g}" + (f", {text}" if text else "")
        if self.bar is not None:
            self.bar.set_postfix_str(note, refresh=False)
            if self.rate_since is None:
                self._show_without_rate(self.bar)
            else:
                self.bar.update(size)
        elif self.enabled:
            self._print(note)
        if self.rate_since is None:  # the first call includes compilation, which would distort the rate
            self.rate_since = self.done, time.perf_counter()

    def _show_without_rate(self, bar: Any) -> None:
        """Show the first call on a bar, and measure its rate from here."""
        bar.n = bar.initial = bar.last_print_n = self.done
        bar.last_print_t = time.time()
        bar.refresh()

    def _print(self, note: str) -> None:
        now = time.perf_counter()
        times = f"{now - self.began:.1f} s"
        if self.rate_since is None:
            times += " with compilation"
        else:
            rate = (self.done - self.rate_since[0]) / (now - self.rate_since[1])
            times += f", {(self.steps - self.done) / rate:.1f} s left, {rate:.4g} steps/s"
        print(f"step {self.done}/{self.steps}  {times}  {note}", flush=True)
