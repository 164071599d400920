"""How much sound an MP3 file holds, counted frame by frame.

The decoder believes the length in the first frame, or guesses one from the first bit rate where there is none, and stops there in
silence: files that were joined, or written without that length at a variable bit rate, lose their end.
"""

import dataclasses

_KBITS = {
    1: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}


@dataclasses.dataclass(frozen=True)
class Mp3Length:
    """`frames` of samples in the MPEG frames of a file, encoder padding included; `declared`: whether the file names its own length."""

    frames: int
    declared: bool


def mp3_length(data: bytes) -> Mp3Length:
    """Walks the MPEG layer III frames of a file, over tags and garbage between them."""
    at, total, declared = _after_id3(data), 0, False
    while (at := _next_frame(data, at)) >= 0:
        size, samples = _header(data, at)
        first = total == 0 and not declared
        if first and any(mark in data[at : at + size] for mark in (b"Xing", b"Info", b"VBRI")):
            declared = True  # that frame is all header, no sound
        else:
            total += samples
        at += size
    return Mp3Length(total, declared)


def _after_id3(data: bytes) -> int:
    if data[:3] != b"ID3" or len(data) < 10:
        return 0
    size = 0
    for byte in data[6:10]:
        size = size << 7 | byte & 0x7F
    return 10 + size


def _next_frame(data: bytes, at: int) -> int:
    """Where the next frame begins that ends at another frame or at the end of the file; -1 where there is none."""
    while (at := data.find(b"\xff", at)) >= 0:
        size, _ = _header(data, at)
        end = at + size
        if size and (end == len(data) or _header(data, end)[0] or data[end : end + 3] == b"TAG"):
            return at
        at += 1
    return -1


def _header(data: bytes, at: int) -> tuple[int, int]:
    """(bytes, samples of each channel) of the frame whose header is at `at`; (0, 0) where there is no layer III header."""
    head = data[at : at + 4]
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:
        return 0, 0
    version = head[1] >> 3 & 3
    bitrate, rate = head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or bitrate in (0, 15) or rate == 3:
        return 0, 0
    full = version == 3
    kbits = _KBITS[1 if full else 2][bitrate]
    samples = 1_152 if full else 576
    return samples // 8 * kbits * 1_000 // _RATES[version][rate] + (head[2] >> 1 & 1), samples
