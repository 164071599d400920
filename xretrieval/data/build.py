"""`data build`: runs every task of a mixture once, up to its cache placeholder, into token records; and the text tokenizer."""

import hashlib
import itertools
import json
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from xretrieval.corpora import shards
from xretrieval.corpora.manifest import read_manifest
from xretrieval.data import records
from xretrieval.data.text_tokenizer import prefix_pieces, train_text_tokenizer
from xretrieval.data.vocabulary import DEFAULT_TEMPLATE, Vocabulary
from xretrieval.errors import UserError, read_json, write_json
from xretrieval.progress import track

if TYPE_CHECKING:
    import seqio
    import tensorflow as tf

EXAMPLES_A_SHARD = 50_000
_UNKNOWN_TOTAL = 0


def text_tokenizer(
    manifests: Sequence[str],
    out_file: str,
    vocab_size: int | None = 1000,
    prefix_languages: Sequence[str] = (),
    template: str = DEFAULT_TEMPLATE,
    fold_case: bool = False,
) -> str:
    """Trains the text tokenizer on the `text` and `translation` fields of manifests; returns its path.

    One that is there, trained on the same texts with the same settings (`<out_file>.json` says on which), stays.

    The prefixes of the manifests' languages (and of `prefix_languages`) become two pieces each: the language and the modality.
    """
    if (pathlib.Path(out_file).parent / "xretrieval.json").exists():
        raise UserError(f"{out_file}: belongs to a trained model; leave `data tokenizer` out to use it, or set text_tokenizer.out_file")
    utterances = [u for manifest in manifests for u in read_manifest(manifest)]
    texts = dict.fromkeys(t for u in utterances for t in (u.text, u.translation) if t)
    codes = (
        {u.language for u in utterances} | {u.translation_language for u in utterances if u.translation_language} | set(prefix_languages)
    )
    pieces = sorted({piece for code in codes for piece in prefix_pieces(template, code)})
    key = hashlib.sha256(json.dumps([list(texts), pieces, vocab_size, fold_case]).encode()).hexdigest()
    made_from = pathlib.Path(f"{out_file}.json")
    if made_from.exists() and os.path.exists(out_file) and read_json(made_from)["key"] == key:
        return out_file
    made_from.unlink(missing_ok=True)
    train_text_tokenizer(texts, out_file, vocab_size, pieces, fold_case)
    languages = {code: sum(u.language == code for u in utterances) for code in sorted({u.language for u in utterances})}
    write_json(made_from, {"key": key, "texts_by_language": languages, "vocab_size": vocab_size})
    return out_file


def build_key(task: str, split: str, vocabulary_fingerprint: str, source_key: str) -> str:
    """What a task's records were made from."""
    return hashlib.sha256(f"{task} {split} {vocabulary_fingerprint} {source_key}".encode()).hexdigest()


def build_records(mixture: "seqio.Mixture", vocabulary: Vocabulary, out_dir: str, splits: Sequence[str] = ("train", "validation")) -> dict:
    """Writes the token records of every task and split that it has; records that are there under the same build key stay.

    Returns:
      {task: {split: number of examples}}.
    """
    tasks = sorted(mixture.tasks, key=lambda task: task.name)
    jobs = [(task, split) for split in splits for task in tasks if split in task.splits]
    counts: dict[str, dict[str, int]] = {task.name: {} for task in tasks}
    for task, split in track(jobs, len(jobs), "token records"):
        key = build_key(task.name, split, vocabulary.fingerprint, task.source.key(split))
        counts[task.name][split] = _build_task(task, split, task_dir(out_dir, task.name, split), key, vocabulary)
    return counts


def open_records(out_dir: str, task: "seqio.Task", split: str, vocabulary: Vocabulary) -> records.TaskRecords:
    """The token records of a task.

    Raises:
      UserError: there are none, or they were made with another text tokenizer or from other data: their IDs would mean something else.
    """
    found = records.TaskRecords(task_dir(out_dir, task.name, split))
    if found.key != build_key(task.name, split, vocabulary.fingerprint, task.source.key(split)):
        raise UserError(
            f"{found.directory}: these token records were made with another text tokenizer, or from other units or texts, than this run's; run "
            f"`xretrieval data build` again, or give another records_dir"
        )
    return found


def task_dir(out_dir: str, task: str, split: str) -> str:
    return os.path.join(out_dir, task, split)


def _build_task(task: "seqio.Task", split: str, directory: str, key: str, vocabulary: Vocabulary) -> int:
    if os.path.exists(os.path.join(directory, "records.json")):
        existing = records.TaskRecords(directory)
        if existing.key == key:
            return len(existing)
    try:
        pathlib.Path(directory).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{directory}: cannot be written ({error.strerror}); give another folder") from error
    unknown = 0
    lengths: list[np.ndarray] = []
    sizes: list[int] = []
    dataset = task.preprocess_precache(task.source.get_dataset(split, shuffle=False))
    for block in _blocks(run_dataset(dataset, f"task {task.name}, {split}")):
        unknown += sum(vocabulary.has_unknown(e[side]) for e in block for side in ("inputs", "targets"))
        lengths.append(np.array([(len(e["inputs"]), len(e["targets"])) for e in block], np.int64))
        packed = [records.pack(e["inputs"], e["targets"], int(e["pair_id"])) for e in block]
        # How many shards there will be is not known yet, and the examples of a task of millions are never all in memory.
        shards.commit_shard(directory, len(sizes), _UNKNOWN_TOTAL, key, packed, {})
        sizes.append(len(block))
    for index in range(len(sizes)):
        for path in (shards.data_path, shards.marker_path):
            os.replace(path(directory, index, _UNKNOWN_TOTAL), path(directory, index, len(sizes)))
    if unknown:
        print(f"{task.name}, {split}: {unknown} of {2 * sum(sizes)} sides hold characters that the text tokenizer does not know")
    records.write_index(directory, key, sizes, np.concatenate([np.empty((0, 2), np.int64), *lengths]))
    return sum(sizes)


def _blocks(examples: Iterator[dict]) -> Iterator[list[dict]]:
    while block := list(itertools.islice(examples, EXAMPLES_A_SHARD)):
        yield block


def run_dataset(dataset: "tf.data.Dataset", what: str) -> Iterator[dict]:
    """The examples of a dataset as NumPy; what our own functions raise in it is a UserError that names `what`."""
    import tensorflow as tf

    try:
        yield from dataset.as_numpy_iterator()
    except tf.errors.OpError as error:
        # What our own functions raise inside a graph, TensorFlow hands on as text, with its trace.
        ours = re.search(r"UserError: (.+)", error.message)
        if not ours:
            raise
        raise UserError(f"{what}: {ours[1]}") from error
