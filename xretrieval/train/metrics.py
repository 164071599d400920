"""Metrics as JSON lines and TensorBoard events, fetched from the devices one step late."""

import contextlib
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Iterator

import jax
import numpy as np

from xretrieval.errors import UserError
from xretrieval.train.checkpoint import Saved
from xretrieval.train.throughput import Throughput


class MetricWriter:
    """Appends to `metrics.jsonl` and to TensorBoard events in `workdir`; on process 0 only.

    On resuming from `start_step`, later lines are taken away, because those steps are about to be done again.
    """

    def __init__(self, workdir: str | os.PathLike, start_step: int):
        from tensorboardX import SummaryWriter

        self.active = jax.process_index() == 0
        if not self.active:
            return
        path = pathlib.Path(workdir) / "metrics.jsonl"
        kept = []
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue  # the last line of a run that was killed while it wrote
                if entry["step"] <= start_step:
                    kept.append(json.dumps(entry))
        temporary = path.with_suffix(".jsonl.tmp")
        temporary.write_text("".join(line + "\n" for line in kept))
        os.replace(temporary, path)
        self._lines = path.open("a", buffering=1)
        self._events = SummaryWriter(str(pathlib.Path(workdir) / "tensorboard"), purge_step=start_step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """One line; JSON has no number that is not finite, and gets null for it."""
        if not self.active:
            return
        self._lines.write(json.dumps({"step": step, **{k: v if math.isfinite(v) else None for k, v in values.items()}}) + "\n")
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def close(self) -> None:
        if self.active:
            self._lines.close()
            self._events.close()


class Reporter:
    """Fetches the metrics of a step once the next one is sent off, so that the device never waits for the host; writes every `log_every` steps.

    Args:
      writer, throughput: where metrics go, and what makes rates of them.
      learning_rates_T: of every update of the run, from the first on.
      log_every: in steps.
      max_skipped: how many steps of the run may be skipped for a loss or gradient that is not finite; at one more it stops.
      skipped: how many were before the first step of this call.
    """

    def __init__(
        self,
        writer: MetricWriter,
        throughput: Throughput,
        learning_rates_T: np.ndarray,
        log_every: int,
        max_skipped: int,
        skipped: int,
    ):
        self.writer, self.throughput, self.learning_rates_T = writer, throughput, learning_rates_T
        self.log_every, self.max_skipped, self.skipped = log_every, max_skipped, skipped
        self._pending: tuple[int, dict] | None = None
        self._saved: list[Saved] = []
        self._last, self._since, self._paused = 0, math.nan, 0.0

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Takes a step's metrics while it is computed, and reports on the step before.

        Raises:
          UserError: that one was skipped, and it was one too many.
        """
        self.flush()
        self._pending = (step, metrics)

    def flush(self, write: bool = False) -> None:
        """Waits for the step that was added last; with `write`, its metrics are written whatever its number."""
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        skipped = values["skipped"] > 0
        now, first = time.monotonic(), math.isnan(self._since)
        due = write or skipped or step % self.log_every == 0
        if due:
            # The first step of a call has no rates: it waited for the compiler.
            rates = {} if first else self.throughput.rates(self._last, step, max(now - self._since - self._paused, 1e-9))
            rate = float(self.learning_rates_T[step - 1 - self.skipped])
            self.writer.write(step, {**values, "learning_rate": rate, **rates})
        if due or first:
            self._last, self._since, self._paused = step, now, 0.0
        if skipped:
            self._skip(step, values)

    def _skip(self, step: int, values: dict[str, float]) -> None:
        self.skipped += 1
        what = "loss" if not math.isfinite(values["loss"]) else "gradient norm"
        said = f"step {step}: the {what} is {values[what.replace(' ', '_')]}, its update was not applied"
        if self.skipped > self.max_skipped:
            raise UserError(
                f"{said}; run again with a lower OptimizerConfig.learning_rate, which goes on from the last checkpoint, or with train.max_skipped_steps "
                f"= {self.skipped}, which leaves such steps out"
            )
        if jax.process_index() == 0:
            print(f"{said} ({self.skipped} of {self.max_skipped} such steps)", file=sys.stderr)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What happens in it is no part of a step: its time does not count, and it may move what it wants between devices and host."""
        begun = time.monotonic()
        with jax.transfer_guard("allow"):
            yield
        self._paused += time.monotonic() - begun

    def saves(self, saved: list[Saved]) -> None:
        """Writes what saves took, and empties the list."""
        while saved:
            save = saved.pop(0)
            self._saved.append(save)
            taken = {"save_seconds": save.seconds, "save_blocked_seconds": save.blocked, "save_bytes": save.bytes}
            self.writer.write(save.step, {**taken, "save_bytes_per_second": save.bytes / save.seconds})

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, *exception) -> None:
        """Says what all saves took."""
        self.writer.close()
        if self._saved and jax.process_index() == 0:
            total, seconds = sum(save.bytes for save in self._saved), sum(save.seconds for save in self._saved)
            print(
                f"{len(self._saved)} checkpoint(s) saved, {total / len(self._saved) / 1e6:,.1f} MB each, {total / seconds / 1e6:,.1f} MB a second in the "
                f"background; training stood still for {max(save.blocked for save in self._saved) * 1e3:.0f} ms at most"
            )
