"""Where the processes of a run meet before JAX connects them: who has not come is known by number, and who came twice.

JAX's own connection ends every process after its time limit without saying whom it waited for. So process 0 first listens on the coordinator's
port itself, until all have said who they are, and gives the port to JAX then.
"""

import json
import selectors
import socket
import time
from typing import Any

from xretrieval.errors import UserError

_LONGEST = 4096  # bytes of a message of one process


def meet(coordinator: str, processes: int, me: int, name: str, timeout: float, bind: str | None = None) -> list[str]:
    """Waits until all processes have come; returns their names, by process.

    Args:
      coordinator: HOST:PORT of process 0.
      processes: how many there are.
      me, name: this process.
      timeout: seconds.
      bind: the address that process 0 listens at; None is every interface.

    Raises:
      UserError: naming those that are missing after `timeout`, or left, or do not fit together.
    """
    host, _, port = coordinator.rpartition(":")
    address = host.strip("[]"), int(port)
    hello = {"process": me, "processes": processes, "name": name}
    return (
        _Host(bind, address[1], hello).wait(time.monotonic() + timeout, timeout)
        if me == 0
        else _join(address, hello, time.monotonic() + timeout, timeout)
    )


def _join(address: tuple[str, int], hello: dict, deadline: float, timeout: float) -> list[str]:
    place = f"{address[0]}:{address[1]}"
    while True:
        try:
            with socket.create_connection(address, timeout=max(0.1, min(5.0, deadline - time.monotonic()))) as connection:
                connection.sendall(json.dumps(hello).encode() + b"\n")
                # Process 0 may have begun to wait a little later, and says itself when its time is over.
                connection.settimeout(max(0.1, deadline - time.monotonic()) + 5.0)
                line = connection.makefile("rb").readline()
        except TimeoutError as error:
            raise UserError(
                f"after {timeout:g} s process 0 at {place} has not said that all have come; its log says what holds it"
            ) from error
        except OSError as error:  # it does not listen yet
            if time.monotonic() < deadline:
                time.sleep(0.2)
                continue
            raise UserError(
                f"after {timeout:g} s process 0 does not listen at {place} ({error.strerror}): it was not started, or a firewall is between"
            ) from error
        if not line:
            raise UserError(f"process 0 at {place} ended before all had come; its log says why")
        return _names(line, place)


def _names(line: bytes, place: str) -> list[str]:
    """What process 0 answers."""
    try:
        answer = json.loads(line)
        if "error" in answer:
            raise UserError(answer["error"])
        return answer["names"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"what answers at {place} is another service, not process 0 of this run (it says {line[:40]!r}); give the address of process 0 and a "
            f"port that is free there with --coordinator"
        ) from error


class _Host:
    """Process 0's side.

    Attributes:
      names: of the processes that have come.
    """

    def __init__(self, bind: str | None, port: int, hello: dict):
        self.processes, self.names = hello["processes"], {0: hello["name"]}
        both = bind is None and socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both or (bind and ":" in bind) else socket.AF_INET
        address = bind or ("::" if both else "")
        try:
            self.listener = socket.create_server((address, port), family=family, backlog=self.processes + 16, dualstack_ipv6=both)
        except OSError as error:
            place = f"port {port} of {bind}" if bind else f"port {port}"
            reason = str(error.strerror).partition(" (while")[0]  # Python adds the address
            raise UserError(f"{place}: process 0 cannot listen there ({reason}); give another one with --coordinator") from error
        self.connections: dict[socket.socket, tuple[bytes, int | None]] = {}  # what came so far, and whose it is

    def wait(self, deadline: float, timeout: float) -> list[str]:
        error = f"after {timeout:g} s there is still missing: "
        with selectors.DefaultSelector() as selector, self.listener:
            selector.register(self.listener, selectors.EVENT_READ)
            try:
                while len(self.names) < self.processes:
                    left = deadline - time.monotonic()
                    if left <= 0:
                        missing = [f"process {i}" for i in range(self.processes) if i not in self.names]
                        raise UserError(f"{error}{', '.join(missing[:20])}{' …' if len(missing) > 20 else ''}; start it, or see its log")
                    for key, _ in selector.select(left):
                        self._serve(selector, key.fileobj)
            except UserError as failed:
                self._answer({"error": str(failed)})
                raise
            names = [self.names[i] for i in range(self.processes)]
            self._answer({"names": names})
            return names

    def _serve(self, selector: selectors.BaseSelector, ready: Any) -> None:
        """Reads from one connection, or takes a new one."""
        if ready is self.listener:
            connection, _ = self.listener.accept()
            connection.setblocking(False)
            self.connections[connection] = b"", None
            selector.register(connection, selectors.EVENT_READ)
            return
        before, process = self.connections[ready]
        try:
            received = ready.recv(_LONGEST)
        except OSError:
            received = b""
        text = before + received
        if received and process is None and b"\n" not in text and len(text) <= _LONGEST:
            self.connections[ready] = text, None
            return
        if received and process is None:
            process = self._welcome(text)
            if process is not None:
                self.connections[ready] = text, process
                return
        elif process is not None:
            raise UserError(f"{self.names[process]} ended before all had come; its log says why")
        # Whoever this was, it is none of ours.
        selector.unregister(ready)
        del self.connections[ready]
        ready.close()

    def _welcome(self, text: bytes) -> int | None:
        """The process that says hello; None where it is something else that connects."""
        try:
            hello = json.loads(text)
            process, processes, name = int(hello["process"]), int(hello["processes"]), str(hello["name"])
        except (ValueError, KeyError, TypeError):
            return None
        if processes != self.processes or not 0 < process < processes:
            raise UserError(f"{name} was told of {processes} processes, {self.names[0]} of {self.processes}; give all the same number")
        if process in self.names:
            raise UserError(f"{self.names[process]} and {name} both are process {process}; give each its own number")
        self.names[process] = name
        return process

    def _answer(self, answer: dict) -> None:
        """To all that have come. They close first, so that the port is free for JAX at once; what is none of ours may stay for ever."""
        line = json.dumps(answer).encode() + b"\n"
        for connection, (_, process) in self.connections.items():
            connection.settimeout(5.0)
            try:
                connection.sendall(line)
                if process is not None:
                    connection.recv(1)
            except OSError:
                pass  # it is gone: JAX's connection will miss it
            connection.close()
