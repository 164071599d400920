"""A training run: the root function of `xretrieval train`. Running the same command again resumes it."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable

import jax

from xretrieval import distributed, shared_folder
from xretrieval import mesh as mesh_lib
from xretrieval.data.plan import check_shape
from xretrieval.model.tower import ComputeConfig, TowerConfig, check_mesh
from xretrieval.model.unit_rows import UnitInit
from xretrieval.progress import track
from xretrieval.train import begin
from xretrieval.train import profile as profile_lib
from xretrieval.train import state as state_lib
from xretrieval.train.agreement import check_agreement
from xretrieval.train.checkpoint import Checkpoints
from xretrieval.train.loop import Steps
from xretrieval.train.loss import LossConfig
from xretrieval.train.metrics import MetricWriter, Reporter
from xretrieval.train.optimizer import OptimizerConfig, learning_rates, make_optimizer
from xretrieval.train.step import StepConfig, train_step
from xretrieval.train.throughput import Throughput
from xretrieval.train.trainable import TrainableConfig


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
    microbatches: int = 1,
    max_skipped_steps: int = 0,
    checkpoint_every: int = 200,
    keep_checkpoints: int = 2,
    validate_every: int = 0,
    log_every: int = 20,
    mesh_model: int = 1,
    mesh_replica: int = 1,
    validate: Callable[[TowerConfig, dict, ComputeConfig], dict[str, float]] | None = None,
    stop_after: int | None = None,
    profile: str | None = None,
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
      microbatches: parts of a data shard's pairs that go through the tower one after another, which saves memory.
      max_skipped_steps: so many steps of the run may have a loss or gradient that is not finite; their update is left out.
      checkpoint_every, validate_every, log_every: in steps; `validate_every` 0 validates at the end only.
      keep_checkpoints: how many stay.
      mesh_model, mesh_replica: sizes of those mesh axes.
      validate: returns metrics of (tower config, tower parameters, compute config).
      stop_after: stop (and save) after so many steps of this call, for timing and for tests of resuming.
      profile: "10:15" traces steps 10 to 15 into the workdir's `profile`.

    Raises:
      UserError: the processes of the run differ, the workdir belongs to other data, its checkpoints are damaged, an example is longer than a row, a
        step needs more than `rows`, too many steps were not finite, or a checkpoint could not be saved.
      Preempted: after saving, where SIGTERM asked to stop.
      KeyboardInterrupt: after saving, where Ctrl-C did.
    """
    counts = {"num_steps": num_steps, "batch_size": batch_size, "microbatches": microbatches, "log_every": log_every}
    begin.check_whole(**counts, checkpoint_every=checkpoint_every, keep_checkpoints=keep_checkpoints)
    begin.check_counts(max_skipped_steps=max_skipped_steps, validate_every=validate_every, stop_after=stop_after)
    shape = {"row_length": row_length, "rows": rows, "max_segments": max_segments}
    check_shape(**shape)
    traced = profile_lib.parse(profile, num_steps)
    mesh, tx = mesh_lib.make_mesh(mesh_model, mesh_replica), make_optimizer(optimizer, num_steps)
    config = dataclasses.replace(tower, text_size=data.text_size, num_units=data.num_units)
    check_mesh(config, mesh)
    mesh_lib.check_batch(batch_size, mesh, microbatches)
    changeable = {"num_steps": num_steps, "microbatches": microbatches, "max_skipped_steps": max_skipped_steps, **shape}
    settings = begin.settings(optimizer, loss, compute, mesh, **changeable)
    with shared_folder.taken(workdir):
        identity = begin.check_run(workdir, data, config, trainable, init_from, unit_init, batch_size, seed, settings)
        pipeline = begin.packed_pipeline(workdir, data, config, compute, num_steps, batch_size, seed, mesh, microbatches, shape)
        step = StepConfig(config, compute, loss, pipeline.shape.num_segments, trainable.lora_scale, microbatches)
        with jax.set_mesh(mesh), Checkpoints(workdir, identity, keep_checkpoints) as checkpoints:
            begin.describe(step, pipeline, mesh)
            check_agreement(identity, step, tx, trainable, pipeline.shape, batch_size)
            state, start, skipped, unmeasured = begin.initial_state(checkpoints, step, tx, seed, trainable, init_from, unit_init, data)
            end = num_steps if stop_after is None else min(num_steps, start + stop_after)
            throughput, rates = Throughput.of(config, state, pipeline.schedule, mesh), learning_rates(optimizer, num_steps)
            reporter = Reporter(MetricWriter(workdir, start), throughput, rates, log_every, max_skipped_steps, skipped)
            take = functools.partial(train_step, config=step, optimizer=tx)
            measure = None if validate is None else lambda state: validate(config, state_lib.whole(state, trainable), compute)
            due = {"save": lambda at: at % checkpoint_every == 0 or at == end}
            due["measure"] = lambda at: at == num_steps or (validate_every > 0 and at % validate_every == 0)
            steps = Steps(take, mesh, checkpoints, reporter, profile_lib.Profiler(traced, f"{workdir}/profile", start), measure, due)
            with contextlib.closing(pipeline.batches(start, end, mesh_lib.local_shards(mesh, microbatches))) as batches:
                steps.run(state, start, unmeasured, track(batches, end - start, "training") if distributed.first() else batches)
    return end
