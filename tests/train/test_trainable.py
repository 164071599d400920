"""What trains, and only that, moves and takes optimizer memory; adapters start as nothing and are merged on export."""

import dataclasses

import jax
import numpy as np
import pytest
from train import runs

from xretrieval import mesh as mesh_lib
from xretrieval.errors import UserError
from xretrieval.model import tower
from xretrieval.train import state as state_lib
from xretrieval.train import trainable as trainable_lib
from xretrieval.train.loop import place
from xretrieval.train.optimizer import OptimizerConfig, make_optimizer
from xretrieval.train.pairs import embed_pairs
from xretrieval.train.trainable import UNITS, TrainableConfig

PLAIN = OptimizerConfig(learning_rate=1e-3, warmup_steps=1, max_gradient_norm=1e9)
UPPER = ("blocks.", "final_norm.")
KINDS = {
    "units": (TrainableConfig("units"), lambda name, layer: False),
    "units and the top layer": (TrainableConfig("units", top_layers=1), lambda name, layer: name.startswith(UPPER) and layer in (None, 2)),
    "units and all layers": (TrainableConfig("units", top_layers=3), lambda name, layer: name.startswith(UPPER)),
    "lora": (TrainableConfig("lora", lora_rank=4), lambda name, layer: name.endswith("weight_DF")),
    "lora on two layers": (
        TrainableConfig("lora", top_layers=2, lora_rank=4),
        lambda name, layer: name.endswith("weight_DF") and layer in (1, 2),
    ),
}


def layers_of(name, value):
    return [(layer, value[layer]) for layer in range(len(value))] if name.startswith("blocks.") else [(None, value)]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_frozen_stays_bitwise_and_what_trains_moves(kind):
    trainable, moves = KINDS[kind]
    losses, before, after, _ = runs.steps(count=4, trainable=trainable, optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=1))
    assert losses[-1] < losses[1]
    assert before.keys() == after.keys()
    for name in before:
        for (layer, old), (_, new) in zip(layers_of(name, before[name]), layers_of(name, after[name]), strict=True):
            if name == UNITS or moves(name, layer):
                assert (old != new).any(), (name, layer)
            else:
                assert (old == new).all(), (name, layer)
    assert (before["embedding.text_VD"] == after["embedding.text_VD"]).all(), "text rows move only if asked"


@pytest.mark.parametrize("kind", ["units and the top layer", "lora on two layers"])
def test_eight_devices_equal_one(kind):
    trainable = KINDS[kind][0]
    one, eight = runs.steps(trainable=trainable, count=2), runs.steps(8, 2, 2, trainable=trainable, count=2)
    np.testing.assert_allclose(eight[0], one[0], rtol=1e-5)
    for name, value in eight[2].items():
        np.testing.assert_allclose(value, one[2][name], atol=2e-4, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_parameters_take_no_optimizer_memory(kind):
    trainable = KINDS[kind][0]
    with jax.set_mesh(mesh_lib.make_mesh(devices=jax.devices()[:1])):
        state = state_lib.create(runs.CONFIG, make_optimizer(OptimizerConfig(), 10), 20.0, 0, trainable)
    size = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
    assert size([x for x in jax.tree.leaves(state.opt_state) if x.ndim]) == 2 * size(state.params["tower"])
    if trainable.what == "units" and not trainable.top_layers:
        assert set(state.params["tower"]) == {UNITS}
    assert "embedding.text_VD" in state.frozen


def test_the_gradient_of_what_trains_is_that_of_full_training():
    """The first step of Adam from the same state: units and top layer move as they do when all trains, adapters as the formula says."""
    everything = runs.steps(count=2, optimizer=PLAIN)
    upper = runs.steps(count=2, trainable=TrainableConfig("units", top_layers=1), optimizer=PLAIN)
    # Two programs: one runs the layers in two stacks.
    assert upper[0][0] == pytest.approx(everything[0][0], rel=1e-6)
    np.testing.assert_allclose(upper[2][UNITS], everything[2][UNITS], atol=2e-5)
    np.testing.assert_allclose(upper[2]["blocks.mlp.up.weight_DF"][2], everything[2]["blocks.mlp.up.weight_DF"][2], atol=2e-5)


def test_an_adapted_tower_embeds_as_the_merged_one():
    trainable = TrainableConfig("lora", top_layers=2, lora_rank=3, lora_alpha=12.0)
    state = runs.steps(count=3, trainable=trainable, optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=1))[3]
    with jax.set_mesh(mesh_lib.make_mesh(devices=jax.devices()[:1])):
        merged = state_lib.whole(state, trainable)
        adapted = {**state.params["tower"], **state.frozen}
        rows = place(runs.batch(), jax.sharding.get_mesh())
        embed = jax.jit(
            lambda params, scale: embed_pairs(runs.CONFIG, params, rows, runs.SHAPE.num_segments, tower.ComputeConfig(), scale),
            static_argnums=1,
        )
        sides = [embed(params, scale) for params, scale in ((adapted, trainable.lora_scale), (merged, 0.0))]
        ignored = embed(adapted, 0.0)
    for one, other in zip(*sides, strict=True):
        np.testing.assert_allclose(one, other, atol=5e-6)
    assert np.abs(np.asarray(ignored[0]) - np.asarray(sides[0][0])).max() > 1e-3, "the adapters matter"
    # The formula, in float64.
    name = "blocks.mlp.up."
    a, b = (np.asarray(adapted[f"{name}{end}"], np.float64) for end in ("lora_a_DK", "lora_b_KF"))
    want = np.asarray(adapted[f"{name}weight_DF"], np.float64) + 12.0 / 3 * a @ b
    np.testing.assert_allclose(np.asarray(merged[f"{name}weight_DF"])[1:], want, atol=1e-6)


def test_the_unit_embeddings_have_a_learning_rate_of_their_own():
    one = runs.steps(count=2, optimizer=PLAIN)
    ten = runs.steps(count=2, optimizer=dataclasses.replace(PLAIN, unit_learning_rate_multiplier=10.0))
    moved = [(after[UNITS] - before[UNITS]) for _, before, after, _ in (one, ten)]
    # The first step has rate 0, so the second step's gradients are equal, and the units' updates are ten times as large.
    np.testing.assert_allclose(moved[1], 10 * moved[0], atol=1e-6)
    assert (one[2]["blocks.mlp.up.weight_DF"] == ten[2]["blocks.mlp.up.weight_DF"]).all()


def test_weight_decay_leaves_norms_alone():
    """Where gradients are nought, decay is all that moves a parameter."""
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-3, warmup_steps=1, weight_decay=10.0), 10)
    tower = {name: np.ones(x.shape, np.float32) for name, x in runs.steps(count=0)[1].items()}
    params = {"tower": tower, "log_logit_scale": np.float32(3.0)}
    state, nought = optimizer.init(params), jax.tree.map(np.zeros_like, params)
    for _ in range(2):
        moved, state = optimizer.update(nought, state, params)
    assert moved["log_logit_scale"] == 0
    for name, x in moved["tower"].items():
        assert not np.any(x) if name.endswith("scale_D") else np.all(x < 0), name


@pytest.mark.parametrize(
    "make,message",
    [
        (lambda: TrainableConfig("some"), "TrainableConfig.what"),
        (lambda: TrainableConfig("all", top_layers=1), "TrainableConfig.top_layers"),
        (lambda: TrainableConfig("lora", lora_rank=0), "TrainableConfig.lora_rank"),
        (lambda: trainable_lib.split(TrainableConfig("units", 4), runs.CONFIG, {UNITS: 0}, 0), "it must be 0 to 3, the tower's layers"),
        (lambda: trainable_lib.split(TrainableConfig("units"), runs.CONFIG, {}, 0), "no unit embeddings"),
    ],
)
def test_what_cannot_train_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
