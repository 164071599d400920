"""`xretrieval plan`: what a run needs on a TPU slice and how fast it could be there at best, from its programs compiled for that slice."""

import dataclasses
import json
import os
import pathlib

from xretrieval import mesh as mesh_lib
from xretrieval.data.packing import Shape
from xretrieval.data.plan import check_shape
from xretrieval.errors import UserError, write_json
from xretrieval.model.tower import ComputeConfig, TowerConfig, check_mesh
from xretrieval.plan import programs, report, search
from xretrieval.plan.topology import parse
from xretrieval.train import begin
from xretrieval.train.loss import LossConfig
from xretrieval.train.optimizer import OptimizerConfig
from xretrieval.train.trainable import TrainableConfig

PADDING = 1.05  # of packed rows, over their tokens: what dealing and packing leave at 64 pairs a shard and more (`xretrieval data plan`)
_SHORTEST = 16  # tokens; a row of such texts has the most segments


def plan_pod(
    topology: str,
    workdir: str,
    slices: int = 1,
    batch_size: int = 96,
    row_length: int | None = None,
    rows: int | None = None,
    max_segments: int | None = None,
    microbatches: int = 1,
    tower: TowerConfig = TowerConfig(),
    optimizer: OptimizerConfig = OptimizerConfig(),
    loss: LossConfig = LossConfig(),
    compute: ComputeConfig = ComputeConfig(),
    trainable: TrainableConfig = TrainableConfig(),
    mesh_model: int = 1,
    mesh_replica: int = 1,
    num_units: int = 1024,
    tokens_per_pair: int = 160,
    find_batch: bool = False,
    json_file: str | None = None,
) -> int:
    """Compiles the train step, its loss alone and the embed step of a run; prints what they need, and writes it as JSON.

    No data is read. What `train` is bound to is taken from there, but for these:

    Args:
      topology, slices: as "v5e:16x16", and how many of them.
      num_units: a, where `TowerConfig.num_units` is 0, as a run leaves it; t must be there, `gin_configs/models/` has it.
      row_length, rows, max_segments: where `train` leaves them open: 512; what the batch's tokens and 5 % of padding fill; a row of texts of 16.
      tokens_per_pair: mean tokens of both sides of a pair, for the number of rows. 160: CoVoST-2's recordings at 25 units a second, repeats taken
        out, and their transcripts, prefixes included, with a third of the pairs texts alone.
      find_batch: also look for the largest batch that fits.
      json_file: where to write the JSON; None: plan-TOPOLOGY.json in the workdir.

    Returns:
      The exit code: 0 where all fits, else 2.

    Raises:
      UserError: no such topology, or settings that no mesh of it takes.
    """
    begin.check_whole(batch_size=batch_size, microbatches=microbatches)
    check_shape(row_length, rows, max_segments)
    _check_data(num_units, tokens_per_pair)
    where = parse(topology, slices)
    if not tower.text_size:
        raise UserError(
            "TowerConfig.text_size is 0: the run takes it from its data; add --gin_file=gin_configs/models/gemma3_1b.gin (or another), or set it"
        )
    tower = dataclasses.replace(tower, num_units=tower.num_units or num_units)
    mesh = programs.mesh_of(where, mesh_model, mesh_replica)
    check_mesh(tower, mesh)
    mesh_lib.check_batch(batch_size, mesh, microbatches)
    shards = mesh_lib.batch_shards(mesh) * microbatches
    length = row_length or 512
    shape = Shape(length, rows or rows_of(batch_size, shards, tokens_per_pair, length), max_segments or -(-length // _SHORTEST))
    if compute.attention == "splash" and (compute.block % 128 or length % compute.block):
        raise UserError(f"train.row_length = {length} is not a multiple of ComputeConfig.block = {compute.block}, or that not of 128")
    run = programs.Run(tower, compute, loss, optimizer, trainable, batch_size, shape, microbatches)
    found = report.Plan(where, dict(mesh.shape), run, programs.state_of(run, mesh), *programs.all_of(run, where, mesh))
    report.show(found)
    content = found.content()
    if find_batch:
        content["find_batch"] = search.largest(found, mesh)
        report.show_batch(content["find_batch"])
    path = pathlib.Path(json_file or os.path.join(workdir, f"plan-{topology.replace(':', '-')}{f'-{slices}' if slices > 1 else ''}.json"))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, json.loads(json.dumps(content)))
    print(f"wrote {path}")
    return 0 if found.step.too_much is None and found.embed.too_much is None else 2


def _check_data(num_units: int, tokens_per_pair: float) -> None:
    if not isinstance(num_units, int) or num_units < 1:
        raise UserError(f"plan_pod.num_units = {num_units!r}: give a whole number, 1 or more")
    if not tokens_per_pair > 0:
        raise UserError(f"plan_pod.tokens_per_pair = {tokens_per_pair!r}: give the mean tokens of a pair, more than 0")


def rows_of(batch_size: int, shards: int, tokens_per_pair: float, row_length: int) -> int:
    """Rows of a part of the batch that is packed by itself."""
    return max(1, -(-int(batch_size * tokens_per_pair * PADDING) // (shards * row_length)))
