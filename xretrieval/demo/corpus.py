"""The polyglot corpus: FLEURS in miniature, from Unicode CLDR and espeak-ng. The same bytes from the same arguments and packages."""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import pathlib
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from xretrieval.corpora.manifest import Utterance, read_manifest, write_manifest
from xretrieval.demo import polyglot, recordings, sentences, voices
from xretrieval.demo.slots import Level
from xretrieval.errors import UserError
from xretrieval.languages import languages

_ENGLISH = "en_us"
_FORMAT = 1  # raise it where the same arguments begin to give another corpus
_PACKAGES = ("babel", "espeakng-loader", "soundfile", "soxr")


class _Part(NamedTuple):
    """What one manifest holds: sentences of a split, in these languages, in these voice variants (none: text only)."""

    split: str
    languages: tuple[str, ...]
    variants: tuple[str, ...]


def _parts(seen: Sequence[str], unseen: Sequence[str]) -> dict[str, _Part]:
    return {
        "train": _Part("train", tuple(seen), voices.TRAINING_VARIANTS),
        "validation": _Part("validation", tuple(seen), voices.TRAINING_VARIANTS),
        "test": _Part("test", (*seen, *unseen), voices.TRAINING_VARIANTS),
        "test_held_out_voices": _Part("test", (*seen, *unseen), voices.HELD_OUT_VARIANTS),
        "text_unseen_train": _Part("train", tuple(unseen), ()),
    }


def generate(
    out_dir: str,
    seen_languages: Sequence[str] | str,
    unseen_languages: Sequence[str] | str,
    train_sentences: int = 1500,
    validation_sentences: int = 60,
    test_sentences: int = 100,
    slots: Level = "easy",
    seed: int = 0,
    num_workers: int = 2,
) -> dict:
    """Writes a corpus to `out_dir`, or finishes one that was interrupted.

    Manifests: `train.jsonl`, `validation.jsonl` (seen languages); `test.jsonl` (all languages, the voices of training),
    `test_held_out_voices.jsonl` (the same sentences in other voices); `text_unseen_train.jsonl` (text only: the training sentences in the
    unseen languages). Recordings are 16 kHz FLAC in `audio/<language>/<split>/`. `corpus.json` says what the corpus was made from.

    Args:
      out_dir: folder of the corpus.
      seen_languages: languages with training recordings, as codes or names, a list or comma-separated.
      unseen_languages: languages with test recordings only.
      train_sentences: sentences, each recorded once a language; likewise `validation_sentences` and `test_sentences`.
      slots: "easy" (territories, languages, currencies, weekdays, months) or "hard" (more of them, dates and quantities).
      seed: draws sentences and voices.
      num_workers: processes.

    Returns:
      The content of `corpus.json`.

    Raises:
      UserError: a language without words or voice, espeak-ng not installed, a folder that cannot be written or holds another corpus.
    """
    counts = {"test": test_sentences, "validation": validation_sentences, "train": train_sentences}
    record = _describe(seen_languages, unseen_languages, counts, slots, seed)
    composed = sentences.compose(counts, slots, seed)
    folder = pathlib.Path(os.path.abspath(out_dir))
    _claim(folder, record)
    parts = _parts(record["seen_languages"], record["unseen_languages"])
    if not _finished(folder, parts):
        _write(folder, parts, composed, seed, num_workers)
    return record


def _describe(seen: Sequence[str] | str, unseen: Sequence[str] | str, counts: dict[str, int], level: Level, seed: int) -> dict:
    """The content of corpus.json: all that the corpus depends on, and a fingerprint of it."""
    seen, unseen = (sorted(row.code for row in languages(codes)) for codes in (seen, unseen))
    for code in (*seen, *unseen):
        polyglot.cldr_and_voice(code)
    if not seen:
        raise UserError("seen_languages: empty; name at least one language to train on")
    if both := set(seen) & set(unseen):
        raise UserError(f"{', '.join(sorted(both))}: both in seen_languages and in unseen_languages; choose one")
    if _ENGLISH in unseen:
        raise UserError("unseen_languages: English cannot be unseen, for its text is the translation of every sentence; take it out")
    for split, count in counts.items():
        if count < 1:
            raise UserError(f"{split}_sentences={count}: a corpus needs at least one {split} sentence")
    voices.espeak_paths()
    record = {
        "format": _FORMAT,
        "seen_languages": seen,
        "unseen_languages": unseen,
        **{f"{split}_sentences": count for split, count in counts.items()},
        "slots": level,
        "seed": seed,
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }
    return record | {"fingerprint": hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()}


def _claim(folder: pathlib.Path, record: dict) -> None:
    """Writes corpus.json, or checks that the one which is there says the same."""
    path = folder / "corpus.json"
    if not path.exists():
        recordings.make_folder(folder)
        recordings.write_file(path, (json.dumps(record, indent=1) + "\n").encode())
        return
    try:
        earlier = json.loads(path.read_text())
        changed = [f"{name}: {earlier.get(name)} there, {record[name]} now" for name in record if earlier.get(name) != record[name]]
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); delete {folder} or give another folder") from error
    if changed:
        differences = "; ".join(line for line in changed if not line.startswith("fingerprint"))
        raise UserError(
            f"{folder}: holds a corpus made with other parameters ({differences}). Give the same, another folder, or delete this one"
        )


def _finished(folder: pathlib.Path, parts: dict[str, _Part]) -> bool:
    paths = [folder / f"{name}.jsonl" for name in parts]
    return all(path.exists() for path in paths) and all(
        u.audio is None or os.path.exists(u.audio) for path in paths for u in read_manifest(path)
    )


def _write(folder: pathlib.Path, parts: dict[str, _Part], composed: sentences.Corpus, seed: int, num_workers: int) -> None:
    codes = {_ENGLISH}.union(*(part.languages for part in parts.values()))
    texts = {code: _texts(code, composed) for code in sorted(codes)}
    manifests: dict[str, list[Utterance]] = {}
    wanted = []
    for name, part in parts.items():
        manifests[name] = []
        for code in part.languages:
            for sentence_id in composed[part.split]:
                utterance = _utterance(name, part, code, sentence_id, texts[code][sentence_id], texts[_ENGLISH][sentence_id])
                if part.variants:
                    voice = voice_of(name, code, sentence_id, seed)
                    path = folder / "audio" / code / name / f"{sentence_id}.flac"
                    wanted.append(recordings.Recording(str(path), utterance.text, voice))
                    utterance = dataclasses.replace(utterance, audio=str(path), speaker=voice.variant)
                manifests[name].append(utterance)
    lengths = dict(zip((recording.path for recording in wanted), recordings.record_all(wanted, num_workers), strict=True))
    for name, utterances in manifests.items():
        write_manifest(folder / f"{name}.jsonl", [_measured(utterance, lengths) for utterance in utterances])


def voice_of(manifest: str, code: str, sentence_id: str, seed: int) -> voices.Voice:
    """Who speaks a sentence: it depends on the manifest's name, the language, the sentence and the corpus's seed alone.

    Raises:
      UserError: the corpus has no such manifest, or one without recordings.
    """
    spoken = {name: part.variants for name, part in _parts((), ()).items() if part.variants}
    if manifest not in spoken:
        raise UserError(f"{manifest}: not a manifest of recordings of the polyglot corpus; give one of {', '.join(spoken)}")
    return voices.draw_voice(polyglot.cldr_and_voice(code)[1], spoken[manifest], seed, code, sentence_id, manifest)


def _utterance(name: str, part: _Part, code: str, sentence_id: str, text: str, english: str) -> Utterance:
    is_english = code == _ENGLISH
    return Utterance(
        id=f"{code}-{sentence_id}" + ("-held-out" if part.variants == voices.HELD_OUT_VARIANTS else ""),
        sentence_id=sentence_id,
        text=text,
        language=code,
        translation=None if is_english else english,
        translation_language=None if is_english else _ENGLISH,
        split=name if part.variants else part.split,
    )


def _measured(utterance: Utterance, lengths: dict[str, int]) -> Utterance:
    if utterance.audio is None:
        return utterance
    seconds = lengths[utterance.audio] / voices.SAMPLING_RATE
    return dataclasses.replace(utterance, duration=seconds, sampling_rate=voices.SAMPLING_RATE)


def _texts(code: str, composed: sentences.Corpus) -> dict[str, str]:
    """{sentence id: text} in one language, all different."""
    speaker = sentences.Speaker(code)
    texts = {sentence_id: speaker.say(sentence) for part in composed.values() for sentence_id, sentence in part.items()}
    owner: dict[str, str] = {}
    for sentence_id, text in texts.items():
        first = owner.setdefault(unicodedata.normalize("NFKC", text).casefold(), sentence_id)
        if first != sentence_id:
            raise UserError(
                f"{code}: sentences {first} and {sentence_id} have the same text, {text!r}, in this release of babel; leave {code} out"
            )
    return texts
