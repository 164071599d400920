"""How a run begins: what it was made from, the shape of its batches, its first state."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

import jax
import numpy as np
import optax

from xretrieval import mesh as mesh_lib
from xretrieval import tensors
from xretrieval.data import plan as plan_lib
from xretrieval.data.pipeline import BatchPipeline, TaskData
from xretrieval.errors import UserError, read_json, write_json
from xretrieval.model import directory, tower
from xretrieval.model.embedding import check_lookup
from xretrieval.model.unit_rows import UnitInit, text_statistics, unit_rows
from xretrieval.train import checkpoint
from xretrieval.train import state as state_lib
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
    mesh: jax.sharding.Mesh,
) -> None:
    """UserError where the batch does not divide over the mesh, or where the workdir is another run's."""
    mesh_lib.check_batch(batch_size, mesh)
    order = {"train.batch_size": batch_size, "train.seed": seed, "mixture rates": {task.name: task.rate for task in data.tasks}}
    parts = {"tower": dataclasses.asdict(config), "trainable": dataclasses.asdict(trainable), "start": started_from(init_from)}
    parts["train.unit_init"] = dataclasses.asdict(unit_init)
    check_identity(workdir, {**data.identity, **parts, **order})


def packed_pipeline(
    workdir: str,
    data: TrainingData,
    config: tower.TowerConfig,
    compute: tower.ComputeConfig,
    num_steps: int,
    batch_size: int,
    seed: int,
    mesh: jax.sharding.Mesh,
    wanted: tuple[int | None, int | None, int | None],
) -> BatchPipeline:
    """The batches of a run, in a shape (`train.row_length`, `.rows`, `.max_segments` as wanted) that every step was seen to fit.

    The plan stays in the workdir's `packing.json`.
    """
    lengths, cache, shards = [task.lengths() for task in data.tasks], pathlib.Path(workdir) / "packing.json", mesh_lib.batch_shards(mesh)
    made = plan_lib.plan(lengths, batch_size, seed, shards, num_steps, *wanted, cache, jax.process_index() == 0)
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


def initial_state(
    workdir: str,
    step: StepConfig,
    tx: optax.GradientTransformation,
    num_steps: int,
    seed: int,
    trainable: TrainableConfig,
    init_from: str | None,
    unit_init: UnitInit,
    data: TrainingData,
) -> tuple[TrainState, int]:
    """The newest checkpoint's state and its step, or a fresh one (with the parameters of `init_from`) and 0.

    Raises:
      UserError: more steps are done than `num_steps`, or `init_from` is another tower than the run's.
    """
    check_lookup(step.compute.dtype)
    config, scale, newest = step.tower, step.loss.initial_logit_scale, max(checkpoint.steps(workdir), default=0)
    if newest > num_steps:
        raise UserError(f"{workdir}: {newest} steps are done already; set train.num_steps to more, or give another workdir")
    if newest:
        return checkpoint.restore(workdir, newest, state_lib.abstract(config, tx, trainable)), newest
    if not init_from:
        return state_lib.create(config, tx, scale, seed, trainable), 0
    found = directory.read_params(init_from, tower.abstract(config), data.identity, config)
    params = dict(found.params)
    if UNITS in found.missing:
        params[UNITS] = _unit_table(init_from, config, unit_init, data.codebook_KW)
    return state_lib.from_params(config, params, tx, found.logit_scale or scale, seed, trainable), 0


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
