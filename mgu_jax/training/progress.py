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
        self.rate_since = done, self.began  # the step and the time from which the rate is measured
        self.compiled = False
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
            self.bar.update(size)
        elif self.enabled:
            self._print(note)
        if not self.compiled:  # the first call includes compilation, which would distort the rate
            self.compiled, self.rate_since = True, (self.done, time.perf_counter())

    def _print(self, note: str) -> None:
        now, (step, since) = time.perf_counter(), self.rate_since
        rate = (self.done - step) / (now - since)
        left = (self.steps - self.done) / rate
        times = f"{now - self.began:.1f} s, {left:.1f} s left, {rate:.4g} steps/s"
        print(f"step {self.done}/{self.steps}  {times}  {note}", flush=True)
