"""A trace of some steps by JAX's profiler, for TensorBoard or Perfetto."""

import os
import re
import sys
from typing import Any

import jax

from xretrieval.errors import UserError


def parse(text: str | None, num_steps: int) -> tuple[int, int] | None:
    """The first and the last step of "10:15"; None for none.

    Raises:
      UserError: it is not two steps, the first from 1 on and not after the last, or the run has no such steps.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d+):(\d+)", str(text))
    first, last = map(int, match.groups()) if match else (0, 0)
    if not 1 <= first <= last:
        raise UserError(f"--profile {text}: give the first and the last step to trace, as 10:15")
    if last > num_steps:
        raise UserError(f"--profile {text}: the run has {num_steps} steps; give some of these")
    return first, last


class Profiler:
    """Traces the steps from `first` to `last` into a folder; a run that is resumed within them traces those that are left.

    It is said where all of them are done, after `start` steps. The device is waited for at both ends, so that the trace holds these steps and no part of others.
    """

    def __init__(self, window: tuple[int, int] | None, folder: str | os.PathLike, start: int):
        if window and window[1] <= start and jax.process_index() == 0:
            # Not an error: a run that was stopped is started again by the same command.
            print(f"--profile {window[0]}:{window[1]}: {start} steps are done already, nothing is traced", file=sys.stderr)
        self.window, self.folder, self._running = window or (0, -1), os.fspath(folder), False

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *exception) -> None:
        self._stop()

    def before(self, step: int, state: Any) -> None:
        """Before `step` is sent off, from this state."""
        if not self._running and self.window[0] <= step <= self.window[1]:
            jax.block_until_ready(state)
            jax.profiler.start_trace(self.folder)
            self._running = True

    def after(self, step: int, state: Any) -> None:
        """After `step` was sent off, to this state."""
        if self._running and step == self.window[1]:
            jax.block_until_ready(state)
            self._stop()

    def _stop(self) -> None:
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
