"""Watches over the processes of a run, so that none waits for one that is dead, stopped or has given up.

JAX's coordination service notices a silent process too, and ends all others with a stack trace and that process' number. This watch is earlier,
and names the process and its host; it is quick where a process fails and can still say so, or where process 0 dies, whose socket closes. JAX sees
that at the same moment and aborts: then the watch speaks after its stack trace, and ends the process with its own exit code.
"""

import contextlib
import ctypes
import os
import signal
import socket
import threading
import time

import jax

PEER_LOST = 76  # the exit code of a process that stops because another one did
HEARD_WITHIN = 1.2  # seconds that process 0 stays after an announcement: with it goes the coordinator
_GRACE = 0.4  # seconds in which a process that meets the same trouble as another one may say so itself
_FINISHED = ""


class Watch:
    """Threads that end this process, with one line on stderr, when another one of the run is lost.

    Args:
      client: of the coordination service, which process 0 runs.
      me: this process.
      names: of all processes, as the line has them.
      timeout: seconds after which a silent process counts as lost, at most.
      coordinator: HOST:PORT of process 0.
    """

    def __init__(self, client, me: int, names: list[str], timeout: float, coordinator: str):
        self.client, self.me, self.names, self.timeout, self.coordinator = client, me, names, timeout, coordinator
        self._period = timeout / 10  # a beat, a look at them, and a slice of the wait below: silence of 0.8 is found before 1.0
        self._answered = time.monotonic()
        self._closing = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._beat, self._listen)]
        self._on_abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._aborted)
        if me:
            _set_abort_handler(ctypes.cast(self._on_abort, ctypes.c_void_p))
        for thread in self._threads:
            thread.start()

    def _aborted(self, number: int) -> None:
        """SIGABRT, which JAX raises from a thread of its own where it misses the coordinator. That of another cause takes its course."""
        host, _, port = self.coordinator.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), 2.0).close()
        except OSError:
            self._end(f"{self.names[0]}, the coordinator, is gone; its log says why")

    def _beat(self) -> None:
        """Says that this process lives; process 0 sees who no longer does. A coordinator that is stopped never answers."""
        beats, changed = dict.fromkeys(range(len(self.names)), ""), dict.fromkeys(range(len(self.names)), time.monotonic())
        number = 0
        while not self._closing.wait(self._period):
            number += 1
            try:
                self.client.key_value_set(f"xretrieval/beat/{self.me}", str(number), allow_overwrite=True)
                found = self.client.key_value_dir_get("xretrieval/beat") if self.me == 0 else []
            except jax.errors.JaxRuntimeError:
                return  # the other thread hears of it too, and says so
            self._answered = now = time.monotonic()
            for key, beat in found:
                process = int(key.rpartition("/")[2])
                if beats[process] != beat:
                    beats[process], changed[process] = beat, now
            if self.me == 0:
                silent = [i for i in changed if now - changed[i] > 0.8 * self.timeout]
                if silent:
                    self.announce(
                        f"there is no sign of life of {', '.join(self.names[i] for i in silent)} for {0.8 * self.timeout:.3g} s; its log says why"
                    )

    def _listen(self) -> None:
        """Waits for what is announced, or for the coordinator to go."""
        while True:
            try:
                message = self.client.blocking_key_value_get("xretrieval/failed", max(1, int(self._period * 1000)))
            except jax.errors.JaxRuntimeError as error:
                if self._closing.is_set():
                    return
                if "DEADLINE_EXCEEDED" not in str(error):
                    self._end(f"{self.names[0]}, the coordinator, is gone; its log says why")
                if time.monotonic() - self._answered > 0.8 * self.timeout:
                    self._end(f"{self.names[0]}, the coordinator, has not answered for {0.8 * self.timeout:.3g} s; its log says why")
                continue
            if message == _FINISHED or self._closing.wait(_GRACE):
                return
            self._end(message)

    def announce(self, message: str) -> None:
        """Tells every process to end with this line; the first to announce something is the one that is heard."""
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self.client.key_value_set("xretrieval/failed", message)

    def _end(self, message: str) -> None:
        # One write, for the library may be about to abort: straight to the descriptor, whatever holds Python's stream.
        os.write(2, f"xretrieval: {self.names[self.me]} stops, because {message}\n".encode())
        if self.me == 0:
            time.sleep(HEARD_WITHIN - _GRACE)
        os._exit(PEER_LOST)

    def give_up(self, why: str) -> None:
        """Tells the others why this process ends by itself; what it is told from now on is nothing to it."""
        self._closing.set()
        self.announce(f"{self.names[self.me]} stopped: {why}")
        if self.me == 0:
            time.sleep(HEARD_WITHIN)

    def close(self) -> None:
        """Ends the watch, where every process has finished."""
        self._closing.set()
        _set_abort_handler(None)
        if self.me == 0:
            self.announce(_FINISHED)
        for thread in self._threads:
            thread.join()


def _set_abort_handler(handler: ctypes.c_void_p | None) -> None:
    """A C function for SIGABRT, None for what the system does; Python's own handlers run too late for a signal that ends the process."""
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    libc.signal(signal.SIGABRT, handler)
