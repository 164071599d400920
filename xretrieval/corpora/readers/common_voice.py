"""Common Voice, releases 4 to today: a folder a language, with `train.tsv`, `dev.tsv`, `test.tsv`, `validated.tsv` and `clips/`.

Columns are found by their names: release 4 has `client_id path sentence up_votes down_votes age gender accent`; later ones renamed `accent`
and added `sentence_id`, `sentence_domain`, `variant`, `locale` and `segment`.
"""

import os
import pathlib
from collections.abc import Iterator, Sequence

from xretrieval.corpora.manifest import Utterance, meaning
from xretrieval.corpora.readers.findings import Findings, Speakers
from xretrieval.corpora.readers.tables import rows, unquoted
from xretrieval.errors import UserError
from xretrieval.languages import Language, language

TABLES = {"train": "train.tsv", "validation": "dev.tsv", "test": "test.tsv", "validated": "validated.tsv"}
_SUFFIXES = (".mp3", ".wav", ".flac", ".ogg", ".opus", ".m4a", "")


def read(
    source: str | os.PathLike, findings: Findings, languages: Sequence[str] = (), splits: Sequence[str] = ("train", "validation", "test")
) -> Iterator[Utterance]:
    """Recordings with what was read aloud.

    Args:
      source: a folder of language folders (`de/`, `sv-SE/`), one that holds such a folder (`cv-corpus-17.0-2024-03-15/`), or one of them.
      findings: is told of what is skipped: a line that cannot be read, a clip that is not there, one named twice.
      languages: any forms that `xretrieval.languages` knows, or names of folders; none: all that are there.
      splits: of `TABLES`; `validated` holds the other three, and more.

    Yields:
      Utterances without a translation, their `sentence_id` a hash of the sentence: `sentence_id` of the newer tables differs where the same
      sentence was entered twice.

    Raises:
      UserError: a folder, a table or a column is missing.
    """
    for split in splits:
        if split not in TABLES:
            raise UserError(f"split {split}: Common Voice has {', '.join(TABLES)}")
    for folder, row in language_folders(source, languages, TABLES[splits[0]], findings):
        speakers = Speakers(findings)
        for split in splits:
            yield from _split(folder, row, split, speakers, findings)


def _split(folder: pathlib.Path, row: Language, split: str, speakers: Speakers, findings: Findings) -> Iterator[Utterance]:
    clips, taken = folder / "clips", set()
    table = folder / TABLES[split]
    for place, (path, sentence, speaker) in rows(table, findings, ("path", "sentence"), ("client_id",), escaped=True):
        if path in taken:
            findings.skip("the clip is already in this split", place, path)
            continue
        taken.add(path)
        audio = find_clip(clips, path)
        if audio is None:
            findings.skip("the clip is not there", place, os.path.join(clips, path))
            continue
        if not sentence.strip():
            findings.doubt("the sentence is empty: the clip can be found, but not trained on", place, path)
        # `validated` holds the other splits: its speakers are in them by what it is.
        if split != "validated":
            speakers.add(speaker, split, place)
        name = clip_name(path)
        text = clean(sentence)
        yield Utterance(
            id=f"common_voice.{folder.name}.{name}" if split != "validated" else f"common_voice.{folder.name}.validated.{name}",
            sentence_id=meaning(text) or f"common_voice.{folder.name}.{name}",
            audio=audio,
            text=text,
            language=row.code,
            speaker=speaker,
            split=split,
        )


def language_folders(
    source: str | os.PathLike, languages: Sequence[str], needed: str, findings: Findings
) -> list[tuple[pathlib.Path, Language]]:
    """The folders of the languages asked for, or all, of those that hold the file `needed`.

    Raises:
      UserError: none of a language, or several.
    """
    source = pathlib.Path(os.path.abspath(source))
    found: dict[str, list[pathlib.Path]] = {}
    for path in sorted([*source.glob(needed), *source.glob(f"*/{needed}"), *source.glob(f"*/*/{needed}")]):
        found.setdefault(path.parent.name, []).append(path.parent)
    for name, folders in found.items():
        if len(folders) > 1:
            raise UserError(f"{source}: {' and '.join(map(str, folders))} are both Common Voice in {name}; give the folder of one release")
    known = {name: row for name in found if (row := _known(name))}
    if not languages:
        for name in found.keys() - known.keys():
            findings.doubt("the folder is of a language that is not of FLEURS: not read", str(found[name][0]))
        if not known:
            raise UserError(
                f"{source}: holds no {needed} in a folder of a language, such as {source / 'de' / needed}; give Common Voice's folder"
            )
        return [(found[name][0], row) for name, row in known.items()]
    return [_folder_of(asked, source, {name: found[name][0] for name in found}, known, needed) for asked in languages]


def _folder_of(
    asked: str, source: pathlib.Path, found: dict[str, pathlib.Path], known: dict[str, Language], needed: str
) -> tuple[pathlib.Path, Language]:
    row = language(asked)
    names = [asked] if asked in known else [name for name in known if known[name] == row]
    if not names:
        raise UserError(
            f"{source}: no {needed} for {row.name} (a folder such as {row.covost2 or row.bcp47}); there are {', '.join(found) or 'none'}"
        )
    if len(names) > 1:
        raise UserError(f"{source}: {' and '.join(names)} are both {row.name}; ask for one by its folder's name")
    return found[names[0]], row


def _known(name: str) -> Language | None:
    try:
        return language(name)
    except UserError:
        return None


def find_clip(clips: pathlib.Path, path: str) -> str | None:
    """The sound file of a table's `path`, which older releases write without a suffix; None where there is none."""
    if os.path.isabs(path) or ".." in pathlib.PurePath(path).parts or not path:
        return None
    whole = os.path.join(clips, path)
    stem = os.path.splitext(whole)[0]
    return next((name for name in (whole, *(stem + suffix for suffix in _SUFFIXES)) if os.path.isfile(name)), None)


def clip_name(path: str) -> str:
    """What identifies a clip: its path without a suffix."""
    return os.path.splitext(path)[0]


def clean(sentence: str) -> str:
    """A sentence as it was before tables were made of it."""
    return unquoted(sentence.strip()).strip()
