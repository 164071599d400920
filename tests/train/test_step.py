"""One train step: eight devices equal one, in loss, every parameter and every moment; bfloat16, chunked and remat are the same step."""

import jax
import numpy as np
import pytest
from train import runs

from xretrieval import mesh as mesh_lib
from xretrieval.model.tower import ComputeConfig
from xretrieval.train import state as state_lib
from xretrieval.train.optimizer import OptimizerConfig, make_optimizer
from xretrieval.train.trainable import TrainableConfig


@pytest.fixture(scope="module")
def one_device():
    return runs.steps()


@pytest.mark.parametrize("devices,model,replica", [(8, 1, 1), (8, 2, 2), (4, 4, 1)])
def test_a_mesh_equals_one_device(one_device, devices, model, replica):
    losses, _, _, state = runs.steps(devices, model, replica)
    # Sums in another order: some 1e-6 of float32; Adam divides by the root of the second moment, which enlarges it where gradients are tiny.
    np.testing.assert_allclose(losses, one_device[0], rtol=1e-5)
    for got, expected in zip(jax.tree.leaves(state), jax.tree.leaves(one_device[3]), strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-4 * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize("compute", [ComputeConfig(remat=True), ComputeConfig(attention="chunked", block=16)], ids=["remat", "chunked"])
def test_ways_of_computing_are_the_same_step(one_device, compute):
    losses, _, after, _ = runs.steps(compute=compute)
    np.testing.assert_allclose(losses, one_device[0], rtol=1e-5)
    for name, value in after.items():
        np.testing.assert_allclose(value, one_device[2][name], atol=2e-4, err_msg=name)


def test_bfloat16_learns_what_float32_learns(one_device):
    losses, _, after, state = runs.steps(compute=ComputeConfig(dtype="bfloat16"))
    # bfloat16 keeps 8 bits, and the logit scale of 20 enlarges what an embedding's entries lose: some percent of the loss.
    np.testing.assert_allclose(losses, one_device[0], rtol=0.05)
    assert all(x.dtype == np.float32 for x in after.values())
    assert all(x.dtype in (np.float32, np.int32) for x in jax.tree.leaves(state))


def test_nothing_is_compiled_twice():
    from xretrieval.train.step import train_step

    before = train_step._cache_size()
    runs.steps(count=5, others=True)
    assert train_step._cache_size() == before + 1


def test_moments_are_split_as_their_parameters():
    mesh = mesh_lib.make_mesh(2, 1, jax.devices()[:8])
    optimizer = make_optimizer(OptimizerConfig(), 10)
    with jax.set_mesh(mesh):
        state = state_lib.create(runs.CONFIG, optimizer, 20.0, 0, TrainableConfig())
    specs = {name: x.sharding.spec for name, x in state.params["tower"].items()}
    for table in ("embedding.text_VD", "embedding.units_AD"):
        assert specs[table] == jax.sharding.PartitionSpec(("model", "data"), None)
    assert specs["blocks.attention.q.weight_DF"] == jax.sharding.PartitionSpec(None, "data", "model")
    assert specs["blocks.mlp.down.weight_DF"] == jax.sharding.PartitionSpec(None, "model", "data")
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim > 1]
    wanted = [x for x in jax.tree.leaves(state.params["tower"]) if x.ndim > 1]
    assert len(moments) == 2 * len(wanted)
    assert [m.sharding.spec for m in moments] == 2 * [p.sharding.spec for p in wanted]
