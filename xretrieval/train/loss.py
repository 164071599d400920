"""The contrastive loss: bidirectional in-batch softmax over the global batch, plus the spread-out term (paper, section 2)."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from xretrieval import mesh as mesh_lib
from xretrieval.errors import UserError, check_fields
from xretrieval.train.softmax import Ids, softmax


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """What the loss computes.

    Attributes:
      initial_logit_scale: the scale (1 / temperature) that a fresh run starts from.
      max_logit_scale: the scale is clamped to it.
      learn_logit_scale: whether it trains; else it stays as it was at the start.
      margin: taken from the similarity of every pair before the softmax (Yang et al. 2019, additive margin); 0 is none.
      mask_same_text: two pairs whose left or whose right sides have the same tokens are no negatives of each other; else only pairs of one
        pair ID are not.
      spread_out_weight: of the spread-out term; 0 leaves it out.
      tile: columns that are computed at once: a device holds b x tile logits.
    """

    initial_logit_scale: float = 20.0
    max_logit_scale: float = 100.0
    learn_logit_scale: bool = True
    margin: float = 0.0
    mask_same_text: bool = True
    spread_out_weight: float = 0.1
    tile: int = 512

    def __post_init__(self):
        check_fields(self)
        if self.tile < 1:
            raise UserError(f"LossConfig.tile = {self.tile}: it must be 1 or more")
        if not 0 < self.initial_logit_scale <= self.max_logit_scale:
            raise UserError(
                f"LossConfig.initial_logit_scale = {self.initial_logit_scale}: it must be above 0 and at most max_logit_scale = {self.max_logit_scale}"
            )


def contrastive_loss(
    left_BE: jax.Array,
    right_BE: jax.Array,
    logit_scale: jax.Array,
    ids: Ids,
    place_B: jax.Array,
    config: LossConfig,
    dtype: str = "float32",
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean over pairs of the two softmax losses, plus the spread-out terms of both sides.

    With S = logit_scale * left @ right.T, and S_ii less by logit_scale * margin, the loss of row i is log(1 + sum_{j != i} exp(S_ij - S_ii)), over j
    that are negatives of i. In this form it keeps its digits when pairs are aligned, where LSE minus positive loses all of them in
    float32. The same for columns; the two are averaged.

    Args:
      left_BE, right_BE: float32 [B, E] of unit norm, split over the batch axes.
      logit_scale: scalar > 0.
      ids: int32 [B] each, the pairs' IDs first; two pairs that are equal in any are never negatives of each other.
      place_B: int32 [B], another number for every pair, the same on any mesh: of pairs of one pair ID, spread-out counts the one of least place.
      config: margin, weight of spread-out, tile.
      dtype: "float32" or "bfloat16": what embeddings and gradients of logits are rounded to before they are multiplied or sent. Sums are float32.

    Returns:
      (loss, {"softmax", "spread_out", "accuracy_left_to_right", "accuracy_right_to_left"}), scalars.

    Raises:
      ValueError: pairs that do not divide over the devices of the mesh.
    """
    shares = jax.sharding.get_abstract_mesh().size
    if len(left_BE) % shares:
        raise ValueError(f"{len(left_BE)} pairs do not divide over {shares} devices")
    both, accuracies_2 = softmax(left_BE, right_BE, logit_scale, ids, config.margin, config.tile, jnp.dtype(dtype))
    parts = {"softmax": both, "spread_out": jnp.float32(0.0)}
    parts |= {"accuracy_left_to_right": accuracies_2[0], "accuracy_right_to_left": accuracies_2[1]}
    if config.spread_out_weight:
        parts["spread_out"] = spread_out(left_BE, right_BE, ids[0], place_B, jnp.dtype(dtype))
    return both + config.spread_out_weight * parts["spread_out"], parts


def spread_out(left_BE: jax.Array, right_BE: jax.Array, pair_id_B: jax.Array, place_B: jax.Array, dtype) -> jax.Array:
    """Sum over both sides of the mean of (x_i . x_j)^2 over pairs i != j (Zhang et al. 2017, second moment), each pair ID counted once.

    The sum over all i, j of the squares of a Gram matrix is that of X^T X, which is E x E and adds up over devices: no side is gathered.
    """
    counted_B = jax.reshard(
        _firsts(jax.reshard(pair_id_B, PartitionSpec(None)), jax.reshard(place_B, PartitionSpec(None))), mesh_lib.spec("batch")
    )
    count = jnp.sum(counted_B)
    total = jnp.float32(0.0)
    for side_BE in (left_BE, right_BE):
        x_BE = (side_BE * counted_B[:, None]).astype(dtype)
        moment_EE = jnp.einsum(
            "be,bf->ef", x_BE, x_BE, precision="highest", preferred_element_type=jnp.float32, out_sharding=PartitionSpec()
        )
        itself_B = jnp.square(jnp.sum(jnp.square(x_BE.astype(jnp.float32)), axis=1))
        total += jnp.sum(jnp.square(moment_EE)) - jnp.sum(itself_B)
    return total / jnp.maximum(count * (count - 1), 1)


def _firsts(pair_id_B: jax.Array, place_B: jax.Array) -> jax.Array:
    """1.0 where a pair's place is the least of those with its ID, else 0.0; float32 [B]."""
    sorted_B, _, order_B = jax.lax.sort((pair_id_B, place_B, jnp.arange(len(place_B))), num_keys=2)
    first_B = jnp.concatenate([jnp.ones(1), (sorted_B[1:] != sorted_B[:-1]).astype(jnp.float32)])
    return jnp.zeros_like(first_B).at[order_B].set(first_B)
