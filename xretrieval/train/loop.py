"""The training loop: running the same command again resumes it."""

import contextlib
import dataclasses
import time
from collections.abc import Callable

import jax
import numpy as np

from xretrieval import mesh as mesh_lib
from xretrieval.data.pipeline import BatchPipeline
from xretrieval.distributed import StopOnSignal
from xretrieval.errors import UserError
from xretrieval.model.tower import ComputeConfig, TowerConfig
from xretrieval.model.unit_rows import UnitInit
from xretrieval.progress import track
from xretrieval.train import begin, checkpoint
from xretrieval.train import state as state_lib
from xretrieval.train.metrics import MetricWriter
from xretrieval.train.optimizer import OptimizerConfig, make_optimizer
from xretrieval.train.step import LossConfig, StepConfig, train_step
from xretrieval.train.trainable import TrainableConfig


def place(batch: dict[str, np.ndarray], mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    """This host's shards of a packed batch onto its devices. Pair IDs keep their low 31 bits: a collision only hides one negative."""
    batch = {**batch, "pair_id": (batch["pair_id"] & 0x7FFFFFFF).astype(np.int32)}
    shardings = {1: mesh_lib.sharding(mesh, "batch"), 2: mesh_lib.sharding(mesh, "batch", None)}
    return {name: jax.make_array_from_process_local_data(shardings[x.ndim], x) for name, x in batch.items()}


def train(
    workdir: str,
    data: begin.TrainingData,
    num_steps: int,
    batch_size: int = 96,
    row_length: int | None = None,
    rows: int | None = None,
    max_segments: int | None = None,
    tower: TowerConfig = TowerConfig(),
    optimizer: OptimizerConfig = OptimizerConfig(),
    loss: LossConfig = LossConfig(),
    compute: ComputeConfig = ComputeConfig(),
    trainable: TrainableConfig = TrainableConfig(),
    seed: int = 0,
    init_from: str | None = None,
    unit_init: UnitInit = UnitInit(),
    checkpoint_every: int = 200,
    validate_every: int = 0,
    log_every: int = 20,
    mesh_model: int = 1,
    mesh_replica: int = 1,
    validate: Callable[[TowerConfig, dict, ComputeConfig], dict[str, float]] | None = None,
    stop_after: int | None = None,
) -> int:
    """Trains to `num_steps`, from the newest checkpoint in `workdir` if there is one; returns the steps done.

    Args:
      workdir: checkpoints, metrics and TensorBoard events go there.
      data: the mixture.
      num_steps: steps of the whole run; the learning rate decays to 0 there.
      batch_size: pairs a step, over all devices.
      row_length, rows, max_segments: tokens of a packed row, rows of a data shard, the most segments of a row; None is what wastes least over all
        steps (`xretrieval data plan` shows it).
      tower, optimizer, loss: their configs; `tower.text_size` and `tower.num_units` are set from the data.
      compute, trainable: how the tower is computed, and what of it trains.
      seed: of the initial parameters and of the order of the data.
      init_from: a model directory, trained or imported, whose parameters a fresh run starts from.
      unit_init: how the unit embeddings start where `init_from` has none.
      checkpoint_every, validate_every, log_every: in steps; `validate_every` 0 validates at the end only.
      mesh_model, mesh_replica: sizes of those mesh axes.
      validate: returns metrics of (tower config, tower parameters, compute config).
      stop_after: stop (and save) after so many steps of this call, for timing and for tests of resuming.

    Raises:
      UserError: the workdir belongs to other data, an example is longer than a row, a step needs more than `rows`, or the loss is not finite.
      KeyboardInterrupt: after saving, where Ctrl-C or SIGTERM asked to stop.
    """
    begin.check_whole(num_steps=num_steps, batch_size=batch_size, log_every=log_every, checkpoint_every=checkpoint_every)
    mesh, tx = mesh_lib.make_mesh(mesh_model, mesh_replica), make_optimizer(optimizer, num_steps)
    config = dataclasses.replace(tower, text_size=data.text_size, num_units=data.num_units)
    begin.check_run(workdir, data, config, trainable, init_from, unit_init, batch_size, seed, mesh)
    pipeline = begin.packed_pipeline(workdir, data, config, compute, num_steps, batch_size, seed, mesh, (row_length, rows, max_segments))
    step_config = StepConfig(config, compute, loss, pipeline.shape.num_segments, trainable.lora_scale)
    print(describe(step_config, pipeline, mesh))
    with jax.set_mesh(mesh):
        state, start = begin.initial_state(workdir, step_config, tx, num_steps, seed, trainable, init_from, unit_init, data)
        end = num_steps if stop_after is None else min(num_steps, start + stop_after)
        reading = contextlib.closing(pipeline.batches(start, end, mesh_lib.local_shards(mesh)))
        with MetricWriter(workdir, start) as writer, StopOnSignal() as stop, reading as batches:
            reporter = Reporter(writer, batch_size, log_every, start)
            for step, batch in enumerate(track(batches, end - start, "training"), start + 1):
                placed = place(batch, mesh)
                with jax.transfer_guard("disallow"):
                    state, metrics = train_step(state, placed, step_config, tx)
                stopping = stop.requested(step)  # asked once: a signal from here on is the next step's
                save = step == end or stopping or step % checkpoint_every == 0
                reporter.add(step, metrics, wait=save)
                # Before it is saved: a step that is saved is a step whose metrics are written.
                if validate and not stopping and (step == num_steps or (validate_every and step % validate_every == 0)):
                    writer.write(step, validate(config, state_lib.whole(state, trainable), compute))
                if save:
                    checkpoint.save(workdir, step, state)
                if stopping:
                    raise KeyboardInterrupt
    return end


def describe(step: StepConfig, pipeline: BatchPipeline, mesh: jax.sharding.Mesh) -> str:
    """What a run computes and how, in one line."""
    shape, compute = pipeline.shape, step.compute
    platform = mesh.devices.flat[0].platform
    way = f"{compute.attention} attention" + (f" in tiles of {compute.block}" if compute.attention != "dense" else "")
    if compute.attention == "splash" and platform != "tpu":
        way += f", interpreted and slow, for this is a {platform}: take chunked"
    rows = f"{pipeline.shards * shape.rows} rows of {shape.row_length} tokens on {mesh.size} {platform} device(s)"
    return f"{pipeline.batch_size} pairs a step in {rows}; {way}, {compute.dtype}" + (
        ", each layer computed again" if compute.remat else ""
    )


class Reporter:
    """Writes every `log_every` steps; holds those metrics until the step after them is sent off, so the device never waits for the host."""

    def __init__(self, writer: MetricWriter, batch_size: int, log_every: int, start: int):
        self.writer, self.batch_size, self.log_every = writer, batch_size, log_every
        self.pending: tuple[int, dict] | None = None
        self.last = (start, time.monotonic())

    def add(self, step: int, metrics: dict, wait: bool = False) -> None:
        """With `wait`, also writes this step's, at once: a state with a loss that is not finite is never saved."""
        self._flush()
        if wait or step % self.log_every == 0:
            self.pending = (step, metrics)
        if wait:
            self._flush()

    def _flush(self) -> None:
        if self.pending is None:
            return
        step, metrics = self.pending
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        now = time.monotonic()
        rate = (step - self.last[0]) / max(now - self.last[1], 1e-9)
        self.writer.write(step, {**values, "steps_per_second": rate, "pairs_per_second": rate * self.batch_size})
        self.last, self.pending = (step, now), None
        if not np.isfinite(values["loss"] + values["gradient_norm"]):
            raise UserError(
                f"the loss is {values['loss']}, its gradient {values['gradient_norm']} at step {step}; lower OptimizerConfig.learning_rate and start in a new workdir"
            )
