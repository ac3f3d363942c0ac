"""How far a run is: a bar on a terminal, plain lines elsewhere."""

import time
from typing import Any

from mgu_jax.extras import require


class Progress:
    """A bar where standard error is a terminal, a line a chunk where it is not, nothing where it is not enabled.

    Raises:
        ImportError: enabled, and tqdm is not installed.
    """

    def __init__(self, done: int, steps: int, enabled: bool):
        self.done, self.steps, self.enabled, self.began = done, steps, enabled, time.perf_counter()
        self.timed = done, self.began  # the rate is that of the steps since then
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

    def advance(self, size: int, loss: float, text: str | None) -> None:
        """So many steps more, the last of them with this loss; a text to stand beside it."""
        self.done += size
        note = f"loss {loss:.4g}" + (f", {text}" if text else "")
        if self.bar is not None:
            self.bar.set_postfix_str(note, refresh=False)
            self.bar.update(size)
        elif self.enabled:
            now = time.perf_counter()
            seconds, rate = now - self.began, (self.done - self.timed[0]) / (now - self.timed[1])
            left = (self.steps - self.done) / rate
            print(
                f"step {self.done}/{self.steps}  {seconds:.1f} s, {left:.1f} s left, {rate:.4g} steps/s  {note}",
                flush=True,
            )
        if not self.compiled:  # the first chunk took the compiler's time too
            self.compiled, self.timed = True, (self.done, time.perf_counter())
