"""The local launcher: who is told what, who is stopped when, and what is started again."""

import inspect
import os
import signal
import subprocess
import sys
import time

import pytest
from small_run import ROOT

from launch.local import GRACE, Launcher, outcome
from xretrieval import joining

PLACE = "import os; print(*(os.environ[f'JAX_{name}'] for name in ('PROCESS_ID', 'NUM_PROCESSES', 'COORDINATOR_ADDRESS')))"


def command(*more, code, processes=3):
    return [
        sys.executable,
        "-m",
        "launch.local",
        "--processes",
        str(processes),
        "--restart_delay=0",
        *more,
        "--",
        sys.executable,
        "-c",
        code,
    ]


def launch(*more, **how):
    return subprocess.run(command(*more, **how), cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_each_process_knows_its_place_and_its_lines_carry_its_number():
    done = launch("--port=8476", code=PLACE)
    assert done.returncode == 0
    assert sorted(done.stdout.splitlines()) == [f"[{i}] {i} 3 127.0.0.1:8476" for i in range(3)]


def test_a_free_port_is_the_same_for_all_processes():
    lines = launch(code=PLACE).stdout.split()
    assert len({lines[4 * i + 3] for i in range(3)}) == 1


def test_when_one_fails_the_others_are_stopped_and_its_code_counts():
    begun = time.monotonic()
    done = launch("--grace=0.5", code="import os, sys, time; sys.exit(7) if os.environ['JAX_PROCESS_ID'] == '1' else time.sleep(100)")
    assert time.monotonic() - begun < 30
    assert done.returncode == 7
    assert "process 1 ended with exit code 7" in done.stderr
    assert "process 0 has not ended 0.5 s after the first one, and is killed" in done.stderr


# As `kill -9`, of one process; the others hear of it later, and say so.
KILLED = """
import os, signal, sys, time
if os.environ["JAX_PROCESS_ID"] == "1":
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(1)
print("process 1 is lost", flush=True)
sys.exit(76)
"""


def test_a_worker_that_was_killed_is_named_by_the_others_and_begins_again_where_told(tmp_path):
    # Whoever is left has until then to notice, as `xretrieval train` does by default.
    default = inspect.signature(joining.join).parameters["heartbeat_timeout"].default
    assert default + 10 <= GRACE
    done = launch(code=KILLED)
    assert done.returncode == 137
    assert "process 1 ended with SIGKILL" in done.stderr
    assert sorted(done.stdout.splitlines()) == ["[0] process 1 is lost", "[2] process 1 is lost"]
    assert "starting again" not in launch("--restart_on=75,76", "--max_restarts=1", code=KILLED).stderr
    assert "exit code 137; starting again" in launch("--restart_on=75,76,137", "--max_restarts=1", code=KILLED).stderr


FIRST_75 = """
import os, pathlib, sys
mine = pathlib.Path(os.environ["FOLDER"], os.environ["JAX_PROCESS_ID"])
mine.write_text((mine.read_text() if mine.exists() else "") + "x")
sys.exit(CODE if len(mine.read_text()) < 3 else 0)
"""


@pytest.mark.parametrize(
    "code, flags, starts, exit_code",
    [(75, (), 3, 0), (76, (), 1, 76), (76, ("--restart_on=75,76",), 3, 0), (75, ("--max_restarts=1",), 2, 75), (1, (), 1, 1)],
)
def test_restarts_on_75_and_on_no_other_code_unless_told(tmp_path, monkeypatch, code, flags, starts, exit_code):
    monkeypatch.setenv("FOLDER", str(tmp_path))
    assert launch(*flags, code=FIRST_75.replace("CODE", str(code)), processes=2).returncode == exit_code
    assert [(tmp_path / str(i)).read_text() for i in range(2)] == ["x" * starts] * 2


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_is_passed_on_and_nothing_is_started_again(number, code):
    stop = (
        f"import signal, sys, time; signal.signal({int(number)}, lambda *_: sys.exit({code})); print('ready', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(command(code=stop, processes=2), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert {process.stdout.readline() for _ in range(2)} == {"[0] ready\n", "[1] ready\n"}
    os.kill(process.pid, number)
    assert process.wait(timeout=30) == code
    assert "starting again" not in process.stderr.read()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_pause_before_a_restart_ends_the_run(tmp_path, monkeypatch, number):
    monkeypatch.setenv("FOLDER", str(tmp_path))
    wanted = command("--restart_delay=5", code=FIRST_75.replace("CODE", "75"), processes=2)
    process = subprocess.Popen(wanted, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while "starting again" not in process.stderr.readline():
        assert process.poll() is None
    told = time.monotonic()
    os.kill(process.pid, number)
    # Their state is saved (75), and nobody starts them again.
    assert process.communicate(timeout=30)[1] == "launch.local: told to stop; it is not started again\n"
    assert process.returncode == 75
    assert time.monotonic() - told < 4
    assert [(tmp_path / str(i)).read_text() for i in range(2)] == ["x"] * 2


# A launcher that gets SIGTERM exactly while it makes the process with this number.
SIGNALLED = """
import os, signal, sys
from launch import local
def hook(event, details):
    if event == "subprocess.Popen" and details[3]["JAX_PROCESS_ID"] == "NUMBER":
        os.kill(os.getpid(), signal.SIGTERM)
sys.addaudithook(hook)
sys.exit(local.main(["--processes=3", "--", sys.executable, "-c", "import time; print('started', flush=True); time.sleep(50)"]))
"""


@pytest.mark.parametrize("number, started", [(0, {0}), (1, {0, 1}), (2, {0, 1, 2})])
def test_a_signal_while_processes_are_started_reaches_them_all(number, started):
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED.replace("NUMBER", str(number))], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 128 + signal.SIGTERM
    assert sorted(done.stderr.splitlines()) == [f"launch.local: process {i} ended with SIGTERM" for i in started]


def test_nothing_is_started_after_a_signal_and_that_is_no_success():
    launcher = Launcher(["no-such-program"], processes=2, port=1, grace=1.0)
    launcher.note(signal.SIGTERM)
    assert launcher.attempt() == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--max_restarts=-1", "--max_restarts and --restart_delay: 0 or more"),
        ("--restart_delay=-1", "--max_restarts and --restart_delay: 0 or more"),
        ("--restart_delay=nan", "--max_restarts and --restart_delay: 0 or more"),
        # 0 would start again what has succeeded.
        ("--restart_on=0", "--restart_on 0: give exit codes from 1 to 255, as 75,76"),
        ("--restart_on=75,all", "--restart_on 75,all: give exit codes from 1 to 255, as 75,76"),
    ],
)
def test_restarts_that_make_no_sense_are_refused(flag, message):
    done = launch(flag, code="")
    assert done.returncode == 2
    assert message in done.stderr


def test_arguments_arrive_as_they_are():
    done = launch("--port=1", code="import sys; print(sys.argv[1:])", processes=1)
    assert done.stdout == "[0] []\n"
    odd = ["a b", "--gin.x='$(touch no)'", "*", ""]
    done = subprocess.run(
        [*command(code="import sys; print(sys.argv[1:])", processes=1), *odd], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == f"[0] {odd}\n"


def test_a_program_that_is_not_there_is_one_line():
    done = subprocess.run(
        [sys.executable, "-m", "launch.local", "--processes=2", "--", "no-such-program"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 127
    wanted = "launch.local: no-such-program: No such file or directory; activate the environment that has it, or give its path\n"
    assert done.stderr == wanted


def test_the_first_cause_counts():
    assert outcome([0, 0]) == 0
    assert outcome([75, 0]) == 75
    assert outcome([76, 2, 76]) == 2
    assert outcome([76, -9, 76]) == 137
    assert outcome([76, 76]) == 76
