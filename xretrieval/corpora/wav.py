"""What a WAV file says twice, and what lies behind its sound: a decoder believes the one number, and leaves out the rest in silence."""

import os
import struct
from typing import BinaryIO

from xretrieval.corpora.source import Unreadable

_UNKNOWN_SIZE = 0xFFFFFFFF
# Codes of sample formats whose frames are of one size: integers, floats, A-law, mu-law, and those of the extended header.
_PLAIN = (1, 3, 6, 7, 0xFFFE)
# Tags of music players, which some programs write behind the last chunk.
_TAGS = (b"TAG", b"ID3", b"APET")
# Bytes at the end of the file that belong to no chunk: fewer are padding.
_PADDING_BYTES = 512


def check(file: BinaryIO, streamed: bool) -> None:
    """Walks the chunks of a RIFF or RF64 file; `streamed`: the size of its sound is unknown.

    Raises:
      Unreadable: its header contradicts itself, or sound lies behind what it names.
    """
    end = file.seek(0, os.SEEK_END)
    at, long_size = 12, 0
    while at + 8 <= end:
        file.seek(at)
        head = file.read(24)
        name, size = head[:4], int.from_bytes(head[4:8], "little")
        if name.startswith(_TAGS) or (name == b"data" and streamed):
            return
        if not name.isascii() or not name.decode().isprintable():
            if end - at > _PADDING_BYTES:
                raise Unreadable(f"holds more than its header says, {end - at} bytes at its end; write the file again from its source")
            return
        if name == b"fmt ":
            _check_format(head[8:])
        elif name == b"ds64":
            long_size = int.from_bytes(head[16:24], "little")
        elif name == b"data" and size == _UNKNOWN_SIZE:
            size = long_size
        at += 8 + size + size % 2


def _check_format(fields: bytes) -> None:
    if len(fields) < 16:
        return
    code, channels, rate, pace, block, bits = struct.unpack("<HHIIHH", fields[:16])
    expected = channels * -(-bits // 8)
    if code in _PLAIN and block != expected:
        raise Unreadable(
            f"its header contradicts itself: {channels} channels of {bits} bits are {expected} bytes, and it says {block}; "
            f"write the file again from its source"
        )
    if code in _PLAIN and pace not in (0, rate * block):
        raise Unreadable(
            f"its header contradicts itself: {rate} Hz would be {rate * block} bytes a second, and it says {pace}; "
            f"write the file again from its source"
        )
