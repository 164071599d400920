"""How a run begins: what it was made from, the shape of its batches, its first state."""

import dataclasses
import hashlib
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax

from xretrieval import mesh as mesh_lib
from xretrieval import tensors
from xretrieval.data import plan as plan_lib
from xretrieval.data.pipeline import BatchPipeline, TaskData
from xretrieval.errors import UserError
from xretrieval.model import directory, tower
from xretrieval.model.embedding import check_lookup
from xretrieval.model.unit_rows import UnitInit, text_statistics, unit_rows
from xretrieval.train import checkpoint, identity
from xretrieval.train import state as state_lib
from xretrieval.train.loss import LossConfig
from xretrieval.train.optimizer import OptimizerConfig
from xretrieval.train.state import TrainState
from xretrieval.train.step import StepConfig
from xretrieval.train.trainable import UNITS, TrainableConfig


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """A mixture as a run needs it.

    Attributes:
      tasks: the mixture.
      text_size, num_units: t and a.
      identity: what the mixture was made from; a resumed run must find the same.
      codebook_KW: of the unit tokenizer; unit embeddings may start from it.
    """

    tasks: Sequence[TaskData]
    text_size: int
    num_units: int
    identity: dict
    codebook_KW: np.ndarray


def check_run(
    workdir: str,
    data: TrainingData,
    config: tower.TowerConfig,
    trainable: TrainableConfig,
    init_from: str | None,
    unit_init: UnitInit,
    batch_size: int,
    seed: int,
    changeable: dict[str, Any],
) -> str:
    """The fingerprint of the run (`identity.check`); `changeable` is what `settings` gives, `num_steps` among them.

    Raises:
      UserError: more steps are done than the run has, or the workdir is another run's.
    """
    if (done := checkpoint.steps(workdir)) and done[-1] > changeable["train.num_steps"]:
        raise UserError(f"{workdir}: {done[-1]} steps are done already; set train.num_steps to more, or give another workdir")
    fixed = {
        **data.identity,
        "tower": dataclasses.asdict(config),
        "trainable": dataclasses.asdict(trainable),
        "start": started_from(init_from),
        "train.unit_init": dataclasses.asdict(unit_init),
        "train.batch_size": batch_size,
        "train.seed": seed,
        "mixture": {task.name: _assembly(task) for task in data.tasks},
    }
    return identity.check(workdir, fixed, changeable, checkpoint.begun(workdir), jax.process_index() == 0)


def _assembly(task: TaskData) -> dict[str, Any]:
    """What makes the pairs of a task from its records."""
    frames = hashlib.sha256(repr((task.prefixes, task.neutral_prefixes, task.suffixes)).encode()).hexdigest()[:16]
    return {"rate": task.rate, "dropped tokens": task.drop_rate, "neutral languages": task.neutral_rate, "prefixes": frames}


def settings(
    optimizer: OptimizerConfig, loss: LossConfig, compute: tower.ComputeConfig, mesh: jax.sharding.Mesh, **counts: int | None
) -> dict:
    """What a run may go on with another value of; `counts` are those of `train`, None where it is left to the data."""
    configs = {type(config).__name__: dataclasses.asdict(config) for config in (optimizer, loss, compute)}
    devices = {**mesh.shape, "processes": jax.process_count(), "device": mesh.devices.flat[0].device_kind}
    return {**configs, **{f"train.{name}": count for name, count in counts.items()}, "mesh": devices}


def packed_pipeline(
    workdir: str,
    data: TrainingData,
    config: tower.TowerConfig,
    compute: tower.ComputeConfig,
    num_steps: int,
    batch_size: int,
    seed: int,
    mesh: jax.sharding.Mesh,
    microbatches: int,
    wanted: dict[str, int | None],
) -> BatchPipeline:
    """The batches of a run, in a shape (`train.row_length`, `.rows`, `.max_segments` as wanted) that every step was seen to fit.

    The plan stays in the workdir's `packing.json`.
    """
    lengths, cache = [task.lengths() for task in data.tasks], pathlib.Path(workdir) / "packing.json"
    shards = mesh_lib.batch_shards(mesh) * microbatches
    made = plan_lib.plan(lengths, batch_size, seed, shards, num_steps, **wanted, cache=cache, keep=jax.process_index() == 0)
    pipeline = BatchPipeline(data.tasks, batch_size, config.vocab_size, seed, shards, made.shape)
    longest = pipeline.schedule.longest
    if longest > config.max_positions:
        raise UserError(f"a side of {longest} tokens is longer than TowerConfig.max_positions = {config.max_positions}; raise it")
    if compute.attention == "splash" and (compute.block % 128 or made.row_length % compute.block):
        raise UserError(
            f"splash attention takes tiles of a multiple of 128 that divide a row: ComputeConfig.block is {compute.block}, a row {made.row_length} "
            f"tokens; set train.row_length to a multiple of the block"
        )
    return pipeline


def check_whole(**settings: int) -> None:
    """UserError where one is not a whole number above 0."""
    for name, value in settings.items():
        if not isinstance(value, int) or value < 1:
            raise UserError(f"train.{name} = {value!r}: give a whole number, 1 or more")


def check_counts(**settings: int | None) -> None:
    """UserError where one that is given is not a whole number; 0 is one: never, or none."""
    for name, value in settings.items():
        if value is not None and (not isinstance(value, int) or value < 0):
            raise UserError(f"train.{name} = {value!r}: give a whole number, 0 or more")


def initial_state(
    checkpoints: checkpoint.Checkpoints,
    step: StepConfig,
    tx: optax.GradientTransformation,
    seed: int,
    trainable: TrainableConfig,
    init_from: str | None,
    unit_init: UnitInit,
    data: TrainingData,
) -> tuple[TrainState, int, int, bool]:
    """The newest checkpoint's state with its manifest's step, skipped and unmeasured; or a fresh state (with the parameters of `init_from`).

    Raises:
      UserError: `init_from` is another tower than the run's or holds what is not finite, or no checkpoint
        is whole.
    """
    check_lookup(step.compute.dtype)
    newest = checkpoints.restore_newest(state_lib.abstract(step.tower, tx, trainable))
    if newest is None:
        state, done, skipped, unmeasured = _fresh_state(step, tx, seed, trainable, init_from, unit_init, data), 0, 0, False
    else:
        state, (done, skipped, unmeasured) = newest[0], (newest[1].step, newest[1].skipped, newest[1].unmeasured)
    if done and jax.process_index() == 0:
        print(f"goes on from step {done}")
    try:
        state_lib.check_finite(state)  # as every save does: compiled here, where no step waits for it
    except UserError as error:
        raise UserError(
            f"{init_from if init_from and not done else checkpoints.root}: {error}; start from another model or workdir"
        ) from error
    return _clamped(state, step.loss), done, skipped, unmeasured


def _clamped(state: TrainState, loss: LossConfig) -> TrainState:
    """The state with its logit scale at most that of the config, which is said: a model or a checkpoint may have a higher one."""
    scale, most = state.params["log_logit_scale"], np.float32(np.log(loss.max_logit_scale))
    found = float(jax.device_get(scale))
    if not loss.learn_logit_scale or found <= most:
        return state
    if jax.process_index() == 0:
        print(
            f"the logit scale is {np.exp(found):.1f}, LossConfig.max_logit_scale {loss.max_logit_scale:g}: it begins there", file=sys.stderr
        )
    return state._replace(params={**state.params, "log_logit_scale": jax.device_put(most, scale.sharding)})


def _fresh_state(
    step: StepConfig,
    tx: optax.GradientTransformation,
    seed: int,
    trainable: TrainableConfig,
    init_from: str | None,
    unit_init: UnitInit,
    data: TrainingData,
) -> TrainState:
    config, scale = step.tower, step.loss.initial_logit_scale
    if not init_from:
        return state_lib.create(config, tx, scale, seed, trainable)
    found = directory.read_params(init_from, tower.abstract(config), data.identity, config)
    params = dict(found.params)
    if UNITS in found.missing:
        params[UNITS] = _unit_table(init_from, config, unit_init, data.codebook_KW)
    return state_lib.from_params(config, params, tx, found.logit_scale or scale, seed, trainable)


def _unit_table(llm_dir: str, config: tower.TowerConfig, unit_init: UnitInit, codebook_KW: np.ndarray) -> jax.Array:
    """Rows for the units of an LLM that has none, padded, on the mesh."""
    text_VD = tensors.mapped(pathlib.Path(llm_dir) / "model.safetensors")["embedding.text_VD"][: config.text_size]
    rows_AD = unit_rows(unit_init.how, text_statistics(text_VD), config.num_units, unit_init.seed, codebook_KW)
    want = tower.abstract(config)[UNITS]
    padded_AD = np.pad(rows_AD, ((0, want.shape[0] - len(rows_AD)), (0, 0)))
    return jax.make_array_from_callback(want.shape, want.sharding, lambda index: padded_AD[index])


def started_from(init_from: str | None) -> dict | None:
    """What `run.json` keeps of the model that a run started from: its identity, and the licence that goes with all that is made from it."""
    if not init_from:
        return None
    record = directory.describe(init_from)
    notice = pathlib.Path(init_from) / "NOTICE"
    licences = {path.name: path.read_text(encoding="utf-8", errors="replace") for path in sorted(pathlib.Path(init_from).glob("LICENSE*"))}
    source = {"source": record["source"], "prompts": record.get("prompts", {})} if "source" in record else {}
    return {"fingerprint": record["fingerprint"], "notice": notice.read_text() if notice.exists() else "", "licences": licences, **source}


def describe(step: StepConfig, pipeline: BatchPipeline, mesh: jax.sharding.Mesh) -> None:
    """Says what a run computes and how, in one line."""
    shape, compute = pipeline.shape, step.compute
    platform = mesh.devices.flat[0].platform
    way = f"{compute.attention} attention" + (f" in tiles of {compute.block}" if compute.attention != "dense" else "")
    if compute.attention == "splash" and platform != "tpu":
        way += f", interpreted and slow, for this is a {platform}: take chunked"
    rows = f"{pipeline.shards * shape.rows} rows of {shape.row_length} tokens on {mesh.size} {platform} device(s)"
    if step.microbatches > 1:
        way += f", {step.microbatches} microbatches"
    if jax.process_index() == 0:
        print(
            f"{pipeline.batch_size} pairs a step in {rows}; {way}, {compute.dtype}{', each layer computed again' if compute.remat else ''}"
        )
