"""The training loop: running the same command again resumes it."""

import contextlib
import dataclasses
import json
import pathlib
import signal
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
import optax

from xretrieval import mesh as mesh_lib
from xretrieval.data.pipeline import BatchPipeline, TaskData
from xretrieval.errors import UserError, read_json, write_json
from xretrieval.model import directory
from xretrieval.model.embedding import check_lookup
from xretrieval.model.tower import TowerConfig
from xretrieval.progress import track
from xretrieval.train import checkpoint
from xretrieval.train import state as state_lib
from xretrieval.train.metrics import MetricWriter
from xretrieval.train.optimizer import OptimizerConfig, make_optimizer
from xretrieval.train.state import TrainState
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
    input_length: int | None = None,
    target_length: int | None = None,
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
      input_length, target_length: tokens of a row on each side; None is what the longest example needs, up to a multiple of 8.
      tower, optimizer, loss: their configs; `tower.vocab_size` is set from the data.
      seed: of the initial parameters and of the order of the data.
      init_from: a model directory whose parameters a fresh run starts from.
      checkpoint_every, validate_every, log_every: in steps; `validate_every` 0 validates at the end only.
      mesh_model, mesh_replica: sizes of those mesh axes.
      validate: returns metrics of (tower config, tower parameters).
      stop_after: stop (and save) after so many steps of this call, for timing and for tests of resuming.

    Raises:
      UserError: the workdir belongs to other data, an example is longer than its row, or the loss is not finite.
      KeyboardInterrupt: after saving, where Ctrl-C or SIGTERM asked to stop.
    """
    check_whole(num_steps=num_steps, batch_size=batch_size, log_every=log_every, checkpoint_every=checkpoint_every)
    mesh = mesh_lib.make_mesh(mesh_model, mesh_replica)
    mesh_lib.check_batch(batch_size, mesh)
    config = dataclasses.replace(tower, vocab_size=data.vocab_size)
    order = {"train.batch_size": batch_size, "train.seed": seed, "mixture rates": {task.name: task.rate for task in data.tasks}}
    check_identity(workdir, {**data.identity, "tower": dataclasses.asdict(config), **order})
    pipeline = BatchPipeline(data.tasks, batch_size, data.vocab_size, seed, input_length, target_length)
    if max(pipeline.lengths) > config.max_positions:
        raise UserError(
            f"rows of {max(pipeline.lengths)} tokens are longer than TowerConfig.max_positions = {config.max_positions}; raise it"
        )
    tx = make_optimizer(optimizer, num_steps)
    with jax.set_mesh(mesh):
        check_lookup()
        state, start = initial_state(workdir, config, tx, loss, seed, init_from, data.identity)
        if start > num_steps:
            raise UserError(f"{workdir}: {start} steps are done already; set train.num_steps to more, or give another workdir")
        end = num_steps if stop_after is None else min(num_steps, start + stop_after)
        reading = contextlib.closing(pipeline.batches(start, end, jax.process_index(), jax.process_count()))
        with MetricWriter(workdir, start) as writer, StopOnSignal() as stop, reading as batches:
            reporter = Reporter(writer, batch_size, log_every, start)
            for step, batch in enumerate(track(batches, end - start, "training"), start + 1):
                placed = place(batch, mesh)
                with jax.transfer_guard("disallow"):
                    state, metrics = train_step(state, placed, config, loss, tx)
                stopping = stop.signal != 0  # read once: a signal from here on is the next step's
                save = step == end or stopping or step % checkpoint_every == 0
                reporter.add(step, metrics, wait=save)
                # Before it is saved: a step that is saved is a step whose metrics are written.
                if validate and not stopping and (step == num_steps or (validate_every and step % validate_every == 0)):
                    writer.write(step, validate(config, state.params["tower"]))
                if save:
                    checkpoint.save(workdir, step, state)
                if stopping:
                    break
        if stop.signal:
            raise KeyboardInterrupt
    return end


def check_whole(**settings: int) -> None:
    """UserError where one is not a whole number above 0."""
    for name, value in settings.items():
        if not isinstance(value, int) or value < 1:
            raise UserError(f"train.{name} = {value!r}: give a whole number, 1 or more")


def initial_state(
    workdir: str, config: TowerConfig, tx: optax.GradientTransformation, loss: LossConfig, seed: int, init_from: str | None, identity: dict
) -> tuple[TrainState, int]:
    """The newest checkpoint's state and its step, or a fresh one (with the parameters of `init_from`) and 0."""
    state = state_lib.create(config, tx, loss.initial_logit_scale, seed)
    newest = max(checkpoint.steps(workdir), default=0)
    if newest:
        return checkpoint.restore(workdir, newest, state_lib.abstract(state)), newest
    if init_from:
        state = state_lib.with_moments(directory.read_params(init_from, state_lib.abstract(state).params, identity), tx)
    return state, 0


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


def check_identity(workdir: str, identity: dict) -> None:
    """Writes `run.json`, or compares with the one there: a run never goes on with other data or another tower."""
    path = pathlib.Path(workdir) / "run.json"
    identity = json.loads(json.dumps(identity))
    if path.exists() and checkpoint.steps(workdir):  # without a checkpoint there is nothing to go on from
        before = read_json(path)
        changed = sorted(k for k in before.keys() | identity.keys() if before.get(k) != identity.get(k))
        if changed:
            raise UserError(
                f"{path}: this workdir was begun with another {', '.join(changed)}; give another workdir, or go back to what it was"
            )
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, identity)
    except OSError as error:
        raise UserError(f"{workdir}: cannot be written ({error.strerror}); give another workdir") from error
