"""How the processes of a run find each other."""

import ipaddress
import os
import re
import socket
from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax._src import distributed as jax_distributed  # the coordination service's client has no public name
from jax._src.clusters import ClusterEnv  # nor has what `jax.distributed.initialize` finds out by itself

from xretrieval import rendezvous
from xretrieval.errors import UserError
from xretrieval.watch import Watch

PORT = 8476


def join(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    initialization_timeout: int = 1800,
    heartbeat_timeout: int = 100,
    one_host: bool = False,
) -> Watch | None:
    """Joins this process to the others of a run; before anything touches a device.

    What is None comes from the environment: JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or what JAX knows of TPU pods, GKE,
    SLURM and Open MPI. Where nothing is known, this process is alone.

    Args:
      coordinator: HOST:PORT of process 0; without a port, 8476.
      num_processes, process_id: how many there are, and which one this is.
      initialization_timeout: seconds to wait for all to come.
      heartbeat_timeout: seconds after which a silent process counts as dead, and ends all others.
      one_host: all processes are on this machine, so that the coordinator may be on loopback; XRETRIEVAL_ONE_HOST=1 says so too.

    Returns:
      The watch over the others; None where there are none.

    Raises:
      UserError: processes that do not come or do not fit together, an incomplete or impossible description, or a coordinator that other hosts cannot reach.
    """
    place = _place(coordinator, num_processes, process_id, initialization_timeout)
    if place is None or place.processes == 1:
        return None
    one_host = one_host or os.environ.get("XRETRIEVAL_ONE_HOST") == "1"
    check_coordinator(place.coordinator, place.me, one_host)
    name = f"process {place.me} on {socket.gethostname()} (pid {os.getpid()})"
    names = rendezvous.meet(place.coordinator, place.processes, place.me, name, initialization_timeout, one_host)
    # In every log: where JAX itself ends a process, it only says that its "leader task" is gone.
    print(f"{name} of {place.processes}; the coordinator is {names[0]}, {place.coordinator}", flush=True)
    jax.distributed.initialize(
        place.coordinator,
        place.processes,
        place.me,
        local_device_ids=place.local_devices,
        cluster_detection_method="deactivate",
        initialization_timeout=initialization_timeout,
        heartbeat_timeout_seconds=heartbeat_timeout + max(10, heartbeat_timeout // 2),  # after the watch below, which says more
        coordinator_bind_address=place.coordinator if one_host else None,  # JAX would listen on every interface
    )
    return Watch(jax_distributed.global_state.client, place.me, names, heartbeat_timeout)


class _Place(NamedTuple):
    coordinator: str
    processes: int
    me: int
    local_devices: Sequence[int] | None


def _place(coordinator: str | None, num_processes: int | None, process_id: int | None, timeout: int) -> _Place | None:
    """This process' place as it was given, or as JAX finds it out; None where there is nothing to find."""
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    given = (coordinator, _number("JAX_NUM_PROCESSES", num_processes), _number("JAX_PROCESS_ID", process_id))
    if any(x is not None for x in given):
        address, processes, me = given
        if address is None or processes is None or me is None:
            raise UserError(f"(coordinator, num_processes, process_id) = {given}: give all three, or none where JAX finds them by itself")
        if not 0 <= me < processes:
            raise UserError(f"process_id {me}: must be from 0 to {processes - 1}, for there are {processes} processes")
        return _Place(with_port(address), processes, me, None)
    os.environ.setdefault("JAX_COORDINATOR_PORT", str(PORT))
    address, processes, me, devices = ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, timeout)
    return None if address is None or processes is None or me is None else _Place(address, processes, me, devices)


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
