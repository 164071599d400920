"""Tasks over unit records: one a language and kind, and their mixture.

{name}.speech_to_text.de_de   spoken German -> its transcript
{name}.text_to_english.de_de  German text -> English text
"""

import functools
import os

import seqio
import tensorflow as tf

from tasks.vocabulary import ExtendedVocabulary
from xretrieval.data import preprocessors
from xretrieval.data.vocabulary import Vocabulary
from xretrieval.errors import UserError
from xretrieval.units.extract import UnitRecord, read_index, read_unit_records

FEATURE_TYPES = {
    preprocessors.SPEECH_TO_TEXT: {"inputs": tf.TensorSpec([None], tf.int32), "targets": tf.TensorSpec([], tf.string)},
    preprocessors.TEXT_TO_ENGLISH: {"inputs": tf.TensorSpec([], tf.string), "targets": tf.TensorSpec([], tf.string)},
}


@functools.lru_cache(maxsize=1)
def _by_language(directory: str, key: str) -> dict[str, list[UnitRecord]]:
    """One pass over a split serves the tasks of all its languages; `key` tells one extraction from the next."""
    found: dict[str, list[UnitRecord]] = {}
    for record in read_unit_records(directory):
        found.setdefault(record.utterance.language, []).append(record)
    return found


def source(records_dir: str, kind: str, language: str, vocabulary: Vocabulary, splits: tuple[str, ...]) -> seqio.FunctionDataSource:
    """The pairs of one language and kind, streamed from `records_dir`/<split>."""

    def dataset(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
        def examples():
            directory = os.path.join(records_dir, split)
            records = _by_language(directory, read_index(directory)["key"])
            yield from preprocessors.to_pairs(records.get(language, ()), kind, vocabulary)

        return tf.data.Dataset.from_generator(examples, output_signature={**FEATURE_TYPES[kind], "pair_id": tf.TensorSpec([], tf.int64)})

    return seqio.FunctionDataSource(dataset, splits=splits)


def prefixes(kind: str, language: str, vocabulary: Vocabulary) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Prefix IDs of both sides of a task."""
    modality, target = ("speech", language) if kind == preprocessors.SPEECH_TO_TEXT else ("text", "en_us")
    return tuple(vocabulary.encode_prefix(language, modality).tolist()), tuple(vocabulary.encode_prefix(target, "text").tolist())


def suffixes(vocabulary: Vocabulary) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Suffix IDs of both sides of a task: what an imported LLM's tokenizer ends a text with."""
    return vocabulary.end_ids, vocabulary.end_ids


def add_prefixes(
    dataset: tf.data.Dataset,
    input_prefix: tuple[int, ...],
    target_prefix: tuple[int, ...],
    input_suffix: tuple[int, ...] = (),
    target_suffix: tuple[int, ...] = (),
) -> tf.data.Dataset:
    """Frames both sides of every example: the prefix in front, the suffix behind."""

    def framed(prefix, tokens_L, suffix):
        return tf.concat([tf.constant(prefix, tf.int32), tokens_L, tf.constant(suffix, tf.int32)], 0)

    def add(example):
        inputs = framed(input_prefix, example["inputs"], input_suffix)
        return {**example, "inputs": inputs, "targets": framed(target_prefix, example["targets"], target_suffix)}

    return dataset.map(add)


def languages_of(records_dir: str, kind: str, split: str = "train") -> list[str]:
    """Languages with training pairs of a kind: recordings with text, or texts with an English translation."""
    counts = read_index(os.path.join(records_dir, split))["with_text" if kind == preprocessors.SPEECH_TO_TEXT else "with_english"]
    return sorted(code for code, count in counts.items() if count)


def register(name: str, records_dir: str, vocabulary: Vocabulary, rates: dict[str, float], splits: tuple[str, ...]) -> seqio.Mixture:
    """Registers every task with a rate, and their mixture `name`; a kind's rate is shared equally by its languages.

    Registering again replaces: a process may serve several vocabularies (the test suite does).
    """
    features = {
        "inputs": seqio.Feature(ExtendedVocabulary(vocabulary), add_eos=False),
        "targets": seqio.Feature(ExtendedVocabulary(vocabulary), add_eos=False),
    }
    if not isinstance(rates, dict) or rates.keys() - set(preprocessors.KINDS):
        raise UserError(f"mixture.rates = {rates!r}: give a dictionary of rates for {' and '.join(preprocessors.KINDS)}")
    task_rates = []
    for kind, rate in rates.items():
        languages = languages_of(records_dir, kind) if rate else []
        if rate and not languages:
            print(f"no {kind} pairs in {records_dir}: the mixture goes without")
        for language in languages:
            task = f"{name}.{kind}.{language}"
            frame = (*prefixes(kind, language, vocabulary), *suffixes(vocabulary))
            names = ("input_prefix", "target_prefix", "input_suffix", "target_suffix")
            seqio.TaskRegistry.remove(task)
            seqio.TaskRegistry.add(
                task,
                source=source(records_dir, kind, language, vocabulary, splits),
                preprocessors=[
                    functools.partial(seqio.preprocessors.tokenize, copy_pretokenized=False),
                    seqio.CacheDatasetPlaceholder(),
                    functools.partial(add_prefixes, **dict(zip(names, frame, strict=True))),
                ],
                output_features=features,
            )
            task_rates.append((task, rate / len(languages)))
    if not task_rates:
        raise UserError(f"{records_dir}: no pairs at all for the mixture {rates}; the manifest's lines need `text`")
    seqio.MixtureRegistry.remove(name)
    return seqio.MixtureRegistry.add(name, task_rates)
