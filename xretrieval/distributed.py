"""Several processes as one run: who they are, where they wait for each other, what they agree on.

All of it goes through JAX's coordination service, which process 0 runs: unlike a collective on the devices, waiting there has a time limit and
says who is missing. In a run of one process every function here answers at once.
"""

import contextlib
import hashlib
import ipaddress
import itertools
import os
import re
import signal
import socket
import sys
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import NoReturn

import jax
from jax._src import distributed as jax_distributed  # the coordination service's client has no public name
from jax.experimental import multihost_utils

from xretrieval.errors import UserError
from xretrieval.watch import Watch

PORT = 8476
BARRIER_TIMEOUT = 1800.0

# This process' part in the run; a process is in one run at most, as with `jax.distributed`.
_watch: Watch | None = None
_calls: dict[str, itertools.count] = defaultdict(itertools.count)
_stopping_together = False


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    initialization_timeout: int = 1800,
    heartbeat_timeout: int = 100,
    one_host: bool = False,
) -> None:
    """Joins this process to the others of a run; before anything touches a device.

    What is None comes from the environment: JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or what JAX knows of TPU pods, GKE,
    SLURM and Open MPI. Where nothing is known, this process is alone.

    Args:
      coordinator: HOST:PORT of process 0; without a port, 8476.
      num_processes, process_id: how many there are, and which one this is.
      initialization_timeout: seconds to wait for all to come.
      heartbeat_timeout: seconds after which a silent process counts as dead, and ends all others.
      one_host: all processes are on this machine, so that the coordinator may be on loopback; XRETRIEVAL_ONE_HOST=1 says so too.

    Raises:
      UserError: an incomplete or impossible description, or a coordinator that other hosts cannot reach.
    """
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    num_processes = _number("JAX_NUM_PROCESSES", num_processes)
    process_id = _number("JAX_PROCESS_ID", process_id)
    given = (coordinator, num_processes, process_id)
    if any(x is not None for x in given) and None in given:
        raise UserError(f"(coordinator, num_processes, process_id) = {given}: give all three, or none where JAX finds them by itself")
    bind = None
    if coordinator is not None and num_processes is not None and process_id is not None:
        if not 0 <= process_id < num_processes:
            raise UserError(f"process_id {process_id}: must be from 0 to {num_processes - 1}, for there are {num_processes} processes")
        if num_processes == 1:
            return
        coordinator = with_port(coordinator)
        one_host = one_host or os.environ.get("XRETRIEVAL_ONE_HOST") == "1"
        check_coordinator(coordinator, process_id, one_host)
        bind = coordinator if one_host else None  # JAX would listen on every interface
    os.environ.setdefault("JAX_COORDINATOR_PORT", str(PORT))
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            initialization_timeout=initialization_timeout,
            heartbeat_timeout_seconds=heartbeat_timeout,
            coordinator_bind_address=bind,
        )
    except ValueError as error:
        if coordinator is None and "coordinator_address should be defined" in str(error):
            return
        raise
    client, me = _client(), jax_distributed.global_state.process_id
    client.key_value_set(f"xretrieval/name/{me}", f"process {me} on {socket.gethostname()} (pid {os.getpid()})")
    barrier("named", initialization_timeout)
    found = {int(key.rpartition("/")[2]): name for key, name in client.key_value_dir_get("xretrieval/name")}
    global _watch
    _watch = Watch(client, me, [found[i] for i in range(len(found))], heartbeat_timeout)
    # In every log: where the library itself ends a process, it only says that its "leader task" is gone.
    print(f"{name_of(me)} of {len(found)}; the coordinator is {name_of(0)}, {jax_distributed.global_state.coordinator_address}", flush=True)


@contextlib.contextmanager
def session(**options) -> Iterator[None]:
    """A run of one or several processes, from `initialize(**options)` to the end.

    Where all have finished, or agreed to stop, they leave together. Where one fails, the others are told and end too, and it ends here with its
    message and exit code: at its exit JAX would wait for them.
    """
    initialize(**options)
    try:
        yield
    except BaseException as error:
        if _watch is not None and not _stopping_together:
            _give_up(_watch, error)
        _leave()
        raise
    _leave()


def _leave() -> None:
    global _watch
    if _watch is None:
        return
    barrier("end")
    _watch.close()
    _watch = None
    jax.distributed.shutdown()


def _give_up(watch: Watch, error: BaseException) -> NoReturn:
    lines = str(error).splitlines() or [type(error).__name__]
    if isinstance(error, UserError | OSError):
        print(f"xretrieval: {lines[0]}", file=sys.stderr)
    else:
        traceback.print_exception(error)
        if re.search(r"Gloo|UNAVAILABLE|ABORTED|DEADLINE_EXCEEDED", str(error)):
            time.sleep(watch.timeout)  # a connection broke: who was at its other end is known within this time, and ends this process
    watch.give_up(lines[0])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(130 if isinstance(error, KeyboardInterrupt) else 2 if isinstance(error, UserError | OSError) else 1)


def _number(variable: str, given: int | None) -> int | None:
    text = os.environ.get(variable)
    if given is not None or text is None:
        return given
    if not text.isdigit():
        raise UserError(f"{variable}={text!r}: must be a whole number")
    return int(text)


def with_port(coordinator: str) -> str:
    """HOST:PORT, with the default port where there is none."""
    return coordinator if re.search(r":\d+$", coordinator) else f"{coordinator}:{PORT}"


def check_coordinator(coordinator: str, process_id: int, one_host: bool) -> None:
    """UserError where a process of a run on several hosts would look for the coordinator on its own machine, and wait there alone.

    Process 0 may know its own name as a loopback address, as Debian's /etc/hosts has it: it listens on every interface.
    """
    host = coordinator.rpartition(":")[0].strip("[]")
    try:
        addresses = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except socket.gaierror as error:
        raise UserError(
            f"coordinator {coordinator}: {host} has no address here ({error.strerror}); give the address of process 0"
        ) from error
    if one_host or not all(ipaddress.ip_address(str(address).partition("%")[0]).is_loopback for address in addresses):
        return
    literal = host == "localhost" or host in addresses
    if literal or process_id != 0:
        raise UserError(
            f"coordinator {coordinator}: that is this machine's loopback, where no other host comes; give process 0's address on the network, or "
            f"start the processes of one machine with `python -m launch.local`"
        )


def _client():
    return jax_distributed.global_state.client


def alone() -> bool:
    """Whether this run has one process."""
    return _client() is None


def first() -> bool:
    """Whether this is process 0: the one that speaks, and writes what all would write alike."""
    return _watch is None or _watch.me == 0


def name_of(process_id: int) -> str:
    """A process as messages have it, with its host."""
    return _watch.names[process_id] if _watch else f"process {process_id}"


def barrier(name: str, timeout: float = BARRIER_TIMEOUT) -> None:
    """Waits until every process is here; UserError naming those that are not after `timeout` seconds."""
    if alone():
        return
    try:
        _client().wait_at_barrier(f"xretrieval/{name}", int(timeout * 1000))
    except jax.errors.JaxRuntimeError as error:
        missing = re.search(r"timed out task names:\s*([\d\s,]+)", str(error))
        if "DEADLINE_EXCEEDED" not in str(error) or missing is None:
            raise
        names = ", ".join(name_of(int(i)) for i in re.findall(r"\d+", missing[1]))
        raise UserError(f"after {timeout:g} s at {name!r} there is still missing: {names}; its log says what holds it") from error


def broadcast_int(name: str, value: int, timeout: float = BARRIER_TIMEOUT) -> int:
    """Process 0's value, on every process; each calls it equally often with a name."""
    if alone():
        return value
    key = f"xretrieval/int/{name}/{next(_calls[name])}"
    if jax.process_index() == 0:
        _client().key_value_set(key, str(value))
        return value
    try:
        return int(_client().blocking_key_value_get(key, int(timeout * 1000)))
    except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" not in str(error):
            raise
        raise UserError(f"after {timeout:g} s {name_of(0)} has not said {name!r}; its log says what holds it") from error


def check_same(what: str, text: str, timeout: float = BARRIER_TIMEOUT) -> None:
    """UserError on every process, naming those that differ from the most, where `text` is not the same on all."""
    if alone():
        return
    key, client = f"xretrieval/same/{what}/{next(_calls[what])}", _client()
    client.key_value_set(f"{key}/{jax.process_index()}", hashlib.sha256(text.encode()).hexdigest())
    barrier(f"same {what}", timeout)
    found = {int(path.rpartition("/")[2]): digest for path, digest in client.key_value_dir_get(key)}
    # Where two are equally frequent, process 0's counts.
    usual = max(Counter(found.values()).items(), key=lambda item: (item[1], item[0] == found[0]))[0]
    others = [name_of(i) for i in sorted(found) if found[i] != usual]
    if others:
        raise UserError(
            f"{', '.join(others)}: another {what} than the other {len(found) - len(others)} processes; give all the same files, flags and versions"
        )


def check_same_program(text: str, timeout: float = BARRIER_TIMEOUT) -> None:
    """`check_same` of a lowered step (`jitted.lower(...).as_text()`): unequal programs would wait for each other for hours, or mix up their data.

    Where the source lies may differ between hosts, so locations do not count.
    """
    kept = [re.sub(r"\bloc\((?:[^()]|\([^()]*\))*\)", "", line) for line in text.splitlines() if not line.startswith("#loc")]
    check_same("train step", "\n".join(kept), timeout)


class StopOnSignal:
    """Ctrl-C and SIGTERM as a question to ask after every step, so that all processes finish the same step, save it and stop.

    Among several processes SIGTERM belongs to JAX: the C++ handler that `initialize` installed tells every process, and they agree on the first
    step that none has begun. So a handler of our own would hide it, and each process must ask after every step, from the same step on.

    Attributes:
      signal: the one that came to this process, or 0.
    """

    def __enter__(self) -> "StopOnSignal":
        self.signal = 0
        ours = (signal.SIGINT, signal.SIGTERM) if alone() else (signal.SIGINT,)
        self._before = {s: signal.signal(s, self._note) for s in ours}
        return self

    def _note(self, number, frame) -> None:
        if self.signal == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
        if not alone():
            os.kill(os.getpid(), signal.SIGTERM)

    def requested(self, step: int) -> bool:
        """Whether to stop now that `step` steps are done; the same answer on every process."""
        if alone():
            return self.signal != 0
        if not multihost_utils.reached_preemption_sync_point(step):
            return False
        global _stopping_together
        _stopping_together = True
        self.signal = self.signal or signal.SIGTERM
        return True

    def __exit__(self, *exception) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
