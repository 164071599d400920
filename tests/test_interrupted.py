"""Killed or stopped, and run again: the same result as never interrupted."""

import json
import os
import shutil
import signal
import subprocess
import time

import pytest
from small_run import GIN, ROOT, command, settings, start

from xretrieval import main
from xretrieval.corpora import shards


def killed_when(process, condition):
    """kill -9 as soon as the condition holds; it must hold before the process ends by itself."""
    give_up = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < give_up
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_training_killed_and_resumed_equals_uninterrupted_bitwise(finished, tmp_path):
    from xretrieval.train import checkpoint

    workdir = tmp_path / "train"
    process = start("train", finished, f"WORKDIR={workdir}", "train.checkpoint_every=5")
    killed_when(process, lambda: checkpoint.steps(workdir))
    before = checkpoint.steps(workdir)
    assert before[-1] < 30
    process = start("train", finished, f"WORKDIR={workdir}", "train.checkpoint_every=5")
    assert process.wait(timeout=240) == 0, process.stderr.read()
    # On one device here, on eight in this process: compare with one more uninterrupted run of the same kind.
    whole = start("train", finished, f"WORKDIR={tmp_path / 'whole'}", "train.checkpoint_every=5")
    assert whole.wait(timeout=240) == 0, whole.stderr.read()
    for name, run in (("killed", workdir), ("whole", tmp_path / "whole")):
        main.run_verb("export", GIN, [*settings(finished), f"WORKDIR={run}", f"MODEL={tmp_path / name}"])
    assert (tmp_path / "killed/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()
    losses = [
        [(line["step"], line["loss"]) for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "loss" in line]
        for run in (workdir, tmp_path / "whole")
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("stop,code", [(signal.SIGINT, 130), (signal.SIGTERM, 75)], ids=["Ctrl-C", "SIGTERM"])
def test_a_signal_saves_the_step_under_way(finished, tmp_path, stop, code):
    from xretrieval.train import checkpoint

    workdir = tmp_path / "train"
    process = start("train", finished, f"WORKDIR={workdir}", "train.num_steps=9000", "train.checkpoint_every=9000", "train.log_every=1")
    metrics = workdir / "metrics.jsonl"
    give_up = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") > 3):
        assert process.poll() is None
        assert time.monotonic() < give_up
        time.sleep(0.02)
    os.kill(process.pid, stop)
    assert process.wait(timeout=60) == code
    error = process.stderr.read().decode()
    assert "the same command goes on" in error
    assert "Traceback" not in error
    assert checkpoint.steps(workdir)[-1] == json.loads(metrics.read_text().splitlines()[-1])["step"]


def test_extraction_killed_and_run_again_gives_the_same_shards(finished, tmp_path):
    more = [f"UNITS={tmp_path / 'units'}", "extract_units.splits=('test',)", "extract_units.num_shards=6", "extract_units.num_workers=2"]
    out = tmp_path / "units/test"
    process = start("units extract", finished, *more)
    killed_when(process, lambda: list(out.glob("shard-*.json")))
    committed = {path.name: path.stat().st_mtime_ns for path in out.glob("shard-*.json")}
    assert 1 <= len(committed) < 6
    again = start("units extract", finished, *more)
    assert again.wait(timeout=120) == 0, again.stderr.read()
    assert committed == {name: (out / name).stat().st_mtime_ns for name in committed}, "a committed shard was made again"
    main.run_verb("units extract", GIN, [*settings(finished), *more[1:3], "extract_units.num_workers=1", f"UNITS={tmp_path / 'whole'}"])
    for index in range(6):
        ours, whole = (shards.data_path(folder, index, 6).read_bytes() for folder in (out, tmp_path / "whole/test"))
        assert ours == whole


GUARD = """
import os, socket
connect = socket.socket.connect
def inside(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6) and not (address[0] in ("localhost", "::1") or address[0].startswith("127.")):
        open(os.environ["GUARD"] + "/reached-outside", "a").write(str(address))
        raise PermissionError(address)
    return connect(self, address)
socket.socket.connect = inside
open(os.environ["GUARD"] + "/" + str(os.getpid()), "w").close()
"""


def test_extraction_by_beam_needs_no_network(finished, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(GUARD)
    more = [f"UNITS={tmp_path / 'units'}", "extract_units.splits=('validation',)", "extract_units.num_workers=2"]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "GUARD": str(tmp_path)}
    # A network of its own with nothing but loopback in it stops sockets of C as well; where the system has none, Python's are watched.
    alone = ["unshare", "--net", "--map-root-user", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    if not shutil.which("ip") or subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        alone = []
    extract = [*alone, *command("units extract", finished, *more)]
    run = subprocess.run(extract, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180)
    assert run.returncode == 0, run.stderr
    assert not (tmp_path / "reached-outside").exists()
    assert sum(path.name.isdigit() for path in tmp_path.iterdir()) >= 3, "this process and two workers"


def test_control_c_in_beam_is_one_line_and_leaves_no_process(finished, tmp_path):
    more = [f"UNITS={tmp_path / 'units'}", "extract_units.splits=('test',)", "extract_units.num_shards=6", "extract_units.num_workers=2"]
    process = start("units extract", finished, *more)
    out = tmp_path / "units/test"
    while not list(out.glob("shard-*.json")):
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers as well
    error = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 130
    assert "the same command goes on" in error
    assert "Traceback" not in error
    give_up = time.monotonic() + 30
    while subprocess.run(["pgrep", "-g", str(process.pid)], capture_output=True).returncode == 0:
        assert time.monotonic() < give_up, "a worker outlived the command"
        time.sleep(0.2)
