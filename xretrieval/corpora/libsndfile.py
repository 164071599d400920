"""WAV, FLAC, Ogg and MP3 through libsndfile, which believes headers and steps over damage: what it does in silence is found out here."""

import contextlib
import functools
import os
import re
from collections.abc import Iterator

import numpy as np
import soundfile

from xretrieval.corpora.mpeg import Mp3Length, mp3_length
from xretrieval.corpora.source import Source, Unreadable, mono

CHUNK_FRAMES = 65_536

_FORMATS = ("WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3")
# Encoder padding, and the error of a length that the decoder guessed for an MP3 without one, in frames of samples.
_MP3_SLACK = 4 * 1_152
# What begins a second recording inside a file; the decoder would stop before it.
_STREAM_STARTS = {"OGG": (b"OggS\x00\x02",), "FLAC": (b"fLaC\x00\x00\x00\x22", b"fLaC\x80\x00\x00\x22")}
_LONGEST_START = 8
_SCAN_BYTES = 2**20
# A WAV that was written to a pipe promises about 2 or 4 GB of data: unknown, not cut off.
_STREAMED_BYTES = (0x7FFFFFFF - 4096, 0xFFFFFFFF - 4096)


@contextlib.contextmanager
def open_sound(path: str) -> Iterator[Source]:
    """The open file, its header checked.

    Raises:
      Unreadable: the file is damaged or of another format; also from within the block.
    """
    try:
        with soundfile.SoundFile(path) as sound:
            _check_header(sound)
            held = _held(path, sound)
            _check_whole(sound, held)
            yield Source(sound.samplerate, sound.channels, sound.frames, functools.partial(_chunks, sound, held))
    except soundfile.LibsndfileError as error:
        reason = error.error_string.removeprefix("Error : ").strip().rstrip(".")
        raise Unreadable(
            f"not a sound file, or damaged ({reason}); WAV, FLAC, Ogg, MP3, MP4 and WebM are read: convert it or copy it again"
        ) from error


def _check_header(sound: soundfile.SoundFile) -> None:
    if sound.format not in _FORMATS:
        raise Unreadable(f"{sound.format} is not read; convert it to WAV, FLAC, Ogg or MP3")
    if sound.frames >= 2**62:
        raise Unreadable("its header does not say how long it is (written to a pipe); convert it to a file once more")
    if sound.frames <= 0:
        raise Unreadable("no sound in it; copy it again or leave it out")
    # libsndfile shortens such a file in silence, and says so only in its log.
    cut = re.search(r"^data : (\d+) \(should be (\d+)\)$", sound.extra_info, re.MULTILINE)
    streamed = cut and any(0 <= int(cut[1]) - size <= 4096 for size in _STREAMED_BYTES)
    if (cut and int(cut[1]) > int(cut[2]) and not streamed) or "lacks an end-of-stream bit" in sound.extra_info:
        raise Unreadable(f"damaged: cut off after {sound.frames / sound.samplerate:.3f} s; copy it again")
    pace = re.search(r"^ *Bytes/sec +: (\d+) \(should be (\d+)\)$", sound.extra_info, re.MULTILINE)
    if pace and int(pace[1]):
        raise Unreadable(
            f"its header contradicts itself: {sound.samplerate} Hz would be {pace[2]} bytes a second, and it says {pace[1]}; "
            f"write the file again from its source"
        )


def _check_whole(sound: soundfile.SoundFile, held: Mp3Length | bool) -> None:
    """Nothing in the file lies beyond what the decoder will read."""
    if isinstance(held, Mp3Length):
        beyond = held.frames > sound.frames + _MP3_SLACK or (not held.declared and held.frames < sound.frames - _MP3_SLACK)
    else:
        beyond = held
    if beyond:
        raise Unreadable("holds more than its header says (files joined, or a variable bit rate without a length); convert it once more")


def _held(path: str, sound: soundfile.SoundFile) -> Mp3Length | bool:
    """The length of an MP3; of other formats, whether a second recording begins in the file."""
    stat = os.stat(path)
    return _scan(path, sound.format, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=16)  # A long file is loaded segment by segment.
def _scan(path: str, file_format: str, size: int, modified: int) -> Mp3Length | bool:
    if file_format != "MP3" and file_format not in _STREAM_STARTS:
        return False
    with open(path, "rb") as file:
        if file_format == "MP3":
            return mp3_length(file)
        kept = file.read(_LONGEST_START)[1:]  # the first recording begins at 0
        while block := file.read(_SCAN_BYTES):
            kept += block
            if any(start in kept for start in _STREAM_STARTS[file_format]):
                return True
            kept = kept[1 - _LONGEST_START :]
        return False


def _chunks(sound: soundfile.SoundFile, held: Mp3Length | bool, first: int, count: int) -> Iterator[np.ndarray]:
    """See `Source.chunks`. The header is believed only so far as the decoder confirms it.

    The one exception is the end of an MP3 that does not declare its length: it is where the decoder finds it.
    """
    slack = _MP3_SLACK if isinstance(held, Mp3Length) and not held.declared and first + count == sound.frames else 0
    if first:
        sound.seek(first)
    left = count
    while left:
        chunk_TC = sound.read(min(left, CHUNK_FRAMES), dtype="float32", always_2d=True)
        if not len(chunk_TC) and left <= slack:
            return
        # libogg and mpg123 step over broken pages and end early.
        if not len(chunk_TC) or "Corrupted bitstream" in sound.extra_info:
            at = (first + count - left) / sound.samplerate
            raise Unreadable(f"damaged near {at:.3f} s of {sound.frames / sound.samplerate:.3f} s; copy it again")
        left -= len(chunk_TC)
        yield mono(chunk_TC)
