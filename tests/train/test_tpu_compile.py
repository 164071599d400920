"""The train step compiles for a TPU pod slice, on a machine without one."""

import importlib.util

import jax
import pytest

from xretrieval import mesh as mesh_lib
from xretrieval.model.tower import TowerConfig
from xretrieval.train import state as state_lib
from xretrieval.train.optimizer import OptimizerConfig, make_optimizer
from xretrieval.train.step import LossConfig, train_step

if importlib.util.find_spec("libtpu") is None:
    pytest.skip("libtpu is not installed here (extra `tpu`): nothing was compiled for a TPU", allow_module_level=True)


def test_train_step_compiles_for_v5e_4x4():
    from jax.experimental import topologies

    devices = topologies.get_topology_desc("v5e:4x4", platform="tpu").devices
    mesh = mesh_lib.make_mesh(devices=devices)
    config = TowerConfig(vocab_size=700)
    optimizer = make_optimizer(OptimizerConfig(), 100)
    batch, length = 96, 64
    with jax.set_mesh(mesh):
        abstract = jax.eval_shape(lambda: state_lib.create(config, optimizer, 20.0, 0))

        def placed(x):
            spec = x.sharding.spec if x.sharding is not None else jax.sharding.PartitionSpec()
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=jax.NamedSharding(mesh, spec))

        def rows(*shape):
            return jax.ShapeDtypeStruct(shape, "int32", sharding=mesh_lib.sharding(mesh, "batch", *[None] * (len(shape) - 1)))

        inputs = {"left_tokens": rows(batch, length), "right_tokens": rows(batch, length)}
        inputs |= {name: rows(batch) for name in ("left_lengths", "right_lengths", "pair_id")}
        compiled = train_step.lower(jax.tree.map(placed, abstract), inputs, config, LossConfig(), optimizer).compile()
    memory = compiled.memory_analysis()
    # Parameters and both moments are split over the chips: far less than a whole copy (the unsplit norms are small).
    whole = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(abstract))
    assert memory.argument_size_in_bytes < 0.15 * whole
    assert "all-gather" in compiled.as_text()
