"""What the decoders of sound files have in common: an open file as a stream of mono chunks."""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np


class Unreadable(Exception):
    """Why a file cannot be decoded and what to do, without its name."""


@dataclasses.dataclass(frozen=True)
class Source:
    """An open sound file whose header has been checked.

    Attributes:
      sampling_rate: in Hz.
      channels: their number.
      frames: its length; None where only decoding to the end tells.
      chunks: of `(first, count)` frames, mono float32 [T]: exactly these, or `Unreadable`. Where `frames` is None, the arguments are not
        used, and the chunks are those of the whole file.
    """

    sampling_rate: int
    channels: int
    frames: int | None
    chunks: Callable[[int, int], Iterator[np.ndarray]]


def mono(samples_TC: np.ndarray) -> np.ndarray:
    """The mean of the channels, float32 [T].

    Raises:
      Unreadable: a sample is not finite.
    """
    mean_T = samples_TC[:, 0]
    if samples_TC.shape[1] > 1:
        # Channel by channel: NumPy's mean over so short an axis takes longer than decoding does.
        mean_T = mean_T.copy()
        for c in range(1, samples_TC.shape[1]):
            mean_T += samples_TC[:, c]
        mean_T /= samples_TC.shape[1]
    if not np.isfinite(mean_T).all():
        raise Unreadable("a sample is not a finite number (NaN or infinity); write the file again from its source")
    return mean_T
