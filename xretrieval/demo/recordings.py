"""Writes recordings in parallel: each file whole or not at all, finished ones kept."""

import contextlib
import io
import itertools
import os
from collections.abc import Sequence
from typing import NamedTuple

import soundfile

from xretrieval.demo import voices
from xretrieval.errors import UserError
from xretrieval.progress import track
from xretrieval.workers import in_processes

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
    jobs = [(chunk,) for chunk in chunks]
    chunks_done = in_processes(_record_chunk, jobs, num_workers) if num_workers > 1 else (_record_chunk(chunk) for chunk in chunks)
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
