"""One process of a run, as tests start it: `python worker.py TASK FOLDER [name=value ...]`.

Its place comes from the environment, as from `launch.local`. Nothing here imports TensorFlow: a process is at work in two seconds.
"""

import ast
import dataclasses
import itertools
import json
import os
import pathlib
import signal
import sys
import threading
import time
import types

import jax
import numpy as np
import runs

from benchmarks import tiny_run
from xretrieval import canary, distributed, doctor, verbs
from xretrieval import mesh as mesh_lib
from xretrieval.corpora.shards import commit_shard
from xretrieval.errors import Preempted, UserError, write_json
from xretrieval.evaluate import validation as validation_lib
from xretrieval.evaluate.embed import embed_sequences
from xretrieval.model.tower import init
from xretrieval.train import checkpoint, run
from xretrieval.train.loop import place
from xretrieval.train.optimizer import OptimizerConfig
from xretrieval.train.step import LossConfig, StepConfig, loss_fn
from xretrieval.train.trainable import TrainableConfig


def _whole(x):
    return jax.reshard(x, jax.P(*[None] * x.ndim))


def gradients(folder, mesh):
    """Loss and gradients of one batch on a mesh of (model, order of the devices), whole, by process 0 into `gradients.npz`."""
    tower, (model, order) = dataclasses.replace(runs.CONFIG, layers=1), mesh
    config = StepConfig(tower, runs.ComputeConfig(), LossConfig(), runs.SHAPE.num_segments)
    mesh = mesh_lib.make_mesh(model, 1, [jax.devices()[i] for i in order])

    @jax.jit
    def one(params, batch):
        (loss, _), found = jax.value_and_grad(loss_fn, has_aux=True)(params, {}, batch, config)
        return jax.tree.map(_whole, {"loss": loss, "log_logit_scale": found["log_logit_scale"], **found["tower"]})

    with jax.set_mesh(mesh):
        canary.check_reduce_scatter(4 << 20)
        shards = mesh_lib.batch_shards(mesh)
        here = {
            name: np.concatenate([np.split(x, shards)[s] for s in mesh_lib.local_shards(mesh)]) for name, x in runs.batch(shards).items()
        }
        found = one({"tower": init(tower, 0), "log_logit_scale": np.float32(np.log(20))}, place(here, mesh))
    if distributed.first():
        np.savez(os.path.join(folder, "gradients.npz"), **{name: np.asarray(x) for name, x in found.items()})


def validate(config, params, compute):
    """Embeddings of a fixed set that no batch divides evenly, summed up."""
    sequences = [np.arange(1, 2 + i % 40, dtype=np.int32) for i in range(70)]
    return {"validation/sum": float(embed_sequences(config, params, sequences, compute=compute).sum(dtype=np.float64))}


class Letters:
    """A vocabulary whose tokens are letters and units."""

    def encode_text(self, text):
        return np.array([ord(letter) % 50 + 1 for letter in text], np.int32)

    def encode_units(self, units):
        return np.array(units, np.int32) + 50

    def sequence(self, ids, code, modality):
        return ids


def validation(folder, records=70):
    """`evaluate.validation` of records that each process has in a folder of its own under the same name, with a fresh tower."""
    os.chdir(folder)
    os.makedirs(f"process-{distributed.me()}/units/validation")
    os.chdir(f"process-{distributed.me()}")
    lines = [
        {"id": str(i), "sentence_id": str(i), "language": "de_de", "text": "Montag"[: 1 + i % 6], "split": "validation"} for i in range(70)
    ]
    lines = [{**line, "units": [*range(1 + i % 40)]} for i, line in enumerate(lines)]
    commit_shard("units/validation", 0, 1, "key", [json.dumps(line).encode() for line in lines[:records]], {})
    write_json("units/validation/index.json", {"shards": 1})
    with jax.set_mesh(mesh_lib.make_mesh()):
        config = dataclasses.replace(tiny_run.TOWER, layers=1, text_size=60, num_units=40)
        measure = validation_lib.validation(verbs.Mixture(None, Letters(), None), "units")
        measure(config, init(config, 0), runs.ComputeConfig())


def train(folder, pace=0.0, optimizer=None, **settings):
    """`tiny_run` with validation; every step takes `pace` seconds at least."""
    if pace:
        before(run, "train_step", lambda: time.sleep(pace))
    if optimizer:
        settings["optimizer"] = OptimizerConfig(**optimizer)
    if distributed.first():
        tiny_run.data(pathlib.Path(folder) / "records")
    distributed.barrier("records")
    tiny_run.run(folder, validate=validate, tower=dataclasses.replace(tiny_run.TOWER, layers=1), **settings)


def stop(folder, fails=""):
    """Steps until SIGTERM, which process 1 sends itself; then all save and leave, but one that `fails`."""
    with distributed.StopOnSignal() as asked:
        for step in itertools.count(1):
            time.sleep(0.02)
            if step == 5 and distributed.me() == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            if asked.requested(step):
                break
        if fails == "RuntimeError":
            raise RuntimeError("the device is broken")
        if fails == "second Ctrl-C":
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
        distributed.barrier("saved")
    raise Preempted(step)


def late(folder, late=()):
    """A barrier of 2 s to which some come in vain, for the others are later than that."""
    if distributed.me() in late:
        time.sleep(4.0)
        distributed.barrier("others have seen", 30)
        return
    try:
        distributed.barrier("breakfast", 2)
    except UserError as error:
        print(error)
    distributed.barrier("others have seen", 30)


def examine(folder, workdir="train", ahead=0.0, **other):
    """`xretrieval doctor` of a sound run, or of one that differs on a process."""
    doctor.time = types.SimpleNamespace(time=lambda: time.time() + ahead)
    given = {
        "configuration": "train.num_steps = 4\ntrain.seed = 0\n",
        "mesh_model": 1,
        "mesh_replica": 1,
        "batch_size": 8,
        "microbatches": 1,
    }
    configs = {"tower": tiny_run.TOWER, "optimizer": OptimizerConfig(), "trainable": TrainableConfig()}
    records = pathlib.Path(folder) / f"records-{distributed.me()}"
    run = doctor.Run(
        workdir=f"{folder}/{workdir}", keep_checkpoints=2, **{**given, **configs, **other}, data=lambda: tiny_run.data(records)
    )
    return doctor.examine(run, 60, 30)


def before(module, name, act, call=1):
    """From now on `act` runs before every call of a function, from the `call`th on."""
    function, calls = getattr(module, name), iter(range(1, 1_000_000))

    def wrapped(*args, **kwargs):
        if next(calls) >= call:
            act()
        return function(*args, **kwargs)

    if hasattr(function, "lower"):
        wrapped.lower = function.lower
    setattr(module, name, wrapped)


def arm(phase, action):
    """A fault of this process: a signal to itself in the middle of a phase."""
    once = iter([getattr(signal, f"SIG{action}")])

    def fault():
        for number in once:
            os.kill(os.getpid(), number)

    if phase == "initialise":
        fault()
    elif phase == "compile":  # which takes longer than this
        before(run, "train_step", lambda: threading.Timer(0.2, fault).start())
    elif phase == "step":
        before(run, "train_step", fault, call=4)
    elif phase == "save":  # between the writing and the commit
        before(checkpoint.manifest_lib, "hashes", fault)
    elif phase == "restore":
        before(checkpoint, "_load", fault)
    elif phase == "evaluate":
        before(sys.modules["xretrieval.evaluate.embed"], "_embed_rows", fault, call=2)


TASKS = {"gradients": gradients, "train": train, "validation": validation, "stop": stop, "examine": examine, "late": late}


def main(task, folder, *settings):
    """The exit codes of the command line."""
    given = {name: ast.literal_eval(value) for name, _, value in (setting.partition("=") for setting in settings)}
    timeouts = {name: given.pop(name, default) for name, default in (("initialization_timeout", 60), ("heartbeat_timeout", 30))}
    given |= ast.literal_eval(os.environ.get("OTHER", "{}"))
    if "FAULT" in os.environ:
        arm(*os.environ["FAULT"].split(":"))
    try:
        with distributed.session(**timeouts):
            return TASKS[task](folder, **given) or 0
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except Preempted:
        return os.EX_TEMPFAIL
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
