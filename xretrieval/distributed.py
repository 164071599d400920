"""Several processes as one run: who they are, where they wait for each other, what they agree on.

All of it goes through JAX's coordination service, which process 0 runs: unlike a collective on the devices, waiting there has a time limit and
says who is missing. In a run of one process every function here answers at once.
"""

import contextlib
import hashlib
import itertools
import os
import re
import signal
import sys
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import NoReturn

import jax
from jax._src import distributed as jax_distributed  # the coordination service's client has no public name
from jax.experimental import multihost_utils

from xretrieval import joining
from xretrieval.errors import Preempted, UserError
from xretrieval.watch import Watch

BARRIER_TIMEOUT = 1800.0

# This process' part in the run; a process is in one run at most, as with `jax.distributed`.
_watch: Watch | None = None
_calls: dict[str, itertools.count] = defaultdict(itertools.count)
_stopping_together = False


def initialize(**options) -> None:
    """Joins the other processes of this run, if there are any, as `joining.join`."""
    global _watch
    _watch = joining.join(**options)


@contextlib.contextmanager
def session(**options) -> Iterator[None]:
    """A run of one or several processes, from `joining.join(**options)` to the end.

    Where all have finished, or agreed to stop, they leave together. Where one fails, the others are told and end too, and it ends here with its
    message and exit code: at its exit JAX would wait for them.
    """
    initialize(**options)
    try:
        yield
    except BaseException as error:
        # What else goes wrong while all stop does so on one of them: the others still wait for it, and it would wait for them at the end.
        if _watch is not None and not (_stopping_together and isinstance(error, Preempted | KeyboardInterrupt)):
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


def _client():
    return jax_distributed.global_state.client


def alone() -> bool:
    """Whether this run has one process."""
    return _client() is None


def first() -> bool:
    """Whether this is process 0: the one that speaks, and writes what all would write alike."""
    return _watch is None or _watch.me == 0


def me() -> int:
    """This process' number; unlike `jax.process_index` it touches no device."""
    return 0 if _watch is None else _watch.me


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
        names = ", ".join(name_of(i) for i in sorted(map(int, re.findall(r"\d+", missing[1]))))
        raise UserError(f"after {timeout:g} s at {name!r} there is still missing: {names}; its log says what holds it") from error


def gather(name: str, text: str, timeout: float = BARRIER_TIMEOUT) -> list[str]:
    """What every process says, on every process, in their order; each calls it equally often with a name, from any thread."""
    if alone():
        return [text]
    number, client, mine = next(_calls[f"gather {name}"]), _client(), me()
    key = f"xretrieval/gather/{name}/{number}"
    client.key_value_set(f"{key}/{mine}", text)
    barrier(f"gather {name} {number}", timeout)
    if number:  # all have read the texts of the call before this one
        client.key_value_delete(f"xretrieval/gather/{name}/{number - 1}/{mine}")
    found = {int(path.rpartition("/")[2]): said for path, said in client.key_value_dir_get(key)}
    return [found[i] for i in range(len(found))]


def check_same(what: str, text: str, timeout: float = BARRIER_TIMEOUT) -> None:
    """UserError on every process, naming those that differ from the most, where `text` is not the same on all."""
    if alone():
        return
    found = gather(f"same {what}", hashlib.sha256(text.encode()).hexdigest(), timeout)
    # Where two are equally frequent, process 0's counts.
    usual = max(Counter(found).items(), key=lambda item: (item[1], item[0] == found[0]))[0]
    others = [name_of(i) for i, digest in enumerate(found) if digest != usual]
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
        global _stopping_together
        if self.signal == number == signal.SIGINT:
            _stopping_together = False  # this process no longer waits for what all still do
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
