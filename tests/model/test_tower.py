"""The tower against its float64 reference; padding, causality, segments, shards."""

import dataclasses

import jax
import numpy as np
import pytest
import references

from xretrieval import mesh as mesh_lib
from xretrieval.model import embedding, tower

CONFIG = tower.TowerConfig(
    vocab_size=70, width=16, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_hidden=32, max_positions=64, row_multiple=64
)


def random_params(config, seed=0):
    """Norms off their defaults, so that every one of them matters."""
    rng = np.random.default_rng(seed)
    with jax.set_mesh(mesh_lib.make_mesh(devices=jax.devices()[:1])):
        params = jax.device_get(tower.init(config, seed))
    return {n: (x + 0.3 * rng.normal(size=x.shape) if n.endswith("scale_D") else x).astype(np.float32) for n, x in params.items()}


def place(config, params, mesh):
    abstract = jax.eval_shape(lambda: tower.init(config, 0))
    return {n: jax.device_put(x, jax.NamedSharding(mesh, abstract[n].sharding.spec)) for n, x in params.items()}


def run(config, params, sequences, length, devices=1, rows=None):
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:devices])
    rows = rows or len(sequences)
    tokens, lengths = np.zeros((rows, length), np.int32), np.zeros(rows, np.int32)
    for i, s in enumerate(sequences):
        tokens[i, : len(s)], lengths[i] = s, len(s)
    with jax.set_mesh(mesh):
        placed = place(config, params, mesh)
        put = lambda x: jax.device_put(x, mesh_lib.sharding(mesh, "batch", *[None] * (x.ndim - 1)))
        out = jax.jit(tower.embed_rows, static_argnums=0)(config, placed, put(tokens), put(lengths))
        return np.asarray(out)[: len(sequences)]


def sequences(count=8, seed=1):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, CONFIG.vocab_size, rng.integers(1, 20)) for _ in range(count)]


@pytest.mark.parametrize("causal", [True, False])
def test_equals_reference(causal):
    config = dataclasses.replace(CONFIG, causal=causal)
    params = random_params(config)
    got = run(config, params, sequences(), 24)
    want = np.stack([references.tower(params, s, config) for s in sequences()])
    # Unit vectors through two layers of float32: some 1e-6.
    np.testing.assert_allclose(got, want, atol=5e-6)


def test_each_norm_and_the_direction_matter():
    params = random_params(CONFIG)
    base = run(CONFIG, params, sequences(), 24)
    for name in [n for n in params if n.endswith("scale_D")]:
        changed = run(CONFIG, {**params, name: np.zeros_like(params[name])}, sequences(), 24)
        assert np.abs(changed - base).max() > 1e-3, name
    assert np.abs(run(dataclasses.replace(CONFIG, causal=False), params, sequences(), 24) - base).max() > 1e-3


def test_padding_does_not_move_an_embedding():
    params = random_params(CONFIG)
    np.testing.assert_allclose(run(CONFIG, params, sequences(), 24), run(CONFIG, params, sequences(), 48), atol=1e-6)


def test_eight_devices_equal_one():
    params = random_params(CONFIG)
    np.testing.assert_allclose(run(CONFIG, params, sequences(), 24, devices=8), run(CONFIG, params, sequences(), 24), atol=1e-6)


def test_editing_a_segment_leaves_the_others_bitwise():
    params = random_params(CONFIG)
    tokens = np.arange(12, dtype=np.int32)[None]
    segments = np.array([[1] * 5 + [2] * 7], np.int32)
    positions = np.array([[*range(5), *range(7)]], np.int32)
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        placed = place(CONFIG, params, mesh)
        put = lambda x: jax.device_put(x, mesh_lib.sharding(mesh, "batch", None))
        segments, positions = put(segments), put(positions)
        function = jax.jit(lambda p, t, s, at: tower.merge(CONFIG, p)(t, s, at, num_segments=2))
        before = np.asarray(function(placed, put(tokens), segments, positions))
        edited = tokens.copy()
        edited[0, 7] = 60
        after = np.asarray(function(placed, put(edited), segments, positions))
    assert (before[0, 0] == after[0, 0]).all()
    assert (before[0, 1] != after[0, 1]).any()
    np.testing.assert_allclose(before[0, 1], references.tower(params, tokens[0, 5:], CONFIG), atol=5e-6)


@pytest.mark.parametrize("devices,model", [(1, 1), (2, 2), (4, 2), (8, 1), (8, 8)])
def test_lookup_equals_dense_in_value_and_gradient(devices, model):
    mesh = mesh_lib.make_mesh(model=model, devices=jax.devices()[:devices])
    rng = np.random.default_rng(0)
    table, tokens = rng.normal(size=(128, 4)).astype(np.float32), rng.integers(0, 100, (16, 6)).astype(np.int32)
    weight = rng.normal(size=(16, 6, 4)).astype(np.float32)
    with jax.set_mesh(mesh):
        placed = jax.device_put(table, mesh_lib.sharding(mesh, "vocab", None))
        ids = jax.device_put(tokens, mesh_lib.sharding(mesh, "batch", None))
        scale = jax.device_put(weight, mesh_lib.sharding(mesh, "batch", None, None))
        value, gradient = jax.jit(jax.value_and_grad(lambda t: (embedding.lookup(t, ids) * scale).sum()))(placed)
    dense = np.zeros((128, 4))
    np.add.at(dense, tokens, weight)
    assert float(value) == pytest.approx(float((table[tokens] * weight).sum()), rel=1e-5)
    np.testing.assert_allclose(np.asarray(gradient), dense, atol=1e-5)
    assert not np.asarray(gradient)[100:].any()
    assert gradient.sharding.spec == placed.sharding.spec


@pytest.mark.parametrize("model,replica", [(1, 1), (2, 2), (8, 1)])
def test_the_lookup_is_right_on_this_mesh_and_a_wrong_one_is_caught(model, replica, monkeypatch):
    with jax.set_mesh(mesh_lib.make_mesh(model, replica)):
        embedding.check_lookup()
        right = embedding.lookup
        monkeypatch.setattr(embedding, "lookup", lambda table, tokens: right(table, tokens) + (tokens == 9)[..., None])
        with pytest.raises(RuntimeError, match="lookup wrong"):
            embedding.check_lookup()
