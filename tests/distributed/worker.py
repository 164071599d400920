"""One process of a run, as tests start it: `python worker.py TASK FOLDER [name=value ...]`.

Its place comes from the environment, as from `launch.local`. Nothing here imports TensorFlow: a process is at work in two seconds.
"""

import ast
import os
import sys

import jax
import numpy as np
import runs

from xretrieval import canary, distributed
from xretrieval import mesh as mesh_lib
from xretrieval.errors import UserError
from xretrieval.train import state as state_lib
from xretrieval.train.loop import place
from xretrieval.train.optimizer import OptimizerConfig, make_optimizer
from xretrieval.train.step import LossConfig, StepConfig, loss_fn
from xretrieval.train.trainable import TrainableConfig


def _whole(x):
    return jax.reshard(x, jax.P(*[None] * x.ndim))


def gradients(folder, meshes):
    """Loss and gradients of one batch on meshes of (model, order of the devices), whole, by process 0 into `gradients.npz`."""
    config = StepConfig(runs.CONFIG, runs.ComputeConfig(), LossConfig(), runs.SHAPE.num_segments)
    saved = {}
    for number, (model, order) in enumerate(meshes):
        mesh = mesh_lib.make_mesh(model, 1, [jax.devices()[i] for i in order])
        with jax.set_mesh(mesh):
            canary.check_reduce_scatter(4 << 20)
            state = state_lib.create(runs.CONFIG, make_optimizer(OptimizerConfig(), 10), 20.0, 0, TrainableConfig())
            whole = runs.batch(mesh_lib.batch_shards(mesh))
            held = mesh_lib.local_shards(mesh)
            here = {name: np.concatenate([np.split(x, mesh_lib.batch_shards(mesh))[s] for s in held]) for name, x in whole.items()}

            @jax.jit
            def one(params, frozen, batch):
                (loss, _), found = jax.value_and_grad(loss_fn, has_aux=True)(params, frozen, batch, config)
                return jax.tree.map(_whole, (loss, found))

            loss, found = one(state.params, state.frozen, place(here, mesh))
        saved[f"{number}/loss"] = np.asarray(loss)
        saved |= {f"{number}/{name}": np.asarray(x) for name, x in found["tower"].items()}
        saved[f"{number}/log_logit_scale"] = np.asarray(found["log_logit_scale"])
    if distributed.first():
        np.savez(os.path.join(folder, "gradients.npz"), **saved)


TASKS = {"gradients": gradients}


def main(task, folder, *settings):
    """The exit codes of the command line."""
    given = {name: ast.literal_eval(value) for name, _, value in (setting.partition("=") for setting in settings)}
    timeouts = {name: given.pop(name, default) for name, default in (("initialization_timeout", 60), ("heartbeat_timeout", 30))}
    try:
        with distributed.session(**timeouts):
            TASKS[task](folder, **given)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
