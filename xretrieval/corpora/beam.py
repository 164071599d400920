"""A pipeline of independent shards on Apache Beam: local workers by default, any runner by its flags."""

import contextlib
import os
import pathlib
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from xretrieval import stderr
from xretrieval.errors import UserError
from xretrieval.progress import track


class Progress(NamedTuple):
    """What is drawn: `committed(index)` is the summary of a shard that is done, else None; the rate counts `amount(summary)`, in `unit`."""

    label: str
    committed: Callable[[int], dict | None]
    amount: Callable[[dict], float] | None
    unit: str


def run(
    make_shard: Callable[[int], object],
    missing: Sequence[int],
    num_workers: int,
    beam_flags: Sequence[str],
    out_dir: str | os.PathLike,
    progress: Progress,
) -> None:
    """Runs `make_shard(index)` for each index of `missing`.

    Raises:
      UserError: a worker met what the user can mend (its message names the file).
    """
    if beam_flags:
        runner, options = None, _options(beam_flags)
    else:
        # By name: "DirectRunner" now means Prism, which downloads a binary when it runs.
        runner = FnApiRunner()
        options = PipelineOptions(
            direct_num_workers=num_workers,
            direct_running_mode="multi_processing",
            pickle_library="cloudpickle",
            default_sdk_harness_log_level="ERROR",
        )

    def pipeline():
        with _drawn(missing, progress), beam.Pipeline(runner=runner, options=options) as steps:
            # One bundle for each element: otherwise the runner gives most of them to one worker.
            _ = steps | beam.Create(missing, reshuffle=True) | beam.Map(make_shard)

    log = pathlib.Path(out_dir) / "beam.log"
    try:
        with _printing_to(log), _workers_on_cpu():
            _without_interrupts(pipeline)
    except RuntimeError as error:
        # Beam hands on what a worker raised as the text of its traceback.
        reason = re.search(
            r"^(?:[\w.]*UserError|[\w.]*OSError|\w*(?:Permission|NotFound)Error): (.*?)(?: \[while running.*)?$", str(error), re.M
        )
        if reason is None:
            print(f"what the workers printed is in {log}", file=sys.stderr)
            raise
        raise UserError(f"{out_dir}: {progress.label} stopped: {reason[1]}; committed shards are kept, the same command goes on") from error
    log.unlink()


def _options(beam_flags: Sequence[str]) -> PipelineOptions:
    """Beam's options; it would leave out in silence what it does not know."""
    options = PipelineOptions(list(beam_flags), pickle_library="cloudpickle", save_main_session=False)
    known = options.get_all_options()
    unknown = sorted(options.get_all_options(retain_unknown_options=True).keys() - known.keys())
    if unknown:
        raise UserError(f"--{unknown[0]}: neither xretrieval nor Beam's runner knows this flag; correct it or leave it out")
    return options


@contextlib.contextmanager
def _workers_on_cpu() -> Iterator[None]:
    """Local workers share this machine's accelerator with each other and with this process, and JAX takes all of it: they do without."""
    before = os.environ.get("JAX_PLATFORMS")
    os.environ["JAX_PLATFORMS"] = "cpu"
    try:
        yield
    finally:
        os.environ.pop("JAX_PLATFORMS")
        if before is not None:
            os.environ["JAX_PLATFORMS"] = before


@contextlib.contextmanager
def _printing_to(log: pathlib.Path) -> Iterator[None]:
    """Sends what processes started in here print to a file: Beam's workers tell of each start and stop. Our own progress stays."""
    before = sys.stderr
    with stderr.redirected(log) as kept, os.fdopen(os.dup(kept), "w", buffering=1) as ours:
        if sys.stderr is sys.__stderr__:  # else somebody has taken it already
            sys.stderr = ours
        try:
            yield
        finally:
            sys.stderr = before


def _without_interrupts(run: Callable[[], None]) -> None:
    """Runs it in a thread that holds Ctrl-C back, and with it the processes that it starts: a terminal sends Ctrl-C to all of them, and
    each would print where it stood. This thread takes it, and Beam's workers end when this process does.
    """
    raised: list[BaseException] = []

    def target():
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            run()
        except BaseException as error:  # handed to the caller
            raised.append(error)

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.2)
    if raised:
        raise raised[0]


@contextlib.contextmanager
def _drawn(missing: Sequence[int], progress: Progress) -> Iterator[None]:
    """Draws progress from the committed shards, which is all that workers on any runner share."""
    ended = threading.Event()

    def done():
        left = set(missing)
        while left and not ended.wait(0.5):
            for index in sorted(left):
                summary = progress.committed(index)
                if summary is not None:
                    left.remove(index)
                    yield summary

    def draw():
        for _ in track(done(), len(missing), progress.label, progress.amount, progress.unit):
            pass

    thread = threading.Thread(target=draw, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
