"""From a task to token records: what the text tokenizer does not know is counted, what has no row stops the build by name."""

import functools

import numpy as np
import pytest
import seqio
import tensorflow as tf
from tokenizers import Tokenizer, models

from tasks.vocabulary import ExtendedVocabulary
from xretrieval.data import build
from xretrieval.data.records import TaskRecords
from xretrieval.data.vocabulary import Vocabulary
from xretrieval.errors import UserError


def vocabulary_and_task(tmp_path, unknown, texts, text_size=None):
    Tokenizer(models.BPE({"?": 0, "a": 1, "b": 2, "c": 3}, [], unk_token="?" if unknown else None)).save(str(tmp_path / "tokenizer.json"))
    vocabulary = Vocabulary(tmp_path / "tokenizer.json", 4, text_size=text_size)

    def dataset(split, shuffle_files, seed=None):
        examples = [{"inputs": vocabulary.encode_units([1, 3]), "targets": text, "pair_id": np.int64(i)} for i, text in enumerate(texts)]
        types = {"inputs": tf.TensorSpec([None], tf.int32), "targets": tf.TensorSpec([], tf.string), "pair_id": tf.TensorSpec([], tf.int64)}
        return tf.data.Dataset.from_generator(lambda: examples, output_signature=types)

    feature = seqio.Feature(ExtendedVocabulary(vocabulary), add_eos=False)
    task = seqio.Task(
        "letters",
        source=seqio.FunctionDataSource(dataset, splits=("train",)),
        output_features={"inputs": feature, "targets": feature},
        preprocessors=[functools.partial(seqio.preprocessors.tokenize, copy_pretokenized=False), seqio.CacheDatasetPlaceholder()],
    )
    return vocabulary, task


@pytest.mark.parametrize("unknown", [True, False])
def test_records_hold_the_ids_and_unknown_characters_are_said(unknown, tmp_path, capsys):
    vocabulary, task = vocabulary_and_task(tmp_path, unknown, ["abc", "cab", "axb"])
    assert build._build_task(task, "train", str(tmp_path / "out"), "key", vocabulary) == 3
    read = TaskRecords(tmp_path / "out").read(np.arange(3))
    targets = [[1, 2, 3], [3, 1, 2], [1, 0, 2] if unknown else [1, 2]]
    assert [(inputs.tolist(), targets.tolist(), pair) for inputs, targets, pair in read] == [([5, 7], t, i) for i, t in enumerate(targets)]
    said = "letters, train: 1 of 6 sides hold characters that the text tokenizer does not know" in capsys.readouterr().out
    assert said == unknown


def test_a_token_without_a_row_names_the_task_and_the_text(tmp_path):
    vocabulary, task = vocabulary_and_task(tmp_path, True, ["ab", "abc"], text_size=3)
    with pytest.raises(UserError, match=r"^task letters, train: 'abc': token 3 has no row in the LLM's table of 3; leave out"):
        build._build_task(task, "train", str(tmp_path / "out"), "key", vocabulary)
    assert not (tmp_path / "out/records.json").exists()
