"""The training loop: running the same command again resumes it."""

import dataclasses
import json
import os
import pathlib
import signal
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from xretrieval import mesh as mesh_lib
from xretrieval.data.pipeline import BatchPipeline, TaskData
from xretrieval.errors import UserError
from xretrieval.model import directory
from xretrieval.model.tower import TowerConfig
from xretrieval.progress import track
from xretrieval.train import checkpoint
from xretrieval.train import state as state_lib
from xretrieval.train.metrics import MetricWriter
from xretrieval.train.optimizer import OptimizerConfig, make_optimizer
from xretrieval.train.step import LossConfig, train_step


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """The mixture and the identity of what it was made from; a resumed run must find the same identity."""

    tasks: Sequence[TaskData]
    vocab_size: int
    identity: dict


def place(batch: dict[str, np.ndarray], mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    """This host's rows onto its devices. Pair IDs keep their low 31 bits: a collision only hides one negative."""
    batch = {**batch, "pair_id": (batch["pair_id"] & 0x7FFFFFFF).astype(np.int32)}
    shardings = {1: mesh_lib.sharding(mesh, "batch"), 2: mesh_lib.sharding(mesh, "batch", None)}
    return {name: jax.make_array_from_process_local_data(shardings[x.ndim], x) for name, x in batch.items()}


class StopOnSignal:
    """Turns Ctrl-C and SIGTERM into a flag, so that the step under way is finished and saved."""

    def __enter__(self) -> "StopOnSignal":
        self.signal = 0
        self._before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number, frame) -> None:
        if self.signal == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    def __exit__(self, *exception) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def train(
    workdir: str,
    data: TrainingData,
    num_steps: int,
    batch_size: int = 96,
    input_length: int = 64,
    target_length: int = 64,
    tower: TowerConfig = TowerConfig(),
    optimizer: OptimizerConfig = OptimizerConfig(),
    loss: LossConfig = LossConfig(),
    seed: int = 0,
    init_from: str | None = None,
    checkpoint_every: int = 200,
    validate_every: int = 0,
    log_every: int = 20,
    mesh_model: int = 1,
    mesh_replica: int = 1,
    validate: Callable[[TowerConfig, dict], dict[str, float]] | None = None,
    stop_after: int | None = None,
) -> int:
    """Trains to `num_steps`, from the newest checkpoint in `workdir` if there is one; returns the steps done.

    Args:
      workdir: checkpoints, metrics and TensorBoard events go there.
      data: the mixture.
      num_steps: steps of the whole run; the learning rate decays to 0 there.
      batch_size: pairs a step, over all devices.
      input_length, target_length: tokens of a row on each side; a longer example is an error before the first step.
      tower, optimizer, loss: their configs; `tower.vocab_size` is set from the data.
      seed: of the initial parameters and of the order of the data.
      init_from: a model directory whose parameters a fresh run starts from.
      checkpoint_every, validate_every, log_every: in steps; `validate_every` 0 validates at the end only.
      mesh_model, mesh_replica: sizes of those mesh axes.
      validate: returns metrics of (tower config, tower parameters).
      stop_after: stop (and save) after so many steps of this call, for timing and for tests of resuming.

    Raises:
      UserError: the workdir belongs to other data, or a row is too short.
      KeyboardInterrupt: after saving, where Ctrl-C or SIGTERM asked to stop.
    """
    mesh = mesh_lib.make_mesh(mesh_model, mesh_replica)
    if batch_size % mesh_lib.batch_shards(mesh):
        raise UserError(f"batch_size {batch_size} does not divide over {mesh_lib.batch_shards(mesh)} devices; change train.batch_size")
    config = dataclasses.replace(tower, vocab_size=data.vocab_size)
    check_identity(workdir, {**data.identity, "tower": dataclasses.asdict(config)})
    pipeline = BatchPipeline(data.tasks, batch_size, input_length, target_length, data.vocab_size, seed)
    tx = make_optimizer(optimizer, num_steps)
    with jax.set_mesh(mesh), StopOnSignal() as stop:
        # 1. State: created sharded, then replaced by the newest checkpoint's.
        state = state_lib.create(config, tx, loss.initial_logit_scale, seed)
        start = max(checkpoint.steps(workdir), default=0)
        if start:
            state = checkpoint.restore(workdir, start, state_lib.abstract(state))
        elif init_from:
            state = state_lib.with_moments(directory.read_params(init_from, state_lib.abstract(state).params, data.identity), tx)
        end = num_steps if stop_after is None else min(num_steps, start + stop_after)
        writer = MetricWriter(workdir, start)
        reporter = Reporter(writer, batch_size, log_every, start)
        # 2. Steps: metrics of a step are fetched after the next one is under way, so the device never waits for the host.
        batches = pipeline.batches(start, end, jax.process_index(), jax.process_count())
        step = start
        for batch in track(batches, end - start, "training"):
            placed = place(batch, mesh)
            with jax.transfer_guard("disallow"):
                state, metrics = train_step(state, placed, config, loss, tx)
            step += 1
            reporter.add(step, metrics)
            if stop.signal:
                break
            if validate and validate_every and step % validate_every == 0 and step < num_steps:
                writer.write(step, validate(config, state.params["tower"]))
            if step % checkpoint_every == 0 and step < end:
                checkpoint.save(workdir, step, state)
        # 3. The end, or a signal: nothing done is lost.
        batches.close()
        reporter.flush()
        if step > start:
            checkpoint.save(workdir, step, state)
        if validate and step == num_steps and step > start:
            writer.write(step, validate(config, state.params["tower"]))
        writer.close()
    if stop.signal:
        raise KeyboardInterrupt
    return step


class Reporter:
    """Holds the newest metrics on the device until the step after them has been sent off."""

    def __init__(self, writer: MetricWriter, batch_size: int, log_every: int, start: int):
        self.writer, self.batch_size, self.log_every = writer, batch_size, log_every
        self.pending: tuple[int, dict] | None = None
        self.last = (start, time.monotonic())

    def add(self, step: int, metrics: dict) -> None:
        self.flush()
        if step % self.log_every == 0:
            self.pending = (step, metrics)

    def flush(self) -> None:
        if self.pending is None:
            return
        step, metrics = self.pending
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        now = time.monotonic()
        rate = (step - self.last[0]) / max(now - self.last[1], 1e-9)
        self.writer.write(step, {**values, "steps_per_second": rate, "pairs_per_second": rate * self.batch_size})
        self.last, self.pending = (step, now), None
        if not np.isfinite(values["loss"]):
            raise UserError(f"the loss is {values['loss']} at step {step}; lower OptimizerConfig.learning_rate and start in a new workdir")


def check_identity(workdir: str, identity: dict) -> None:
    """Writes `run.json`, or compares with the one there: a run never goes on with other data or another tower."""
    path = pathlib.Path(workdir) / "run.json"
    identity = json.loads(json.dumps(identity))
    if path.exists():
        before = json.loads(path.read_text())
        changed = sorted(k for k in before.keys() | identity.keys() if before.get(k) != identity.get(k))
        if changed:
            raise UserError(
                f"{path}: this workdir was begun with another {', '.join(changed)}; give another workdir, or go back to what it was"
            )
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".tmp").write_text(json.dumps(identity, indent=2) + "\n")
        os.replace(path.with_suffix(".tmp"), path)
    except OSError as error:
        raise UserError(f"{workdir}: cannot be written ({error.strerror}); give another workdir") from error
