"""Which parameters count as work: those of the layers' matrices, by the sizes of the configuration."""

import jax
import pytest

from xretrieval import mesh as mesh_lib
from xretrieval.model.tower import TowerConfig
from xretrieval.train import state as state_lib
from xretrieval.train.optimizer import OptimizerConfig, make_optimizer
from xretrieval.train.throughput import ModelFlops
from xretrieval.train.trainable import TrainableConfig

TOWER = TowerConfig(text_size=50, num_units=20, width=32, layers=3, heads=4, kv_heads=2, head_dim=16, mlp_hidden=64, dense=(24, 8))
# (inputs, outputs) of a layer's q, k, v, o, and the MLP's three.
MATRICES = [(32, 64), (32, 32), (32, 32), (64, 32), (32, 64), (32, 64), (64, 32)]


@pytest.mark.parametrize("trainable", [TrainableConfig(), TrainableConfig(what="lora", lora_rank=4)], ids=lambda config: config.what)
def test_norms_tables_and_dense_heads_do_not_count(trainable):
    with jax.set_mesh(mesh_lib.make_mesh()):
        state = state_lib.abstract(TOWER, make_optimizer(OptimizerConfig(), 10), trainable)
    found = ModelFlops.of(TOWER, state)
    weights = TOWER.layers * sum(one * other for one, other in MATRICES)
    adapters = TOWER.layers * 4 * sum(one + other for one, other in MATRICES)
    assert (found.trained, found.frozen) == ((weights, 0) if trainable.what == "all" else (adapters, weights))
