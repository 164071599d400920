"""Examples from a manifest of recordings: the unit tokenizer is a preprocessor, in front of the cache placeholder.

For a corpus that is small or still changing. The IDs are those of tasks over unit records, which `xretrieval units extract` makes with
many workers, and which list what cannot be read instead of stopping there.
"""

import functools
import hashlib
import math
import os
from collections.abc import Iterable, Iterator

import numpy as np
import tensorflow as tf

from tasks import manifest_index
from tasks.task import Step
from xretrieval.corpora.audio import load_audio
from xretrieval.data.preprocessors import SPEECH_KINDS, SPEECH_TO_ENGLISH, SPEECH_TO_TEXT, TEXT_TO_ENGLISH, Sentence, to_pairs
from xretrieval.data.vocabulary import Vocabulary
from xretrieval.errors import UserError
from xretrieval.units.recordings import stamp
from xretrieval.units.tokenizer import UnitTokenizer

# Sound that is encoded together.
_WINDOW_SAMPLES = 120 * 16_000


class Recordings:
    """A corpus of recordings.

    Args:
      directory: of manifests, one a split.
      vocabulary: units enter its ID space.
      tokenizer: sound to units.
      splits: those of the manifests that are to be used; `train` has to be there.
    """

    kinds = (SPEECH_TO_TEXT, SPEECH_TO_ENGLISH, TEXT_TO_ENGLISH)

    def __init__(self, directory: str, vocabulary: Vocabulary, tokenizer: UnitTokenizer, splits: tuple[str, ...]):
        self.directory, self.vocabulary, self.tokenizer = directory, vocabulary, tokenizer
        self.splits = tuple(split for split in splits if split == "train" or manifest_index.has_manifest(directory, split))

    def _manifest(self, split: str) -> str:
        return os.path.join(self.directory, split)

    def sizes(self, kind: str, split: str) -> dict[str, int]:
        found = manifest_index.counts(self._manifest(split))
        return found.with_text if kind == SPEECH_TO_TEXT else found.with_english

    def key(self, languages: str, split: str) -> str:
        manifest = self._manifest(split)
        sounds = stamp(list(manifest_index.sentences_of(manifest, languages)))
        return hashlib.sha256(f"{manifest_index.counts(manifest).sha256} {self.tokenizer.fingerprint} {sounds}".encode()).hexdigest()

    def examples(self, kind: str, languages: str, split: str) -> Iterator[dict]:
        utterances = manifest_index.sentences_of(self._manifest(split), languages)
        for pair in to_pairs((Sentence.of(u, u.english, (u.recording, u.start, u.duration)) for u in utterances), kind):
            if kind not in SPEECH_KINDS:
                yield pair
                continue
            file, start, duration = pair["inputs"]
            places = {"start": math.nan if start is None else start, "duration": math.nan if duration is None else duration}
            yield {**pair, "inputs": file, **places}

    def types(self, kind: str) -> dict[str, tf.TensorSpec]:
        texts = {name: tf.TensorSpec([], tf.string) for name in ("inputs", "targets")}
        places = {name: tf.TensorSpec([], tf.float64) for name in ("start", "duration")} if kind in SPEECH_KINDS else {}
        return {**texts, **places, "pair_id": tf.TensorSpec([], tf.int64)}

    def first_steps(self, kind: str) -> list[Step]:
        return [functools.partial(to_units, tokenizer=self.tokenizer, vocabulary=self.vocabulary)] if kind in SPEECH_KINDS else []


def to_units(dataset: tf.data.Dataset, tokenizer: UnitTokenizer, vocabulary: Vocabulary) -> tf.data.Dataset:
    """Replaces `inputs`, a file, `start` and `duration`, in seconds or NaN, by `inputs`, the IDs of its units, int32 [F]."""

    def examples():
        for window in _windows(dataset.as_numpy_iterator()):
            units = tokenizer.encode_all([samples_T for _, samples_T in window])
            for (example, _), units_F in zip(window, units, strict=True):
                if not len(units_F):
                    raise UserError(f"{example['inputs'].decode()}: so short a sound gives no unit; leave it out of the manifest")
                yield {"inputs": vocabulary.encode_units(units_F), "targets": example["targets"], "pair_id": example["pair_id"]}

    types = {"inputs": tf.TensorSpec([None], tf.int32), "targets": tf.TensorSpec([], tf.string), "pair_id": tf.TensorSpec([], tf.int64)}
    return tf.data.Dataset.from_generator(examples, output_signature=types)


def _windows(examples: Iterable[dict]) -> Iterator[list[tuple[dict, np.ndarray]]]:
    """Examples with their sound, in order, some minutes at a time."""
    window: list[tuple[dict, np.ndarray]] = []
    held = 0
    for example in examples:
        start, duration = (None if math.isnan(example[name]) else float(example[name]) for name in ("start", "duration"))
        samples_T = load_audio(example["inputs"].decode(), start, duration)
        if window and held + len(samples_T) > _WINDOW_SAMPLES:
            yield window
            window, held = [], 0
        window.append((example, samples_T))
        held += len(samples_T)
    if window:
        yield window
