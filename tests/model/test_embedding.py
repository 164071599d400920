"""The extended embedding: equal to a dense lookup in value and gradient on every mesh; padding rows; the canary."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model import towers

from xretrieval import mesh as mesh_lib
from xretrieval.model import embedding, tower

SIZES = (61, 20)  # t + a divides by none of the meshes
ROWS = (64, 24)


def looked_up(tables, tokens, weight, devices, model, dtype=jnp.float32):
    mesh = mesh_lib.make_mesh(model=model, devices=jax.devices()[:devices])
    with jax.set_mesh(mesh):
        placed = tuple(jax.device_put(table, mesh_lib.sharding(mesh, "vocab", None)) for table in tables)
        ids, scale = towers.put(tokens, mesh), towers.put(weight, mesh)
        loss = lambda tables: (embedding.lookup(tables, ids, SIZES, dtype).astype(jnp.float32) * scale).sum()
        value = np.asarray(jax.jit(lambda tables: embedding.lookup(tables, ids, SIZES, dtype))(placed).astype(jnp.float32))
        gradients = jax.jit(jax.grad(loss))(placed)
        assert [g.sharding.spec for g in gradients] == [t.sharding.spec for t in placed]
        return value, [np.asarray(g) for g in gradients]


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    tables = [rng.normal(size=(rows, 8)).astype(np.float32) for rows in ROWS]
    tokens = rng.integers(0, sum(SIZES), (16, 6)).astype(np.int32)
    tokens[0, :2] = 60, 61  # the last text row and the first unit
    weight = rng.normal(size=(16, 6, 8)).astype(np.float32)
    dense = np.concatenate([tables[0][: SIZES[0]], tables[1][: SIZES[1]]])
    gradient = np.zeros_like(dense, np.float64)
    np.add.at(gradient, tokens, weight)
    return tables, tokens, weight, dense[tokens], gradient


@pytest.mark.parametrize("devices,model", [(1, 1), (2, 1), (2, 2), (4, 1), (4, 2), (4, 4), (8, 1), (8, 2), (8, 8)])
def test_equals_the_dense_lookup_in_value_and_gradient(case, devices, model):
    tables, tokens, weight, value, gradient = case
    got, gradients = looked_up(tables, tokens, weight, devices, model)
    assert (got == value).all()
    for found, size, wanted in zip(gradients, SIZES, np.split(gradient, SIZES[:1]), strict=True):
        np.testing.assert_allclose(found[:size], wanted, atol=1e-5)
        assert not found[size:].any(), "a padding row received a gradient"


def test_bfloat16_rounds_the_rows_and_adds_gradients_in_float32(case):
    tables, tokens, weight, value, _ = case
    rounded = np.asarray(jnp.asarray(value, jnp.bfloat16).astype(jnp.float32))
    # One row takes all gradients, each of 1: bfloat16 holds neither their number, 7,280, nor that of a shard's, 1,820.
    many = np.tile(tokens[:, :1] * 0, (65, 7))
    _, gradients = looked_up(tables, many, np.ones((1040, 7, 8), np.float32), 8, 2, jnp.bfloat16)
    assert (gradients[0][0].astype(np.float64) == 1040 * 7).all()
    assert (looked_up(tables, tokens, weight, 8, 2, jnp.bfloat16)[0] == rounded).all()


@pytest.mark.parametrize("model,replica", [(1, 1), (2, 2), (8, 1)])
def test_the_canary_passes_here_and_catches_a_wrong_lookup(model, replica, monkeypatch):
    with jax.set_mesh(mesh_lib.make_mesh(model, replica)):
        embedding.check_lookup()
        embedding.check_lookup(jnp.bfloat16)
        right = embedding.lookup
        wrong = lambda tables, tokens, sizes, dtype: right(tables, tokens, sizes, dtype) + (tokens == 9)[..., None]
        monkeypatch.setattr(embedding, "lookup", wrong)
        with pytest.raises(RuntimeError, match="lookup wrong"):
            embedding.check_lookup()
        # Right values with twice the gradient.
        doubled = lambda tables, *rest: right((tables[0] * 2 - jax.lax.stop_gradient(tables[0]), *tables[1:]), *rest)
        monkeypatch.setattr(embedding, "lookup", doubled)
        with pytest.raises(RuntimeError, match="gradients"):
            embedding.check_lookup()


@pytest.mark.parametrize("shards", [1, 8, 512])
def test_the_canary_looks_every_id_up_on_every_shard_of_any_mesh(shards):
    ids = 16 * shards - 8
    tokens_RL = embedding._every_id(shards, ids)
    assert tokens_RL.dtype == np.int32
    assert (np.sort(tokens_RL, axis=1) == np.arange(ids)).all()
    assert (tokens_RL[:, 0] == np.arange(shards) % ids).all()


@pytest.mark.parametrize("model", [1, 2])
def test_tables_are_split_over_all_chips(model):
    """Argument bytes a chip at most 1.05 times a fair share, also where `model` is 1."""
    config = tower.TowerConfig(text_size=2000, num_units=1000, width=64, row_multiple=16)
    mesh = mesh_lib.make_mesh(model=model)
    with jax.set_mesh(mesh):
        params = tower.init(config, 0)
    held = sum(params[name].addressable_shards[0].data.nbytes for name in ("embedding.text_VD", "embedding.units_AD"))
    assert held <= 1.05 * 3000 * 64 * 4 / 8


def test_a_tower_without_units_has_one_table():
    with jax.set_mesh(towers.one_device()):
        assert "embedding.units_AD" not in tower.init(tower.TowerConfig(text_size=10, width=16), 0)
