"""Examples from unit records: what `xretrieval units extract` wrote, a folder a split."""

import functools
import os
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from tasks.task import Step
from xretrieval.data.preprocessors import SPEECH_KINDS, SPEECH_TO_ENGLISH, SPEECH_TO_TEXT, TEXT_TO_ENGLISH, Sentence, to_pairs
from xretrieval.data.vocabulary import Vocabulary
from xretrieval.errors import UserError
from xretrieval.units.extract import read_index, read_unit_records


class UnitRecords:
    """A corpus of unit records.

    Args:
      directory: a folder a split.
      vocabulary: units enter its ID space.
      fingerprint: of the unit tokenizer that they have to be made with.
      splits: of `directory`.

    Raises:
      UserError: no records for training, or of another unit tokenizer: their IDs would mean something else.
    """

    kinds = (SPEECH_TO_TEXT, SPEECH_TO_ENGLISH, TEXT_TO_ENGLISH)

    def __init__(self, directory: str, vocabulary: Vocabulary, fingerprint: str, splits: tuple[str, ...]):
        self.directory, self.vocabulary, self.fingerprint, self.splits = directory, vocabulary, fingerprint, tuple(splits)

    def _index(self, split: str) -> dict:
        directory = os.path.join(self.directory, split)
        index = read_index(directory)
        if index["fingerprint"] != self.fingerprint:
            raise UserError(f"{directory}: units of another unit tokenizer than this run's; run `xretrieval units extract` with that one")
        return index

    def sizes(self, kind: str, split: str) -> dict[str, int]:
        return self._index(split)["with_text" if kind == SPEECH_TO_TEXT else "with_english"]

    def key(self, languages: str, split: str) -> str:
        return self._index(split)["key"]

    def examples(self, kind: str, languages: str, split: str) -> Iterator[dict]:
        sentences = _by_language(os.path.join(self.directory, split), self.key(languages, split)).get(languages, [])
        for pair in to_pairs(sentences, kind):
            yield {**pair, "inputs": self.vocabulary.encode_units(pair["inputs"])} if kind in SPEECH_KINDS else pair

    def types(self, kind: str) -> dict[str, tf.TensorSpec]:
        inputs = tf.TensorSpec([None], tf.int32) if kind in SPEECH_KINDS else tf.TensorSpec([], tf.string)
        return {"inputs": inputs, "targets": tf.TensorSpec([], tf.string), "pair_id": tf.TensorSpec([], tf.int64)}

    def first_steps(self, kind: str) -> list[Step]:
        return []


@functools.lru_cache(maxsize=1)
def _by_language(directory: str, key: str) -> dict[str, list[Sentence]]:
    """One pass over a split serves the tasks of all its languages; `key` tells one extraction from the next."""
    found: dict[str, list[Sentence]] = {}
    for record in read_unit_records(directory):
        # A tuple of integers is ten times as large, and all recordings of a split are held.
        units_F = np.asarray(record.units, np.int32)
        found.setdefault(record.utterance.language, []).append(Sentence.of(record.utterance, record.utterance.english, units_F))
    return found
