"""Examples from a manifest of texts with their translations, streamed: no sound, no unit records."""

import os
from collections.abc import Iterator

import tensorflow as tf

from tasks import manifest_index
from tasks.task import Step
from xretrieval.data.preprocessors import TEXT_TO_TEXT, Sentence, to_pairs


class Texts:
    """A corpus of texts in two languages.

    Args:
      directory: of manifests, one a split.
      splits: those of them that are to be used; `train` has to be there.
    """

    kinds = (TEXT_TO_TEXT,)

    def __init__(self, directory: str, splits: tuple[str, ...]):
        self.directory = directory
        self.splits = tuple(split for split in splits if split == "train" or manifest_index.has_manifest(directory, split))

    def _manifest(self, split: str) -> str:
        return os.path.join(self.directory, split)

    def sizes(self, kind: str, split: str) -> dict[str, int]:
        return manifest_index.counts(self._manifest(split)).pairs

    def key(self, languages: str, split: str) -> str:
        return manifest_index.counts(self._manifest(split)).sha256

    def examples(self, kind: str, languages: str, split: str) -> Iterator[dict]:
        utterances = manifest_index.sentences_of(self._manifest(split), languages)
        yield from to_pairs((Sentence.of(utterance, utterance.translation) for utterance in utterances), kind)

    def types(self, kind: str) -> dict[str, tf.TensorSpec]:
        return {"inputs": tf.TensorSpec([], tf.string), "targets": tf.TensorSpec([], tf.string), "pair_id": tf.TensorSpec([], tf.int64)}

    def first_steps(self, kind: str) -> list[Step]:
        return []
