"""The training loop: steps one after another, and beside them metrics, validation, checkpoints; the device never waits for the host."""

import dataclasses
import signal
from collections.abc import Callable, Iterable

import jax
import numpy as np

from xretrieval import mesh as mesh_lib
from xretrieval.distributed import StopOnSignal
from xretrieval.errors import Preempted
from xretrieval.train.checkpoint import Checkpoints
from xretrieval.train.metrics import Reporter
from xretrieval.train.profile import Profiler
from xretrieval.train.state import TrainState


def place(batch: dict[str, np.ndarray], mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    """This host's shards of a packed batch onto its devices. Pair IDs keep their low 31 bits: a collision only hides one negative."""
    batch = {**batch, "pair_id": (batch["pair_id"] & 0x7FFFFFFF).astype(np.int32)}
    shardings = {1: mesh_lib.sharding(mesh, "batch"), 2: mesh_lib.sharding(mesh, "batch", None)}
    with jax.transfer_guard("allow"):  # over several processes this is a transfer without `device_put`
        return {name: jax.make_array_from_process_local_data(shardings[x.ndim], x) for name, x in batch.items()}


@dataclasses.dataclass(frozen=True)
class Steps:
    """The steps of a run: what a step is taken with, and what is done beside it.

    Attributes:
      take: from (state, batch) to (state, metrics).
      measure: metrics of a state; None for none.
      due: by name, whether that is due after a step.
    """

    take: Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]
    mesh: jax.sharding.Mesh
    checkpoints: Checkpoints
    reporter: Reporter
    profiler: Profiler
    measure: Callable[[TrainState], dict[str, float]] | None
    due: dict[str, Callable[[int], bool]]

    def run(self, state: TrainState, start: int, unmeasured: bool, batches: Iterable[dict[str, np.ndarray]]) -> None:
        """Takes a step with each batch, from step `start` + 1 on; a signal stops it after the step under way, which is saved.

        With `unmeasured`, the measure of step `start` is still to be taken, for the run was stopped there.
        """
        reporter, checkpoints = self.reporter, self.checkpoints
        # An implicit transfer would be a wait for the device that nobody asked for.
        with reporter, StopOnSignal() as stop, self.profiler, jax.transfer_guard("disallow"):
            if unmeasured:
                self._measure(start, state)
                checkpoints.measured(start)
            for step, batch in enumerate(batches, start + 1):
                checkpoints.check()
                self.profiler.before(step, state)
                state, metrics = self.take(state, place(batch, self.mesh))
                self.profiler.after(step, state)
                reporter.add(step, metrics)  # now those of the step before are fetched
                reporter.saves(checkpoints.saved)
                stopping = stop.requested(step)
                saving = stopping or self.due["save"](step)
                measuring = self.measure is not None and self.due["measure"](step)
                if saving or measuring:
                    reporter.flush(write=True)  # a step that is saved is a step whose metrics are written
                if measuring and not stopping:  # who asks to stop does not wait for it
                    self._measure(step, state)
                if saving:
                    with reporter.paused():
                        checkpoints.save(step, state, reporter.skipped, unmeasured=measuring and stopping)
                if stopping:
                    checkpoints.wait()
                    raise KeyboardInterrupt if stop.signal == signal.SIGINT else Preempted(step)
            checkpoints.wait()
            reporter.saves(checkpoints.saved)

    def _measure(self, step: int, state: TrainState) -> None:
        if self.measure is not None:
            with self.reporter.paused():
                self.reporter.writer.write(step, self.measure(state))
