"""What a sound file holds, how much of it is decoded at a time, and which frames a segment of it is."""

import dataclasses
import math
import os

from xretrieval.errors import UserError, check_fields

# The shortest sound that can mean something: less is a click or a mistake in the manifest.
MIN_SECONDS = 0.05
# Manifests round to hundredths of a second: so much past the end is rounding, and no sound is missing for it.
ROUNDING_SECONDS = 0.01
# Sound is recorded at 4 to 768 kHz: a rate far beyond is a header that lies, and 1 Hz a way to make 16,000 samples of each one.
_RATES = (1_000, 1_000_000)
_SEGMENT_ADVICE = "cut the file, or give segments of it with start and duration"


@dataclasses.dataclass(frozen=True)
class AudioLimits:
    """What decoding one file may take; it is stopped where it goes beyond.

    Attributes:
      max_seconds: of sound at a time.
      max_pcm_bytes: of decoded samples at a time: float32, at the file's own sampling rate, all its channels.
      max_channels: of the file.
      max_memory_bytes: of the process that decodes, beyond what its libraries take.
      timeout_seconds: of wall-clock time for one file or segment; when a whole file of any length is inspected, for each minute of its
        sound.
    """

    max_seconds: float = 600.0
    max_pcm_bytes: int = 256 * 2**20
    max_channels: int = 8
    max_memory_bytes: int = 512 * 2**20
    timeout_seconds: float = 120.0

    def __post_init__(self):
        check_fields(self)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not 0 < value < math.inf:
                raise UserError(f"AudioLimits.{field.name} = {value!r}: it must be more than 0")


@dataclasses.dataclass(frozen=True)
class SoundInfo:
    """What a whole sound file turned out to hold: sampling rate in Hz, number of channels, length in frames (samples of each channel)."""

    sampling_rate: int
    channels: int
    frames: int

    @property
    def seconds(self) -> float:
        return self.frames / self.sampling_rate


def check_kind(path: str | os.PathLike, sampling_rate: int, channels: int, limits: AudioLimits) -> None:
    """UserError where a file's sampling rate or number of channels is none that is decoded."""
    if channels > limits.max_channels:
        raise UserError(f"{path}: {channels} channels, at most {limits.max_channels} are read; mix it down or pick channels")
    if not _RATES[0] <= sampling_rate <= _RATES[1]:
        raise UserError(f"{path}: its header says {sampling_rate} Hz, which no recording has; write the file again from its source")


def locate_segment(
    path: str | os.PathLike, info: SoundInfo, start: float | None, duration: float | None, limits: AudioLimits = AudioLimits()
) -> tuple[int, int]:
    """First frame and number of frames of a segment given in seconds (None: from the beginning, up to the end).

    Raises:
      UserError: the segment reaches beyond the end of the file, or is shorter or longer than `load_audio` takes.
    """
    check_segment(path, start, duration)
    rate, start = info.sampling_rate, start or 0.0
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
    if count > limits.max_seconds * rate:
        raise UserError(f"{path}: {count / rate:.0f} s of sound, at most {limits.max_seconds:.0f} s at a time; {_SEGMENT_ADVICE}")
    if count * info.channels * 4 > limits.max_pcm_bytes:
        size = f"{count * info.channels * 4 / 2**20:.0f} MiB decoded ({rate} Hz, {info.channels} channels)"
        raise UserError(f"{path}: {size}, at most {limits.max_pcm_bytes / 2**20:.0f} MiB at a time; {_SEGMENT_ADVICE}")
    return first, count


def check_segment(path: str | os.PathLike, start: float | None, duration: float | None) -> None:
    """UserError where a segment makes no sense in any file."""
    start = start or 0.0
    if not 0 <= start < math.inf or (duration is not None and not 0 < duration < math.inf):
        raise UserError(f"{path}: segment from {start} s for {duration} s: start must be 0 or more, and duration more than 0")


def most_frames(sampling_rate: int, channels: int, limits: AudioLimits) -> int:
    """Of a file, decoded at a time."""
    return int(min(limits.max_seconds * sampling_rate, limits.max_pcm_bytes / (4 * channels)))


def too_long(path: str | os.PathLike, sampling_rate: int, channels: int, limits: AudioLimits) -> UserError:
    """What stops the decoding of a file that did not say how long it is."""
    seconds = most_frames(sampling_rate, channels, limits) / sampling_rate
    return UserError(f"{path}: more than {seconds:.0f} s of sound ({sampling_rate} Hz, {channels} channels) at a time; {_SEGMENT_ADVICE}")
