"""`xretrieval data check`: everything that is wrong with a manifest and its sound files, by line, before hours are spent on it."""

import collections
import concurrent.futures
import dataclasses
import os
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from xretrieval.corpora.audio import SoundInfo, inspect_audio, locate_segment
from xretrieval.corpora.manifest import Utterance, duplicate, scan
from xretrieval.errors import UserError
from xretrieval.progress import track


@dataclasses.dataclass
class Tally:
    """Utterances of one language in one split; `seconds` of sound in them, where `unknown_length` of them have no known length."""

    utterances: int = 0
    seconds: float = 0.0
    unknown_length: int = 0


@dataclasses.dataclass
class Report:
    """What a manifest holds.

    Attributes:
      path: of the manifest.
      problems: what stops a later stage, each `file:line: field and reason`, in the order of lines.
      warnings: what a later stage can work with but a person may not have meant, in the same form.
      tallies: by language and split, of the lines without a problem.
    """

    path: str
    problems: list[str]
    warnings: list[str]
    tallies: dict[tuple[str, str], Tally]

    @property
    def utterances(self) -> int:
        return sum(tally.utterances for tally in self.tallies.values())


def check_manifest(path: str | os.PathLike, probe_audio: bool = True) -> Report:
    """Checks every line of a manifest, and decodes every sound file it names to the end.

    Args:
      path: a manifest, as for `read_manifest`.
      probe_audio: False looks only whether the sound files are there (seconds instead of minutes for a large corpus).

    Raises:
      UserError: the manifest itself cannot be read.
    """
    problems: dict[int, str] = {}
    utterances: dict[int, Utterance] = {}
    line_of_id: dict[str, int] = {}
    for line, found in scan(path):
        if isinstance(found, str):
            problems[line.number] = found
            continue
        first = line_of_id.setdefault(found.id, line.number)
        if first == line.number:
            utterances[line.number] = found
        else:
            problems[line.number] = duplicate(found.id, first)
    sounds = _inspect({u.audio for u in utterances.values() if u.audio}, probe_audio)
    tallies: dict[tuple[str, str], Tally] = collections.defaultdict(Tally)
    warnings: dict[int, str] = {}
    for number, utterance in utterances.items():
        try:
            seconds = _seconds(utterance, sounds)
        except UserError as error:
            problems[number] = str(error)
            continue
        tally = tallies[utterance.language, utterance.split]
        tally.utterances += 1
        tally.seconds += seconds or 0.0
        tally.unknown_length += seconds is None
        if not utterance.text:
            warnings[number] = "field text: empty; the recording can be searched, but not trained on or evaluated"
    general = [] if problems or utterances else [f"{path}: the manifest is empty; it needs one line an utterance"]
    return Report(
        path=os.fspath(path),
        problems=general + [f"{path}:{number}: {problems[number]}" for number in sorted(problems)],
        warnings=[f"{path}:{number}: {warnings[number]}" for number in sorted(warnings)] + _leaks(path, utterances.values()),
        tallies=dict(sorted(tallies.items())),
    )


def _inspect(files: set[str], probe_audio: bool) -> dict[str, SoundInfo | UserError | None]:
    """What each file holds, why it cannot be read, or None where it was only seen to be there."""

    def look(file: str) -> SoundInfo | UserError | None:
        try:
            if probe_audio:
                return inspect_audio(file)
            if not os.path.isfile(file) and "://" not in file:
                raise UserError(f"{file}: no such file; correct the field audio, or copy the file there")
        except UserError as error:
            return error
        return None

    names = sorted(files)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(names, track(pool.map(look, names), len(names), "decoding"), strict=True))


def _seconds(utterance: Utterance, sounds: dict[str, SoundInfo | UserError | None]) -> float | None:
    """Length of the utterance, 0 for a text, None where it is not known."""
    if utterance.audio is None:
        return 0.0
    sound = sounds[utterance.audio]
    if isinstance(sound, UserError):
        raise sound
    if sound is None:
        return utterance.duration
    if utterance.sampling_rate not in (None, sound.sampling_rate):
        raise UserError(
            f"field sampling_rate: {utterance.sampling_rate} Hz, but {utterance.audio} has {sound.sampling_rate} Hz; correct it"
        )
    _, frames = locate_segment(utterance.audio, sound, utterance.start, utterance.duration)
    return frames / sound.sampling_rate


def _leaks(path: str | os.PathLike, utterances: Iterable[Utterance]) -> list[str]:
    """Sentences of the training split that other splits hold as well."""
    splits: dict[str, set[str]] = collections.defaultdict(set)
    for utterance in utterances:
        splits[utterance.split].add(utterance.sentence_id)
    training = splits.pop("train", set())
    shared = {split: sorted(training & sentences) for split, sentences in sorted(splits.items()) if training & sentences}
    return [
        f"{path}: split {split} shares {len(both)} values of sentence_id with train, such as {both[0]!r}: its results will flatter"
        for split, both in shared.items()
    ]


def print_report(report: Report, console: Console | None = None) -> None:
    """Prints problems, warnings, and a table of utterances and hours by language and split."""
    console = console or Console()
    for message in [*report.problems, *report.warnings]:
        console.print(message, markup=False, highlight=False, soft_wrap=True)
    if report.tallies:
        table = Table("language", "split", title=f"{report.path}: lines without a problem")
        for column in ("utterances", "hours"):
            table.add_column(column, justify="right")
        for (language, split), tally in report.tallies.items():
            hours = f"{tally.seconds / 3600:.2f}" + (f" + {tally.unknown_length} of unknown length" if tally.unknown_length else "")
            table.add_row(language, split, f"{tally.utterances:,}", hours)
        console.print(table)
    verdict = f"{len(report.problems)} problems, {len(report.warnings)} warnings, {report.utterances:,} utterances without a problem"
    console.print(verdict, highlight=False, soft_wrap=True)
