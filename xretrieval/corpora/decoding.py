"""One sound file, decoded by a process that cannot harm this one."""

import contextlib
import os
import struct
import time
from collections.abc import Iterator

import numpy as np

from xretrieval.corpora import decoder_messages as messages
from xretrieval.corpora.decoder_process import Decoder, Stopped, give_back, take
from xretrieval.corpora.segments import AudioLimits
from xretrieval.errors import UserError


class Decoding:
    """A sound file that a process has opened, to be decoded once, or not at all.

    Attributes:
      sampling_rate: in Hz.
      channels: their number.
      frames: its length; None where only decoding to the end tells.
    """

    def __init__(self, decoder: Decoder, path: str | os.PathLike, limits: AudioLimits):
        self._decoder, self._path, self._limits = decoder, path, limits
        self._ask(file=os.path.abspath(path), memory=limits.max_memory_bytes, seconds=limits.timeout_seconds)
        self.sampling_rate, self.channels, frames = self._fields(self._next(), messages.OPENED, messages.OPENED_FIELDS)
        self.frames: int | None = None if frames < 0 else frames
        decoder.busy = False

    def samples(self, first: int, count: int | None, target_rate: int, most: int) -> tuple[np.ndarray, int]:
        """Decodes a segment, given in frames; `count` None is up to the end.

        Returns:
          float32 [T] at `target_rate`, and the number of frames from the beginning of the file to where decoding ended. T > `most`
          says that there was more, and that decoding was stopped.
        """
        self._ask(first=first, count=-1 if count is None else count, rate=target_rate)
        parts, received = [], 0
        while (message := self._next())[0] == messages.SAMPLES:
            part_T = np.empty(message[1] // 4, np.float32)
            self._decoder.receive_into(part_T.data.cast("B"), self._deadline)
            parts.append(part_T)
            received += len(part_T)
            if received > most:
                return np.concatenate(parts), 0
        end = self._done(message)
        if len(parts) == 1:  # the rule: up to 15 s
            return parts[0], end
        return np.concatenate(parts) if parts else np.empty(0, np.float32), end

    def count(self) -> int:
        """Decodes the whole file, keeps nothing, and returns its number of frames."""
        self._ask(first=0, count=-1 if self.frames is None else self.frames, rate=0)
        return self._done(self._next())

    def _ask(self, **request) -> None:
        self._decoder.busy = True
        self._deadline = time.monotonic() + self._limits.timeout_seconds
        self._decoder.send(**request)

    def _next(self) -> tuple[bytes, int]:
        """The next message but progress."""
        while (message := self._decoder.receive(self._deadline))[0] == messages.PROGRESS:
            self._deadline = time.monotonic() + self._limits.timeout_seconds
        return message

    def _done(self, message: tuple[bytes, int]) -> int:
        (frames,) = self._fields(message, messages.DONE, messages.DONE_FIELDS)
        self._decoder.busy = False
        return frames

    def _fields(self, message: tuple[bytes, int], kind: bytes, fields: struct.Struct) -> tuple:
        content = self._decoder.receive_bytes(message[1], self._deadline)
        if message[0] == kind and len(content) == fields.size:
            return fields.unpack(content)
        if message[0] == messages.UNREADABLE:
            self._decoder.busy = False
            raise UserError(f"{self._path}: {content.decode('utf-8', 'replace')}")
        if message[0] == messages.OUT_OF_MEMORY:
            most = self._limits.max_memory_bytes / 2**20
            raise Stopped(f"decoding takes more than {most:.0f} MiB of memory (AudioLimits.max_memory_bytes)")
        raise Stopped("the decoder lost its way")


@contextlib.contextmanager
def decoding(path: str | os.PathLike, limits: AudioLimits) -> Iterator[Decoding]:
    """A file opened by a process that is killed where it hangs, dies or is left in the middle.

    Raises:
      UserError: the file cannot be read, is damaged, or was the end of the process.
    """
    decoder = take()
    try:
        yield Decoding(decoder, path, limits)
    except Stopped as error:
        raise UserError(f"{path}: {error}; the file is damaged or too much for the decoder: leave it out or convert it") from error
    finally:
        give_back(decoder)
