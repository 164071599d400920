"""FLEURS (Conneau et al. 2022, arXiv 2205.12446): a folder a language, as tables with sound files or archives of them, or as parquet.

    de_de/train.tsv, dev.tsv, test.tsv          id, file name, raw transcription, transcription, characters, samples, gender; no header
    de_de/audio/train.tar.gz, or audio/train/   the sound of train.tsv
    de_de/**/*train*.parquet                    the same in one, sound included (as converted by a hub, or copied from mteb/fleurs)

`id` is that of a sentence, in all languages and however often it was recorded. So it is the manifest's `sentence_id`, and the English text of
a sentence is its translation in the others.
"""

import functools
import os
import pathlib
import re
from collections.abc import Iterator, Sequence

from xretrieval.corpora.manifest import Utterance
from xretrieval.corpora.readers import fleurs_audio
from xretrieval.corpora.readers.findings import Findings
from xretrieval.corpora.readers.fleurs_audio import Recording
from xretrieval.corpora.readers.tables import rows_without_header
from xretrieval.errors import UserError
from xretrieval.languages import Language, language, table

SPLITS = {"train": "train", "validation": "dev", "test": "test"}
TEXTS = ("raw_transcription", "transcription")
ENGLISH = "en_us"
_WIDTH = 7


def read(
    source: str | os.PathLike,
    findings: Findings,
    languages: Sequence[str] = (),
    splits: Sequence[str] = ("train", "validation", "test"),
    audio_dir: str | os.PathLike | None = None,
    text: str = "raw_transcription",
) -> Iterator[Utterance]:
    """Recordings with transcript and, where `en_us` is there as well, its English.

    Args:
      source: a folder of language folders, or one whose folder `data` holds them.
      findings: is told of what is skipped: lines that cannot be read, recordings that are not there.
      languages: any forms that `xretrieval.languages` knows; none: all that are there.
      splits: of train, validation, test.
      audio_dir: where sound from archives and parquet is written, `LANGUAGE/SPLIT/FILE`: each file once, whole or not at all, so that the
        same command goes on after a stop.
      text: `raw_transcription` (with capitals and punctuation) or `transcription` (without; what MTEB compares).

    Raises:
      UserError: a folder or file is missing or damaged, or `audio_dir` is needed.
    """
    for split in splits:
        if split not in SPLITS:
            raise UserError(f"split {split}: FLEURS has {', '.join(SPLITS)}")
    if text not in TEXTS:
        raise UserError(f"text = {text!r}: FLEURS has {' and '.join(TEXTS)}")
    folders = _folders(pathlib.Path(os.path.abspath(source)), findings)
    asked = [language(name) for name in languages] or [table()[code] for code in folders]
    absent = [row.code for row in asked if row.code not in folders]
    if absent or not asked:
        raise UserError(f"{source}: no folder {', '.join(absent) or 'of a language, such as de_de'}; copy it there from FLEURS")
    english = _texts(folders[ENGLISH], text, findings) if ENGLISH in folders else {}
    if not english:
        findings.doubt("no en_us beside the others: nothing has a translation", os.fspath(source))
    for row in asked:
        for split in splits:
            yield from _utterances(folders[row.code], row, split, audio_dir, text, english, findings)


def _utterances(
    folder: pathlib.Path,
    row: Language,
    split: str,
    audio_dir: str | os.PathLike | None,
    text: str,
    english: dict[str, str],
    findings: Findings,
) -> Iterator[Utterance]:
    out = None if audio_dir is None else os.path.join(os.path.abspath(audio_dir), row.code, split)
    taken: set[str] = set()
    for recording in _recordings(folder, split, out, text, findings):
        if recording.file in taken:
            findings.skip("the recording is already in this split", recording.place, recording.file)
            continue
        taken.add(recording.file)
        if not (recording.sentence.isascii() and recording.sentence.isdigit()):
            findings.skip("the id is not a number", recording.place, recording.sentence)
            continue
        audio = recording.save()
        if audio is None:
            findings.skip("the recording is not there", recording.place, recording.file)
            continue
        if not recording.text.strip():
            findings.doubt("the transcription is empty", recording.place, recording.file)
        translation = "" if row.code == ENGLISH else english.get(recording.sentence, "")
        if english and not translation and row.code != ENGLISH:
            findings.leave_out("translations of sentences that en_us lacks")
        yield Utterance(
            id=f"fleurs.{row.code}.{split}.{os.path.splitext(recording.file)[0]}",
            sentence_id=f"fleurs.{int(recording.sentence)}",
            audio=audio,
            text=recording.text.strip(),
            language=row.code,
            translation=translation or None,
            translation_language=ENGLISH if translation else None,
            split=split,
        )


def _folders(source: pathlib.Path, findings: Findings) -> dict[str, pathlib.Path]:
    """The language folders, by FLEURS code."""
    if not source.is_dir():
        raise UserError(f"{source}: no such folder; give the one that holds FLEURS's language folders")
    base = source / "data" if (source / "data").is_dir() else source
    found = {path.name: path for path in sorted(base.iterdir()) if path.is_dir()}
    return {code: found[code] for code in table() if code in found}


def _recordings(folder: pathlib.Path, split: str, audio_dir: str | None, text: str, findings: Findings) -> Iterator[Recording]:
    path = folder / f"{SPLITS[split]}.tsv"
    if path.is_file():
        lines = list(_lines(path, text, findings))
        locate = fleurs_audio.locator(folder, SPLITS[split], [file for _, _, file, _ in lines], audio_dir, findings)
        for place, sentence, file, transcript in lines:
            yield Recording(sentence, transcript, file, place, functools.partial(locate, file))
        return
    parquet = _parquet(folder, split)
    if not parquet:
        raise UserError(f"{folder}: has neither {path.name} nor parquet files of the split {split}; copy them there from FLEURS")
    for one in parquet:
        yield from fleurs_audio.from_parquet(one, audio_dir, text)


def _lines(path: pathlib.Path, text: str, findings: Findings) -> Iterator[tuple[str, str, str, str]]:
    """Place, sentence, file name, transcript."""
    for place, cells in rows_without_header(path, findings, _WIDTH):
        yield place, cells[0].strip(), cells[1].strip(), cells[2 + TEXTS.index(text)]


def _parquet(folder: pathlib.Path, split: str) -> list[pathlib.Path]:
    """The files whose path below the language's folder names the split."""
    names = {split, SPLITS[split]}
    return sorted(path for path in folder.rglob("*.parquet") if names & set(re.split(r"[^a-z]+", str(path.relative_to(folder)))))


def _texts(folder: pathlib.Path, text: str, findings: Findings) -> dict[str, str]:
    """The texts of a language's sentences, of all splits that are there."""
    found: dict[str, str] = {}
    for split, name in SPLITS.items():
        path = folder / f"{name}.tsv"
        if path.is_file():
            pairs = ((sentence, transcript, place) for place, sentence, _, transcript in _lines(path, text, Findings()))
        else:
            pairs = (pair for one in _parquet(folder, split) for pair in fleurs_audio.texts(one, text))
        for sentence, transcript, place in pairs:
            if found.setdefault(sentence, transcript.strip()) != transcript.strip():
                findings.doubt("a sentence has several English texts: the first is taken", place, sentence)
    return found
