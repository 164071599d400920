"""Attention inside segments of packed rows, three ways with one meaning.

    dense      the logits of whole rows at once: for short rows
    chunked    `chunked_attention.py`: memory linear in the length of a row, tiles that no segment crosses are skipped; plain XLA, for any device
    splash     the Pallas kernel for TPU that comes with JAX, with segment IDs

Segments are contiguous in a row, so distances inside a segment are distances inside the row. A token sees its own segment; of that, in a
local layer, what lies nearer than the window; of that, where causal, nothing after itself. Padding (segment 0) gives zeros.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from xretrieval import mesh as mesh_lib
from xretrieval.model.chunked_attention import NEVER, chunked

WAYS = ("dense", "chunked", "splash")
_EVERYTHING = 2**30  # a window that no row is longer than


@dataclasses.dataclass(frozen=True)
class AttentionConfig:
    """What attention computes.

    Attributes:
      scale: logits are multiplied by it.
      softcap: logits are then softcap * tanh(logits / softcap); 0 leaves them.
      causal: nothing after itself.
      window: of local layers: a token sees those at a distance below it, on both sides unless causal.
      way: one of `WAYS`.
      block: side of a tile of `chunked` and `splash`.
    """

    scale: float
    softcap: float
    causal: bool
    window: int
    way: str
    block: int


def attend(
    q_RLHC: jax.Array, k_RLGC: jax.Array, v_RLGC: jax.Array, segment_ids_RL: jax.Array, is_local: jax.Array, config: AttentionConfig
) -> jax.Array:
    """softmax(mask(q k^T)) v, each of the G key/value heads serving H / G query heads.

    Args:
      q_RLHC, k_RLGC, v_RLGC: after positions, of one float dtype. Logits, softmax and its sums are float32.
      segment_ids_RL: int32, 0 for padding.
      is_local: bool scalar: whether this layer has the window.
      config: the numbers and the way.

    Returns:
      [R, L, H, C] in q's dtype.
    """
    heads = mesh_lib.spec("batch", None, "heads", None)
    in_specs = (heads, heads, heads, mesh_lib.spec("batch", None), jax.sharding.PartitionSpec())
    function = functools.partial({"dense": _dense, "chunked": _chunked, "splash": _splash}[config.way], config=config)
    # Rows and heads are independent: each device attends within its own. What Pallas returns has no type that says over which axes it varies.
    return jax.shard_map(function, in_specs=in_specs, out_specs=heads, check_vma=config.way != "splash")(
        q_RLHC, k_RLGC, v_RLGC, segment_ids_RL, is_local
    )


def _window(is_local: jax.Array, config: AttentionConfig) -> jax.Array:
    return jnp.where(is_local, config.window or _EVERYTHING, _EVERYTHING).astype(jnp.int32)


def _dense(q_RLHC, k_RLGC, v_RLGC, segment_ids_RL, is_local, config: AttentionConfig):
    rows, length, heads, channels = q_RLHC.shape
    groups = k_RLGC.shape[2]
    q_RLGHC = q_RLHC.reshape(rows, length, groups, heads // groups, channels)
    logits_RGHLL = jnp.einsum("rlghc,rmgc->rghlm", q_RLGHC, k_RLGC, preferred_element_type=jnp.float32) * config.scale
    if config.softcap:
        logits_RGHLL = config.softcap * jnp.tanh(logits_RGHLL / config.softcap)
    mask_RLL = (segment_ids_RL[:, :, None] == segment_ids_RL[:, None, :]) & (segment_ids_RL > 0)[:, None, :]
    distance_LL = jnp.arange(length)[:, None] - jnp.arange(length)[None, :]
    if config.window:
        mask_RLL &= jnp.abs(distance_LL) < _window(is_local, config)
    if config.causal:
        mask_RLL &= distance_LL >= 0
    weights_RGHLL = jax.nn.softmax(jnp.where(mask_RLL[:, None, None], logits_RGHLL, NEVER), axis=-1).astype(q_RLHC.dtype)
    out_RLHC = jnp.einsum("rghlm,rmgc->rlghc", weights_RGHLL, v_RLGC).reshape(q_RLHC.shape)
    return jnp.where((segment_ids_RL > 0)[:, :, None, None], out_RLHC, 0)


def _chunked(q_RLHC, k_RLGC, v_RLGC, segment_ids_RL, is_local, config: AttentionConfig):
    return chunked(
        q_RLHC, k_RLGC, v_RLGC, segment_ids_RL, _window(is_local, config), config.scale, config.softcap, config.causal, config.block
    )


def _splash(q_RLHC, k_RLGC, v_RLGC, segment_ids_RL, is_local, config: AttentionConfig):
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    length, heads = q_RLHC.shape[1:3]
    side = min(config.block, length)
    fields = ("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute", "block_q_dq", "block_kv_dq")

    def kernel(window: int | None, interpret: bool):
        reach, shape = None if window is None else window - 1, (length, length)
        everything = reach is None and not config.causal
        mask = masks.FullMask(shape) if everything else masks.LocalMask(shape, (reach, 0 if config.causal else reach), offset=0)
        return jax.vmap(
            splash.make_splash_mha(
                masks.MultiHeadMask([mask] * heads),
                block_sizes=splash.BlockSizes(**dict.fromkeys(fields, side)),
                attn_logits_soft_cap=config.softcap or None,
                head_shards=1,
                q_seq_shards=1,
                interpret=interpret,
            )
        )

    def run(*operands, interpret: bool):
        *heads_and_segments, is_local = operands
        if not config.window:
            return kernel(None, interpret)(*heads_and_segments)
        return jax.lax.cond(is_local, kernel(config.window, interpret), kernel(None, interpret), *heads_and_segments)

    operands = [jnp.swapaxes(x, 1, 2) for x in (q_RLHC * jnp.asarray(config.scale, q_RLHC.dtype), k_RLGC, v_RLGC)]
    out_RHLC = jax.lax.platform_dependent(
        *operands,
        splash.SegmentIds(segment_ids_RL, segment_ids_RL),
        is_local,
        tpu=functools.partial(run, interpret=False),
        default=functools.partial(run, interpret=True),
    )
    return jnp.where((segment_ids_RL > 0)[:, :, None, None], jnp.swapaxes(out_RHLC, 1, 2), 0).astype(q_RLHC.dtype)
