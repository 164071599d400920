"""What several processes must have in common before anything runs on their devices."""

import jax
import optax

from xretrieval import canary, distributed
from xretrieval.data.packing import Shape
from xretrieval.train import state as state_lib
from xretrieval.train.step import StepConfig, abstract_batch, train_step
from xretrieval.train.trainable import TrainableConfig

_CANARY_BYTES = 4 << 20  # chunks of this size have been wrong where smaller ones were right


def check_agreement(
    identity: str, step: StepConfig, tx: optax.GradientTransformation, trainable: TrainableConfig, shape: Shape, batch_size: int
) -> None:
    """Compares what the processes of a run are about to do, on the mesh in context; processes that differ would wait for each other for hours.

    Args:
      identity: fingerprint of data, tower, seed and start.
      step, tx, trainable, shape, batch_size: what the step is compiled for.

    Raises:
      UserError: on every process, naming those that differ.
      RuntimeError: a reduce-scatter over the processes is wrong.
    """
    if distributed.alone():
        return
    distributed.check_same("data, tower, seed or start", identity)
    state, mesh = state_lib.abstract(step.tower, tx, trainable), jax.sharding.get_mesh()
    lowered = train_step.lower(state, abstract_batch(shape, batch_size, mesh, step.microbatches), step, tx)
    distributed.check_same_program(lowered.as_text())
    canary.check_reduce_scatter(_CANARY_BYTES)
