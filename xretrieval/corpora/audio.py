"""Sound files to 16 kHz mono: the one decoder of the project, with its limits. Nothing is cropped, padded or clamped on the way."""

import collections
import concurrent.futures
import dataclasses
import os
from collections.abc import Iterable, Iterator

import numpy as np

from xretrieval.corpora import segments
from xretrieval.corpora.decoding import decoding
from xretrieval.corpora.segments import AudioLimits, SoundInfo, locate_segment
from xretrieval.errors import UserError

__all__ = ["AudioLimits", "Sound", "SoundInfo", "inspect_audio", "load_all", "load_audio", "load_sound", "locate_segment"]

# So much more than was asked for is rounding, and the padding of an MP3 whose length had to be guessed.
_SLACK_SECONDS = 0.5


@dataclasses.dataclass(frozen=True)
class Sound:
    """Decoded samples, float32 [T], mono at the rate that was asked for, and what the whole file holds."""

    samples_T: np.ndarray
    info: SoundInfo


def load_sound(
    path: str | os.PathLike,
    start: float | None = None,
    duration: float | None = None,
    target_rate: int = 16_000,
    limits: AudioLimits = AudioLimits(),
) -> Sound:
    """Decodes a sound file or a segment of it, in chunks, in a process that is killed where it hangs or takes too much.

    Args:
      path: a WAV, FLAC, Ogg (Vorbis, Opus), MP3, MP4 (M4A) or WebM file of any sampling rate.
      start: where the segment begins, in seconds; None is 0. In MP4 and WebM the file is decoded from its beginning all the same.
      duration: of the segment, in seconds; None is up to the end of the file.
      target_rate: of the result, in Hz.
      limits: no more than these is ever decoded, whatever the header says.

    Returns:
      The mean of the channels at `target_rate`, full scale at 1, and rate, channels and length of the file.

    Raises:
      UserError: the file cannot be read or is damaged, the segment reaches beyond its end or is shorter than 50 ms, a limit is passed, a
        sample is not finite, or the decoder died of the file.
    """
    _check_path(path)
    segments.check_segment(path, start, duration)
    with decoding(path, limits) as opened:
        rate, channels = opened.sampling_rate, opened.channels
        segments.check_kind(path, rate, channels, limits)
        longest = segments.most_frames(rate, channels, limits)
        if opened.frames is None:
            first, count = round((start or 0.0) * rate), None if duration is None else round(duration * rate)
            if count is not None and count > longest:
                raise segments.too_long(path, rate, channels, limits)
        else:
            first, count = locate_segment(path, SoundInfo(rate, channels, opened.frames), start, duration, limits)
        most = round(((count or longest) / rate + _SLACK_SECONDS) * target_rate)
        samples_T, end = opened.samples(first, count, target_rate, most)
        if len(samples_T) > most:
            raise segments.too_long(path, rate, channels, limits)
    info = SoundInfo(rate, channels, end if opened.frames is None else opened.frames)
    if opened.frames is None:
        locate_segment(path, info, start, duration, limits)
    return Sound(samples_T, info)


def load_audio(
    path: str | os.PathLike,
    start: float | None = None,
    duration: float | None = None,
    target_rate: int = 16_000,
    limits: AudioLimits = AudioLimits(),
) -> np.ndarray:
    """The samples of `load_sound`, float32 [T]."""
    return load_sound(path, start, duration, target_rate, limits).samples_T


def inspect_audio(path: str | os.PathLike, limits: AudioLimits = AudioLimits()) -> SoundInfo:
    """Decodes a whole file of any length, without keeping it, and says what it holds.

    Raises:
      UserError: as `load_sound`, but for the limits on length.
    """
    _check_path(path)
    with decoding(path, limits) as opened:
        segments.check_kind(path, opened.sampling_rate, opened.channels, limits)
        return SoundInfo(opened.sampling_rate, opened.channels, opened.count())


def load_all(
    requests: Iterable[tuple[str | os.PathLike, float | None, float | None]],
    decoders: int,
    target_rate: int = 16_000,
    limits: AudioLimits = AudioLimits(),
) -> Iterator[Sound | UserError]:
    """Decodes many files or segments, some at once, and never holds more than twice as many as are decoded at once.

    Args:
      requests: `(path, start, duration)` of each, as for `load_sound`.
      decoders: how many are decoded at once, each by a process of its own.
      target_rate: of the results, in Hz.
      limits: as for `load_sound`.

    Yields:
      The sound of each request, in their order, or the error that `load_sound` raises.
    """

    def load(path: str | os.PathLike, start: float | None, duration: float | None) -> Sound | UserError:
        try:
            return load_sound(path, start, duration, target_rate, limits)
        except UserError as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(decoders) as pool:
        ahead: collections.deque[concurrent.futures.Future] = collections.deque()
        try:
            for request in requests:
                ahead.append(pool.submit(load, *request))
                if len(ahead) == 2 * decoders:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def _check_path(path: str | os.PathLike) -> None:
    if "://" in os.fspath(path):
        raise UserError(f"{path}: sound is read from files; copy or mount it, and give its path")
