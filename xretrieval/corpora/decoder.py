"""The process that decodes sound files: `python -m xretrieval.corpora.decoder`, started by `decoder_process.py`.

Decoders of compressed sound are C code that meets bytes from anywhere: here they can crash, hang or ask for all memory, and take nothing
with them but this process. It ends when its parent does.
"""

import json
import math
import os
import resource
import signal
import stat
import sys
from typing import BinaryIO

import numpy as np
import soxr

from xretrieval.corpora import container_parts, containers, libsndfile
from xretrieval.corpora import decoder_messages as messages
from xretrieval.corpora.source import Source, Unreadable

_PROGRESS_SECONDS = 60
# Of one message: as much as the pipe holds, so that the two processes wake each other seldom.
_MESSAGE_SAMPLES = 240_000
# What the parent, if it lives, takes to stop a decoder that hangs: after that, the kernel does.
_GRACE_SECONDS = 10
# First bytes of what libsndfile may see: its many other parsers never meet a file.
_MAGIC = (b"RIFF", b"RIFX", b"RF64", b"fLaC", b"OggS", b"ID3")
_OTHERS = {b"FORM": "AIFF", b".snd": "AU", b"caff": "CAF", b"riff": "W64", b"#!AM": "AMR", b"\x30\x26\xb2\x75": "ASF (WMA)"}


def main() -> None:
    # A parent that goes away is told by a broken pipe, Ctrl-C is for the parent, and what libraries print must not mix with the messages.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with os.fdopen(os.dup(1), "wb", buffering=0) as out:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        _send(out, messages.READY)
        memory = _Memory()
        try:
            request = _read()
            while request:
                request = _answer(request, out, memory) or _read()
        except BrokenPipeError:
            return
        except MemoryError:
            # What is left of this process is not to be trusted with another file.
            _send(out, messages.OUT_OF_MEMORY)


def _read() -> dict:
    """The next request; empty where the parent has ended."""
    return json.loads(sys.stdin.buffer.readline() or b"{}")


class _Memory:
    """What this process may take beyond its libraries."""

    def __init__(self):
        self._libraries = self._taken()

    @staticmethod
    def _taken() -> int:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[0]) * resource.getpagesize()

    def limit(self, size: int) -> None:
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        wanted = self._libraries + size
        resource.setrlimit(resource.RLIMIT_AS, (wanted if most == resource.RLIM_INFINITY else min(wanted, most), most))

    def load_pyav(self, size: int) -> None:
        """Only a file that needs it pays for it."""
        if "av" not in sys.modules:
            _, most = resource.getrlimit(resource.RLIMIT_AS)
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
            before = self._taken()
            containers.load_pyav()
            self._libraries += self._taken() - before
            self.limit(size)


def _answer(request: dict, out: BinaryIO, memory: _Memory) -> dict:
    """Opens a file, and decodes it if that is what comes next; otherwise returns what came: the next request."""
    memory.limit(request["memory"])
    _limit_time(request["seconds"])
    try:
        kind = _kind(request["file"])
        if kind:
            memory.load_pyav(request["memory"])
        with containers.open_sound(request["file"], kind) if kind else libsndfile.open_sound(request["file"]) as source:
            frames = -1 if source.frames is None else source.frames
            _send(out, messages.OPENED, messages.OPENED_FIELDS.pack(source.sampling_rate, source.channels, frames))
            wanted = _read()
            if "first" not in wanted:
                return wanted
            _decode(source, wanted, out, request["seconds"])
    except Unreadable as error:
        _send(out, messages.UNREADABLE, str(error).encode("utf-8", "replace"))
    except (BrokenPipeError, MemoryError):
        raise
    except Exception as error:
        # Whatever a damaged file makes a library raise.
        _send(
            out,
            messages.UNREADABLE,
            f"cannot be decoded ({type(error).__name__}: {error}); convert it or copy it again".encode("utf-8", "replace"),
        )
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return {}


def _limit_time(seconds: float) -> None:
    """The kernel ends this process after so much work: the parent that would have done it may be gone."""
    signal.setitimer(signal.ITIMER_PROF, seconds + _GRACE_SECONDS)


def _kind(path: str) -> str | None:
    """The container in `path`, or None for what libsndfile reads; by its first bytes: a name can say anything.

    Raises:
      Unreadable: it is no file, or of no format that is read.
    """
    try:
        # By hand, for the reason in the system's words: the decoders would only say "System error".
        if not stat.S_ISREG(os.stat(path).st_mode) and not os.path.isdir(path):
            raise Unreadable("not a regular file; copy what it gives to one")
        with open(path, "rb") as file:
            head = file.read(16)
    except OSError as error:
        raise Unreadable(f"cannot be read ({error.strerror}); give the path of a sound file") from error
    if not head:
        raise Unreadable("the file is empty; copy it again or leave it out")
    if head.startswith(_MAGIC) or (len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0):
        return None
    container = container_parts.kind(head)
    if container:
        return container
    other = _OTHERS.get(head[:4])
    if other:
        raise Unreadable(f"{other} is not read; convert it to WAV, FLAC, Ogg or MP3")
    raise Unreadable(
        "not a sound file, or damaged at its beginning; WAV, FLAC, Ogg, MP3, MP4 and WebM are read: convert it or copy it again"
    )


def _decode(source: Source, wanted: dict, out: BinaryIO, seconds: float) -> None:
    """Sends the segment of `count` frames from `first` on (-1: up to the end) at `rate`; without a rate, nothing but that it was decoded."""
    first, count, rate = wanted["first"], wanted["count"], wanted["rate"]
    resampler = soxr.ResampleStream(source.sampling_rate, rate, 1, dtype="float32", quality="HQ") if rate else None
    end = first + count if count >= 0 else math.inf
    at = first if source.frames is not None else 0
    reported, kept, num_kept = at, [], 0
    for chunk_T in source.chunks(first, count):
        low, high = max(first - at, 0), min(end - at, len(chunk_T))
        at += len(chunk_T)
        if resampler and low < high:
            kept.append(resampler.resample_chunk(chunk_T[low : int(high)]))
            num_kept += len(kept[-1])
            reported = at
            if num_kept >= _MESSAGE_SAMPLES:
                _send(out, messages.SAMPLES, *kept)
                kept, num_kept = [], 0
        elif at - reported >= _PROGRESS_SECONDS * source.sampling_rate:
            _send(out, messages.PROGRESS)
            _limit_time(seconds)
            reported = at
    if resampler and at > first:
        _send(out, messages.SAMPLES, *kept, resampler.resample_chunk(np.zeros(0, np.float32), last=True))
    _send(out, messages.DONE, messages.DONE_FIELDS.pack(at))


def _send(out: BinaryIO, kind: bytes, *contents: bytes | np.ndarray) -> None:
    """Sends one message; its contents are not copied together first."""
    views = [memoryview(content).cast("B") for content in contents if len(content)]
    parts = [memoryview(messages.HEADER.pack(kind, sum(map(len, views)))), *views]
    while parts:
        written = os.writev(out.fileno(), parts)
        while parts and written >= len(parts[0]):
            written -= len(parts.pop(0))
        if parts:
            parts[0] = parts[0][written:]


if __name__ == "__main__":
    main()
