"""Embeddings of both sides of a packed batch, at once or in chunks whose activations are made again for the backward pass (GradCache)."""

import jax

from xretrieval import mesh as mesh_lib
from xretrieval.model.tower import ComputeConfig, Params, Tower, TowerConfig, merge


def embed_pairs(
    config: TowerConfig,
    params: Params,
    batch: dict[str, jax.Array],
    num_segments: int,
    compute: ComputeConfig,
    lora_scale: float = 0.0,
    microbatches: int = 1,
) -> tuple[jax.Array, jax.Array]:
    """Embeddings of both sides, float32 [B, E] each, of a packed batch (`data/pipeline.py`).

    With `microbatches` = n, each data shard's rows and pairs come in n equal parts that were packed apart, and the tower runs over one part at a
    time. The loss still sees the whole batch. Kept for the backward pass: the looked-up tokens of all parts and the embeddings, and of one part
    at a time the activations (GradCache, arXiv 2101.06983). The lookup stays outside, so that its scatter-add happens once: inside a scan XLA
    has miscompiled it on TPU (openxla/xla#49143).
    """
    tower = merge(config, params, compute)
    arrays = {name: batch[name] for name in ("segment_ids", "positions", "left", "right")} | {"x": tower.look_up(batch["tokens"])}
    if microbatches == 1:
        return _embed(tower, arrays, num_segments, lora_scale)

    @jax.checkpoint
    def part(_, arrays):
        return None, _embed(tower, arrays, num_segments, lora_scale)

    _, (left_KBE, right_KBE) = jax.lax.scan(part, None, {name: _in_parts(x, microbatches) for name, x in arrays.items()})
    return _together(left_KBE), _together(right_KBE)


def _embed(tower: Tower, arrays: dict[str, jax.Array], num_segments: int, lora_scale: float) -> tuple[jax.Array, jax.Array]:
    """Both sides of a pair lie in the rows of one data shard, so taking them out of their rows crosses no device."""
    x_RSE = tower.embed(arrays["x"], arrays["segment_ids"], arrays["positions"], num_segments, lora_scale)

    def local(x_RSE, left_B, right_B):
        x_NE = x_RSE.reshape(-1, x_RSE.shape[-1])
        return x_NE[left_B], x_NE[right_B]

    slots, pairs = mesh_lib.spec("batch"), mesh_lib.spec("batch", None)
    in_specs = (mesh_lib.spec("batch", None, None), slots, slots)
    return jax.shard_map(local, in_specs=in_specs, out_specs=(pairs, pairs))(x_RSE, arrays["left"], arrays["right"])


def _in_parts(x: jax.Array, parts: int) -> jax.Array:
    """[N, ...] split over data shards to [parts, N / parts, ...]: every part takes its share of each shard."""
    rest = [None] * (x.ndim - 1)
    return jax.shard_map(
        lambda x: x.reshape(parts, x.shape[0] // parts, *x.shape[1:]),
        in_specs=mesh_lib.spec("batch", *rest),
        out_specs=mesh_lib.spec(None, "batch", *rest),
    )(x)


def _together(x: jax.Array) -> jax.Array:
    """`_in_parts` undone."""
    rest = [None] * (x.ndim - 2)
    return jax.shard_map(
        lambda x: x.reshape(-1, *x.shape[2:]), in_specs=mesh_lib.spec(None, "batch", *rest), out_specs=mesh_lib.spec("batch", *rest)
    )(x)
