"""The train step compiles for a TPU pod slice, on a machine without one."""

import importlib.util

import jax
import pytest

from xretrieval import mesh as mesh_lib
from xretrieval.model.tower import ComputeConfig, TowerConfig
from xretrieval.train import state as state_lib
from xretrieval.train.optimizer import OptimizerConfig, make_optimizer
from xretrieval.train.step import LossConfig, StepConfig, train_step
from xretrieval.train.trainable import TrainableConfig

if importlib.util.find_spec("libtpu") is None:
    pytest.skip("libtpu is not installed here (extra `tpu`): nothing was compiled for a TPU", allow_module_level=True)


GEMMA3 = TowerConfig(
    text_size=700, num_units=100, width=256, layers=6, heads=2, kv_heads=1, head_dim=128, window=128, global_every=6, max_positions=512
)


@pytest.mark.parametrize(
    "config,compute,length",
    [
        (TowerConfig(text_size=700, num_units=100), ComputeConfig(), 64),
        (GEMMA3, ComputeConfig(attention="splash", dtype="bfloat16", remat=True), 512),
    ],
    ids=["demo", "splash"],
)
def test_train_step_compiles_for_v5e_4x4(config, compute, length):
    from jax.experimental import topologies

    devices = topologies.get_topology_desc("v5e:4x4", platform="tpu").devices
    mesh = mesh_lib.make_mesh(devices=devices)
    optimizer = make_optimizer(OptimizerConfig(), 100)
    batch, rows = 96, 64
    with jax.set_mesh(mesh):
        abstract = state_lib.abstract(config, optimizer, TrainableConfig())

        def split(*shape):
            return jax.ShapeDtypeStruct(shape, "int32", sharding=mesh_lib.sharding(mesh, "batch", *[None] * (len(shape) - 1)))

        inputs = {name: split(rows, length) for name in ("tokens", "segment_ids", "positions")}
        inputs |= {name: split(batch) for name in ("left", "right", "pair_id")}
        compiled = train_step.lower(abstract, inputs, StepConfig(config, compute, LossConfig(), 8), optimizer).compile()
    memory = compiled.memory_analysis()
    # Parameters and both moments are split over the chips: far less than a whole copy (the unsplit norms are small).
    whole = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(abstract))
    assert memory.argument_size_in_bytes < 0.15 * whole
    assert "all-gather" in compiled.as_text()
    assert ("tpu_custom_call" in compiled.as_text()) == (compute.attention == "splash"), "the kernel itself, not its interpretation"
