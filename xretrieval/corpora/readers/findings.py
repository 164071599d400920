"""What a reader met on its way: nothing of a corpus is left out or taken with a doubt without a line about it."""

import collections
import json
from typing import TextIO


class Findings:
    """Counts by reason, and a line for each finding where there is a file for them.

    Attributes:
      skipped: lines of the corpus that no utterance was made of, though they were asked for.
      doubts: of utterances that were made all the same, or of the corpus as a whole.
      left_out: what was not asked for, such as another split; counted, not listed.
      places: the first few places of each reason.
    """

    def __init__(self, listed: TextIO | None = None):
        self.skipped: collections.Counter[str] = collections.Counter()
        self.doubts: collections.Counter[str] = collections.Counter()
        self.left_out: collections.Counter[str] = collections.Counter()
        self.places: dict[str, list[str]] = {}
        self._listed = listed

    def skip(self, reason: str, place: str, what: str = "") -> None:
        """A line is not taken; `place` is its file and line, `what` the thing in question."""
        self._add("skipped", self.skipped, reason, place, what)

    def doubt(self, reason: str, place: str, what: str = "") -> None:
        """As `skip`, of what is taken all the same."""
        self._add("doubt", self.doubts, reason, place, what)

    def leave_out(self, reason: str, count: int = 1) -> None:
        self.left_out[reason] += count

    def _add(self, kind: str, counts: collections.Counter[str], reason: str, place: str, what: str) -> None:
        counts[reason] += 1
        first = self.places.setdefault(reason, [])
        if len(first) < 3:
            first.append(f"{place}: {what}" if what else place)
        if self._listed:
            self._listed.write(json.dumps({"kind": kind, "reason": reason, "place": place, "what": what}, ensure_ascii=False) + "\n")


class Speakers:
    """Which split each speaker is in; one who is in two is a doubt, once."""

    def __init__(self, findings: Findings):
        self._findings, self._splits = findings, dict[str, set[str]]()

    def add(self, speaker: str, split: str, place: str) -> None:
        splits = self._splits.setdefault(speaker, set())
        if speaker and split not in splits:
            splits.add(split)
            if len(splits) > 1:
                self._findings.doubt(f"a speaker is in the splits {' and '.join(sorted(splits))}", place, speaker)
