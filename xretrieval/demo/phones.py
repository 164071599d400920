"""Time-aligned phones of the polyglot corpus, from espeak-ng's own events: a second synthesis of the very same samples."""

import contextlib
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import soundfile

from xretrieval.corpora.alignments import SILENCE, Phone, write_alignments
from xretrieval.corpora.manifest import read_manifest
from xretrieval.demo import corpus, voices
from xretrieval.errors import UserError, read_json
from xretrieval.progress import track
from xretrieval.workers import in_processes

_CHUNK = 32  # utterances a worker is handed at once
# Stress and length are nothing that one frame could show.
_SUPRASEGMENTALS = str.maketrans("", "", "ˈˌːˑ")
_SAME_SOUND = str.maketrans({"ε": "ɛ", "?": "ʔ"})  # written both ways by espeak-ng's tables
_MODIFIERS = frozenset("ʲʰ")
_STOPS = tuple("pbtdʈɖcɟkgɡqɢʔ")  # what affricates begin with, too
_SHORTEST_CLOSURE = voices.ESPEAK_RATE // 200  # 5 ms; a shorter silence is a voice crossing zero


class _Segment(NamedTuple):
    name: str
    start: int  # in samples at ESPEAK_RATE


def speak_with_phones(text: str, voice: voices.Voice) -> tuple[np.ndarray, list[Phone]]:
    """Speaks a text and says which phone is heard when.

    A phone is named in IPA, without stress and length. What espeak-ng gives no symbol of its own (glides, epenthetic vowels), or only a modifier
    (`ʲ`), belongs to the phone before. espeak-ng announces a stop at its release: silence right before it is its closure, and here part of it.

    Returns:
      the samples of `voices.speak`, and phones that follow each other from 0 to their end; pauses are `SILENCE`.

    Raises:
      UserError: as `voices.speak`.
    """
    sound_T, mnemonics = voices.synthesise(text, voice, voices.PHONEMES)
    # Pauses have no IPA symbol, nor have some phones: only their mnemonics tell them apart.
    _, symbols = voices.synthesise(text, voice, voices.PHONEMES | voices.IPA)
    events = zip(mnemonics, symbols, strict=True)
    named = [(mnemonic.sample, SILENCE if mnemonic.name.startswith("_") else _label(symbol.name)) for mnemonic, symbol in events]
    samples_T = voices.resampled(sound_T)
    return samples_T, _timed(_merged(named, sound_T), len(sound_T), len(samples_T))


def _label(symbol: str) -> str:
    """The phone's name; empty where it has none. `(en)` announces words in another language."""
    return "" if symbol.startswith("(") else symbol.translate(_SUPRASEGMENTALS).translate(_SAME_SOUND)


def _merged(named: Sequence[tuple[int, str]], sound_T: np.ndarray) -> list[_Segment]:
    """Segments from sample 0 on; neighbouring pauses are one, what has no name is part of the segment before."""
    segments = [_Segment(SILENCE, 0)]  # some voices begin with a moment of silence
    for start, name in named:
        last = segments[-1]
        if not name or (name == last.name == SILENCE):
            continue
        if set(name) <= _MODIFIERS:
            if last.name != SILENCE:
                segments[-1] = _Segment(last.name + name, last.start)
            continue
        if name.startswith(_STOPS) and last.name != SILENCE:
            start = _closure(sound_T, last.start, start)
        segments.append(_Segment(name, start))
    return segments


def _closure(sound_T: np.ndarray, least: int, release: int) -> int:
    """Where the silence before a release begins."""
    heard = np.flatnonzero(sound_T[least:release])
    start = least + int(heard[-1]) + 1 if len(heard) else release
    return start if release - start >= _SHORTEST_CLOSURE else release


def _timed(segments: Sequence[_Segment], length: int, samples: int) -> list[Phone]:
    """Seconds of segments, in whole samples at 16 kHz; none where a segment has no sample."""
    starts = [round(segment.start * samples / length) for segment in segments]
    ends = [*starts[1:], samples]
    rate = voices.SAMPLING_RATE
    return [Phone(segment.name, a / rate, b / rate) for segment, a, b in zip(segments, starts, ends, strict=True) if b > a]


def write_phones(corpus_dir: str, manifest: str = "test", num_workers: int = 2) -> str:
    """Writes the phones of every recording of a finished corpus's manifest to `<corpus_dir>/<manifest>.phones.jsonl`.

    Every utterance is spoken again, and must come out as the recording that is there.

    Args:
      corpus_dir: of `corpus.generate`.
      manifest: one that has recordings: train, validation, test or test_held_out_voices.
      num_workers: processes.

    Returns:
      The path of the file.

    Raises:
      UserError: no such corpus or manifest, or this espeak-ng speaks otherwise than the one that spoke it.
    """
    folder = pathlib.Path(os.path.abspath(corpus_dir))
    seed = read_json(folder / "corpus.json")["seed"]
    jobs = []
    for utterance in read_manifest(folder / manifest):
        voice = corpus.voice_of(manifest, utterance.language, utterance.sentence_id, seed)
        jobs.append((utterance.id, utterance.recording, utterance.text, voice))
    chunks = [(tuple(jobs[first : first + _CHUNK]),) for first in range(0, len(jobs), _CHUNK)]
    done = in_processes(_align_chunk, chunks, num_workers) if num_workers > 1 else (_align_chunk(*chunk) for chunk in chunks)
    path = folder / f"{manifest}.phones.jsonl"
    with contextlib.closing(done):
        write_alignments(path, (pair for pairs in track(done, len(chunks), "phones") for pair in pairs))
    return str(path)


def _align_chunk(chunk: tuple[tuple[str, str, str, voices.Voice], ...]) -> list[tuple[str, list[Phone]]]:
    return [(id_, _align(audio, text, voice)) for id_, audio, text, voice in chunk]


def _align(audio: str, text: str, voice: voices.Voice) -> list[Phone]:
    samples_T, phones = speak_with_phones(text, voice)
    try:
        recorded_T, rate = soundfile.read(audio, dtype="int16")
    except soundfile.SoundFileError as error:
        raise UserError(f"{audio}: cannot be read ({error}); run `xretrieval corpus` again") from error
    if rate != voices.SAMPLING_RATE or not np.array_equal(recorded_T, samples_T):
        raise UserError(
            f"{audio}: not what espeak-ng says here for {text!r}; generate the corpus again with the packages that are installed now"
        )
    return phones
