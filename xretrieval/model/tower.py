"""The one tower that embeds both sides: extended embedding, decoder blocks, mean pooling, unit norm."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from xretrieval.model.embedding import ExtendedEmbedding
from xretrieval.model.transformer import Attention, Block, RMSNorm, attention_mask


@dataclasses.dataclass(frozen=True)
class TowerConfig:
    """Sizes of a tower. `vocab_size` is t + a and comes from the vocabulary, so a config file leaves it at 0."""

    vocab_size: int = 0
    width: int = 128
    layers: int = 2
    heads: int = 2
    kv_heads: int = 2
    head_dim: int = 64
    mlp_hidden: int = 512
    rope_base: float = 10_000.0
    max_positions: int = 1024
    causal: bool = True
    row_multiple: int = 128


class Tower(nnx.Module):
    """E(x) of the paper: tokens of either modality to unit vectors of width D."""

    def __init__(self, config: TowerConfig, rngs: nnx.Rngs):
        self.config = config
        self.embedding = ExtendedEmbedding(config.vocab_size, config.width, config.row_multiple, rngs)
        self.blocks = nnx.List(
            [
                Block(
                    config.width,
                    config.mlp_hidden,
                    Attention(config.width, config.heads, config.kv_heads, config.head_dim, config.rope_base, config.max_positions, rngs),
                    rngs,
                )
                for _ in range(config.layers)
            ]
        )
        self.final_norm = RMSNorm(config.width)

    def __call__(self, tokens_RL: jax.Array, segment_ids_RL: jax.Array, positions_RL: jax.Array, num_segments: int = 1) -> jax.Array:
        """Embeds every segment of every row.

        Args:
          tokens_RL: int32 token IDs, each below V.
          segment_ids_RL: int32; 1 to `num_segments`, 0 for padding.
          positions_RL: int32; position of a token inside its segment.
          num_segments: S, the most segments of a row.

        Returns:
          float32 [R, S, D], each of unit norm; a segment that a row lacks gives zeros.
        """
        x_RLD = self.embedding(tokens_RL)
        mask_RLL = attention_mask(segment_ids_RL, positions_RL, self.config.causal)
        for block in self.blocks:
            x_RLD = block(x_RLD, mask_RLL, positions_RL)
        return unit_norm(mean_pool(self.final_norm(x_RLD), segment_ids_RL, num_segments))


def mean_pool(x_RLD: jax.Array, segment_ids_RL: jax.Array, num_segments: int) -> jax.Array:
    """Mean over the tokens of each segment, float32 [R, S, D]."""
    member_RSL = (segment_ids_RL[:, None, :] == jnp.arange(1, num_segments + 1)[None, :, None]).astype(jnp.float32)
    sums_RSD = jnp.einsum("rsl,rld->rsd", member_RSL, x_RLD.astype(jnp.float32))
    return sums_RSD / jnp.maximum(jnp.sum(member_RSL, axis=-1), 1.0)[..., None]


def unit_norm(x: jax.Array) -> jax.Array:
    """x / |x| over the last axis; zeros stay zeros, with a finite gradient."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-12))


Params = dict[str, jax.Array]


def init(config: TowerConfig, seed: int) -> Params:
    """Parameters by dotted name ("blocks.0.mlp.up_DM"), created already sharded on the mesh in context."""

    @jax.jit
    def create():
        return _flatten(nnx.state(Tower(config, nnx.Rngs(params=seed)), nnx.Param))

    return create()


def merge(config: TowerConfig, params: Params) -> Tower:
    """The tower with these parameters; cheap enough to call while tracing."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Tower(config, nnx.Rngs(params=0))), nnx.Param)
    flat = [(path, leaf.replace(params[".".join(map(str, path))])) for path, leaf in nnx.to_flat_state(state)]
    return nnx.merge(graphdef, nnx.from_flat_state(flat))


def _flatten(state: nnx.State) -> Params:
    return {".".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(state)}


def row_segments(lengths_R: jax.Array, length: int) -> tuple[jax.Array, jax.Array]:
    """Segment IDs and positions, int32 [R, L], of rows that hold one sequence each."""
    places_1L = jnp.arange(length, dtype=jnp.int32)[None, :]
    segments_RL = (places_1L < lengths_R[:, None]).astype(jnp.int32)
    return segments_RL, places_1L * segments_RL


def embed_rows(config: TowerConfig, params: Params, tokens_RL: jax.Array, lengths_R: jax.Array) -> jax.Array:
    """Embeddings, float32 [R, E], of rows that hold one sequence each."""
    segments_RL, positions_RL = row_segments(lengths_R, tokens_RL.shape[1])
    return merge(config, params)(tokens_RL, segments_RL, positions_RL)[:, 0]
