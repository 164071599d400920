"""The one train step."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from xretrieval.errors import check_fields
from xretrieval.model.tower import ComputeConfig, Params, TowerConfig, embed_pairs
from xretrieval.train.loss import contrastive_loss
from xretrieval.train.state import TrainState
from xretrieval.train.trainable import UNITS

Batch = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Start and clamp of the learnable logit scale (1 / temperature), and the weight of the spread-out term."""

    initial_logit_scale: float = 20.0
    max_logit_scale: float = 100.0
    spread_out_weight: float = 0.1

    def __post_init__(self):
        check_fields(self)


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """All that a step is compiled for, beside the shapes of its arguments.

    Attributes:
      tower, compute, loss: their configs.
      num_segments: S, the most segments of a packed row.
      lora_scale: of the adapters, alpha / rank.
    """

    tower: TowerConfig
    compute: ComputeConfig
    loss: LossConfig
    num_segments: int
    lora_scale: float = 0.0


def loss_fn(params: dict, frozen: Params, batch: Batch, config: StepConfig) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Embeds both sides with the one tower, and compares them."""
    left_BE, right_BE = embed_pairs(
        config.tower, {**frozen, **params["tower"]}, batch, config.num_segments, config.compute, config.lora_scale
    )
    logit_scale = jnp.exp(params["log_logit_scale"])
    loss, parts = contrastive_loss(left_BE, right_BE, logit_scale, batch["pair_id"], config.loss.spread_out_weight)
    return loss, {"loss": loss, "logit_scale": logit_scale, **parts}


@functools.partial(jax.jit, static_argnames=("config", "optimizer"), donate_argnums=0)
def train_step(
    state: TrainState, batch: Batch, config: StepConfig, optimizer: optax.GradientTransformation
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step of gradient descent on a packed batch (`data/pipeline.py`); metrics are scalars on the device."""
    gradients, metrics = jax.grad(loss_fn, has_aux=True)(state.params, state.frozen, batch, config)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    metrics["gradient_norm"] = optax.tree.norm(gradients)
    if UNITS in gradients["tower"]:
        metrics["gradient_norm_units"] = optax.tree.norm(gradients["tower"][UNITS])
    params = optax.apply_updates(state.params, updates)
    # Clamped here, not in the loss, where a scale beyond the clamp would have no gradient to come back by.
    params["log_logit_scale"] = jnp.minimum(params["log_logit_scale"], np.float32(np.log(config.loss.max_logit_scale)))
    return TrainState(params, state.frozen, opt_state), metrics
