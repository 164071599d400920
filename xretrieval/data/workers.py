"""Work in spawned processes that end with their parent."""

import concurrent.futures
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from xretrieval.errors import UserError


def in_processes(function: Callable, jobs: Sequence[tuple], workers: int, initializer: Callable, arguments: tuple) -> Iterator[Any]:
    """`function(*job)` of every job, in their order, by `workers` processes that each call `initializer(*arguments)` first.

    Raises:
      UserError: a process was killed.
    """
    # Spawned, not forked: the caller may hold threads of JAX.
    context = multiprocessing.get_context("spawn")
    executor = concurrent.futures.ProcessPoolExecutor(workers, context, _start, (initializer, arguments))
    try:
        yield from executor.map(function, *zip(*jobs, strict=True))
    except concurrent.futures.process.BrokenProcessPool as error:
        raise UserError("a worker process was killed (out of memory?); run again") from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _start(initializer: Callable, arguments: tuple) -> None:
    # Ctrl-C goes to all processes of a terminal: the parent ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    initializer(*arguments)


def _end_with_parent() -> None:
    """Ends this process when its parent is killed; it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
