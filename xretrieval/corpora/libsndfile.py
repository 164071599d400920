"""WAV, FLAC, Ogg and MP3 through libsndfile, which believes headers and steps over damage: what it does in silence is found out here."""

import contextlib
import functools
import os
import re
from collections.abc import Iterator

import numpy as np
import soundfile

from xretrieval.corpora import flac, ogg, wav
from xretrieval.corpora.mpeg import Mp3Length, mp3_length
from xretrieval.corpora.source import Source, Unreadable, mono

CHUNK_FRAMES = 65_536

_FORMATS = ("WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3")
# Encoder padding, and the error of a length that the decoder guessed for an MP3 without one, in frames of samples.
_MP3_SLACK = 4 * 1_152
_MORE = "holds more than its header says (files joined, or a wrong length); convert it once more"
# A WAV that was written to a pipe promises about 2 or 4 GB of data: unknown, not cut off.
_STREAMED_BYTES = (0x7FFFFFFF - 4096, 0xFFFFFFFF - 4096)


@contextlib.contextmanager
def open_sound(path: str) -> Iterator[Source]:
    """The open file, its header checked.

    Raises:
      Unreadable: the file is damaged or of another format; also from within the block.
    """
    try:
        with soundfile.SoundFile(os.fsencode(path)) as sound:
            _check_header(path, sound)
            held = _check_whole(path, sound)
            guessed = held is not None and not held.declared
            frames = held.frames if held and guessed else sound.frames
            chunks = functools.partial(_chunks, sound, frames, _MP3_SLACK if guessed else 0)
            yield Source(sound.samplerate, sound.channels, frames, chunks)
    except soundfile.LibsndfileError as error:
        reason = error.error_string.removeprefix("Error : ").strip().rstrip(".")
        raise Unreadable(
            f"not a sound file, or damaged ({reason}); WAV, FLAC, Ogg, MP3, MP4 and WebM are read: convert it or copy it again"
        ) from error


def _check_header(path: str, sound: soundfile.SoundFile) -> None:
    if sound.format not in _FORMATS:
        raise Unreadable(f"{sound.format} is not read; convert it to WAV, FLAC, Ogg or MP3")
    if sound.frames >= 2**62:
        raise Unreadable("its header does not say how long it is (written to a pipe); convert it to a file once more")
    if sound.frames <= 0:
        raise Unreadable("no sound in it; copy it again or leave it out")
    # libsndfile shortens such a file in silence, and says so only in its log.
    cut = re.search(r"^data : (\d+) \(should be (\d+)\)$", sound.extra_info, re.MULTILINE)
    streamed = cut and any(0 <= int(cut[1]) - size <= 4096 for size in _STREAMED_BYTES)
    if cut and int(cut[1]) > int(cut[2]) and not streamed:
        raise Unreadable(f"damaged: cut off after {sound.frames / sound.samplerate:.3f} s; copy it again")
    with open(path, "rb") as file:
        magic = file.read(4)
        if magic in (b"RIFF", b"RF64"):
            wav.check(file, bool(streamed))
        if magic == b"fLaC" and (found := flac.contradiction(file, sound.samplerate, sound.frames)):
            said = f"{sound.samplerate} Hz and {sound.frames / sound.samplerate:.3f} s"
            raise Unreadable(f"its header says {said}, and {found}; write the file again from its source")


def _check_whole(path: str, sound: soundfile.SoundFile) -> Mp3Length | None:
    """Nothing in the file lies beyond what the decoder will read. Gives the length of an MP3."""
    stat = os.stat(path)
    held = _scan(path, sound.format, stat.st_size, stat.st_mtime_ns)
    if (held.frames > sound.frames + _MP3_SLACK) if isinstance(held, Mp3Length) else held:
        raise Unreadable(_MORE)
    return held if isinstance(held, Mp3Length) else None


@functools.lru_cache(maxsize=16)  # A long file is loaded segment by segment.
def _scan(path: str, file_format: str, size: int, modified: int) -> Mp3Length | bool:
    """The length of an MP3; of other formats, whether a second recording begins in the file."""
    if file_format not in ("MP3", "OGG", "FLAC"):
        return False
    with open(path, "rb") as file:
        if file_format == "MP3":
            return mp3_length(file)
        if file_format == "OGG":
            ogg.check(file)
            return False
        return flac.joined(file)


def _chunks(sound: soundfile.SoundFile, frames: int, slack: int, first: int, count: int) -> Iterator[np.ndarray]:
    """See `Source.chunks`. The header is believed only so far as the decoder confirms it.

    With `slack`, that of an MP3 that does not declare its length, the end of the file may be found so much earlier than at `frames`.
    """
    if first + count < frames:
        slack = 0
    if first:
        sound.seek(first)
    left = count
    while left + slack:
        chunk_TC = sound.read(min(left + slack, CHUNK_FRAMES), dtype="float32", always_2d=True)
        if not len(chunk_TC) and left <= slack:
            return
        # Decoders step over broken parts and end early.
        if not len(chunk_TC):
            at = (first + count - left) / sound.samplerate
            raise Unreadable(f"damaged near {at:.3f} s of {frames / sound.samplerate:.3f} s; copy it again")
        left -= len(chunk_TC)
        if left < 0:
            raise Unreadable(_MORE)
        yield mono(chunk_TC)
