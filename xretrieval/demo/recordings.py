"""Writes recordings in parallel: each file whole or not at all, finished ones kept."""

import concurrent.futures
import concurrent.futures.process
import contextlib
import io
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterator, Sequence
from typing import NamedTuple

import soundfile

from xretrieval.demo import voices
from xretrieval.errors import UserError
from xretrieval.progress import track

_CHUNK = 32  # recordings a worker is handed at once; Ctrl-C waits for the chunks under way


class Recording(NamedTuple):
    """A text to be spoken into a FLAC file."""

    path: str
    text: str
    voice: voices.Voice


def record_all(recordings: Sequence[Recording], num_workers: int) -> list[int]:
    """Speaks every recording whose file is not there yet.

    Args:
      recordings: what to speak; the files depend on it alone, not on their order or the number of workers.
      num_workers: processes; 1 is this process.

    Returns:
      The length of each recording, in samples at `voices.SAMPLING_RATE`.

    Raises:
      UserError: no espeak-ng, no such voice, no worker, a file cannot be written, or a worker process was killed. Files written so far are kept.
    """
    if num_workers < 1:
        raise UserError(f"num_workers={num_workers}: give 1 or more")
    for folder in sorted({os.path.dirname(recording.path) for recording in recordings}):
        make_folder(folder)
    chunks = [tuple(recordings[start : start + _CHUNK]) for start in range(0, len(recordings), _CHUNK)]
    lengths: dict[str, int] = {}
    chunks_done = _in_processes(chunks, num_workers) if num_workers > 1 else (_record_chunk(chunk) for chunk in chunks)
    with contextlib.closing(chunks_done):
        for path, length in track(itertools.chain.from_iterable(chunks_done), total=len(recordings), label="recordings"):
            lengths[path] = length
    return [lengths[recording.path] for recording in recordings]


def make_folder(folder: str | os.PathLike) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror}); give a folder that can be written") from error


def write_file(path: str | os.PathLike, content: bytes) -> None:
    """Writes a file whole or not at all; UserError where that fails."""
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        try:
            with open(temporary, "wb") as file:
                file.write(content)
            os.replace(temporary, path)
        except BaseException:
            if os.path.exists(temporary):
                os.remove(temporary)
            raise
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); free space or give another folder, then run again: finished files are kept"
        ) from error


def _in_processes(chunks: list[tuple[Recording, ...]], num_workers: int) -> Generator[list[tuple[str, int]], None, None]:
    # Spawned, not forked: the caller may hold threads of JAX.
    context = multiprocessing.get_context("spawn")
    executor = concurrent.futures.ProcessPoolExecutor(num_workers, mp_context=context, initializer=_end_with_parent)
    try:
        with _interrupts_held():
            futures = [executor.submit(_record_chunk, chunk) for chunk in chunks]
        for future in concurrent.futures.as_completed(futures):
            yield future.result()
    except concurrent.futures.process.BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed (out of memory?); run again with fewer workers: finished recordings are kept"
        ) from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Processes started in here never see Ctrl-C, which a terminal sends to all of them: the parent lets them finish what they write."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _end_with_parent() -> None:
    """Ends this worker when its parent is killed; it would wait for work for ever."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _record_chunk(chunk: tuple[Recording, ...]) -> list[tuple[str, int]]:
    return [(recording.path, _record(recording)) for recording in chunk]


def _record(recording: Recording) -> int:
    length = _length_of_existing(recording.path)
    if length:
        return length
    sound_T = voices.speak(recording.text, recording.voice)
    encoded = io.BytesIO()
    soundfile.write(encoded, sound_T, voices.SAMPLING_RATE, format="FLAC", subtype="PCM_16")
    write_file(recording.path, encoded.getvalue())
    return len(sound_T)


def _length_of_existing(path: str) -> int:
    """In samples; 0 where there is no such recording yet, or not a readable one."""
    try:
        info = soundfile.info(path)
    except soundfile.SoundFileError:
        return 0
    return info.frames if info.samplerate == voices.SAMPLING_RATE else 0
