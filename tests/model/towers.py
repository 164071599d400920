"""Small towers for tests: one of each family's mechanisms, with every parameter off its default."""

import functools

import jax
import numpy as np

from xretrieval import mesh as mesh_lib
from xretrieval.model import tower

SIZES = {"text_size": 61, "num_units": 20, "width": 16, "layers": 3, "heads": 4, "kv_heads": 2, "head_dim": 8, "mlp_hidden": 32}
SIZES |= {"max_positions": 64, "row_multiple": 64}
CONFIGS = {
    "gemma1": tower.TowerConfig(**SIZES, qk_norm=False, post_norms=False, rope_base=100.0),
    "gemma2": tower.TowerConfig(
        **SIZES, qk_norm=False, query_scale=12.0, softcap=1.5, window=4, global_every=2, rope_base=100.0, rope_local_base=100.0
    ),
    "gemma3": tower.TowerConfig(
        **SIZES, query_scale=12.0, window=4, global_every=3, rope_base=1000.0, rope_local_base=10.0, rope_factor=4.0
    ),
    "embeddinggemma": tower.TowerConfig(
        **SIZES, causal=False, window=5, global_every=3, rope_base=1000.0, rope_local_base=10.0, dense=(24, 12)
    ),
    "qwen3": tower.TowerConfig(
        **SIZES,
        activation="silu",
        norm_plus_one=False,
        post_norms=False,
        scale_embedding=False,
        rope_base=1000.0,
        pooling="last",
    ),
}


@functools.cache
def random_params(config, seed=0):
    """Norms off their defaults, so that every one of them matters. For all tests of the process: copy before writing."""
    rng = np.random.default_rng(seed)
    with jax.set_mesh(one_device()):
        params = jax.device_get(tower.init(config, seed))
    return {n: (x + 0.3 * rng.normal(size=x.shape) if n.endswith("scale_D") else 1.5 * x).astype(np.float32) for n, x in params.items()}


def one_device():
    return mesh_lib.make_mesh(devices=jax.devices()[:1])


@functools.cache
def shardings(config, mesh):
    with jax.set_mesh(mesh):
        abstract = jax.eval_shape(lambda: tower.init(config, 0))
    return {n: jax.NamedSharding(mesh, x.sharding.spec) for n, x in abstract.items()}


def place(config, params, mesh):
    return {n: jax.device_put(params[n], x) for n, x in shardings(config, mesh).items()}


def put(x, mesh):
    return jax.device_put(x, mesh_lib.sharding(mesh, "batch", *[None] * (x.ndim - 1)))


def sequences(config, count=8, longest=20, seed=1):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, config.vocab_size, rng.integers(1, longest)).astype(np.int32) for _ in range(count)]


def embed(config, params, sequences, length, devices=1, compute=None):
    """One sequence a row."""
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:devices])
    tokens, lengths = np.zeros((len(sequences), length), np.int32), np.zeros(len(sequences), np.int32)
    for i, s in enumerate(sequences):
        tokens[i, : len(s)], lengths[i] = s, len(s)
    with jax.set_mesh(mesh):
        function = jax.jit(tower.embed_rows, static_argnums=(0, 4))
        placed = place(config, params, mesh)
        return np.asarray(function(config, placed, put(tokens, mesh), put(lengths, mesh), compute or tower.ComputeConfig()))


def pack(sequences, length, rows):
    """Sequences into rows one after another, in their order: tokens, segment IDs, positions, and (row, segment) of each."""
    tokens, segments, positions = np.zeros((3, rows, length), np.int32)
    row, at, places = 0, 0, []
    for s in sequences:
        if at + len(s) > length:
            row, at = row + 1, 0
        here = slice(at, at + len(s))
        segment = int(segments[row].max()) + 1
        tokens[row, here], segments[row, here], positions[row, here] = s, segment, np.arange(len(s))
        places.append((row, segment - 1))
        at += len(s)
    return tokens, segments, positions, places


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def merged(config, compute, count, params, tokens, segments, positions):
    """Embeddings [R, `count`, E] of packed rows [R, L]."""
    return tower.merge(config, params, compute)(tokens, segments, positions, num_segments=count)


def embed_packed(config, params, packed, compute, devices=1):
    *rows, places = packed
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:devices])
    with jax.set_mesh(mesh):
        placed = place(config, params, mesh)
        out = np.asarray(merged(config, compute, int(rows[1].max()), placed, *(put(x, mesh) for x in rows)))
    return np.stack([out[place] for place in places])
