"""The command line on several processes, as a user starts it: `python -m launch.local … -- xretrieval …`."""

import json
import subprocess
import sys

import pytest
from small_run import ROOT, command


def launched(verb, finished, *more, processes=2):
    started = [sys.executable, "-m", "launch.local", "--processes", str(processes), "--", *command(verb, finished, *more)]
    return subprocess.run(started, cwd=ROOT, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_the_same_command_trains_on_two_processes_and_resumes(finished, tmp_path):
    more = f"WORKDIR={tmp_path / 'train'}", "train.num_steps=4", "train.checkpoint_every=2", "train.log_every=1"
    found = launched("doctor", finished, *more)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "[0] OK     workdir: " in found.stdout
    assert "[0] WRONG" not in found.stdout
    assert "[1] OK" not in found.stdout
    found = launched("train", finished, *more, "train.stop_after=2")
    assert found.returncode == 0, found.stderr
    assert "[0] 2 steps done" in found.stdout
    found = launched("train", finished, *more)
    assert found.returncode == 0, found.stderr
    lines = [json.loads(line) for line in (tmp_path / "train/metrics.jsonl").read_text().splitlines()]
    assert sorted({line["step"] for line in lines if "loss" in line}) == [1, 2, 3, 4]
    assert [line["step"] for line in lines if any(name.startswith("validation/") for name in line)] == [4]
    again = launched("train", finished, *more, "train.batch_size=16")
    assert again.returncode == 2
    assert "begun with another train.batch_size" in again.stderr
    assert "Traceback" not in again.stderr
