"""The tower against its float64 reference, of every family; padding, packing, causality, shards, precision."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
from model import towers
from model.towers import CONFIGS

from xretrieval import mesh as mesh_lib
from xretrieval.errors import UserError
from xretrieval.model import tower
from xretrieval.model.tower import ComputeConfig

GEMMA3 = CONFIGS["gemma3"]
WAYS = [ComputeConfig(), ComputeConfig(attention="chunked", block=8), ComputeConfig(attention="splash", block=128)]


@pytest.mark.parametrize("family", CONFIGS)
def test_equals_reference(family):
    config, sequences = CONFIGS[family], towers.sequences(CONFIGS[family])
    params = towers.random_params(config)
    got = towers.embed(config, params, sequences, 24)
    want = np.stack([references.tower(params, s, config) for s in sequences])
    # Unit vectors through three layers of float32: some 1e-6.
    np.testing.assert_allclose(got, want, atol=5e-6)


# Splash is interpreted here, which is slow: soft cap and window in one family, both directions in the other.
CASES = [
    (family, compute) for family in CONFIGS for compute in WAYS if compute.attention != "splash" or family in ("gemma2", "embeddinggemma")
]
CASE_IDS = [f"{family}-{compute.attention}" for family, compute in CASES]


@pytest.mark.parametrize("family,compute", CASES, ids=CASE_IDS)
def test_packed_equals_unpacked_equals_reference(family, compute):
    config, sequences = CONFIGS[family], towers.sequences(CONFIGS[family], count=12, longest=40)
    params = towers.random_params(config)
    length = 128 if compute.attention == "splash" else 48
    got = towers.embed_packed(config, params, towers.pack(sequences, length, 8), compute)
    alone = towers.embed(config, params, sequences, 40)
    np.testing.assert_allclose(got, alone, atol=1e-5)
    np.testing.assert_allclose(got, np.stack([references.tower(params, s, config) for s in sequences]), atol=1e-5)


@pytest.mark.parametrize("family,compute", CASES, ids=CASE_IDS)
def test_editing_a_segment_leaves_the_others_bitwise(family, compute):
    config = CONFIGS[family]
    params, sequences = towers.random_params(config), towers.sequences(CONFIGS[family], count=9, longest=30)
    length = 128 if compute.attention == "splash" else 48
    tokens, *rest = towers.pack(sequences, length, 8)
    before = towers.embed_packed(config, params, (tokens, *rest), compute)
    for edited in (0, 4, 8):
        (row, segment), changed = rest[2][edited], tokens.copy()
        here = np.flatnonzero(rest[0][row] == segment + 1)
        changed[row, here] = (changed[row, here] + 1) % config.vocab_size
        after = towers.embed_packed(config, params, (changed, *rest), compute)
        others = np.arange(len(sequences)) != edited
        assert (before[others] == after[others]).all()
        assert (before[edited] != after[edited]).any()


MECHANISMS = {
    "gemma1": [{"scale_embedding": False}, {"causal": False}, {"rope_base": 10.0}, {"activation": "silu"}, {"norm_plus_one": False}],
    "gemma2": [{"softcap": 0.0}, {"window": 3}, {"window": 5}, {"query_scale": 0.0}, {"global_every": 3}, {"norm_epsilon": 1e-2}],
    "gemma3": [
        {"window": 3},
        {"window": 5},
        {"rope_base": 100.0},
        {"rope_local_base": 11.0},
        {"rope_factor": 1.0},
        {"pooling": "last"},
        {"qk_norm": False},
        {"post_norms": False},
    ],
    "embeddinggemma": [{"causal": True}, {"window": 4}, {"window": 6}],
    "qwen3": [{"pooling": "mean"}, {"causal": False}, {"activation": "gelu"}, {"norm_plus_one": True}, {"scale_embedding": True}],
}


@pytest.mark.parametrize("family", CONFIGS)
def test_every_mechanism_and_every_parameter_matters(family):
    config, sequences = CONFIGS[family], towers.sequences(CONFIGS[family])
    params = towers.random_params(config)
    base = towers.embed(config, params, sequences, 24)
    for change in MECHANISMS[family]:
        changed = towers.embed(dataclasses.replace(config, **change), params, sequences, 24)
        assert np.abs(changed - base).max() > 1e-3, change
    for name in params:
        default = 0.0 if config.norm_plus_one or not name.endswith("scale_D") else 1.0
        changed = towers.embed(config, {**params, name: np.full_like(params[name], default)}, sequences, 24)
        assert np.abs(changed - base).max() > 1e-3, name


def test_padding_does_not_move_an_embedding():
    params, sequences = towers.random_params(GEMMA3), towers.sequences(GEMMA3)
    np.testing.assert_allclose(towers.embed(GEMMA3, params, sequences, 24), towers.embed(GEMMA3, params, sequences, 48), atol=1e-6)


@pytest.mark.parametrize("compute", WAYS[:2], ids=lambda c: c.attention)
def test_eight_devices_equal_one(compute):
    params, sequences = towers.random_params(GEMMA3), towers.sequences(GEMMA3)
    many = towers.embed(GEMMA3, params, sequences, 24, 8, compute)
    np.testing.assert_allclose(many, towers.embed(GEMMA3, params, sequences, 24), atol=2e-6)


def gradients(config, params, sequences, compute):
    mesh = towers.one_device()
    tokens, segments, positions, _ = towers.pack(sequences, 128, 4)
    weight = np.random.default_rng(3).normal(size=(4, int(segments.max()), config.embedding_width)).astype(np.float32)
    with jax.set_mesh(mesh):
        placed, rows = towers.place(config, params, mesh), [towers.put(x, mesh) for x in (tokens, segments, positions)]
        loss = lambda p: (towers.merged(config, compute, int(segments.max()), p, *rows) * towers.put(weight, mesh)).sum()
        return jax.device_get(jax.jit(jax.grad(loss))(placed))


@functools.cache
def gradients_of_dense_attention(family):
    config = CONFIGS[family]
    return gradients(config, towers.random_params(config), towers.sequences(config, count=12, longest=40), ComputeConfig())


@pytest.mark.parametrize("family,compute", CASES, ids=CASE_IDS)
def test_gradients_are_those_of_dense_attention(family, compute):
    config, sequences = CONFIGS[family], towers.sequences(CONFIGS[family], count=12, longest=40)
    params = towers.random_params(config)
    # Dense itself is held against the reference below; here, once more, with each layer computed again.
    compute = dataclasses.replace(compute, remat=compute.attention == "dense")
    want, got = gradients_of_dense_attention(family), gradients(config, params, sequences, compute)
    for name in want:
        np.testing.assert_allclose(got[name], want[name], atol=2e-5 * np.abs(want[name]).max(), err_msg=name)


@pytest.mark.parametrize("family", CONFIGS)
def test_the_gradient_is_that_of_the_reference(family):
    """Along random directions, by central differences in float64."""
    config, sequences = CONFIGS[family], towers.sequences(CONFIGS[family], count=4, longest=10)
    params = towers.random_params(config)
    mesh, rng = towers.one_device(), np.random.default_rng(5)
    weight = rng.normal(size=(4, config.embedding_width)).astype(np.float32)
    tokens, lengths = np.zeros((4, 16), np.int32), np.array([len(s) for s in sequences], np.int32)
    for i, s in enumerate(sequences):
        tokens[i, : len(s)] = s
    with jax.set_mesh(mesh):
        loss = lambda p: (tower.embed_rows(config, p, towers.put(tokens, mesh), towers.put(lengths, mesh)) * towers.put(weight, mesh)).sum()
        got = jax.device_get(jax.jit(jax.grad(loss))(towers.place(config, params, mesh)))

    def reference(p):
        return sum(references.tower(p, s, config) @ w for s, w in zip(sequences, weight.astype(np.float64), strict=True))

    for name in params:
        direction = rng.normal(size=params[name].shape)
        shifted = [reference({**params, name: params[name] + step * direction}) for step in (1e-6, -1e-6)]
        want = (shifted[0] - shifted[1]) / 2e-6
        norms = np.linalg.norm(got[name]) * np.linalg.norm(direction)
        assert abs((got[name] * direction).sum() - want) < 1e-4 * norms + 1e-6, name


def test_bfloat16_rounds_activations_and_keeps_norms_softmax_and_sums_in_float32():
    params, sequences = towers.random_params(GEMMA3), towers.sequences(GEMMA3, longest=40)
    whole = towers.embed(GEMMA3, params, sequences, 40)
    for way in ("dense", "chunked"):
        rounded = towers.embed(GEMMA3, params, sequences, 40, compute=ComputeConfig(attention=way, dtype="bfloat16", block=8))
        assert rounded.dtype == np.float32
        # bfloat16 keeps 8 bits: some parts in 256 of a unit vector's entries, added up over three layers.
        assert 1e-4 < np.abs(rounded - whole).max() < 0.06
        np.testing.assert_allclose(np.linalg.norm(rounded, axis=1), 1.0, atol=1e-5)


@pytest.mark.parametrize("compute", [ComputeConfig(dtype="bfloat16"), ComputeConfig(dtype="bfloat16", attention="chunked", block=8)])
def test_nothing_is_promoted_silently(compute):
    params, sequences = towers.random_params(GEMMA3), towers.sequences(GEMMA3)
    with jax.numpy_dtype_promotion("strict"):
        towers.embed(GEMMA3, params, sequences, 24, compute=compute)
        gradients(GEMMA3, params, sequences, compute)


def test_memory_of_chunked_attention_grows_linearly_in_the_length_of_a_row():
    config = dataclasses.replace(GEMMA3, max_positions=8192)
    mesh = towers.one_device()
    sizes = {}
    with jax.set_mesh(mesh):
        params = jax.eval_shape(lambda: tower.init(config, 0))
        for compute in (ComputeConfig(attention="chunked", remat=True), ComputeConfig(remat=True)):
            for length in (1024, 4096):
                shape = jax.ShapeDtypeStruct((1, length), jnp.int32, sharding=mesh_lib.sharding(mesh, "batch", None))
                lengths = jax.ShapeDtypeStruct((1,), jnp.int32, sharding=mesh_lib.sharding(mesh, "batch"))
                loss = lambda p, t, n, c=compute: tower.embed_rows(config, p, t, n, c).sum()
                placed = {
                    n: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=jax.NamedSharding(mesh, x.sharding.spec)) for n, x in params.items()
                }
                compiled = jax.jit(jax.grad(loss)).lower(placed, shape, lengths).compile()
                sizes[compute.attention, length] = compiled.memory_analysis().temp_size_in_bytes
    assert sizes["chunked", 4096] < 5 * sizes["chunked", 1024]
    assert sizes["dense", 4096] > 10 * sizes["dense", 1024], "dense attention does not: the test can fail"


@pytest.mark.parametrize(
    "change,message",
    [
        ({"activation": "relu"}, "TowerConfig.activation"),
        ({"pooling": "max"}, "TowerConfig.pooling"),
        ({"kv_heads": 3}, "TowerConfig.kv_heads"),
        ({"window": 0}, "local layers"),
    ],
)
def test_a_tower_that_cannot_be_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(GEMMA3, **change)


def test_a_way_of_computing_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="ComputeConfig.dtype"):
        ComputeConfig(dtype="float16")
    with pytest.raises(UserError, match="ComputeConfig.attention"):
        towers.embed(GEMMA3, towers.random_params(GEMMA3), towers.sequences(GEMMA3), 24, compute=ComputeConfig(attention="flash"))
