"""Whether an MP4 or WebM file is all there: the sizes of its outermost parts, which must add up to the file.

MP4: ISO/IEC 14496-12, boxes. WebM and Matroska: RFC 8794 (EBML) and RFC 9559, elements.
"""

import os
import struct
from typing import BinaryIO

from xretrieval.corpora.source import Unreadable

_EBML, _SEGMENT, _INFO, _TIMESTAMP_SCALE, _DURATION = 0x1A45DFA3, 0x18538067, 0x1549A966, 0x2AD7B1, 0x4489
_CUT_OFF = "damaged: cut off, {} bytes are missing at its end; copy it again"
_JOINED = "holds more than its header says (files joined); convert it once more"


def kind(head: bytes) -> str | None:
    """FFmpeg's name of the container that begins with these bytes, at least 8; None where it is neither."""
    if head[4:8] == b"ftyp":
        return "mp4"
    return "matroska" if head[:4] == _EBML.to_bytes(4) else None


def check(path: str, file_kind: str) -> float | None:
    """Length in seconds that the header declares, where it is one of WebM and does.

    Raises:
      Unreadable: the file is cut off, or another one begins in it.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if file_kind == "matroska":
            return _check_elements(file, size)
        _check_boxes(file, size)
        return None


def _check_boxes(file: BinaryIO, file_size: int) -> None:
    at = 0
    while at < file_size:
        head = _read(file, at, min(16, file_size - at))
        size, name = int.from_bytes(head[:4]), head[4:8]
        if size == 1:
            size = int.from_bytes(head[8:16])
        elif size == 0:  # up to the end of the file
            size = file_size - at
        if size < 8 or not name.isascii():
            raise Unreadable("damaged: what follows a part of it is none; copy it again")
        if at and name == b"ftyp":
            raise Unreadable(_JOINED)
        at += size
    if at > file_size:
        raise Unreadable(_CUT_OFF.format(at - file_size))


def _check_elements(file: BinaryIO, file_size: int) -> float | None:
    at, end, seconds = 0, 0, None
    while at < file_size:
        name, start, size = _element(file, at)
        if at and name == _EBML:
            raise Unreadable(_JOINED)
        if name == _INFO and size is not None:
            seconds = _declared(file, start, start + size, file_size)
        # The segment's parts follow one another as it does; so do those of a cluster of unknown size, written while it was recorded.
        at = start if size is None or name == _SEGMENT else start + size
        end = max(end, start + (size or 0))
    if end > file_size:
        raise Unreadable(_CUT_OFF.format(end - file_size))
    return seconds


def _declared(file: BinaryIO, at: int, end: int, file_size: int) -> float | None:
    """Seconds in the segment's information."""
    scale, duration = 1_000_000, None
    while at < end:
        name, start, size = _element(file, at)
        if size is None:
            break
        if name == _TIMESTAMP_SCALE:
            scale = int.from_bytes(_read(file, start, min(size, 8)))
        elif name == _DURATION and size in (4, 8) and start + size <= file_size:
            (duration,) = struct.unpack(">f" if size == 4 else ">d", _read(file, start, size))
        at = start + size
    return None if duration is None else duration * scale / 1e9


def _read(file: BinaryIO, at: int, size: int) -> bytes:
    file.seek(at)
    return file.read(size)


def _element(file: BinaryIO, at: int) -> tuple[int, int, int | None]:
    """Name of the element at `at`, where its content begins, and its size; None where that is unknown."""
    head = _read(file, at, 12)
    name_bytes = _length(head[:1], 4)
    size_bytes = _length(head[name_bytes : name_bytes + 1], 8)
    size = int.from_bytes(head[name_bytes : name_bytes + size_bytes]) & ((1 << 7 * size_bytes) - 1)
    unknown = size == (1 << 7 * size_bytes) - 1
    return int.from_bytes(head[:name_bytes]), at + name_bytes + size_bytes, None if unknown else size


def _length(first: bytes, most: int) -> int:
    """Bytes of a number of variable length, told by the zeros that its first byte begins with."""
    length = 9 - first[0].bit_length() if first else 9
    if length > most:
        raise Unreadable("damaged: what follows a part of it is none; copy it again")
    return length
