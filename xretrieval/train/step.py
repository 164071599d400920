"""The one train step."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from xretrieval import mesh as mesh_lib
from xretrieval.data.packing import Shape
from xretrieval.model.tower import ComputeConfig, Params, TowerConfig
from xretrieval.train.loss import LossConfig, contrastive_loss
from xretrieval.train.pairs import embed_pairs
from xretrieval.train.state import TrainState
from xretrieval.train.trainable import UNITS

Batch = dict[str, jax.Array]
# Of a pair: two that are equal in one of them are no negatives of each other.
IDS = ("pair_id", "left_id", "right_id")


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """All that a step is compiled for, beside the shapes of its arguments.

    Attributes:
      tower, compute, loss: their configs.
      num_segments: S, the most segments of a packed row.
      lora_scale: of the adapters, alpha / rank.
      microbatches: into how many parts each data shard's pairs were packed; the tower runs over one after another.
    """

    tower: TowerConfig
    compute: ComputeConfig
    loss: LossConfig
    num_segments: int
    lora_scale: float = 0.0
    microbatches: int = 1


def abstract_batch(shape: Shape, batch_size: int, mesh: jax.sharding.Mesh, microbatches: int = 1) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, dtypes and shardings of a batch as `train_step` takes it; `shape` is of one of the parts that are packed apart."""
    rows = mesh_lib.batch_shards(mesh) * microbatches * shape.rows
    by_row = jax.ShapeDtypeStruct((rows, shape.row_length), jnp.int32, sharding=mesh_lib.sharding(mesh, "batch", None))
    by_pair = jax.ShapeDtypeStruct((batch_size,), jnp.int32, sharding=mesh_lib.sharding(mesh, "batch"))
    return dict.fromkeys(("tokens", "segment_ids", "positions"), by_row) | dict.fromkeys(("left", "right", "place", *IDS), by_pair)


def loss_fn(params: dict, frozen: Params, batch: Batch, config: StepConfig) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Embeds both sides with the one tower, and compares them."""
    left_BE, right_BE = embed_pairs(
        config.tower, {**frozen, **params["tower"]}, batch, config.num_segments, config.compute, config.lora_scale, config.microbatches
    )
    logit_scale = jnp.exp(params["log_logit_scale"])
    if not config.loss.learn_logit_scale:
        logit_scale = jax.lax.stop_gradient(logit_scale)
    ids = tuple(batch[name] for name in (IDS if config.loss.mask_same_text else IDS[:1]))
    loss, parts = contrastive_loss(left_BE, right_BE, logit_scale, ids, batch["place"], config.loss, config.compute.dtype)
    return loss, {"loss": loss, "logit_scale": logit_scale, **parts}


@functools.partial(jax.jit, static_argnames=("config", "optimizer"), donate_argnums=0)
def train_step(
    state: TrainState, batch: Batch, config: StepConfig, optimizer: optax.GradientTransformation
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step of gradient descent on a packed batch (`data/pipeline.py`); metrics are scalars on the device.

    Where the loss or the norm of its gradient is not finite, the state comes back as it was, and the metric "skipped" is 1.
    """
    gradients, metrics = jax.grad(loss_fn, has_aux=True)(state.params, state.frozen, batch, config)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    metrics["gradient_norm"] = optax.tree.norm(gradients)
    if UNITS in gradients["tower"]:
        metrics["gradient_norm_units"] = optax.tree.norm(gradients["tower"][UNITS])
    params = optax.apply_updates(state.params, updates)
    if config.loss.learn_logit_scale:
        # Clamped here, not in the loss, where a scale beyond the clamp would have no gradient to come back by.
        params["log_logit_scale"] = jnp.minimum(params["log_logit_scale"], np.float32(np.log(config.loss.max_logit_scale)))
    else:  # not by a gradient of nought, either: in a run that goes on with a fixed scale, Adam's moments still are of a learned one
        params["log_logit_scale"] = state.params["log_logit_scale"]
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["gradient_norm"])
    metrics["skipped"] = 1.0 - finite
    kept, opt_state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), (params, opt_state), (state.params, state.opt_state))
    return TrainState(kept, state.frozen, opt_state), metrics
