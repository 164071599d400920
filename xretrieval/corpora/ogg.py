"""Whether an Ogg file is all there (RFC 3533): the decoder steps over broken and missing pages, and does not miss the last ones."""

import zlib
from typing import BinaryIO

from xretrieval.corpora.source import Unreadable

_BEGIN, _END = 2, 4
_HEADER_BYTES = 27
# Bits of a byte the other way round: Ogg's checksum is CRC-32 with these, begun and ended with 0.
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def check(file: BinaryIO) -> None:
    """Reads the pages one after another.

    Raises:
      Unreadable: one is damaged or missing, the last does not say that it is, or there is more than one stream.
    """
    file.seek(0)
    at, number, flags = 0, 0, 0
    while head := file.read(_HEADER_BYTES):
        if flags & _END or (number and head[5:6] == b"\2"):
            raise Unreadable("holds more than its header says (files joined, or several streams); convert it once more")
        table = file.read(head[26]) if len(head) == _HEADER_BYTES else b""
        content = file.read(sum(table))
        if head[:4] != b"OggS" or head[26:] != bytes([len(table)]) or len(content) < sum(table):
            raise Unreadable(f"damaged at byte {at} (its page {number} is cut off or broken); copy it again")
        page = head[:22] + bytes(4) + head[26:] + table + content
        if int.from_bytes(head[18:22], "little") != number or _checksum(page) != int.from_bytes(head[22:26], "little"):
            raise Unreadable(f"damaged at byte {at} (page {number} is not as it was written); copy it again")
        at, number, flags = at + len(page), number + 1, head[5]
    if not flags & _END:
        raise Unreadable(f"damaged: cut off after page {number}; copy it again")


def _checksum(page: bytes) -> int:
    crc = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{crc:032b}"[::-1], 2)
