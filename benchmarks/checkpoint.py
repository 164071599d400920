"""How long a save holds a step up, and how fast it is written, at the size of the demo, beside a save that training waits for.

`make bench NAME=checkpoint`.
"""

import dataclasses
import json
import pathlib
import statistics
import tempfile
import time

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from benchmarks import rows, tiny_run
from xretrieval.model.tower import TowerConfig

TOWER = TowerConfig(width=128, layers=2, mlp_hidden=256)  # gin_configs/runs/polyglot.gin
TEXT, UNITS, PAIRS = 700, 256, 96
STEPS, EVERY = 60, 6


def run() -> list[dict]:
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        data = dataclasses.replace(tiny_run.data(folder / "records", 2_000, (120, 30)), text_size=TEXT, num_units=UNITS)
        data = dataclasses.replace(data, codebook_KW=np.zeros((UNITS, 4), np.float32))
        tiny_run.run(folder, data=data, tower=TOWER, batch_size=PAIRS, num_steps=STEPS, checkpoint_every=EVERY)
        lines = [json.loads(line) for line in (folder / "train/metrics.jsonl").read_text().splitlines()]
        # The first save starts Orbax' threads; the first step holds the compilation.
        saves = [line for line in lines if "save_seconds" in line][1:]
        step = statistics.median(line["step_seconds"] for line in lines if "step_seconds" in line and line["step"] > EVERY)
        blocked = statistics.median(line["save_blocked_seconds"] for line in saves)
        rate = statistics.median(line["save_bytes_per_second"] for line in saves)
        state = ocp.load(folder / f"train/checkpoints/{STEPS}")
        waited = []
        for number in range(5):
            begun = time.perf_counter()
            ocp.save(folder / f"waited/{number}", jax.tree.map(np.asarray, state))
            waited.append(time.perf_counter() - begun)
        mb = saves[0]["save_bytes"] / 1e6
        return [
            rows.row(f"seconds that a save of {mb:.1f} MB holds training up", blocked, step, "seconds of a step", 0.10),
            rows.row(
                "seconds that a save holds training up",
                blocked,
                statistics.median(waited),
                "seconds of an Orbax save that is waited for",
                None,
            ),
            rows.row(
                "bytes a second, hashed and committed", rate, saves[0]["save_bytes"] / statistics.median(waited), "that save's", None, True
            ),
        ]


if __name__ == "__main__":
    rows.main(run)
