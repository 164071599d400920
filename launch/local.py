"""Several processes of one run on this machine, over loopback.

    python -m launch.local --processes 4 -- xretrieval train --gin_file=gin_configs/runs/polyglot.gin

Each process learns its place from its environment. When one ends, the others have some time to end too (--grace), and are killed then. A run that was
preempted (exit code 75) is started again, one that failed is not; the same command goes on with it from its last checkpoint. Ctrl-C and SIGTERM go
to every process, and nothing is started again; the second Ctrl-C kills.

The exit code is that of the first process that ended otherwise than with 0, 75 or 76 (it lost another process), else that of the first that did not end
with 0. One that a signal killed counts as 128 and the signal's number: 137 after SIGKILL, by the system for its memory, or by this launcher at the end of
--grace. So a run that is to begin again after a lost worker too has --restart_on 75,76,137.
"""

import argparse
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import BinaryIO

PREEMPTED = os.EX_TEMPFAIL
PEER_LOST = 76  # what `xretrieval` ends with where another process is the cause
# Longer than `--heartbeat_timeout` of `xretrieval train` (100 s), after which those that are left name the one that was lost, and end: killed before
# that, they could not say which it was.
GRACE = 120.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(process: int, processes: int, port: int) -> dict[str, str]:
    """What tells a process its place in the run."""
    return {
        **os.environ,
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(processes),
        "JAX_PROCESS_ID": str(process),
        "XRETRIEVAL_ONE_HOST": "1",
        "PYTHONUNBUFFERED": "1",
    }


def _relay(source: BinaryIO, target: BinaryIO, prefix: bytes, lock: threading.Lock) -> None:
    """Lines of a process, each whole and with its number in front."""
    for line in source:
        with lock:
            target.write(prefix + line if line.endswith(b"\n") else prefix + line + b"\n")
            target.flush()


@dataclasses.dataclass
class Launcher:
    """One command as several processes.

    Attributes:
      command: the program and its arguments.
      processes: how many.
      port: of the coordinator; None takes a free one at every start.
      grace: seconds between the end of the first process and the end of the last; the rest is killed.
      signals: that this launcher was sent, in their order. After the first one nothing more is started.
    """

    command: Sequence[str]
    processes: int
    port: int | None
    grace: float
    signals: list[int] = dataclasses.field(default_factory=list)
    _passed: int = 0
    _running: list[subprocess.Popen] = dataclasses.field(default_factory=list)

    def note(self, number: int, frame=None) -> None:
        """A signal handler. It only notes: it may run while a process is being made, and that one would not be told."""
        self.signals.append(number)

    def _pass_on(self) -> None:
        """What was noted goes to every process; the second Ctrl-C kills."""
        while self._passed < len(self.signals):
            number, before = self.signals[self._passed], self.signals[: self._passed]
            self._passed += 1
            for process in self._running:
                if process.poll() is None:
                    process.send_signal(signal.SIGKILL if number == signal.SIGINT and number in before else number)

    def pause(self, seconds: float) -> None:
        """Waits, until a signal comes. `time.sleep` alone would sleep on after the handler."""
        until = time.monotonic() + seconds
        while not self.signals and (left := until - time.monotonic()) > 0:
            time.sleep(min(0.05, left))

    def attempt(self) -> int:
        """Starts all processes, until a signal comes, and waits for their end; returns one exit code for all."""
        port, lock, relays = self.port or free_port(), threading.Lock(), []
        try:
            for i in range(self.processes):
                if self.signals:
                    break
                # In sessions of their own: a terminal's Ctrl-C comes to them once, through here.
                process = subprocess.Popen(
                    self.command,
                    env=environment(i, self.processes, port),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    start_new_session=True,
                )
                self._running.append(process)
                for source, target in ((process.stdout, sys.stdout.buffer), (process.stderr, sys.stderr.buffer)):
                    relays.append(threading.Thread(target=_relay, args=(source, target, f"[{i}] ".encode(), lock)))
                    relays[-1].start()
            ended = self._wait()
        finally:
            for process in self._running:
                if process.poll() is None:
                    process.kill()
                    process.wait()
            for relay in relays:
                relay.join()
            self._running.clear()
        # A run that was not all there has not succeeded, whatever its processes say.
        return outcome(ended) or (128 + self.signals[0] if len(ended) < self.processes else 0)

    def _wait(self) -> list[int]:
        """Exit codes in the order of the processes' ends; those that outlive the grace are killed, and come last."""
        ended: dict[int, int] = {}
        deadline = float("inf")
        while len(ended) < len(self._running):
            self._pass_on()
            for i, process in enumerate(self._running):
                if i not in ended and process.poll() is not None:
                    ended[i] = process.returncode
                    deadline = min(deadline, time.monotonic() + self.grace)
                    if process.returncode:
                        print(f"launch.local: process {i} ended with {named(process.returncode)}", file=sys.stderr)
            if time.monotonic() > deadline:
                for i, process in enumerate(self._running):
                    if i not in ended:
                        print(
                            f"launch.local: process {i} has not ended {self.grace:g} s after the first one, and is killed", file=sys.stderr
                        )
                        process.kill()
                        ended[i] = process.wait()
            time.sleep(0.05)
        return list(ended.values())


def named(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


def outcome(codes: Sequence[int]) -> int:
    """One exit code: 0 where all are, else the first that is not the consequence of another's, as a shell has it."""
    causes = [code for code in codes if code not in (0, PREEMPTED, PEER_LOST)] or [code for code in codes if code]
    first = causes[0] if causes else 0
    return first if first >= 0 else 128 - first


def launch(launcher: Launcher, restart_on: Sequence[int], max_restarts: int, delay: float) -> int:
    """Attempts until one ends with a code that is not to be restarted on."""
    for restart in range(max_restarts + 1):
        code = launcher.attempt()
        if launcher.signals or code not in restart_on:
            break
        if restart == max_restarts:
            print(f"launch.local: {named(code)} after {max_restarts} restarts; it is not started again", file=sys.stderr)
            break
        print(f"launch.local: {named(code)}; starting again ({restart + 1} of at most {max_restarts} times)", file=sys.stderr)
        launcher.pause(delay)
        if launcher.signals:
            print("launch.local: told to stop; it is not started again", file=sys.stderr)
            break
    return code


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m launch.local", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, required=True, metavar="N", help="how many")
    parser.add_argument("--port", type=int, metavar="PORT", help="of the coordinator (a free one)")
    parser.add_argument("--restart_on", default=str(PREEMPTED), metavar="CODES", help="exit codes that start the run again, as 75,76 (75)")
    parser.add_argument("--max_restarts", type=int, default=100, metavar="N", help="at most so often (100)")
    parser.add_argument("--restart_delay", type=float, default=1.0, metavar="SECONDS", help="before each (1)")
    parser.add_argument(
        "--grace",
        type=float,
        default=GRACE,
        metavar="SECONDS",
        help=f"after one process ended, until the others are killed; more than their --heartbeat_timeout ({GRACE:g})",
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, help="after --")
    given = parser.parse_args(argv)
    command = given.command[1:] if given.command[:1] == ["--"] else given.command
    if not command:
        parser.error("give the command after --")
    if given.processes < 1:
        parser.error("--processes: 1 or more")
    if given.max_restarts < 0 or not 0 <= given.restart_delay < float("inf"):
        parser.error("--max_restarts and --restart_delay: 0 or more")
    try:
        restart_on = [int(code) for code in given.restart_on.split(",") if code]
    except ValueError:
        restart_on = [0]
    if not all(1 <= code <= 255 for code in restart_on):
        parser.error(f"--restart_on {given.restart_on}: give exit codes from 1 to 255, as 75,76")
    launcher = Launcher(command, given.processes, given.port, given.grace)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, launcher.note)
    try:
        return launch(launcher, restart_on, given.max_restarts, given.restart_delay)
    except OSError as error:
        advice = "" if os.sep in command[0] else "; activate the environment that has it, or give its path"
        print(f"launch.local: {command[0]}: {error.strerror}{advice}", file=sys.stderr)
        return 127


if __name__ == "__main__":
    sys.exit(main())
