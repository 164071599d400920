"""Work in spawned processes that end with their parent and leave Ctrl-C to it."""

import concurrent.futures
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from typing import Any

from xretrieval.errors import UserError


def in_processes(
    function: Callable, jobs: Sequence[tuple], workers: int, initializer: Callable | None = None, arguments: tuple = ()
) -> Generator[Any, None, None]:
    """`function(*job)` of every job, in their order, by `workers` processes that each call `initializer(*arguments)` first.

    A caller that stops early, Ctrl-C among others, waits for the jobs under way and drops the rest.

    Raises:
      UserError: a process was killed.
    """
    # Spawned, not forked: the caller may hold threads of JAX.
    context = multiprocessing.get_context("spawn")
    executor = concurrent.futures.ProcessPoolExecutor(workers, context, _start, (initializer, arguments))
    try:
        # A terminal sends Ctrl-C to all processes: those that start in here never see it, and finish what they write.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            futures = [executor.submit(function, *job) for job in jobs]
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        for future in futures:
            yield future.result()
    except concurrent.futures.process.BrokenProcessPool as error:
        raise UserError("a worker process was killed (out of memory?); run again with fewer workers: what was finished is kept") from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _start(initializer: Callable | None, arguments: tuple) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if initializer:
        initializer(*arguments)


def _end_with_parent() -> None:
    """Ends this process when its parent is killed; it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
