"""Two processes: each writes its part, hashes a part of the files, and all take the same step."""

import pathlib
import subprocess
import sys

import pytest

from launch.local import environment, free_port

WORKER = pathlib.Path(__file__).parent / "checkpoint_worker.py"


@pytest.mark.parametrize("harm,step", [("first", 1), ("second", 1), pytest.param("none", 2, marks=pytest.mark.slow)])
def test_all_processes_take_the_step_that_all_find_whole(tmp_path, harm, step):
    port, root = free_port(), WORKER.parents[2]
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(tmp_path), harm],
            env={**environment(process, 2, port), "PYTHONPATH": str(root)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    try:
        ends = [(*process.communicate(timeout=120), process.returncode) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for out, error, code in ends:
        assert code == 0, error
        assert f"taken: {step}\n" in out
        assert "3: not saved, for params/log_logit_scale holds numbers that are not finite" in out
    said = [line for _, error, _ in ends for line in error.splitlines() if "is not taken" in line]
    assert len(said) == (step == 1), "by process 0 alone, whoever found it"
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()) == ["1", "2"]
