"""CoVoST 2: translations of Common Voice 4, joined to its clips and sentences (Wang et al. 2020, arXiv 2007.10310).

A `covost_v2.<from>_<to>.tsv` gives `path`, `translation` and `split`; the sentence is in Common Voice's `validated.tsv`, by `path`. As in
get_covost_splits.py (facebookresearch/covost), the training split is made of the rows marked `train` and `train_covost` (clips that Common
Voice's own split leaves out), `dev` and `test` of their own rows alone.
"""

import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from xretrieval.corpora.manifest import Utterance, meaning
from xretrieval.corpora.readers.common_voice import clean, clip_name, find_clip, language_folders
from xretrieval.corpora.readers.findings import Findings, Speakers
from xretrieval.corpora.readers.tables import rows
from xretrieval.errors import UserError
from xretrieval.languages import Language, language, table

SPLITS = {"train": "train", "train_covost": "train", "dev": "validation", "test": "test"}
ENGLISH = "en_us"


class _Row(NamedTuple):
    translation: str
    split: str
    place: str


def read(
    source: str | os.PathLike,
    findings: Findings,
    languages: Sequence[str] = (),
    splits: Sequence[str] = ("train", "validation", "test"),
    into: str = "en",
) -> Iterator[Utterance]:
    """Recordings with transcript and translation.

    Args:
      source: a folder with the `covost_v2.*.tsv` and Common Voice's language folders, side by side or each `.tsv` in the folder of the
        language that is spoken.
      findings: is told of what is skipped: rows without a sentence in `validated.tsv`, clips that are not there, paths given twice.
      languages: spoken; none: all that a translation is there for.
      splits: of train, validation, test.
      into: the language of the translations. With anything but English, English is spoken.

    Yields:
      Utterances in the order of `validated.tsv`. `sentence_id` is a hash of the English side; where a sentence comes again with another
      translation it keeps the first one's.

    Raises:
      UserError: a file is missing, or CoVoST 2 has no such direction.
    """
    for split in splits:
        if split not in SPLITS.values():
            raise UserError(f"split {split}: CoVoST 2 has train, validation, test")
    source = pathlib.Path(os.path.abspath(source))
    for spoken in _directions(source, languages, language(into)):
        yield from _direction(source, spoken, language(into), splits, findings)


def _code(row: Language) -> str:
    return "en" if row.code == ENGLISH else row.covost2 or ""


def _directions(source: pathlib.Path, languages: Sequence[str], into: Language) -> list[Language]:
    """The spoken languages."""
    if into.code == ENGLISH:
        possible = [row for row in table().values() if row.covost2]
    else:
        possible = [language(ENGLISH)] if into.covost2_from_english else []
    if not languages:
        found = [row for row in possible if _translations(source, row, into)]
        if not found:
            raise UserError(f"{source}: holds no covost_v2.*_{_code(into) or into.bcp47}.tsv; give the folder of CoVoST 2's tables")
        return found
    asked = [language(name) for name in languages]
    for row in asked:
        if row not in possible:
            directions = f"{', '.join(r.name for r in possible)} into {into.name}" if possible else f"nothing into {into.name}"
            raise UserError(f"CoVoST 2 has no {row.name} into {into.name}; it has {directions}")
        if not _translations(source, row, into):
            raise UserError(f"{source}: holds no {_name(row, into)}; copy it there from CoVoST 2's release")
    return asked


def _name(spoken: Language, into: Language) -> str:
    return f"covost_v2.{_code(spoken)}_{_code(into)}.tsv"


def _translations(source: pathlib.Path, spoken: Language, into: Language) -> pathlib.Path | None:
    name = _name(spoken, into)
    return next((path for path in (source / name, source / _code(spoken) / name, source / "covost_v2" / name) if path.is_file()), None)


def _direction(source: pathlib.Path, spoken: Language, into: Language, splits: Sequence[str], findings: Findings) -> Iterator[Utterance]:
    translations = _translations(source, spoken, into)
    assert translations is not None
    [(folder, _)] = language_folders(source, [_code(spoken)], "validated.tsv", findings)
    wanted = _wanted(translations, splits, findings)
    joined: set[str] = set()
    speakers, ids = Speakers(findings), dict[str, str]()
    columns = ("path", "sentence", "client_id")
    for place, (path, sentence, speaker) in rows(folder / "validated.tsv", findings, columns, escaped=True):
        name = clip_name(path)
        if name not in wanted:
            continue
        if name in joined:
            findings.skip("the clip is already in validated.tsv", place, path)
            continue
        joined.add(name)
        row = wanted[name]
        speakers.add(speaker, row.split, place)
        if row.split not in splits:
            continue
        audio = find_clip(folder / "clips", path)
        if audio is None:
            findings.skip("the clip is not there", place, os.path.join(folder, "clips", path))
            continue
        text, translation = clean(sentence), clean(row.translation)
        if not text:
            findings.doubt("the sentence is empty: the clip has a translation alone", place, path)
        if not translation:
            findings.doubt("the translation is empty: the clip has a transcript alone", row.place, path)
        english = text if spoken.code == ENGLISH else translation
        clip = f"covost2.{_code(spoken)}_{_code(into)}.{name}"
        sentence_id = meaning(english) or meaning(text) or clip
        yield Utterance(
            id=clip,
            sentence_id=ids.setdefault(meaning(text), sentence_id) if text else sentence_id,
            audio=audio,
            text=text,
            language=spoken.code,
            translation=translation or None,
            translation_language=into.code if translation else None,
            speaker=speaker,
            split=row.split,
        )
    for name, row in wanted.items():
        if name not in joined and row.split in splits:
            findings.skip("validated.tsv has no such clip", row.place, name)


def _wanted(translations: pathlib.Path, splits: Sequence[str], findings: Findings) -> dict[str, _Row]:
    """Rows by clip; those of splits that were not asked for without their text, for it is their speakers alone that matter."""
    found: dict[str, _Row] = {}
    for place, (path, translation, marked) in rows(translations, findings, ("path", "translation", "split"), escaped=True):
        name, split = clip_name(path), SPLITS.get(marked)
        if split is None:
            findings.leave_out(f"marked {marked or 'nothing'}: in no split of CoVoST 2")
        elif name in found:
            findings.skip("the clip is already in the table", place, path)
        elif split in splits:
            found[name] = _Row(translation, split, place)
        else:
            found[name] = _Row("", split, "")
            findings.leave_out(f"of the split {split}")
    return found
