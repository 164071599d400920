"""What a training run carries from step to step."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from xretrieval import mesh as mesh_lib
from xretrieval.errors import UserError
from xretrieval.model import tower
from xretrieval.train import trainable as trainable_lib
from xretrieval.train.trainable import TrainableConfig


class TrainState(NamedTuple):
    """The step is the checkpoint's name.

    Attributes:
      params: what trains: {"tower": parameters by name, "log_logit_scale": the log of the logit scale}.
      frozen: the tower's other parameters by name.
      opt_state: the optimizer's moments, of `params` alone.
    """

    params: dict
    frozen: tower.Params
    opt_state: optax.OptState


def create(
    config: tower.TowerConfig, optimizer: optax.GradientTransformation, logit_scale: float, seed: int, trainable: TrainableConfig
) -> TrainState:
    """A fresh state, created sharded on the mesh in context; moments take the sharding of their parameters."""
    return from_params(config, tower.init(config, seed), optimizer, logit_scale, seed, trainable)


def from_params(
    config: tower.TowerConfig,
    params: tower.Params,
    optimizer: optax.GradientTransformation,
    logit_scale: float,
    seed: int,
    trainable: TrainableConfig,
) -> TrainState:
    """The state of a run that starts from these parameters of the whole tower."""
    trained, frozen = jax.jit(functools.partial(trainable_lib.split, trainable, config, seed=seed))(params)
    moving = {"tower": trained, "log_logit_scale": jnp.float32(np.log(logit_scale))}
    return TrainState(moving, frozen, jax.jit(optimizer.init)(moving))


def whole(state: TrainState, trainable: TrainableConfig) -> tower.Params:
    """The parameters of the whole tower; adapters and cut stacks are joined in a copy."""
    if trainable.what == "all":
        return state.params["tower"]
    return jax.jit(functools.partial(trainable_lib.whole, trainable))(state.params["tower"], state.frozen)


def abstract(config: tower.TowerConfig, optimizer: optax.GradientTransformation, trainable: TrainableConfig) -> TrainState:
    """Shapes, dtypes and shardings of a state on the mesh in context: the tree that a checkpoint is restored into."""
    made = jax.eval_shape(lambda: create(config, optimizer, 1.0, 0, trainable))
    return jax.tree.map(mesh_lib.placed, made)


@jax.jit
def finite(state: TrainState) -> jax.Array:
    """Whether all entries of each leaf are finite, bool [leaves]."""
    return jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(state)])


def check_finite(state: TrainState, leaves: jax.Array | None = None) -> None:
    """UserError naming a leaf that is not finite; `leaves` is what `finite` gave before."""
    found = np.asarray(jax.device_get(finite(state) if leaves is None else leaves))
    if not found.all():
        paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(state)]
        names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, ok in zip(paths, found, strict=True) if not ok]
        raise UserError(f"{names[0]} holds numbers that are not finite" + (f", and {len(names) - 1} others" if len(names) > 1 else ""))
