"""`xretrieval doctor`: what is wrong is a line that says what to do, and exit code 1."""

import contextlib
import dataclasses
import socket
import types

import jax
import numpy as np
import pytest
import small_run

from xretrieval import doctor, joining, main
from xretrieval import mesh as mesh_lib
from xretrieval.doctor import Run
from xretrieval.errors import UserError
from xretrieval.flags import parse
from xretrieval.model.tower import TowerConfig
from xretrieval.train import state as state_lib
from xretrieval.train.optimizer import OptimizerConfig, make_optimizer
from xretrieval.train.trainable import TrainableConfig

TOWER = TowerConfig(width=32, layers=1, heads=2, kv_heads=1, head_dim=16, mlp_hidden=64, max_positions=64)


def data(identity="a"):
    task = types.SimpleNamespace(records=types.SimpleNamespace(lengths_N2=np.zeros((7, 2))))
    return types.SimpleNamespace(tasks=[task, task], identity={"records": identity}, text_size=50, num_units=14)


def run(tmp_path, **other):
    given = {
        "workdir": str(tmp_path / "train"),
        "configuration": "train.num_steps = 1",
        "microbatches": 1,
        "mesh_model": 2,
        "mesh_replica": 1,
        "batch_size": 8,
        "keep_checkpoints": 2,
        "tower": TOWER,
        "optimizer": OptimizerConfig(),
        "trainable": TrainableConfig(),
        "data": data,
    }
    return Run(**{**given, **other})


def lines(capsys):
    """What was said of each check: {name: (OK or WRONG, text)}."""
    out = [line.partition(": ") for line in capsys.readouterr().out.splitlines()]
    return {name[7:]: (name[:5].strip(), text) for name, _, text in out}


def test_a_sound_run_is_ok_in_every_line(tmp_path, capsys):
    assert doctor.examine(run(tmp_path), 1800, 100) == 0
    said = lines(capsys)
    assert {state for state, _ in said.values()} == {"OK"}
    assert said["time limits"][1].startswith("1800 s for all to come, 100 s")
    assert said["mesh"][1] == "replica 1 x data 4 x model 2, 2 pairs a data shard"
    assert said["records"][1].startswith("2 tasks, 14 pairs, fingerprint ")
    assert not list((tmp_path / "train").iterdir()), "what it wrote it takes away"


def test_the_size_of_checkpoints_is_that_of_the_state(tmp_path, capsys, monkeypatch):
    size = doctor._state_bytes(run(tmp_path), data())
    config = dataclasses.replace(TOWER, text_size=50, num_units=14)
    with jax.set_mesh(mesh_lib.make_mesh(2)):
        state = state_lib.create(config, make_optimizer(OptimizerConfig(), 1), 20.0, 0, TrainableConfig())
    assert size == sum(x.nbytes for x in jax.tree.leaves(state))
    # Two that stay, and one that is being written.
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=3 * size - 1))
    assert doctor.examine(run(tmp_path), 1800, 100) == 1
    assert lines(capsys)["disk"][0] == "WRONG"


def missing():
    raise UserError("records/speech: not there; run `xretrieval data build`")


@pytest.mark.parametrize(
    "name, other, text",
    [
        ("mesh", {"mesh_model": 3}, "does not divide 8 devices"),
        ("mesh", {"batch_size": 7}, "batch_size = 7 does not divide over 8 devices"),
        ("mesh", {"microbatches": 3}, "train.microbatches = 3 does not divide the 2 pairs of a data shard (8 over 4)"),
        ("mesh", {"microbatches": 0}, "train.microbatches = 0: give a whole number, 1 or more"),
        ("records", {"data": missing}, "records/speech: not there"),
        ("workdir", {"workdir": "/proc/nowhere"}, "cannot be written"),
    ],
)
def test_what_is_wrong_is_said_and_all_else_is_still_looked_at(tmp_path, capsys, name, other, text):
    assert doctor.examine(run(tmp_path, **other), 1800, 100) == 1
    said = lines(capsys)
    assert said[name][0] == "WRONG"
    assert text in said[name][1]
    assert said["reduce-scatter of 4,096 KiB"][0] == "OK"


def test_versions_are_held_against_the_tested_set(capsys, monkeypatch):
    found = doctor.importlib.metadata.version
    monkeypatch.setattr(doctor.importlib.metadata, "version", lambda name: "0.0.1" if name == "optax" else found(name))
    assert doctor.examine(None, 1800, 100) == 1
    state, text = lines(capsys)["versions"]
    assert state == "WRONG"
    assert "optax 0.0.1 (tested: " in text


def test_too_few_open_files(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(doctor.resource, "getrlimit", lambda which: (256, 256))
    assert doctor.examine(run(tmp_path), 1800, 100) == 1
    assert "ulimit -n" in lines(capsys)["open files"][1]


@pytest.mark.parametrize("setting, state", [("never", "WRONG"), ("madvise", "OK"), ("always", "OK")])
def test_huge_pages(tmp_path, capsys, monkeypatch, setting, state):
    (tmp_path / "enabled").write_text("always madvise never\n".replace(setting, f"[{setting}]"))
    monkeypatch.setattr(doctor, "_HUGE_PAGES", tmp_path / "enabled")
    assert doctor.examine(None, 1800, 100) == (state == "WRONG")
    said = lines(capsys)["system"]
    assert said[0] == state
    assert (f"transparent huge pages are 'never': slower start and steps; echo always > {tmp_path}" in said[1]) == (state == "WRONG")


def test_one_process_needs_no_port(capsys):
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):  # another program's already
            other.bind(("127.0.0.1", joining.PORT))
            other.listen()
        assert doctor.examine(None, 1800, 100) == 0
    assert lines(capsys)["processes"] == ("OK", "1, on its own; it needs no coordinator")


def test_the_run_file_gives_what_is_looked_at(tmp_path):
    flags = [flag for setting in [*small_run.settings(tmp_path), "train.microbatches=2"] for flag in ("--set", setting)]
    found = main._run_file(parse("doctor", ["doctor", f"--gin_file={small_run.GIN[0]}", *flags]))
    assert (found.batch_size, found.microbatches, found.mesh_replica, found.workdir) == (32, 2, 1, str(tmp_path / "train"))
    assert "train.microbatches = 2\n" in found.configuration
    assert "TowerConfig.width = 64\n" in found.configuration


def test_an_impossible_place_is_one_line(capsys):
    assert main.main(["doctor", "--coordinator=localhost:1", "--num_processes=2", "--process_id=1"]) == 1
    assert lines(capsys) == {
        "start": (
            "WRONG",
            "coordinator localhost:1: that is this machine's loopback, where no other host comes; give process 0's address on the network, or start the processes of one machine with `python -m launch.local`",
        )
    }
