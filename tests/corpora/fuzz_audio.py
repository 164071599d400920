"""Mutated and forged sound files against the decoder: `make fuzz-audio`.

Each file must end as samples or as a UserError, this process must live, and memory must stay within the limits.
"""

import argparse
import collections
import dataclasses
import pathlib
import re
import resource
import struct
import sys
import tempfile
import time
from collections.abc import Iterator

import container_files
import numpy as np
import soundfile

from xretrieval.corpora import decoder_process
from xretrieval.corpora.audio import AudioLimits, Sound, load_all
from xretrieval.errors import UserError

LIMITS = AudioLimits(max_memory_bytes=256 * 2**20, timeout_seconds=20.0)
# In the order in which they are looked for.
_REASONS = [
    "died",
    "took too long",
    "memory",
    "at most",
    "at a time",
    "at least",
    "damaged",
    "header",
    "no sound",
    "not a sound file",
    "not a finite number",
    "cannot be decoded",
]
_NUMBERS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 655_350, 2**24 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1]


@dataclasses.dataclass
class Outcome:
    """What became of the files.

    Attributes:
      counts: by outcome: "samples", or what a UserError says.
      wrong: files that ended as something else, or were cropped in silence.
      seconds: in all.
      decoder_mib: most memory that a decoder process held.
      parent_mib: by how much this process grew.
    """

    counts: collections.Counter
    wrong: list[str]
    seconds: float
    decoder_mib: float
    parent_mib: float


def originals(folder: pathlib.Path) -> list[pathlib.Path]:
    """A sound file of each kind, 0.8 s long."""
    rng = np.random.default_rng(0)
    kinds = [
        ("wav", "PCM_16", 16_000, 1),
        ("wav", "PCM_24", 44_100, 2),
        ("wav", "FLOAT", 16_000, 1),
        ("wav", "ULAW", 8_000, 1),
        ("wav", "IMA_ADPCM", 16_000, 1),
        ("flac", "PCM_16", 16_000, 1),
        ("flac", "PCM_24", 44_100, 2),
        ("ogg", "VORBIS", 44_100, 2),
        ("ogg", "OPUS", 48_000, 1),
        ("mp3", "MPEG_LAYER_III", 44_100, 2),
        ("mp3", "MPEG_LAYER_III", 16_000, 1),
    ]
    paths = []
    for i, (suffix, subtype, rate, channels) in enumerate(kinds):
        x_TC = 0.1 * rng.standard_normal((round(0.8 * rate), channels))
        paths.append(folder / f"original{i}.{suffix}")
        soundfile.write(paths[-1], x_TC, rate, subtype=subtype)
    for suffix, codec, rate in (("mp4", "aac", 16_000), ("webm", "libopus", 48_000)):
        paths.append(folder / f"original_{codec}.{suffix}")
        container_files.write(paths[-1], codec, (0.1 * rng.standard_normal((round(0.8 * rate), 1))).astype(np.float32), rate)
    return paths


def mutate(data: bytes, other: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """(name of the mutation, mutated file)."""
    changed = bytearray(data)
    at = int(rng.integers(len(data)))
    # Half of all changes hit the headers.
    near = int(rng.integers(min(len(data), 96))) if rng.random() < 0.5 else at
    name = str(rng.choice(["bits", "noise", "field", "truncated", "spliced", "cut out", "doubled", "inserted"]))
    if name == "bits":
        for place in [near, *rng.integers(len(data), size=rng.integers(0, 16))]:
            changed[place] ^= 1 << int(rng.integers(8))
    elif name == "noise":
        changed[near : near + int(rng.integers(1, 400))] = rng.bytes(int(rng.integers(1, 400)))
    elif name == "field":
        size = int(rng.choice([1, 2, 4, 8]))
        number = int(rng.choice(np.array(_NUMBERS, dtype=object))) % 2 ** (8 * size)
        changed[near : near + size] = number.to_bytes(size, "little" if rng.random() < 0.5 else "big")
    elif name == "truncated":
        del changed[at:]
    elif name == "spliced":
        changed[at:] = other[int(rng.integers(len(other))) :]
    elif name == "cut out":
        del changed[near : near + int(rng.integers(1, 2_000))]
    elif name == "doubled":
        changed[at:at] = changed[max(0, at - int(rng.integers(1, 4_000))) : at]
    else:
        changed[near:near] = rng.bytes(int(rng.integers(1, 64)))
    return name, bytes(changed)


def _wav(rate: int, channels: int, data_size: int, held: int, riff: bytes = b"RIFF", extra: bytes = b"") -> bytes:
    block = 2 * channels % 2**16
    pace = rate * block % 2**32
    head = riff + struct.pack("<I", min(data_size + 36, 2**32 - 1)) + b"WAVE" + extra + b"fmt "
    return head + struct.pack("<IHHIIHH", 16, 1, channels, rate, pace, block, 16) + b"data" + struct.pack("<I", data_size) + bytes(held)


def forged(folder: pathlib.Path) -> Iterator[tuple[str, bytes]]:
    """(what was forged, file): headers that promise what no decoder can hold, and files that grow when they are decoded."""
    for rate in (0, 1, 999, 655_350, 2**31 - 1, 2**32 - 1):
        for channels in (0, 1, 8, 64, 1_024, 65_535):
            yield f"wav of {rate} Hz and {channels} channels", _wav(rate, channels, 160_000, 160_000)
    for size in (0, 2, 2**31 - 1, 2**32 - 2):
        yield f"wav that promises {size} bytes", _wav(16_000, 1, size, 32_000)
    for size in (0, 2**32, 2**63 - 1, 2**64 - 1):
        chunk = b"ds64" + struct.pack("<IQQQI", 28, size, size, size, 0)
        yield f"rf64 that promises {size} bytes", _wav(16_000, 1, 2**32 - 1, 32_000, b"RF64", chunk)
    path = folder / "forged"
    soundfile.write(path, np.zeros(16_000, np.int16), 16_000, format="FLAC")
    flac = bytearray(path.read_bytes())
    for frames in (0, 1, 2**32, 2**36 - 1):
        flac[21] = flac[21] & 0xF0 | frames >> 32
        flac[22:26] = (frames % 2**32).to_bytes(4)
        yield f"flac of {frames} frames", bytes(flac)
    for seconds, kind in ((601, "FLAC"), (3_600, "FLAC"), (601, "OGG"), (601, "MP3")):
        with soundfile.SoundFile(path, "w", 8_000, 1, format=kind) as sound:
            for _ in range(seconds // 60 + 1):
                sound.write(np.zeros(60 * 8_000, np.int16))
        yield f"{seconds} s of silence as {kind}", path.read_bytes()
    soundfile.write(path, np.zeros((20 * 384_000, 8), np.int16), 384_000, format="FLAC")
    yield "20 s of silence at 384 kHz in 8 channels", path.read_bytes()
    soundfile.write(path, np.zeros(16_000, np.int16), 16_000, format="OGG")
    ogg = bytearray(path.read_bytes())
    last = ogg.rindex(b"OggS")
    ogg[last + 6 : last + 14] = (2**63 - 1).to_bytes(8, "little")
    yield "ogg that ends at frame 2^63 - 1", bytes(ogg)
    soundfile.write(path, np.zeros(16_000, np.int16), 16_000, format="MP3")
    mp3 = path.read_bytes()
    for mark in (b"Xing", b"Info"):
        if mark in mp3:
            at = mp3.index(mark) + 8
            yield "mp3 of 2^32 - 1 frames", mp3[:at] + b"\xff" * 4 + mp3[at + 4 :]
    for name in ("", "RIFF", "fLaC", "OggS", "ID3", "ID3\x04\x00\x00\x7f\x7f\x7f\x7f", "\x00\x00\x00\x18ftypM4A ", "\x1aE\xdf\xa3"):
        yield f"nothing but {name!r}", name.encode("latin-1")


def _files(count: int, seed: int, folder: pathlib.Path) -> Iterator[tuple[str, pathlib.Path, int]]:
    """(what it is, path, frames of 16 kHz that it must not be cropped below) of `count` mutated files and all forged ones."""
    sources = [path.read_bytes() for path in originals(folder)]
    rng = np.random.default_rng(seed)
    for i in range(count):
        which = i % len(sources)
        name, data = mutate(sources[which], sources[int(rng.integers(len(sources)))], rng)
        path = folder / f"mutated{i}"
        path.write_bytes(data)
        yield f"source {which}, {name}", path, round(0.79 * 16_000) if name == "truncated" else 0
    for i, (name, data) in enumerate(forged(folder)):
        path = folder / f"forged{i}"
        path.write_bytes(data)
        yield name, path, 0


def _outcome(name: str, result: Sound | UserError, least: int) -> tuple[str, bool]:
    """(its name in the counts, whether it is right)."""
    if isinstance(result, UserError):
        return next((f"error: {reason}" for reason in _REASONS if reason in str(result)), "error: other"), "\n" not in str(result)
    most = LIMITS.max_seconds * 16_000 + 1_024
    x_T = result.samples_T
    return "samples", x_T.dtype == np.float32 and least <= len(x_T) <= most and bool(np.isfinite(x_T).all())


def fuzz(count: int, seed: int, folder: pathlib.Path, decoders: int = 2) -> Outcome:
    """Decodes `count` mutated files and the forged ones; each is deleted once it is decoded."""
    decoder_process.kill_all()
    begun, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    waiting: collections.deque[tuple[str, pathlib.Path, int]] = collections.deque()
    counts: collections.Counter = collections.Counter()
    wrong = []

    def requests():
        for name, path, least in _files(count, seed, folder):
            waiting.append((name, path, least))
            yield path, None, None

    peak = 0.0
    for result in load_all(requests(), decoders, limits=LIMITS):
        name, path, least = waiting.popleft()
        outcome, right = _outcome(name, result, least)
        counts[outcome] += 1
        if not right:
            wrong.append(f"{path.name} ({name}): {result if isinstance(result, UserError) else f'{len(result.samples_T)} samples'}")
        if outcome in ("error: died", "error: took too long", "error: memory", "error: cannot be decoded", "error: other"):
            print(f"{path.name} ({name}): {result}", file=sys.stderr)
        path.unlink()
        peak = max(peak, *map(memory_mib, decoder_process.pids()), 0.0)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return Outcome(counts, wrong, time.perf_counter() - begun, peak, grown / 1024)


def memory_mib(pid: int) -> float:
    """Most memory that a process has held."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", pathlib.Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0.0
    return int(found[1]) / 1024 if found else 0.0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=6_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--decoders", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = fuzz(arguments.files, arguments.seed, pathlib.Path(folder), arguments.decoders)
    for name, count in found.counts.most_common():
        print(f"{count:7,d}  {name}")
    print(f"{found.counts.total():7,d}  files in {found.seconds:.1f} s")
    decoder_process.kill_all()
    peak = max(
        found.decoder_mib, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    )  # also of those that were killed on the way
    print(f"most memory of a decoder {peak:.0f} MiB, this process grew by {found.parent_mib:.0f} MiB")
    for line in found.wrong:
        print(f"WRONG: {line}")
    sys.exit(bool(found.wrong))


if __name__ == "__main__":
    main()
