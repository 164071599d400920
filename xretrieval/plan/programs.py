"""The programs of a run, lowered for the devices of a slice: the train step, its loss alone, the embed step."""

import dataclasses
import functools
import math
import time
from typing import Any

import jax
import jax.numpy as jnp

from xretrieval import mesh as mesh_lib
from xretrieval.data.packing import Shape
from xretrieval.model import tower as tower_lib
from xretrieval.plan import collectives, flops, hlo
from xretrieval.plan import memory as memory_lib
from xretrieval.plan.roofline import Roofline, roofline
from xretrieval.plan.topology import Topology
from xretrieval.train import state as state_lib
from xretrieval.train.loss import LossConfig, contrastive_loss
from xretrieval.train.optimizer import OptimizerConfig, make_optimizer
from xretrieval.train.step import IDS, StepConfig, abstract_batch, train_step
from xretrieval.train.trainable import TrainableConfig


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run compiles, without its data.

    Attributes:
      tower, compute, loss, optimizer, trainable: their configs; `tower` with its vocabulary.
      batch_size: B, pairs of the global batch.
      shape: of what is packed apart: a data shard's part of a microbatch.
      microbatches: as of `StepConfig`.
    """

    tower: tower_lib.TowerConfig
    compute: tower_lib.ComputeConfig
    loss: LossConfig
    optimizer: OptimizerConfig
    trainable: TrainableConfig
    batch_size: int
    shape: Shape
    microbatches: int

    def tiles(self, mesh: jax.sharding.Mesh) -> flops.Tiles:
        """How attention cuts a row, where it is a Pallas kernel; heads are split over `model`."""
        side, length = min(self.compute.block, self.shape.row_length), self.shape.row_length
        return flops.Tiles(length // side, max(1, self.tower.heads // mesh.shape["model"]), self.tower.causal)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One program on one device.

    Attributes:
      memory: None where it does not fit; `too_much` says by how much.
      count: its products; `sends` what it sends, `unknown_loops` collectives in loops of unknown length.
      roofline: seconds; `seconds` what the compiler took.
      text: the compiled program.
    """

    memory: memory_lib.Memory | None
    too_much: memory_lib.TooMuch | None
    count: flops.Count
    sends: list[collectives.Collective]
    unknown_loops: int
    roofline: Roofline | None
    seconds: float
    text: str

    @property
    def sent(self) -> float:
        """Bytes that the device sends."""
        return sum(one.sent for one in self.sends)


@dataclasses.dataclass(frozen=True)
class State:
    """What a run keeps between steps: parameters, those that train, bytes of all and of one device's part."""

    parameters: int
    trained: int
    whole: int
    device: int


def mesh_of(topology: Topology, model: int, replica: int) -> jax.sharding.Mesh:
    """The run's mesh over the slices' devices; slices lie along `replica`.

    Raises:
      UserError: what `train` would say there, as of a `replica` that is no multiple of the slices.
    """
    return mesh_lib.make_mesh(model, replica, topology.devices())


def state_of(run: Run, mesh: jax.sharding.Mesh) -> State:
    """Sizes of the state, from its shardings."""
    with jax.set_mesh(mesh):
        made = state_lib.abstract(run.tower, make_optimizer(run.optimizer, 100), run.trainable)
    leaves = jax.tree.leaves(made)
    trained = sum(x.size for x in jax.tree.leaves(made.params))
    return State(
        parameters=trained + sum(x.size for x in jax.tree.leaves(made.frozen)),
        trained=trained,
        whole=sum(x.size * x.dtype.itemsize for x in leaves),
        device=sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves),
    )


def trace_step(run: Run, mesh: jax.sharding.Mesh) -> Any:
    """The traced `train_step`."""
    step = StepConfig(run.tower, run.compute, run.loss, run.shape.num_segments, run.trainable.lora_scale, run.microbatches)
    optimizer = make_optimizer(run.optimizer, 100)  # the schedule's length is a constant in the program
    with jax.set_mesh(mesh):
        state = state_lib.abstract(run.tower, optimizer, run.trainable)
        return train_step.trace(state, abstract_batch(run.shape, run.batch_size, mesh, run.microbatches), step, optimizer)


def trace_loss(run: Run, mesh: jax.sharding.Mesh) -> Any:
    """The traced loss of embeddings alone, with its gradient."""
    ids = IDS if run.loss.mask_same_text else IDS[:1]

    def loss(left_BE, right_BE, logit_scale, *ids_B):
        return contrastive_loss(left_BE, right_BE, logit_scale, ids_B[:-1], ids_B[-1], run.loss, run.compute.dtype)[0]

    with jax.set_mesh(mesh):
        sides, pairs = mesh_lib.sharding(mesh, "batch", None), mesh_lib.sharding(mesh, "batch")
        side = jax.ShapeDtypeStruct((run.batch_size, run.tower.embedding_width), jnp.float32, sharding=sides)
        scale = jax.ShapeDtypeStruct((), jnp.float32, sharding=mesh_lib.sharding(mesh))
        places = [jax.ShapeDtypeStruct((run.batch_size,), jnp.int32, sharding=pairs)] * (len(ids) + 1)
        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).trace(side, side, scale, *places)


def trace_embed(run: Run, mesh: jax.sharding.Mesh) -> Any:
    """The traced `tower.embed_rows`, as evaluation calls it, for as many rows as a microbatch has."""
    rows = mesh_lib.batch_shards(mesh) * run.shape.rows
    with jax.set_mesh(mesh):
        params = tower_lib.abstract(run.tower)
        tokens = jax.ShapeDtypeStruct((rows, run.shape.row_length), jnp.int32, sharding=mesh_lib.sharding(mesh, "batch", None))
        lengths = jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=mesh_lib.sharding(mesh, "batch"))
        embed = jax.jit(functools.partial(tower_lib.embed_rows, run.tower, compute=run.compute))
        return embed.trace(params, tokens, lengths)


def compile_traced(traced: Any, run: Run, topology: Topology, mesh: jax.sharding.Mesh) -> Compiled:
    """Counts a traced program, and compiles it for the slices.

    Raises:
      Exception: the compiler's own, where it is about anything but memory.
    """
    begun = time.monotonic()
    count = flops.count(traced.jaxpr, run.tiles(mesh))
    with jax.set_mesh(mesh):
        lowered = traced.lower()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        found = memory_lib.too_much(error)
        if found is None:
            raise
        return Compiled(None, found, count, [], 0, None, time.monotonic() - begun, "")
    used, text = memory_lib.of(compiled), compiled.as_text()
    sends, unknown = collectives.collectives(hlo.parse(text), mesh, topology.slices)
    times = roofline(topology, mesh, count, used.arguments + used.outputs + used.aliased, sends)
    return Compiled(used, None, count, sends, unknown, times, time.monotonic() - begun, text)


def all_of(run: Run, topology: Topology, mesh: jax.sharding.Mesh) -> tuple[Compiled, Compiled, Compiled]:
    """The train step, its loss alone, and the embed step."""
    step, loss, embed = (compile_traced(trace(run, mesh), run, topology, mesh) for trace in (trace_step, trace_loss, trace_embed))
    return step, loss, embed
