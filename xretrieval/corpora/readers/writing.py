"""From a corpus on disk to one manifest, with an account of what is in it, what is not, and why."""

import collections
import contextlib
import dataclasses
import inspect
import os
import pathlib
from collections.abc import Callable, Iterator

from xretrieval.corpora.manifest import Utterance, write_manifest
from xretrieval.corpora.readers import common_voice, covost2, fleurs, moses, wikimatrix
from xretrieval.corpora.readers.findings import Findings
from xretrieval.errors import UserError, write_json

READERS: dict[str, Callable[..., Iterator[Utterance]]] = {
    "common_voice": common_voice.read,
    "covost2": covost2.read,
    "fleurs": fleurs.read,
    "moses": moses.read,
    "wikimatrix": wikimatrix.read,
}


@dataclasses.dataclass(frozen=True)
class Summary:
    """What became of a corpus.

    Attributes:
      manifest: its path.
      utterances: by language and split.
      translations: how many of them have one.
      findings: what was skipped, doubtful, or not asked for.
      listed: the file with a line for each that was skipped or doubtful; None where there is none.
    """

    manifest: str
    utterances: dict[tuple[str, str], int]
    translations: int
    findings: Findings
    listed: str | None

    def lines(self) -> list[str]:
        """For a person: counts, then each reason with its first places."""
        count = sum(self.utterances.values())
        found = [f"{self.manifest}: {count:,} utterances, {self.translations:,} with a translation"]
        found += [f"  {language} {split}: {number:,}" for (language, split), number in sorted(self.utterances.items())]
        for kind, reasons in (("skipped", self.findings.skipped), ("taken, but", self.findings.doubts)):
            found += [
                f"  {kind}: {number:,} x {reason} ({'; '.join(self.findings.places[reason])}{'; …' if number > 3 else ''})"
                for reason, number in reasons.most_common()
            ]
        found += [f"  left out: {number:,} x {reason}" for reason, number in self.findings.left_out.most_common()]
        return found + ([f"  what was skipped or is doubtful, line by line: {self.listed}"] if self.listed else [])


def write(corpus: str, source: str | os.PathLike, out: str | os.PathLike, **arguments) -> Summary:
    """Writes the manifest of a corpus, `NAME.jsonl`; `NAME.summary.json` and `NAME.findings.jsonl` beside it say what is in it and what not.

    Args:
      corpus: one of `READERS`.
      source: the folder, as the reader of that corpus wants it.
      out: the manifest; it and its account are written whole or not at all.
      arguments: of the reader (`languages`, `splits`, `into`, `threshold`, `text`, `audio_dir`); None is as if not given. `audio_dir` is
        `audio` beside the manifest where it is not given.

    Raises:
      UserError: as the reader; an argument that the corpus has no use for; or no utterance at all.
    """
    path = pathlib.Path(out)
    if path.suffix != ".jsonl":
        raise UserError(f"{out}: a manifest is written as JSON lines; let its name end in .jsonl")
    read, given = _reader(corpus, arguments)
    if "audio_dir" in inspect.signature(read).parameters:
        given.setdefault("audio_dir", path.parent / "audio")
    utterances: collections.Counter[tuple[str, str]] = collections.Counter()
    translations = 0

    def counted(found: Iterator[Utterance]) -> Iterator[Utterance]:
        nonlocal translations
        for utterance in found:
            utterances[utterance.language, utterance.split] += 1
            translations += utterance.translation is not None
            yield utterance
        if not utterances:
            raise UserError(f"{source}: no utterance of {corpus} was found{_first(findings)}")

    listed = path.with_suffix(".findings.jsonl")
    with _listing(listed) as findings:
        write_manifest(path, counted(read(source, findings, **given)))
    summary = Summary(os.fspath(out), dict(utterances), translations, findings, os.fspath(listed) if listed.exists() else None)
    write_json(path.with_suffix(".summary.json"), _record(corpus, given, summary))
    return summary


def _reader(corpus: str, arguments: dict) -> tuple[Callable[..., Iterator[Utterance]], dict]:
    if corpus not in READERS:
        raise UserError(f"corpus {corpus}: there is none of that name; there are {', '.join(READERS)}")
    read = READERS[corpus]
    given = {name: value for name, value in arguments.items() if value is not None}
    # A corpus without splits is one for training.
    if "splits" not in inspect.signature(read).parameters and list(given.get("splits", [])) == ["train"]:
        del given["splits"]
    others = given.keys() - inspect.signature(read).parameters.keys()
    if others:
        known = [name for name in inspect.signature(read).parameters if name not in ("source", "findings")]
        raise UserError(f"{corpus} has no use for {', '.join(sorted(others))}; leave it out. It takes {', '.join(known)}")
    return read, given


def _first(findings: Findings) -> str:
    reasons = findings.skipped.most_common(1) or findings.left_out.most_common(1)
    return "".join(f": {number:,} x {reason} ({'; '.join(findings.places.get(reason, []))})" for reason, number in reasons)


@contextlib.contextmanager
def _listing(path: pathlib.Path) -> Iterator[Findings]:
    """Findings that become a file, whole or not at all; none where there are none."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "w", encoding="utf-8") as file:
            yield Findings(file)
        if temporary.stat().st_size:
            os.replace(temporary, path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); free space or give another folder") from error
    finally:
        temporary.unlink(missing_ok=True)


def _record(corpus: str, given: dict, summary: Summary) -> dict:
    findings = summary.findings
    return {
        "corpus": corpus,
        "arguments": {name: list(value) if isinstance(value, (list, tuple)) else str(value) for name, value in given.items()},
        "utterances": {f"{language} {split}": number for (language, split), number in sorted(summary.utterances.items())},
        "translations": summary.translations,
        "skipped": dict(findings.skipped),
        "doubts": dict(findings.doubts),
        "left_out": dict(findings.left_out),
    }
