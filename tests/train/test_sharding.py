"""How every parameter, moment and gradient lies on a mesh: one table, and no large array whole on several devices of `data`."""

import math

import jax
import optax

from xretrieval import mesh as mesh_lib
from xretrieval.data.packing import Shape
from xretrieval.model.tower import ComputeConfig, TowerConfig
from xretrieval.train import state as state_lib
from xretrieval.train.loss import LossConfig
from xretrieval.train.optimizer import OptimizerConfig, make_optimizer
from xretrieval.train.step import StepConfig, abstract_batch, loss_fn
from xretrieval.train.trainable import TrainableConfig

# Units, a dense head, norms of queries, keys and of what is added: whatever a tower has.
CONFIG = TowerConfig(
    text_size=500, num_units=100, width=16, layers=3, heads=4, kv_heads=2, head_dim=8, mlp_hidden=32, dense=(24,), max_positions=64
)
KINDS = ("parameter", "first moment", "second moment", "gradient")

# replica 2 x data 2 x model 2. An axis of an array is split over the axes of the mesh that are named, over none where there is a dash; that no
# line names `replica` says that each of its devices has a copy of what there is (gradients: the sum over all).
GOLDEN = """
blocks.attention.k.weight_DF [3, 16, 16]             - - model+data
blocks.attention.k_norm.scale_D [3, 8]               - data
blocks.attention.o.weight_DF [3, 32, 16]             - model+data -
blocks.attention.q.weight_DF [3, 16, 32]             - - model+data
blocks.attention.q_norm.scale_D [3, 8]               - data
blocks.attention.v.weight_DF [3, 16, 16]             - - model+data
blocks.mlp.down.weight_DF [3, 32, 16]                - model+data -
blocks.mlp.gate.weight_DF [3, 16, 32]                - - model+data
blocks.mlp.up.weight_DF [3, 16, 32]                  - - model+data
blocks.post_attention_norm.scale_D [3, 16]           - data
blocks.post_mlp_norm.scale_D [3, 16]                 - data
blocks.pre_attention_norm.scale_D [3, 16]            - data
blocks.pre_mlp_norm.scale_D [3, 16]                  - data
dense.0.kernel_DE [16, 24]                           data -
embedding.text_VD [512, 16]                          model+data -
embedding.units_AD [128, 16]                         model+data -
final_norm.scale_D [16]                              data
log_logit_scale []                                   -
"""


def arrays(config, trainable=TrainableConfig(), model=2, replica=2):
    """(kind, name, its shape and sharding) of all that a run of the config holds."""
    optimizer = make_optimizer(OptimizerConfig(), 10)
    mesh = mesh_lib.make_mesh(model, replica)
    with jax.set_mesh(mesh):
        state = state_lib.abstract(config, optimizer, trainable)
        step = StepConfig(config, ComputeConfig(), LossConfig(), 4, trainable.lora_scale)
        batch = abstract_batch(Shape(16, 2, 4), 16, mesh)
        gradients = jax.eval_shape(jax.grad(lambda *args: loss_fn(*args, step)[0]), state.params, state.frozen, batch)
        gradients = jax.tree.map(mesh_lib.placed, gradients)
    adam = optax.tree.get(state.opt_state, "mu"), optax.tree.get(state.opt_state, "nu")
    for kind, tree in zip(KINDS, (state.params, *adam, gradients), strict=True):
        yield from ((kind, name, x) for name, x in {**tree["tower"], "log_logit_scale": tree["log_logit_scale"]}.items())


def table():
    """A line for each parameter: its shape, and how all of it and of its moments and gradient is split."""
    splits = {}
    for kind, name, x in arrays(CONFIG):
        split = " ".join("+".join([entry] if isinstance(entry, str) else entry or "-") for entry in x.sharding.spec) or "-"
        splits.setdefault(f"{name} {list(x.shape)}", {}).setdefault(split, []).append(kind)
    lines = []
    for name, by_split in sorted(splits.items()):
        whole = [split if kinds == list(KINDS) else f"{', '.join(kinds)}: {split}" for split, kinds in by_split.items()]
        lines.append(f"{name:<52} {'; '.join(whole)}")
    return "\n".join(lines)


def test_golden_sharding():
    assert table() == GOLDEN.strip()


def test_nothing_large_is_whole_on_several_devices_of_data():
    """Gemma 3 1B, as in gin_configs/models/gemma3_1b.gin: its state by eighths, as four chips of data and two of model hold it."""
    config = TowerConfig(
        text_size=262_144, num_units=1000, width=1152, layers=26, heads=4, kv_heads=1, head_dim=256, mlp_hidden=6912, row_multiple=2048
    )
    held = whole = 0
    for kind, name, x in arrays(config, replica=1):
        assert x.size < 5000 or "data" in jax.tree.leaves(tuple(x.sharding.spec)), (kind, name)
        if kind != "gradient":
            held += math.prod(x.sharding.shard_shape(x.shape))
            whole += x.size
    assert whole > 3e9
    assert held <= 1.001 * whole / 8  # norms' scales have no side that `model` splits
