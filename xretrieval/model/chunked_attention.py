"""Attention in tiles with an online softmax (arXiv 2205.14135), in plain XLA, with a backward pass that computes the tiles again.

For a tile of queries only those tiles of keys are visited that one of its segments, the window and the direction reach. Nothing is ever held
that is larger than a row or a tile, so memory grows linearly in the length of a row.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from xretrieval import mesh as mesh_lib

NEVER = -1e30  # exp of it is exactly 0; not infinite, because infinity minus itself is not a number


class _Tiles(NamedTuple):
    """How one row is cut; all static but what is read from the segment IDs."""

    scale: float
    softcap: float
    causal: bool
    block: int


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7, 8))
def chunked(q_RLHC, k_RLGC, v_RLGC, segment_ids_RL, window, scale: float, softcap: float, causal: bool, block: int):
    """softmax(mask(q k^T)) v inside segments; see `attention.attend`, which calls it on each device's rows.

    Args:
      q_RLHC, k_RLGC, v_RLGC: H a multiple of G.
      segment_ids_RL: int32; segments are contiguous, 0 is padding.
      window: int32 scalar: a token sees those at a distance below it.
      scale, softcap, causal: as in `attention.AttentionConfig`.
      block: side of a tile; rows of another length are padded to a multiple of it.

    Returns:
      [R, L, H, C] in q's dtype, zeros at padding.
    """
    return _forward(q_RLHC, k_RLGC, v_RLGC, segment_ids_RL, window, scale, softcap, causal, block)[0]


def _forward(q_RLHC, k_RLGC, v_RLGC, segment_ids_RL, window, scale, softcap, causal, block):
    tiles = _Tiles(scale, softcap, causal, min(block, q_RLHC.shape[1]))
    q_RGLHC, k_RGLC, v_RGLC, segments_RL = _by_group(q_RLHC, k_RLGC, v_RLGC, segment_ids_RL, tiles.block)
    out_RGLHC, lse_RGLH = jax.lax.map(lambda row: _row_forward(row, window, tiles), (q_RGLHC, k_RGLC, v_RGLC, segments_RL))
    out_RLHC = _by_token(out_RGLHC, q_RLHC.shape)
    return out_RLHC, (q_RLHC, k_RLGC, v_RLGC, segment_ids_RL, window, out_RLHC, lse_RGLH)


def _backward(scale, softcap, causal, block, saved, d_out_RLHC):
    q_RLHC, k_RLGC, v_RLGC, segment_ids_RL, window, out_RLHC, lse_RGLH = saved
    tiles = _Tiles(scale, softcap, causal, min(block, q_RLHC.shape[1]))
    q_RGLHC, k_RGLC, v_RGLC, segments_RL = _by_group(q_RLHC, k_RLGC, v_RLGC, segment_ids_RL, tiles.block)
    d_out_RGLHC = _by_group(d_out_RLHC, k_RLGC, v_RLGC, segment_ids_RL, tiles.block)[0]
    # sum_m p_m dp_m = dout . out: what the softmax takes off every entry of a row.
    dots_RLH = jnp.sum(d_out_RLHC.astype(jnp.float32) * out_RLHC.astype(jnp.float32), axis=-1)
    dots_RGLH = _by_group(dots_RLH[..., None], k_RLGC, v_RLGC, segment_ids_RL, tiles.block)[0][..., 0]
    rows = (q_RGLHC, k_RGLC, v_RGLC, segments_RL, lse_RGLH, d_out_RGLHC, dots_RGLH)
    d_q_RGLHC, d_k_RGLC, d_v_RGLC = jax.lax.map(lambda row: _row_backward(row, window, tiles), rows)
    d_q_RLHC = _by_token(d_q_RGLHC, q_RLHC.shape).astype(q_RLHC.dtype)
    d_k_RLGC, d_v_RLGC = (jnp.swapaxes(d, 1, 2)[:, : x.shape[1]].astype(x.dtype) for d, x in ((d_k_RGLC, k_RLGC), (d_v_RGLC, v_RLGC)))
    return d_q_RLHC, d_k_RLGC, d_v_RLGC, None, None


chunked.defvjp(_forward, _backward)


def _by_group(q_RLHC, k_RLGC, v_RLGC, segment_ids_RL, block: int):
    """Heads of one key/value head side by side, rows padded to whole tiles: q [R, G, L, H / G, C], k and v [R, G, L, C]."""
    rows, length, heads, channels = q_RLHC.shape
    groups, more = k_RLGC.shape[2], -length % block

    def padded(x):
        return jnp.pad(x, [(0, 0), (0, more)] + [(0, 0)] * (x.ndim - 2)) if more else x

    q_RLGHC = padded(q_RLHC).reshape(rows, length + more, groups, heads // groups, channels)
    return jnp.swapaxes(q_RLGHC, 1, 2), jnp.swapaxes(padded(k_RLGC), 1, 2), jnp.swapaxes(padded(v_RLGC), 1, 2), padded(segment_ids_RL)


def _by_token(x_RGLHC, shape):
    return jnp.swapaxes(x_RGLHC, 1, 2).reshape(shape[0], x_RGLHC.shape[2], *shape[2:])[:, : shape[1]]


def _reach(segments_L, window, tiles: _Tiles):
    """For each tile of queries, the first tile of keys to visit and the one after the last, int32 [tiles] each."""
    length = segments_L.shape[0]
    places_L = jnp.arange(length, dtype=jnp.int32)
    begins_L = jnp.concatenate([jnp.ones((1,), bool), segments_L[1:] != segments_L[:-1]])
    first_L = jax.lax.cummax(jnp.where(begins_L, places_L, 0))
    ends_L = jnp.concatenate([begins_L[1:], jnp.ones((1,), bool)])
    last_L = jax.lax.cummin(jnp.where(ends_L, places_L, length), reverse=True)
    live_L = segments_L > 0
    # Saturated, so that the window "everything" does not leave the range of int32.
    first_L = jnp.maximum(first_L, places_L - jnp.minimum(window, length) + 1)
    last_L = places_L if tiles.causal else jnp.minimum(last_L, places_L + jnp.minimum(window, length) - 1)
    low_I = jnp.min(jnp.where(live_L, first_L, length).reshape(-1, tiles.block), axis=1) // tiles.block
    high_I = jnp.max(jnp.where(live_L, last_L, -1).reshape(-1, tiles.block), axis=1) // tiles.block + 1
    return low_I, high_I


def _logits(q_GNC, k_GMC, query_segments_M, key_segments_M, query_first, key_first, window, tiles: _Tiles):
    """float32 logits [G, N, M] of a tile with its mask [N, M]; N runs over queries and, innermost, the heads of a group."""
    raw_GNM = jnp.einsum("gnc,gmc->gnm", q_GNC, k_GMC, preferred_element_type=jnp.float32) * tiles.scale
    if tiles.softcap:
        raw_GNM = tiles.softcap * jnp.tanh(raw_GNM / tiles.softcap)
    side = jnp.arange(tiles.block, dtype=jnp.int32)
    distance_LM = (query_first + side)[:, None] - (key_first + side)[None, :]
    mask_LM = (query_segments_M[:, None] == key_segments_M[None, :]) & (query_segments_M > 0)[:, None] & (jnp.abs(distance_LM) < window)
    if tiles.causal:
        mask_LM &= distance_LM >= 0
    mask_NM = jnp.repeat(mask_LM, q_GNC.shape[1] // tiles.block, axis=0)
    return jnp.where(mask_NM, raw_GNM, NEVER), mask_NM


def _tile(x_GL, index, block: int):
    return jax.lax.dynamic_slice_in_dim(x_GL, index * block, block, axis=1)


def _zeros(shape) -> jax.Array:
    """float32 zeros with the type of a value that differs between devices, which hold other rows and heads: what a loop's start must have."""
    return jax.lax.pcast(jnp.zeros(shape, jnp.float32), mesh_lib.AXES, to="varying")


def _row_forward(row, window, tiles: _Tiles):
    q_GLHC, k_GLC, v_GLC, segments_L = row
    groups, length, heads, channels = q_GLHC.shape
    low_I, high_I = _reach(segments_L, window, tiles)
    side = tiles.block

    def query_tile(index):
        q_GNC = _tile(q_GLHC, index, side).reshape(groups, side * heads, channels)
        segments_M = jax.lax.dynamic_slice_in_dim(segments_L, index * side, side)

        def key_tile(other, carry):
            top_GN, sum_GN, out_GNC = carry
            keys_M = jax.lax.dynamic_slice_in_dim(segments_L, other * side, side)
            logits_GNM, mask_NM = _logits(q_GNC, _tile(k_GLC, other, side), segments_M, keys_M, index * side, other * side, window, tiles)
            new_top_GN = jnp.maximum(top_GN, jnp.max(logits_GNM, axis=-1))
            weights_GNM = jnp.where(mask_NM, jnp.exp(logits_GNM - new_top_GN[..., None]), 0.0)
            keep_GN = jnp.exp(top_GN - new_top_GN)
            v_GMC = _tile(v_GLC, other, side)
            part_GNC = jnp.einsum("gnm,gmc->gnc", weights_GNM.astype(v_GMC.dtype), v_GMC, preferred_element_type=jnp.float32)
            return new_top_GN, sum_GN * keep_GN + jnp.sum(weights_GNM, axis=-1), out_GNC * keep_GN[..., None] + part_GNC

        queries = groups, side * heads
        start = _zeros(queries) + NEVER, _zeros(queries), _zeros((*queries, channels))
        top_GN, sum_GN, out_GNC = jax.lax.fori_loop(low_I[index], high_I[index], key_tile, start)
        safe_GN = jnp.where(sum_GN > 0.0, sum_GN, 1.0)  # a query of padding has seen nothing
        out_GNC = (out_GNC / safe_GN[..., None]).astype(q_GLHC.dtype)
        return out_GNC.reshape(groups, side, heads, channels), (top_GN + jnp.log(safe_GN)).reshape(groups, side, heads)

    out_IGMHC, lse_IGMH = jax.lax.map(query_tile, jnp.arange(length // side))
    return (jnp.moveaxis(out_IGMHC, 0, 1).reshape(q_GLHC.shape), jnp.moveaxis(lse_IGMH, 0, 1).reshape(groups, length, heads))


def _row_backward(row, window, tiles: _Tiles):
    q_GLHC, k_GLC, v_GLC, segments_L, lse_GLH, d_out_GLHC, dots_GLH = row
    groups, length, heads, channels = q_GLHC.shape
    low_I, high_I = _reach(segments_L, window, tiles)
    side = tiles.block

    def query_tile(carry, index):
        q_GNC, d_out_GNC = (_tile(x, index, side).reshape(groups, side * heads, channels) for x in (q_GLHC, d_out_GLHC))
        lse_GN, dots_GN = (_tile(x, index, side).reshape(groups, side * heads) for x in (lse_GLH, dots_GLH))
        segments_M = jax.lax.dynamic_slice_in_dim(segments_L, index * side, side)

        def key_tile(other, carry):
            d_q_GNC, d_k_GLC, d_v_GLC = carry
            k_GMC, v_GMC = _tile(k_GLC, other, side), _tile(v_GLC, other, side)
            keys_M = jax.lax.dynamic_slice_in_dim(segments_L, other * side, side)
            logits_GNM, mask_NM = _logits(q_GNC, k_GMC, segments_M, keys_M, index * side, other * side, window, tiles)
            weights_GNM = jnp.where(mask_NM, jnp.exp(logits_GNM - lse_GN[..., None]), 0.0)
            d_v_GMC = jnp.einsum("gnm,gnc->gmc", weights_GNM.astype(d_out_GNC.dtype), d_out_GNC, preferred_element_type=jnp.float32)
            d_weights_GNM = jnp.einsum("gnc,gmc->gnm", d_out_GNC, v_GMC, preferred_element_type=jnp.float32)
            d_logits_GNM = weights_GNM * (d_weights_GNM - dots_GN[..., None]) * tiles.scale
            if tiles.softcap:
                d_logits_GNM *= 1.0 - jnp.square(jnp.where(mask_NM, logits_GNM, 0.0) / tiles.softcap)
            d_logits_GNM = d_logits_GNM.astype(q_GNC.dtype)
            d_q_GNC += jnp.einsum("gnm,gmc->gnc", d_logits_GNM, k_GMC, preferred_element_type=jnp.float32)
            d_k_GMC = jnp.einsum("gnm,gnc->gmc", d_logits_GNM, q_GNC, preferred_element_type=jnp.float32)
            added = [
                jax.lax.dynamic_update_slice_in_dim(whole, _tile(whole, other, side) + part, other * side, axis=1)
                for whole, part in ((d_k_GLC, d_k_GMC), (d_v_GLC, d_v_GMC))
            ]
            return d_q_GNC, *added

        d_q_GNC, d_k_GLC, d_v_GLC = jax.lax.fori_loop(low_I[index], high_I[index], key_tile, (_zeros(q_GNC.shape), *carry))
        return (d_k_GLC, d_v_GLC), d_q_GNC.reshape(groups, side, heads, channels)

    (d_k_GLC, d_v_GLC), d_q_IGMHC = jax.lax.scan(query_tile, (_zeros(k_GLC.shape), _zeros(v_GLC.shape)), jnp.arange(length // side))
    return jnp.moveaxis(d_q_IGMHC, 0, 1).reshape(q_GLHC.shape), d_k_GLC, d_v_GLC
