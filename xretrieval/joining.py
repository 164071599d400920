"""How the processes of a run find each other."""

import ipaddress
import os
import re
import socket
import time
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
    deadline = time.monotonic() + initialization_timeout
    addresses = resolve(place.coordinator, initialization_timeout)
    check_coordinator(place.coordinator, addresses, place.me, one_host)
    bind = bind_address(addresses, one_host)
    name = f"process {place.me} on {socket.gethostname()} (pid {os.getpid()})"
    left = max(1.0, round(deadline - time.monotonic(), 1))
    names = rendezvous.meet(place.coordinator, place.processes, place.me, name, left, bind)
    print(f"{name} of {place.processes}; the coordinator is {names[0]}, {place.coordinator}", flush=True)
    jax.distributed.initialize(
        place.coordinator,
        place.processes,
        place.me,
        local_device_ids=place.local_devices,
        cluster_detection_method="deactivate",
        initialization_timeout=initialization_timeout,
        heartbeat_timeout_seconds=heartbeat_timeout + max(10, heartbeat_timeout // 2),  # after the watch below, which says more
        coordinator_bind_address=_at(bind, place.coordinator) if bind else None,  # None: on every interface
    )
    return Watch(jax_distributed.global_state.client, place.me, names, heartbeat_timeout, place.coordinator)


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


def resolve(coordinator: str, timeout: float) -> list[str]:
    """The addresses of the coordinator's host. A name may come to exist after this process: that of a pod does when the pod runs.

    Raises:
      UserError: it has none after `timeout` seconds.
    """
    host, deadline, said = coordinator.rpartition(":")[0].strip("[]"), time.monotonic() + timeout, False
    while True:
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            if time.monotonic() >= deadline:
                raise UserError(
                    f"coordinator {coordinator}: {host} has no address here after {timeout:g} s ({error.strerror}); give the address of process 0"
                ) from error
            if not said:
                print(
                    f"coordinator {coordinator}: {host} has no address here yet ({error.strerror}); asked again for {timeout:g} s",
                    flush=True,
                )
                said = True
            time.sleep(min(1.0, max(0.0, deadline - time.monotonic())))
        else:
            return list(dict.fromkeys(str(info[4][0]) for info in found))


def check_coordinator(coordinator: str, addresses: Sequence[str], process_id: int, one_host: bool) -> None:
    """UserError where a process of a run on several hosts would look for the coordinator on its own machine, and wait there alone.

    Process 0 may know its own name as a loopback address, as Debian's /etc/hosts has it: then it listens on every interface.
    """
    if one_host or not all(_is_loopback(address) for address in addresses):
        return
    host = coordinator.rpartition(":")[0].strip("[]")
    literal = host == "localhost" or host in addresses
    if literal or process_id != 0:
        raise UserError(
            f"coordinator {coordinator}: that is this machine's loopback, where no other host comes; give process 0's address on the network, or "
            f"start the processes of one machine with `python -m launch.local`"
        )


def bind_address(addresses: Sequence[str], one_host: bool) -> str | None:
    """Where process 0 listens, of the addresses of the coordinator's host; None is every interface.

    At the coordinator's address alone, where that is one: what listens on a host with another network too is for this one. On every interface where
    others may come by another way than the one that is seen here: by several addresses, by the address of a router or load balancer that leads
    here, or where this host's own name means loopback to itself.
    """
    if one_host:
        return next((address for address in addresses if _is_own(address)), addresses[0])
    return addresses[0] if len(addresses) == 1 and not _is_loopback(addresses[0]) and _is_own(addresses[0]) else None


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def _is_own(address: str) -> bool:
    """Whether an interface of this machine has it."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def _at(address: str, coordinator: str) -> str:
    """HOST:PORT of that address and the coordinator's port."""
    port = coordinator.rpartition(":")[2]
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
