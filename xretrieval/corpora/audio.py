"""Sound files to 16 kHz mono: the one decoder of the project, with its limits. Nothing is cropped, padded or clamped on the way."""

import contextlib
import dataclasses
import functools
import math
import mmap
import os
import re
from collections.abc import Iterator

import numpy as np
import soundfile
import soxr

from xretrieval.corpora.mpeg import Mp3Length, mp3_length
from xretrieval.errors import UserError

MAX_SECONDS = 600.0
MAX_CHANNELS = 8
MAX_PCM_BYTES = 256 * 2**20
# The shortest sound that can mean something: less is a click or a mistake in the manifest.
MIN_SECONDS = 0.05
# Manifests round to hundredths of a second: so much past the end is rounding, and no sound is missing for it.
ROUNDING_SECONDS = 0.01

_FORMATS = ("WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3")
_CHUNK_FRAMES = 65_536
# Encoder padding, and the error of a length that the decoder guessed for an MP3 without one, in frames of samples.
_MP3_SLACK = 4 * 1_152
# What begins a second recording inside a file; the decoder would stop before it.
_STREAM_STARTS = {"OGG": (b"OggS\x00\x02",), "FLAC": (b"fLaC\x00\x00\x00\x22", b"fLaC\x80\x00\x00\x22")}
# A WAV that was written to a pipe promises about 2 or 4 GB of data: unknown, not cut off.
_STREAMED_BYTES = (0x7FFFFFFF - 4096, 0xFFFFFFFF - 4096)
_SEGMENT_ADVICE = "cut the file, or give segments of it with start and duration"


@dataclasses.dataclass(frozen=True)
class SoundInfo:
    """What a whole sound file turned out to hold: sampling rate in Hz, number of channels, length in frames (samples of each channel)."""

    sampling_rate: int
    channels: int
    frames: int

    @property
    def seconds(self) -> float:
        return self.frames / self.sampling_rate


def load_audio(path: str | os.PathLike, start: float | None = None, duration: float | None = None, target_rate: int = 16_000) -> np.ndarray:
    """Decodes a sound file or a segment of it, in chunks.

    Args:
      path: a WAV, FLAC, Ogg (Vorbis, Opus) or MP3 file of any sampling rate, 1 to 8 channels.
      start: where the segment begins, in seconds; None is 0.
      duration: of the segment, in seconds; None is up to the end of the file.
      target_rate: of the result, in Hz.

    Returns:
      float32 [T], the mean of the channels at `target_rate`, full scale at 1.

    Raises:
      UserError: the file cannot be read or is damaged, the segment reaches beyond its end, it is shorter than 50 ms, longer than 600 s or
        more than 256 MiB of decoded samples (no more than that is ever decoded, whatever the header says), or a sample is not finite.
    """
    with _open(path) as sound:
        first, count = locate_segment(path, _info(sound), start, duration)
        resampler = soxr.ResampleStream(sound.samplerate, target_rate, 1, dtype="float32", quality="HQ")
        parts = [resampler.resample_chunk(chunk_T) for chunk_T in _chunks(path, sound, first, count)]
        return np.concatenate([*parts, resampler.resample_chunk(np.zeros(0, np.float32), last=True)])


def inspect_audio(path: str | os.PathLike) -> SoundInfo:
    """Decodes a whole file of any length, without keeping it, and says what it holds.

    Raises:
      UserError: as `load_audio`, but for the limits on length.
    """
    with _open(path) as sound:
        frames = sum(len(chunk_T) for chunk_T in _chunks(path, sound, 0, sound.frames))
        return SoundInfo(sound.samplerate, sound.channels, frames)


def locate_segment(path: str | os.PathLike, info: SoundInfo, start: float | None, duration: float | None) -> tuple[int, int]:
    """First frame and number of frames of a segment given in seconds (None: from the beginning, up to the end).

    Raises:
      UserError: the segment reaches beyond the end of the file, or is shorter or longer than `load_audio` takes.
    """
    rate, start = info.sampling_rate, start or 0.0
    if not 0 <= start < math.inf or (duration is not None and not 0 < duration < math.inf):
        raise UserError(f"{path}: segment from {start} s for {duration} s: start must be 0 or more, and duration more than 0")
    first = round(start * rate)
    left = info.frames - first
    count = left if duration is None else round(duration * rate)
    if left <= 0 or count > left + ROUNDING_SECONDS * rate:
        segment = f"from {start:g} s" + ("" if duration is None else f" to {start + duration:g} s")
        raise UserError(
            f"{path}: the segment {segment} reaches beyond the end of the file, {info.seconds:.3f} s; correct start and duration"
        )
    count = min(count, left)
    if count < MIN_SECONDS * rate:
        raise UserError(
            f"{path}: {count / rate:.3f} s of sound, at least {MIN_SECONDS} s are needed; leave it out, or correct start and duration"
        )
    if count > MAX_SECONDS * rate:
        raise UserError(f"{path}: {count / rate:.0f} s of sound, at most {MAX_SECONDS:.0f} s at a time; {_SEGMENT_ADVICE}")
    if count * info.channels * 4 > MAX_PCM_BYTES:
        size = f"{count * info.channels * 4 / 2**20:.0f} MiB decoded ({rate} Hz, {info.channels} channels)"
        raise UserError(f"{path}: {size}, at most {MAX_PCM_BYTES / 2**20:.0f} MiB at a time; {_SEGMENT_ADVICE}")
    return first, count


def _info(sound: soundfile.SoundFile) -> SoundInfo:
    return SoundInfo(sound.samplerate, sound.channels, sound.frames)


@contextlib.contextmanager
def _open(path: str | os.PathLike) -> Iterator[soundfile.SoundFile]:
    """The open file, its header checked. Errors of the decoder inside the block name the file."""
    name = os.fspath(path)
    if "://" in name:
        raise UserError(f"{path}: sound is read from files; copy or mount it, and give its path")
    try:
        # By hand, for the reason in the system's words: the decoder would only say "System error".
        with open(name, "rb") as file:
            if not file.read(1):
                raise UserError(f"{path}: the file is empty; copy it again or leave it out")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give the path of a sound file") from error
    try:
        with soundfile.SoundFile(name) as sound:
            _check_header(path, sound)
            _check_whole(path, sound)
            yield sound
    except soundfile.LibsndfileError as error:
        reason = error.error_string.removeprefix("Error : ").strip().rstrip(".")
        raise UserError(
            f"{path}: not a sound file, or damaged ({reason}); WAV, FLAC, Ogg and MP3 are read: convert it or copy it again"
        ) from error


def _check_header(path: str | os.PathLike, sound: soundfile.SoundFile) -> None:
    if sound.format not in _FORMATS:
        raise UserError(f"{path}: {sound.format} is not read; convert it to WAV, FLAC, Ogg or MP3")
    if sound.channels > MAX_CHANNELS:
        raise UserError(f"{path}: {sound.channels} channels, at most {MAX_CHANNELS} are read; mix it down or pick channels")
    if sound.frames >= 2**62:
        raise UserError(f"{path}: its header does not say how long it is (written to a pipe); convert it to a file once more")
    if sound.frames <= 0:
        raise UserError(f"{path}: no sound in it; copy it again or leave it out")
    # libsndfile shortens such a file in silence, and says so only in its log.
    cut = re.search(r"^data : (\d+) \(should be (\d+)\)$", sound.extra_info, re.MULTILINE)
    streamed = cut and any(0 <= int(cut[1]) - size <= 4096 for size in _STREAMED_BYTES)
    if (cut and int(cut[1]) > int(cut[2]) and not streamed) or "lacks an end-of-stream bit" in sound.extra_info:
        raise UserError(f"{path}: damaged: cut off after {sound.frames / sound.samplerate:.3f} s; copy it again")


def _check_whole(path: str | os.PathLike, sound: soundfile.SoundFile) -> None:
    """Nothing in the file lies beyond what the decoder will read."""
    held = _held(path, sound)
    if isinstance(held, Mp3Length):
        beyond = held.frames > sound.frames + _MP3_SLACK or (not held.declared and held.frames < sound.frames - _MP3_SLACK)
    else:
        beyond = held
    if beyond:
        raise UserError(
            f"{path}: holds more than its header says (files joined, or a variable bit rate without a length); convert it once more"
        )


def _held(path: str | os.PathLike, sound: soundfile.SoundFile) -> Mp3Length | bool:
    """The length of an MP3; of other formats, whether a second recording begins in the file."""
    stat = os.stat(path)
    return _scan(os.fspath(path), sound.format, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=16)  # A long file is loaded segment by segment.
def _scan(path: str, file_format: str, size: int, modified: int) -> Mp3Length | bool:
    if file_format != "MP3" and file_format not in _STREAM_STARTS:
        return False
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return mp3_length(data[:]) if file_format == "MP3" else any(data.find(start, 4) >= 0 for start in _STREAM_STARTS[file_format])


def _chunks(path: str | os.PathLike, sound: soundfile.SoundFile, first: int, count: int) -> Iterator[np.ndarray]:
    """Exactly `count` frames from `first` on, as mono chunks float32 [T]. The header is believed only so far as the decoder confirms it.

    The one exception is the end of an MP3 that does not declare its length: it is where the decoder finds it.
    """
    held = _held(path, sound)
    slack = _MP3_SLACK if isinstance(held, Mp3Length) and not held.declared and first + count == sound.frames else 0
    if first:
        sound.seek(first)
    left = count
    while left:
        chunk_TC = sound.read(min(left, _CHUNK_FRAMES), dtype="float32", always_2d=True)
        if not len(chunk_TC) and left <= slack:
            return
        # libogg and mpg123 step over broken pages and end early.
        if not len(chunk_TC) or "Corrupted bitstream" in sound.extra_info:
            at = (first + count - left) / sound.samplerate
            raise UserError(f"{path}: damaged near {at:.3f} s of {sound.frames / sound.samplerate:.3f} s; copy it again")
        if not np.isfinite(chunk_TC).all():
            raise UserError(f"{path}: a sample is not a finite number (NaN or infinity); write the file again from its source")
        left -= len(chunk_TC)
        yield chunk_TC.mean(axis=1, dtype=np.float32)
