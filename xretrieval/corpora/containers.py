"""MP4 (M4A) and WebM (Matroska) through PyAV, which resynchronises over damage: what it leaves out in silence is found out here."""

import contextlib
import functools
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from xretrieval.corpora import container_parts
from xretrieval.corpora.source import Source, Unreadable, mono

CHUNK_FRAMES = 65_536

# FFmpeg's names of the codecs that these containers hold speech in; its other decoders never meet a file.
_CODECS = {"aac", "alac", "flac", "mp3", "mp3float", "opus", "vorbis", "pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s32le", "pcm_f32le"}
# Integers that a codec gives: their full scale.
_SCALES = {np.dtype(np.int16): 2.0**15, np.dtype(np.int32): 2.0**31}
# Encoders pad both ends, and headers count the padding or do not: so many frames of the codec, and at least so many seconds.
_PADDING_FRAMES = 4
_PADDING_SECONDS = 0.1
# Timestamps of browsers' recordings jitter by less; where more lies between two frames, sound is missing.
_GAP_SECONDS = 0.1


def load_pyav() -> Any:
    """The module, an extra of its own.

    Raises:
      Unreadable: it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise Unreadable(
            'MP4 and WebM are read through PyAV: pip install -e ".[containers]" in the repository, or convert it to FLAC'
        ) from error
    av.logging.set_level(av.logging.PANIC)
    return av


@contextlib.contextmanager
def open_sound(path: str, kind: str) -> Iterator[Source]:
    """The open file, its header checked; `kind` as `container_parts.kind` found it.

    Raises:
      Unreadable: PyAV is not installed, or the file is damaged, holds no or several audio streams, or is of another codec; also from
        within the block.
    """
    av = load_pyav()
    declared = container_parts.check(path, kind)
    try:
        # The container is known, and only a file is opened: others could name files and addresses to read.
        with av.open(f"file:{path}", format=kind, options={"protocol_whitelist": "file"}, metadata_errors="replace") as container:
            stream = _stream(container)
            frames = _frames(container, stream)
            first = next(frames, None)
            if first is None:
                raise Unreadable("no sound in it; copy it again or leave it out")
            if kind == "mp4":
                declared = float(stream.duration * stream.time_base) if stream.duration else None
                least = declared
            else:  # one length for all its streams, from time 0 on
                if declared is not None and first.pts:
                    declared -= float(first.pts * first.time_base)
                least = declared if len(container.streams) == 1 else None
            chunks = functools.partial(_chunks, itertools.chain([first], frames), least, declared)
            yield Source(first.sample_rate, first.layout.nb_channels, None, lambda *_: chunks())
    except av.error.MemoryError:
        raise
    except av.error.FFmpegError as error:
        raise Unreadable(f"not a sound file, or damaged ({error.strerror}); convert it or copy it again") from error


def _stream(container: Any) -> Any:
    streams = container.streams.audio
    if not streams:
        others = "only video" if container.streams.video else "no stream that can be decoded"
        raise Unreadable(f"no sound in it, {others}; leave it out")
    if len(streams) > 1:
        raise Unreadable(f"{len(streams)} audio streams, and nothing says which; write the right one to a file of its own")
    (stream,) = streams
    codec = stream.codec_context
    if codec is None or codec.name not in _CODECS:
        raise Unreadable(f"the codec {codec.name if codec else 'of its sound'} is not read; convert it to FLAC")
    codec.thread_count = 1
    for other in container.streams:
        if other is not stream:
            other.discard = type(other.discard).all
    codec.options = {"err_detect": "crccheck+bitstream+buffer+explode"}
    return stream


def _frames(container: Any, stream: Any) -> Iterator[Any]:
    """Decoded frames, all of one kind and one after another in time."""
    kind, expected = None, None
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise Unreadable("damaged: a part of its sound is cut off; copy it again")
        for frame in packet.decode():
            found = (frame.sample_rate, frame.layout.nb_channels)
            if kind not in (None, found):
                raise Unreadable("sampling rate or channels change in the middle of it; convert it to FLAC")
            kind = found
            if frame.pts is not None:
                at = float(frame.pts * frame.time_base)
                if expected is not None and abs(at - expected) > _GAP_SECONDS:
                    raise Unreadable(
                        f"damaged near {expected:.3f} s: the next sound in it is of {at:.3f} s; copy it again, or convert it to FLAC"
                    )
                expected = at + frame.samples / frame.sample_rate
            yield frame


def _chunks(frames: Iterable[Any], least: float | None, most: float | None) -> Iterator[np.ndarray]:
    """See `Source.chunks`; `least` and `most` are the seconds that the header declares, where it does."""
    parts: list[np.ndarray] = []
    total, held, rate, padding = 0, 0, 1, 0
    for frame in frames:
        parts.append(mono(_samples(frame)))
        total, held = total + frame.samples, held + frame.samples
        rate, padding = frame.sample_rate, max(padding, _PADDING_FRAMES * frame.samples)
        if held >= CHUNK_FRAMES:
            yield np.concatenate(parts)
            parts, held = [], 0
    if parts:
        yield np.concatenate(parts)
    seconds, slack = total / rate, max(_PADDING_SECONDS, padding / rate)
    if least is not None and seconds < least - slack:
        raise Unreadable(f"damaged: cut off after {seconds:.3f} s of {least:.3f} s; copy it again")
    if most is not None and seconds > most + slack:
        raise Unreadable(f"its header says {most:.3f} s, and it holds {seconds:.3f} s; convert it once more")


def _samples(frame: Any) -> np.ndarray:
    """float32 [T, C], full scale at 1."""
    x = frame.to_ndarray()
    x_TC = x.T if frame.format.is_planar else x.reshape(frame.samples, frame.layout.nb_channels)
    scale = _SCALES.get(x.dtype)
    if scale is None and not np.issubdtype(x.dtype, np.floating):
        raise Unreadable(f"samples of the format {frame.format.name} are not read; convert it to FLAC")
    return x_TC.astype(np.float32) if scale is None else x_TC.astype(np.float32) / np.float32(scale)
