"""The contrastive loss: bidirectional in-batch softmax over the global batch, plus the spread-out term (paper, section 2)."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

# Far below any logit (|logit| <= the scale), far above float32's least: exp of it is exactly 0 and nothing becomes NaN.
NEVER = -1e9


def contrastive_loss(
    left_BE: jax.Array, right_BE: jax.Array, logit_scale: jax.Array, pair_id_B: jax.Array, spread_out_weight: float = 0.0
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean over pairs of the two softmax losses, plus the spread-out terms of both sides.

    With S = logit_scale * left @ right.T, the loss of row i is log(1 + sum_{j != i} exp(S_ij - S_ii)), over j whose pair ID is another's;
    in this form it keeps its digits when pairs are aligned, where LSE minus positive loses all of them in float32. The same
    for columns; the two are averaged. Spread-out (Zhang et al. 2017, second moment only): on each side, the sum of (x_i . x_j)^2 over
    i != j of another pair ID, divided by B (B - 1).

    Args:
      left_BE, right_BE: float32 [B, E] of unit norm, split over the batch axes.
      logit_scale: scalar > 0.
      pair_id_B: int32 [B]; an equal ID is never a negative.
      spread_out_weight: weight of the spread-out term.

    Returns:
      (loss, {"softmax", "spread_out", "accuracy_left_to_right", "accuracy_right_to_left"}), scalars.
    """
    everywhere = PartitionSpec(None, None)
    # The only all-gather of embeddings: every device holds all right sides and its own left ones.
    right_all_BE = jax.reshard(right_BE, everywhere)
    negative_BB = pair_id_B[:, None] != jax.reshard(pair_id_B, PartitionSpec(None))[None, :]
    similarity_BB = left_BE @ right_all_BE.T
    positive_B = jnp.sum(left_BE * right_BE, axis=1)
    all_positive_B = jax.reshard(positive_B, PartitionSpec(None))
    row_BB = jnp.where(negative_BB, logit_scale * (similarity_BB - positive_B[:, None]), NEVER)
    column_BB = jnp.where(negative_BB, logit_scale * (similarity_BB - all_positive_B[None, :]), NEVER)
    row_B = jax.nn.softplus(jax.nn.logsumexp(row_BB, axis=1))
    column_B = jax.nn.softplus(jax.nn.logsumexp(column_BB, axis=0))
    softmax = 0.5 * (jnp.mean(row_B) + jnp.mean(column_B))
    spread_out = jnp.float32(0.0)
    if spread_out_weight:
        spread_out = _spread_out(left_BE, negative_BB) + _spread_out(right_BE, negative_BB)
    parts = {
        "softmax": softmax,
        "spread_out": spread_out,
        "accuracy_left_to_right": jnp.mean(jnp.max(row_BB, axis=1) < 0.0),
        "accuracy_right_to_left": jnp.mean(jnp.max(column_BB, axis=0) < 0.0),
    }
    return softmax + spread_out_weight * spread_out, parts


def _spread_out(x_BE: jax.Array, negative_BB: jax.Array) -> jax.Array:
    batch = x_BE.shape[0]
    gram_BB = x_BE @ jax.reshard(x_BE, PartitionSpec(None, None)).T
    return jnp.sum(jnp.where(negative_BB, jnp.square(gram_BB), 0.0)) / (batch * (batch - 1))
