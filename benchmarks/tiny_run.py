"""A run of the training loop that starts in a second or two: two tasks of a mixture with dropped tokens and neutral prefixes, in packed rows.

As a program it trains into a folder, so that it can be killed, and prints a digest of the last checkpoint in the end:
`python -m benchmarks.tiny_run FOLDER [name=value …]`.
"""

import ast
import hashlib
import os
import pathlib
import sys
import warnings

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from xretrieval.corpora import shards
from xretrieval.data import records
from xretrieval.data.pipeline import TaskData
from xretrieval.errors import Preempted, UserError, read_json
from xretrieval.model.tower import TowerConfig
from xretrieval.train import checkpoint
from xretrieval.train.begin import TrainingData
from xretrieval.train.optimizer import OptimizerConfig
from xretrieval.train.run import train

TOWER = TowerConfig(width=32, layers=2, heads=2, kv_heads=1, head_dim=16, mlp_hidden=64, max_positions=64)
SETTINGS = {
    "num_steps": 12,
    "batch_size": 16,
    "tower": TOWER,
    "optimizer": OptimizerConfig(warmup_steps=2),
    "checkpoint_every": 4,
    "log_every": 1,
}


def data(folder: pathlib.Path, examples: int = 200, longest: tuple[int, int] = (11, 11)) -> TrainingData:
    """Token records of two tasks, written once; `longest` are the tokens of the longest inputs and targets."""
    tasks = []
    for number, name in enumerate(("speech", "text")):
        directory = folder / name
        if not (directory / "records.json").exists():
            rng = np.random.default_rng(number)
            pairs = [[rng.integers(10, 60, rng.integers(1, most + 1)).astype(np.int32) for most in longest] for _ in range(examples)]
            directory.mkdir(parents=True, exist_ok=True)
            shards.commit_shard(str(directory), 0, 1, "key", [records.pack(*pair, i) for i, pair in enumerate(pairs)], {})
            records.write_index(str(directory), "key", [examples], np.array([[len(side) for side in pair] for pair in pairs]))
        frames = ((7, 9), (6,)), ((7,), (6, 8))
        neutral = {"neutral_rate": 0.2, "neutral_prefixes": frames[1:]}
        drop = 0.0 if number else 0.1
        tasks.append(TaskData(name, 2.0 - number, records.TaskRecords(directory), frames[0], drop_rate=drop, **neutral))
    identity = {"vocabulary": "v", "unit_tokenizer": "u", "records": {task.name: task.records.key for task in tasks}}
    return TrainingData(tasks, 50, 14, identity, np.zeros((14, 4), np.float32))


def tower(folder: pathlib.Path) -> TowerConfig:
    """Of a run in that folder, as its `run.json` has it."""
    return TowerConfig(**read_json(folder / "train/run.json")["tower"])


def run(folder, **settings) -> int:
    """Trains into `folder`/train, from records in `folder`/records; returns the steps done."""
    folder = pathlib.Path(folder)
    settings = {"workdir": str(folder / "train"), "data": data(folder / "records"), **SETTINGS, **settings}
    return train(**settings)


def digest(workdir: str | pathlib.Path) -> str:
    """sha256 of all arrays of the newest checkpoint."""
    newest = pathlib.Path(workdir).resolve() / "checkpoints" / str(checkpoint.steps(workdir)[-1])
    with warnings.catch_warnings(action="ignore"):  # it is loaded as it was saved, which Orbax thinks unwise on other devices
        arrays = jax.tree.leaves(ocp.load(newest))
    return hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in arrays)).hexdigest()


if __name__ == "__main__":
    given = dict(item.split("=", 1) for item in sys.argv[2:])
    try:
        run(sys.argv[1], **{name: ast.literal_eval(value) for name, value in given.items()})
    except UserError as error:
        sys.exit(str(error))
    except Preempted:
        sys.exit(os.EX_TEMPFAIL)
    print(digest(pathlib.Path(sys.argv[1]) / "train"))
