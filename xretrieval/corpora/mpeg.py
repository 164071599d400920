"""How much sound an MP3 file holds, counted frame by frame.

The decoder believes the length in the first frame, or guesses one from the first bit rate where there is none, and stops there in
silence: files that were joined, or written without that length at a variable bit rate, lose their end.
"""

import dataclasses
import functools
import os
from collections.abc import Iterator
from typing import BinaryIO

_KBITS = {
    1: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
_WINDOW_BYTES = 2**20
_LONGEST_FRAME = 1_441


@dataclasses.dataclass(frozen=True)
class Mp3Length:
    """`frames` of samples in the MPEG frames of a file, encoder padding included; `declared`: whether the file names its own length."""

    frames: int
    declared: bool


def mp3_length(file: BinaryIO) -> Mp3Length:
    """Walks the MPEG layer III frames of a file, over tags and garbage between them, with a window of it in memory."""
    data, total, declared = _Window(file), 0, False
    for at, size, samples in _frames(data, _after_id3(file)):
        if not total and not declared and any(mark in data[at : at + size] for mark in (b"Xing", b"Info", b"VBRI")):
            declared = True  # that frame is all header, no sound
        else:
            total += samples
    return Mp3Length(total, declared)


class _Window:
    """Bytes of a file by their offsets, for a reader that goes back by less than a frame."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.size = file.seek(0, os.SEEK_END)
        self._base = 0
        self._bytes = b""

    def __getitem__(self, part: slice) -> bytes:
        if part.start < self._base or part.stop > self._base + len(self._bytes):
            self._move(part.start)
        return self._bytes[part.start - self._base : part.stop - self._base]

    def _move(self, to: int) -> None:
        self._base = max(0, to - _LONGEST_FRAME)
        self._file.seek(self._base)
        self._bytes = self._file.read(_WINDOW_BYTES)

    def find(self, byte: bytes, at: int) -> int:
        """Where `byte` is next, from `at` on; -1 where it is not."""
        while True:
            if not self._base <= at < self._base + len(self._bytes):
                self._move(at)
                if at >= self._base + len(self._bytes):
                    return -1
            found = self._bytes.find(byte, at - self._base)
            if found >= 0:
                return self._base + found
            at = self._base + len(self._bytes)


def _after_id3(file: BinaryIO) -> int:
    file.seek(0)
    head = file.read(10)
    if head[:3] != b"ID3" or len(head) < 10:
        return 0
    size = 0
    for byte in head[6:10]:
        size = size << 7 | byte & 0x7F
    return 10 + size


def _frames(data: _Window, at: int) -> Iterator[tuple[int, int, int]]:
    """(place, bytes, samples of each channel) of each frame: what begins like one and ends at another, at a tag, or at the end of the file."""
    size, samples = 0, 0
    while size or (at := data.find(b"\xff", at)) >= 0:
        if not size:
            size, samples = _header(data[at : at + 3])
        end = at + size
        after = data[end : end + 3]
        next_size, next_samples = _header(after)
        if size and (next_size or after == b"TAG" or end == data.size):
            yield at, size, samples
            at, size, samples = end, next_size, next_samples
        else:
            at, size = at + 1, 0


@functools.lru_cache(maxsize=4_096)
def _header(head: bytes) -> tuple[int, int]:
    """(bytes, samples of each channel) of the frame with these first 3 bytes; (0, 0) where they are no layer III header."""
    if len(head) < 3 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:
        return 0, 0
    version = head[1] >> 3 & 3
    bitrate, rate = head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or bitrate in (0, 15) or rate == 3:
        return 0, 0
    full = version == 3
    kbits = _KBITS[1 if full else 2][bitrate]
    samples = 1_152 if full else 576
    return samples // 8 * kbits * 1_000 // _RATES[version][rate] + (head[2] >> 1 & 1), samples
