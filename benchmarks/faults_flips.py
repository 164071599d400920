"""Flipped bits in every file of a checkpoint: each is found before Orbax reads anything, and the step before is taken."""

import contextlib
import dataclasses
import io
import pathlib
import random

import jax

from benchmarks import tiny_run
from xretrieval import mesh as mesh_lib
from xretrieval.train import manifest
from xretrieval.train import state as state_lib
from xretrieval.train.checkpoint import Checkpoints
from xretrieval.train.optimizer import OptimizerConfig, make_optimizer
from xretrieval.train.trainable import TrainableConfig


@dataclasses.dataclass
class Found:
    """Flips, those that were found, and the files that they were in."""

    flips: int = 0
    found: int = 0
    files: int = 0


def sweep(folder: pathlib.Path, places: int, seed: int = 0) -> Found:
    """Flips one bit in `places` bytes of every file of the newer of two steps, one flip at a time."""
    chance, found = random.Random(seed), Found()
    tiny_run.run(folder, stop_after=8)
    step = folder.resolve() / "train/checkpoints/8"
    saved = manifest.read(step)
    with jax.set_mesh(mesh_lib.make_mesh()):
        abstract = state_lib.abstract(tiny_run.tower(folder), make_optimizer(OptimizerConfig(), 1), TrainableConfig())
        for name in [*saved.files, manifest.NAME]:
            whole = (step / name).read_bytes()
            if not whole:
                continue  # Orbax' marker: there is nothing to flip in it
            found.files += 1
            for place in chance.sample(range(len(whole)), min(places, len(whole))):
                (step / name).write_bytes(whole[:place] + bytes([whole[place] ^ (1 << chance.randrange(8))]) + whole[place + 1 :])
                said = io.StringIO()
                with contextlib.redirect_stderr(said):
                    taken = Checkpoints(folder / "train", saved.identity).restore_newest(abstract)
                found.flips += 1
                found.found += taken is not None and taken[1].step == 4 and str(step / name) in said.getvalue()
            (step / name).write_bytes(whole)
    return found
