"""One process of four is killed or stopped, or is another run's: the others end in time, and say which one it was."""

import signal

import processes
import pytest

TIMEOUT = 10  # seconds of silence
ARRIVAL = 30  # seconds until all have come
FAULTS = [(phase, action) for phase in ("initialise", "compile", "step", "save", "restore", "evaluate") for action in ("KILL", "STOP")]
SETTINGS = ("num_steps=12", "checkpoint_every=4", f"heartbeat_timeout={TIMEOUT}", f"initialization_timeout={ARRIVAL}")


PEER_LOST = 76
# A lost process is found after 0.8 of the time limit and a tenth for each of two looks, and ends the others 0.4 s later: within the limit, and with
# what four processes on two busy cores wait for their turn.
SLACK = 3
# Those that wait for the others to come begin up to some seconds after the one that never does: all import JAX at once.
START = 6


def check(folder, phase, action, victim=1):
    if phase == "restore":
        assert processes.codes(processes.run(4, "train", folder, *SETTINGS, "stop_after=4")) == [0] * 4
    only = {"variables": lambda process: {"FAULT": f"{phase}:{action}"} if process == victim else {}}
    found = processes.run(4, "train", folder, *SETTINGS, **only)
    assert found[victim].code == (-signal.SIGKILL if action == "KILL" else None)
    others = [one for i, one in enumerate(found) if i != victim]
    # Nobody is lost that has not come: the rendezvous says who is missing.
    expected = 2 if phase == "initialise" else PEER_LOST
    assert {one.code for one in others} == {expected}, (processes.codes(found), [one.err for one in others])
    for one in others:
        assert f"process {victim}" in one.err, one.err
    limit = ARRIVAL + START if phase == "initialise" else TIMEOUT + SLACK
    assert max(one.seconds for one in others) - found[victim].seconds < limit


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_others_with_its_name(tmp_path, victim):
    check(tmp_path, "step", "KILL", victim)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("phase, action", FAULTS)
def test_every_phase(tmp_path, phase, action, victim):
    check(tmp_path, phase, action, victim)


@pytest.mark.parametrize(
    "other, what", [({"seed": 1}, "data, tower, seed or start"), ({"optimizer": {"learning_rate": 2e-3}}, "train step")]
)
def test_another_config_on_one_process_is_refused_before_the_first_step(tmp_path, other, what):
    only = {"variables": lambda process: {"OTHER": repr(other)} if process == 2 else {}}
    found = processes.run(4, "train", tmp_path, *SETTINGS, **only)
    assert processes.codes(found) == [2] * 4, found[0].err
    assert all("process 2 on" in one.err and f"another {what} than the other 3 processes" in one.err for one in found)
    assert not (tmp_path / "train/metrics.jsonl").exists()
