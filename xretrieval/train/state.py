"""What a training run carries from step to step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from xretrieval.model import tower


class TrainState(NamedTuple):
    """Parameters (the tower's, and the log of the logit scale) and the optimizer's moments. The step is the checkpoint's name."""

    params: dict
    opt_state: optax.OptState


def create(config: tower.TowerConfig, optimizer: optax.GradientTransformation, logit_scale: float, seed: int) -> TrainState:
    """A fresh state, created sharded on the mesh in context; moments take the sharding of their parameters."""
    params = {"tower": tower.init(config, seed), "log_logit_scale": jnp.float32(np.log(logit_scale))}
    return with_moments(params, optimizer)


def with_moments(params: dict, optimizer: optax.GradientTransformation) -> TrainState:
    return TrainState(params, jax.jit(optimizer.init)(params))


def abstract(state: TrainState) -> TrainState:
    """Shapes, dtypes and shardings of a state: the tree that a checkpoint is restored into."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
