"""What the tasks of all corpora share: their names, the prefixes of their sides, and how they are registered.

{corpus}.speech_to_text.de_de       spoken German -> its transcript
{corpus}.speech_to_english.de_de    spoken German -> English text
{corpus}.text_to_english.de_de      its transcript -> English text
{corpus}.text_to_text.de_de.en_us   German text -> English text, of a corpus of texts
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import seqio
import tensorflow as tf

from tasks.vocabulary import ExtendedVocabulary
from xretrieval.data.preprocessors import SPEECH_KINDS, SPEECH_TO_TEXT, TEXT_TO_TEXT
from xretrieval.data.vocabulary import Vocabulary

ENGLISH = "en_us"
Ids = tuple[int, ...]
Step = Callable[[tf.data.Dataset], tf.data.Dataset]


class TaskName(NamedTuple):
    """The parts of a task's name; `languages` is `de_de`, or of a corpus of texts `de_de.en_us`."""

    corpus: str
    kind: str
    languages: str

    @classmethod
    def parse(cls, name: str) -> "TaskName":
        return cls(*name.split(".", 2))

    def __str__(self) -> str:
        return ".".join(self)


class Corpus(Protocol):
    """Where the examples of a corpus come from: unit records, a manifest of texts, or a manifest of recordings.

    Attributes:
      kinds: of pairs that it can give.
      splits: that it has.
    """

    kinds: tuple[str, ...]
    splits: tuple[str, ...]

    def sizes(self, kind: str, split: str) -> dict[str, int]:
        """Lines that can give a pair of a kind, by languages as in `TaskName`; a text that was spoken twice counts twice."""
        ...

    def key(self, languages: str, split: str) -> str:
        """A hash of what the examples of a split are made from."""
        ...

    def examples(self, kind: str, languages: str, split: str) -> Iterator[dict]:
        """Pairs as the first of the task's preprocessors takes them."""
        ...

    def types(self, kind: str) -> dict[str, tf.TensorSpec]:
        """Of `examples`."""
        ...

    def first_steps(self, kind: str) -> list[Step]:
        """Preprocessors that make `inputs` (IDs of units, or text), `targets` (text) and `pair_id` of `examples`."""
        ...


class Source(seqio.FunctionDataSource):
    """One kind and language of a corpus, streamed."""

    def __init__(self, corpus: Corpus, kind: str, languages: str):
        self.corpus, self.kind, self.languages = corpus, kind, languages

        def dataset(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
            return tf.data.Dataset.from_generator(lambda: corpus.examples(kind, languages, split), output_signature=corpus.types(kind))

        super().__init__(dataset, splits=corpus.splits)

    def num_input_examples(self, split: str) -> int:
        return self.corpus.sizes(self.kind, split).get(self.languages, 0)

    def key(self, split: str) -> str:
        """A hash of what the examples of a split are made from."""
        return self.corpus.key(self.languages, split)


def prefixes(kind: str, languages: str, vocabulary: Vocabulary, named: str | None = None) -> tuple[Ids, Ids]:
    """Prefix IDs of both sides of a task: each side's own language and modality.

    Args:
      kind, languages: as in `TaskName`.
      vocabulary: makes them.
      named: a language that both sides name instead of the task's own; a translation keeps its.
    """
    language, _, target = languages.partition(".")
    if kind == SPEECH_TO_TEXT:
        target = language
    elif kind != TEXT_TO_TEXT:
        target = ENGLISH
    sides = ((language, "speech" if kind in SPEECH_KINDS else "text"), (target, "text"))
    left, right = (
        tuple(vocabulary.encode_prefix(named if named and code == language else code, modality).tolist()) for code, modality in sides
    )
    return left, right


def suffixes(vocabulary: Vocabulary) -> tuple[Ids, Ids]:
    """Suffix IDs of both sides of a task: what an imported LLM's tokenizer ends a text with."""
    return vocabulary.end_ids, vocabulary.end_ids


def add_prefixes(
    dataset: tf.data.Dataset, input_prefix: Ids, target_prefix: Ids, input_suffix: Ids = (), target_suffix: Ids = ()
) -> tf.data.Dataset:
    """Frames both sides of every example: the prefix in front, the suffix behind."""

    def framed(prefix, tokens_L, suffix):
        return tf.concat([tf.constant(prefix, tf.int32), tokens_L, tf.constant(suffix, tf.int32)], 0)

    def add(example):
        inputs = framed(input_prefix, example["inputs"], input_suffix)
        return {**example, "inputs": inputs, "targets": framed(target_prefix, example["targets"], target_suffix)}

    return dataset.map(add)


def register(name: str, corpus: Corpus, vocabulary: Vocabulary, kinds: Sequence[str] | None = None) -> list[str]:
    """Registers the tasks of a corpus, one a kind and language with training pairs, and returns their names.

    Registering again replaces: a process may serve several vocabularies (the test suite does).
    """
    feature = seqio.Feature(ExtendedVocabulary(vocabulary), add_eos=False)
    names = []
    for kind in kinds or corpus.kinds:
        for languages in sorted(code for code, size in corpus.sizes(kind, "train").items() if size):
            frame = (*prefixes(kind, languages, vocabulary), *suffixes(vocabulary))
            arguments = ("input_prefix", "target_prefix", "input_suffix", "target_suffix")
            task = str(TaskName(name, kind, languages))
            seqio.TaskRegistry.remove(task)
            seqio.TaskRegistry.add(
                task,
                source=Source(corpus, kind, languages),
                preprocessors=[
                    *corpus.first_steps(kind),
                    functools.partial(seqio.preprocessors.tokenize, copy_pretokenized=False),
                    seqio.CacheDatasetPlaceholder(),
                    functools.partial(add_prefixes, **dict(zip(arguments, frame, strict=True))),
                ],
                output_features={"inputs": feature, "targets": feature},
            )
            names.append(task)
    return names
