"""MP4 and WebM files for tests, made by PyAV."""

import fractions
import os

import av
import numpy as np

_LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}


def write(
    path: str | os.PathLike,
    codec: str,
    x_TC: np.ndarray,
    rate: int,
    streams: int = 1,
    video: bool = False,
    options: dict[str, str] | None = None,
    first: float = 0.0,
    gap_at: int = -1,
    gap: float = 0.0,
) -> None:
    """Writes `x_TC` as each of `streams` audio streams; `gap` seconds of no sound follow the frame `gap_at`."""
    layout = _LAYOUTS[x_TC.shape[1]]
    with av.open(os.fspath(path), "w", options=options or {}) as container:
        sounds = [container.add_stream(codec, rate=rate, layout=layout, options={"strict": "experimental"}) for _ in range(streams)]
        if video:
            pictures = container.add_stream("mpeg4" if os.fspath(path).endswith("mp4") else "libvpx", rate=10)
            pictures.width = pictures.height = 64
            pictures.pix_fmt = "yuv420p"
            for _ in range(20):
                container.mux(pictures.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
            container.mux(pictures.encode(None))
        for sound in sounds:
            for frame in _frames(x_TC, rate, sound.codec_context.format.name, layout):
                if 0 <= gap_at <= frame.pts:
                    frame.pts += round(gap * rate)
                frame.pts += round(first * rate)
                container.mux(sound.encode(frame))
            container.mux(sound.encode(None))


def _frames(x_TC: np.ndarray, rate: int, sample_format: str, layout: str):
    for i in range(0, len(x_TC), 1_024):
        part_TC = x_TC[i : i + 1_024]
        if sample_format.startswith("s16"):
            part_TC = np.round(part_TC * 2**15).astype(np.int16)
        elif sample_format.startswith("s32"):
            part_TC = np.round(part_TC.astype(np.float64) * 2**31).astype(np.int32)
        planar = sample_format.endswith("p")
        shaped = part_TC.T if planar else part_TC.reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(shaped), format=sample_format, layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, i, fractions.Fraction(1, rate)
        yield frame
