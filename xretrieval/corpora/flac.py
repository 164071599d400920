"""What the sound of a FLAC file itself says (RFC 9639) of its sampling rate and length: decoders believe the file's header alone."""

import dataclasses
import functools
import os
from typing import BinaryIO

_RATES = {1: 88_200, 2: 176_400, 3: 192_000, 4: 8_000, 5: 16_000, 6: 22_050, 7: 24_000, 8: 32_000, 9: 44_100, 10: 48_000, 11: 96_000}
# A rate that is written out, by its code: bytes, and what they count in Hz.
_WRITTEN = {12: (1, 1_000), 13: (2, 1), 14: (2, 10)}
# What begins a file: the marker, and the header of the first block, the last one or not, of 34 bytes.
_MARKER, _FIRST_BLOCKS = b"fLaC", (b"\x00\x00\x00\x22", b"\x80\x00\x00\x22")
_SCAN_BYTES = 2**20
_LONGEST_HEADER = 16
_LONGEST_BLOCK = 65_535
# The last frame begins in so much of the file's end; a longer one, of several loud channels, is not looked for.
_TAIL_BYTES = 2**18


@dataclasses.dataclass(frozen=True)
class FrameHeader:
    """Of one frame (section 9.1): sampling rate in Hz, None where it refers to the file's header, and what it numbers.

    `number` is the frame's own, or of its first sample where `variable`, the block size, may change.
    """

    rate: int | None
    number: int
    variable: bool


def contradiction(file: BinaryIO, sampling_rate: int, frames: int) -> str | None:
    """What in the frames contradicts the file's header, or None.

    Args:
      file: a FLAC file that begins with its marker.
      sampling_rate: in Hz, by the file's header.
      frames: samples of each channel, by the file's header.
    """
    file.seek(4)
    block_size = None
    while True:
        head = file.read(4)
        if len(head) < 4:
            return None
        size = int.from_bytes(head[1:])
        if head[0] & 0x7F == 0:
            block_size = int.from_bytes(file.read(size)[2:4])
        else:
            file.seek(size, os.SEEK_CUR)
        if head[0] & 0x80:  # the last block of metadata
            break
    sound = file.tell()
    first = _header(file.read(_LONGEST_HEADER))
    if first and first.rate not in (None, sampling_rate):
        return f"its first frame {first.rate} Hz"
    file.seek(max(sound, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
    last = _last_header(file.read())
    if last is None or not block_size:
        return None
    begin = last.number * (1 if last.variable else block_size)
    if not begin < frames <= begin + _LONGEST_BLOCK:
        return f"its last frame begins at {begin / sampling_rate:.3f} s"
    return None


def joined(file: BinaryIO) -> bool:
    """Whether a second file begins in this one; a decoder stops before it."""
    file.seek(1)
    kept = b""
    while block := file.read(_SCAN_BYTES):
        kept += block
        at = -1
        while (at := kept.find(_MARKER, at + 1)) >= 0:
            if kept[at + 4 : at + 8] in _FIRST_BLOCKS:
                return True
        kept = kept[-7:]
    return False


def _last_header(data: bytes) -> FrameHeader | None:
    """Of the frame that `data` ends with. The eight bits of a header's checksum alone pass by chance, once in some thousand files; its frame's sixteen tell."""
    at = len(data)
    while (at := data.rfind(b"\xff", 0, at)) >= 0:
        header = _header(data[at : at + _LONGEST_HEADER])
        if header and _crc16(data[at:-2]) == int.from_bytes(data[-2:]):
            return header
    return None


def _header(data: bytes) -> FrameHeader | None:
    """The frame header that these bytes begin with; None where its checksum says that it is none."""
    if len(data) < 6 or data[0] != 0xFF or data[1] & 0xFE != 0xF8:
        return None
    size_code, rate_code = data[2] >> 4, data[2] & 15
    ones = 8 - (data[4] ^ 0xFF).bit_length()  # of a number in the manner of UTF-8: its bytes, 0 for one
    number_end = 4 + max(1, ones)
    rate_begin = number_end + {6: 1, 7: 2}.get(size_code, 0)  # after a block size that is written out
    rate_bytes, hertz = _WRITTEN.get(rate_code, (0, 0))
    end = rate_begin + rate_bytes
    if len(data) <= end or ones in (1, 8) or _crc8(data[:end]) != data[end]:
        return None
    number = data[4] & 0x7F >> ones
    for byte in data[5:number_end]:
        number = number << 6 | byte & 0x3F
    rate = int.from_bytes(data[rate_begin:end]) * hertz if rate_bytes else _RATES.get(rate_code)
    return FrameHeader(rate, number, bool(data[1] & 1))


@functools.cache
def _crc16_table() -> list[int]:
    table = []
    for crc in range(0, 2**16, 2**8):
        for _ in range(8):
            crc = (crc << 1 ^ (0x8005 if crc & 0x8000 else 0)) & 0xFFFF
        table.append(crc)
    return table


def _crc16(data: bytes) -> int:
    """With the polynomial x^16 + x^15 + x^2 + 1."""
    table, crc = _crc16_table(), 0
    for byte in data:
        crc = crc << 8 & 0xFFFF ^ table[crc >> 8 ^ byte]
    return crc


def _crc8(data: bytes) -> int:
    """With the polynomial x^8 + x^2 + x + 1."""
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ (0x07 if crc & 0x80 else 0)) & 0xFF
    return crc
