"""AdamW with a linear warm-up and decay, and a clipped gradient."""

import dataclasses

import jax
import optax


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Linear warm-up to `learning_rate`, then linear decay to 0 at the last step."""

    learning_rate: float = 3e-3
    warmup_steps: int = 50
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.99
    max_gradient_norm: float = 1.0


def schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    warmup = min(config.warmup_steps, max(1, num_steps // 2))
    rise = optax.linear_schedule(0.0, config.learning_rate, warmup)
    fall = optax.linear_schedule(config.learning_rate, 0.0, max(1, num_steps - warmup))
    return optax.join_schedules([rise, fall], [warmup])


def make_optimizer(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    """Weight decay falls on matrices only, neither on norms nor on the logit scale."""
    return optax.chain(
        optax.clip_by_global_norm(config.max_gradient_norm),
        optax.adamw(
            schedule(config, num_steps),
            b1=config.beta1,
            b2=config.beta2,
            weight_decay=config.weight_decay,
            mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
        ),
    )
