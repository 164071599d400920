"""AdamW with a linear warm-up and decay, and a clipped gradient."""

import dataclasses
import functools

import jax
import numpy as np
import optax

from xretrieval.errors import UserError, check_fields
from xretrieval.train.trainable import UNITS


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Linear warm-up to `learning_rate`, then linear decay to 0 at the last step; that of the unit embeddings is so many times as high."""

    learning_rate: float = 3e-3
    warmup_steps: int = 50
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.99
    max_gradient_norm: float = 1.0
    unit_learning_rate_multiplier: float = 1.0

    def __post_init__(self):
        check_fields(self)
        for name in ("learning_rate", "max_gradient_norm"):
            if not getattr(self, name) > 0:
                raise UserError(f"OptimizerConfig.{name} = {getattr(self, name)}: it must be above 0")
        for name in ("warmup_steps", "weight_decay", "unit_learning_rate_multiplier"):
            if not getattr(self, name) >= 0:
                raise UserError(f"OptimizerConfig.{name} = {getattr(self, name)}: it must be 0 or more")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"OptimizerConfig.{name} = {getattr(self, name)}: it must be 0 or more, and below 1")


def schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    warmup = min(config.warmup_steps, max(1, num_steps // 2))
    rise = optax.linear_schedule(0.0, config.learning_rate, warmup)
    fall = optax.linear_schedule(config.learning_rate, 0.0, max(1, num_steps - warmup))
    return optax.join_schedules([rise, fall], [warmup])


def learning_rates(config: OptimizerConfig, num_steps: int) -> np.ndarray:
    """Of every update of a run, float32 [T]: on the host, so that to report one waits for no device."""
    return np.asarray(jax.device_get(schedule(config, num_steps)(np.arange(num_steps))))


def _names(params: dict) -> dict:
    """The tree of a state's parameters with each one's name in its place."""
    return {"tower": {name: name for name in params["tower"]}, "log_logit_scale": "log_logit_scale"}


@functools.cache  # a step is compiled for the very functions that are in here
def make_optimizer(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    """Weight decay falls on matrices only, neither on norms nor on the logit scale. Its state does not depend on the config's numbers."""
    return optax.chain(
        optax.clip_by_global_norm(config.max_gradient_norm),
        optax.adamw(
            schedule(config, num_steps),
            b1=config.beta1,
            b2=config.beta2,
            weight_decay=config.weight_decay,
            # By name: the scales of a stack's norms have two axes, too.
            mask=lambda params: jax.tree.map(lambda name: not name.endswith(("scale_D", "log_logit_scale")), _names(params)),
        ),
        optax.masked(
            optax.scale(config.unit_learning_rate_multiplier), lambda params: jax.tree.map(lambda name: name == UNITS, _names(params))
        ),
    )
