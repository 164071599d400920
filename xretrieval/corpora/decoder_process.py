"""The parent's side of `decoder.py`: processes that are reused, watched, and killed where a file hangs or overfills them."""

import atexit
import contextlib
import fcntl
import json
import os
import pathlib
import select
import subprocess
import sys
import threading
import time

from xretrieval.corpora import decoder_messages as messages
from xretrieval.errors import UserError

_START_SECONDS = 60.0
_PIPE_BYTES = 2**20
# Most bytes of one message; more is a process that has gone mad.
_LONGEST_MESSAGE = 64 * 2**20
# Libraries in C leak: a new process now and then costs a tenth of a second.
_FILES_PER_PROCESS = 2_000


class Stopped(Exception):
    """Why a process did not finish a file; it is killed."""


class Decoder:
    """One process, for one file at a time.

    Attributes:
      busy: whether it owes an answer.
      files: that it was given so far.
    """

    def __init__(self):
        self.busy = False
        self.files = 0
        self._process = subprocess.Popen(
            # -P: what lies in the working directory is not imported.
            [sys.executable, "-P", "-m", "xretrieval.corpora.decoder"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # what decoders print about damage; the reasons come as messages
            bufsize=0,
            env=_environment(),
            start_new_session=True,  # a terminal sends Ctrl-C to the session of the parent
        )
        assert self._process.stdin
        assert self._process.stdout
        self._pipes = (self._process.stdin, self._process.stdout)
        self._in, self._out = (pipe.fileno() for pipe in self._pipes)
        self._poll = select.poll()
        self._poll.register(self._out, select.POLLIN)
        with contextlib.suppress(OSError):  # a user's pipes may be limited: it is only slower
            fcntl.fcntl(self._out, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        try:
            if self.receive(time.monotonic() + _START_SECONDS) != (messages.READY, 0):
                raise Stopped("it lost its way")
        except BaseException:
            self.kill()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def alive(self) -> bool:
        return self._process.poll() is None

    def send(self, **request) -> None:
        line = json.dumps(request).encode() + b"\n"
        try:
            while line:
                line = line[os.write(self._in, line) :]
        except BrokenPipeError as error:
            raise Stopped(self._end()) from error

    def receive(self, deadline: float) -> tuple[bytes, int]:
        """Kind of the next message, and how many bytes of it follow."""
        kind, size = messages.HEADER.unpack(self.receive_bytes(messages.HEADER.size, deadline))
        if size > _LONGEST_MESSAGE:
            raise Stopped("the decoder lost its way")
        return kind, size

    def receive_bytes(self, size: int, deadline: float) -> bytes:
        content = bytearray(size)
        self.receive_into(memoryview(content), deadline)
        return bytes(content)

    def receive_into(self, view: memoryview, deadline: float) -> None:
        """Fills `view`. What is there already is taken even after the deadline: this process may have slept."""
        while view:
            if not self._poll.poll(max(0.0, 1_000 * (deadline - time.monotonic()))):
                raise Stopped("decoding took too long and was stopped")
            count = os.readv(self._out, [view])
            if not count:
                raise Stopped(self._end())
            view = view[count:]

    def _end(self) -> str:
        try:
            code = self._process.wait(_START_SECONDS)
        except subprocess.TimeoutExpired:
            return "the decoder lost its way"
        return f"the decoder died ({f'signal {-code}' if code < 0 else f'exit code {code}'})"

    def kill(self) -> None:
        """Nothing is lost by it: a process keeps nothing from file to file."""
        self._process.kill()
        for pipe in self._pipes:
            pipe.close()
        self._process.wait()

    def forget(self) -> None:
        """In a forked child: lets go of a process of its parent, which would not see otherwise that its parent has ended."""
        for pipe in self._pipes:
            pipe.close()
        self._process.returncode = 0


def _environment() -> dict[str, str]:
    """Lets the process import what this one imports, from the same places, but for whatever the working directory is by now."""
    package = str(pathlib.Path(__file__).parents[2])
    places = [os.path.abspath(place) for place in sys.path if place]
    paths = os.pathsep.join([*places, *([] if package in places else [package])])
    # glibc would give the buffers of every chunk back to the system and fetch them again, a quarter of the time for a WAV.
    tunables = [
        *filter(None, [os.environ.get("GLIBC_TUNABLES")]),
        "glibc.malloc.mmap_threshold=33554432",
        "glibc.malloc.trim_threshold=67108864",
    ]
    # NumPy's BLAS would start threads, which nothing here uses.
    return {**os.environ, "PYTHONPATH": paths, "GLIBC_TUNABLES": ":".join(tunables), "OPENBLAS_NUM_THREADS": "1"}


_lock = threading.Lock()
_idle: list[Decoder] = []  # as many as were ever in use at once
_alive: set[Decoder] = set()


def take() -> Decoder:
    """A process that waits for a file, started where there is none.

    Raises:
      UserError: it does not start.
    """
    while True:
        with _lock:
            decoder = _idle.pop() if _idle else None
        if decoder is None:
            break
        if decoder.alive():
            return decoder
        _drop(decoder)
    try:
        decoder = Decoder()
    except (Stopped, OSError) as error:
        raise UserError(f"sound cannot be decoded: {error}; `{sys.executable} -m xretrieval.corpora.decoder` says why") from error
    with _lock:
        _alive.add(decoder)
    return decoder


def give_back(decoder: Decoder) -> None:
    """Keeps a process for the next file; one that is still busy is killed."""
    decoder.files += 1
    if decoder.busy or decoder.files >= _FILES_PER_PROCESS:
        _drop(decoder)
    else:
        with _lock:
            _idle.append(decoder)


def _drop(decoder: Decoder) -> None:
    with _lock:
        _alive.discard(decoder)
    decoder.kill()


def pids() -> list[int]:
    """Of the processes that there are."""
    with _lock:
        return [decoder.pid for decoder in _alive]


def kill_all() -> None:
    """Ends the processes, which nothing is being decoded by; the next file starts one anew."""
    for decoder in tuple(_alive):
        _drop(decoder)
    _idle.clear()


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()  # another thread may have held it
    for decoder in _alive:
        decoder.forget()
    _alive.clear()
    _idle.clear()


atexit.register(kill_all)
os.register_at_fork(after_in_child=_after_fork)
