"""The one train step."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from xretrieval.model import tower
from xretrieval.train.loss import contrastive_loss
from xretrieval.train.state import TrainState

Batch = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Start and clamp of the learnable logit scale (1 / temperature), and the weight of the spread-out term."""

    initial_logit_scale: float = 20.0
    max_logit_scale: float = 100.0
    spread_out_weight: float = 0.1


def loss_fn(params: dict, batch: Batch, config: tower.TowerConfig, loss_config: LossConfig) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Embeds both sides with the one tower, and compares them."""
    left_BE = tower.embed_rows(config, params["tower"], batch["left_tokens"], batch["left_lengths"])
    right_BE = tower.embed_rows(config, params["tower"], batch["right_tokens"], batch["right_lengths"])
    logit_scale = jnp.exp(params["log_logit_scale"])
    loss, parts = contrastive_loss(left_BE, right_BE, logit_scale, batch["pair_id"], loss_config.spread_out_weight)
    return loss, {"loss": loss, "logit_scale": logit_scale, **parts}


@functools.partial(jax.jit, static_argnames=("config", "loss_config", "optimizer"), donate_argnums=0)
def train_step(
    state: TrainState, batch: Batch, config: tower.TowerConfig, loss_config: LossConfig, optimizer: optax.GradientTransformation
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step of gradient descent; metrics are scalars on the device."""
    gradients, metrics = jax.grad(loss_fn, has_aux=True)(state.params, batch, config, loss_config)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    metrics["gradient_norm"] = optax.tree.norm(gradients)
    params = optax.apply_updates(state.params, updates)
    # Clamped here, not in the loss, where a scale beyond the clamp would have no gradient to come back by.
    params["log_logit_scale"] = jnp.minimum(params["log_logit_scale"], np.float32(np.log(loss_config.max_logit_scale)))
    return TrainState(params, opt_state), metrics
