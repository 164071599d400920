"""What the verbs do where it takes more than one stage. `main.py` configures these functions; imports wait until a verb runs."""

import os
from typing import TYPE_CHECKING, Any, NamedTuple

from xretrieval.errors import UserError

if TYPE_CHECKING:
    from xretrieval.corpora.segments import AudioLimits
    from xretrieval.data.vocabulary import Vocabulary
    from xretrieval.units.tokenizer import UnitTokenizer


def extract_units(
    manifests_dir: str,
    tokenizer_dir: str,
    out_dir: str,
    splits: tuple[str, ...],
    num_shards: int = 8,
    num_workers: int = 2,
    num_decoders: int = 1,
    limits: "AudioLimits | None" = None,
    beam_flags: tuple[str, ...] = (),
    max_failures: int = 0,
):
    """Unit records of every split's manifest; returns the index of each. More than `max_failures` are an error, once all is written.

    On an accelerator: one worker, and as many decoders as there are cores.
    """
    from xretrieval.corpora.segments import AudioLimits
    from xretrieval.units.extract import extract

    indices = {}
    for split in splits:
        out = os.path.join(out_dir, split)
        indices[split] = found = extract(
            os.path.join(manifests_dir, split),
            tokenizer_dir,
            out,
            num_shards,
            num_workers,
            num_decoders,
            limits or AudioLimits(),
            beam_flags,
        )
        print(
            f"{out}: {found['utterances_in']} in = {found['records']} out + {found['failed']} failed, {found['seconds_of_sound']:.0f} s of sound"
        )
        if found["failed"]:
            print(f"  failures are listed in {os.path.join(out, 'failures.jsonl')}")
    failed = sum(found["failed"] for found in indices.values())
    if failed > max_failures:
        raise UserError(
            f"{out_dir}: {failed} recordings failed, see failures.jsonl; mend them and run again, leave them out of the manifest, or set "
            f"extract_units.max_failures={failed}. All others are done"
        )
    return indices


class Mixture(NamedTuple):
    """A seqio.Mixture and what its IDs mean."""

    seqio: Any
    vocabulary: "Vocabulary"
    unit_tokenizer: "UnitTokenizer"


def mixture(
    unit_tokenizer_dir: str,
    tokenizer_file: str,
    rates: dict[str, float],
    corpora: dict[str, str] | None = None,
    texts: dict[str, str] | None = None,
    recordings: dict[str, str] | None = None,
    temperature: float | None = None,
    languages: tuple[str, ...] | None = None,
    name: str = "polyglot",
    template: str | None = None,
    splits: tuple[str, ...] = ("train", "validation"),
):
    """The SeqIO mixture of some corpora, with its vocabulary and unit tokenizer.

    Args:
      unit_tokenizer_dir: the unit tokenizer that unit records were made with.
      tokenizer_file: the text tokenizer, or the model directory of an imported LLM, whose rows, begin and end tokens then count.
      rates: kind of pair, CORPUS.KIND or a task -> rate; see `tasks/mixtures.py`.
      corpora: name of a corpus -> folder of its unit records, a folder a split.
      texts: name of a corpus of texts with translations -> folder of its manifests, one a split.
      recordings: name of a corpus -> folder of its manifests; units are made while `data build` runs.
      temperature: how the tasks of a rate share it: 1 in proportion to their pairs, above 1 nearer to equal; None: equally.
      languages: what is spoken or written in others is not trained on; None: all that there are.
      name: of the mixture.
      template: of the prefix; None: the model directory's, or "[{language} {modality}]".
      splits: the splits to build; texts and recordings may lack all but `train`.
    """
    from tasks import mixtures
    from tasks.recordings import Recordings
    from tasks.texts import Texts
    from tasks.unit_records import UnitRecords
    from xretrieval.data.vocabulary import Vocabulary
    from xretrieval.units.tokenizer import UnitTokenizer

    unit_tokenizer = UnitTokenizer.load(unit_tokenizer_dir)
    vocabulary = Vocabulary.open(tokenizer_file, unit_tokenizer.num_units, template)
    folders = [*(corpora or {}).items(), *(texts or {}).items(), *(recordings or {}).items()]
    if not folders or len(dict(folders)) < len(folders):
        raise UserError("mixture: name each corpus once, in mixture.corpora, mixture.texts or mixture.recordings")
    found: dict[str, Any] = {}
    found |= {corpus: UnitRecords(folder, vocabulary, unit_tokenizer.fingerprint, splits) for corpus, folder in (corpora or {}).items()}
    found |= {corpus: Texts(folder, splits) for corpus, folder in (texts or {}).items()}
    found |= {corpus: Recordings(folder, vocabulary, unit_tokenizer, splits) for corpus, folder in (recordings or {}).items()}
    return Mixture(mixtures.register(name, found, vocabulary, rates, temperature, languages), vocabulary, unit_tokenizer)


def build(mixture: Mixture, out_dir: str) -> None:
    """Token records of a mixture."""
    from xretrieval.data import build as build_lib

    counts = build_lib.build_records(mixture.seqio, mixture.vocabulary, out_dir)
    for task, by_split in counts.items():
        print(f"{task}: " + ", ".join(f"{count} {split}" for split, count in by_split.items()))
    print(f"wrote {out_dir}")


def inspect_task(
    mixture: Mixture, task: str | None = None, split: str = "train", shown: int = 3, sample: int = 20_000, out_dir: str | None = None
) -> None:
    """Looks at the examples of a task of a mixture, as `data.inspect.inspect`; without a name, says what tasks there are."""
    import difflib

    from xretrieval.data.inspect import inspect

    tasks = {found.name: found for found in sorted(mixture.seqio.tasks, key=lambda found: found.name)}
    if task is None:
        for name, found in tasks.items():
            print(f"{name}: {found.num_input_examples('train'):,} train, rate {mixture.seqio.get_rate(found):.6g}")
        return
    if task not in tasks:
        near = difflib.get_close_matches(task, tasks, 1, 0.0)[0]
        raise UserError(
            f"no task {task!r} in this mixture; the nearest is {near!r}, and `xretrieval data inspect` without a name lists them"
        )
    inspect(tasks[task], mixture.vocabulary, split, shown, sample, out_dir)


def training_data(
    mixture: Mixture, records_dir: str, drop_units: float = 0.0, drop_language: float = 0.0, neutral_languages: tuple[str, ...] = ()
):
    """The token records of a mixture as training reads them.

    Args:
      mixture: the mixture.
      records_dir: where `data build` wrote them.
      drop_units: each unit of speech is left out with this probability.
      drop_language: a pair's prefixes name one of `neutral_languages` instead of its own with this probability.
      neutral_languages: languages without training data that the model will meet: their names learn to mean any language.
    """
    from tasks.task import TaskName, prefixes, suffixes
    from xretrieval.data.build import open_records
    from xretrieval.data.pipeline import TaskData
    from xretrieval.data.preprocessors import SPEECH_KINDS
    from xretrieval.model.directory import text_fingerprint
    from xretrieval.train.begin import TrainingData

    if drop_language and not neutral_languages:
        raise UserError("training_data.drop_language is set, but training_data.neutral_languages is empty; name languages or set it to 0")
    tasks = []
    for task in sorted(mixture.seqio.tasks, key=lambda task: task.name):
        _, kind, languages = TaskName.parse(task.name)
        tasks.append(
            TaskData(
                task.name,
                float(mixture.seqio.get_rate(task)),
                open_records(records_dir, task, "train", mixture.vocabulary),
                prefixes(kind, languages, mixture.vocabulary),
                drop_units if kind in SPEECH_KINDS else 0.0,
                drop_language,
                tuple(prefixes(kind, languages, mixture.vocabulary, neutral) for neutral in neutral_languages),
                suffixes(mixture.vocabulary),
            )
        )
    names = [TaskName.parse(task.name) for task in tasks]
    identity = {
        "unit_tokenizer": mixture.unit_tokenizer.fingerprint,
        "vocabulary": mixture.vocabulary.fingerprint,
        "text": text_fingerprint(mixture.vocabulary),
        "trained_languages": sorted({name.languages for name in names if name.kind in SPEECH_KINDS}),
        "records": {task.name: task.records.key for task in tasks},
    }
    vocabulary = mixture.vocabulary
    return TrainingData(tasks, vocabulary.text_size, vocabulary.num_units, identity, mixture.unit_tokenizer.codebook_KW)


def plan_batches(
    workdir: str,
    data,
    num_steps: int,
    batch_size: int = 96,
    row_length: int | None = None,
    rows: int | None = None,
    max_segments: int | None = None,
    seed: int = 0,
    mesh_model: int = 1,
    mesh_replica: int = 1,
    microbatches: int = 1,
    shards: int | None = None,
) -> None:
    """Prints into what rows the batches of a run are packed, and how full these are; `train` finds the plan in the workdir.

    Args:
      shards: data shards of the mesh; None: of this machine's. All other arguments are those of `train`, bound there.
    """
    from xretrieval import mesh as mesh_lib
    from xretrieval.data.plan import plan
    from xretrieval.train.begin import check_whole

    check_whole(num_steps=num_steps, batch_size=batch_size, microbatches=microbatches)
    if shards is None:
        mesh = mesh_lib.make_mesh(mesh_model, mesh_replica)
        mesh_lib.check_batch(batch_size, mesh, microbatches)
        shards = mesh_lib.batch_shards(mesh)
    elif not isinstance(shards, int) or shards < 1:
        raise UserError(f"plan_batches.shards = {shards!r}: give a whole number, 1 or more, or None")
    lengths = [task.lengths() for task in data.tasks]
    cache = os.path.join(workdir, "packing.json")
    print(plan(lengths, batch_size, seed, shards * microbatches, num_steps, row_length, rows, max_segments, cache))


def export(
    workdir: str, unit_tokenizer_dir: str, tokenizer_file: str, out_dir: str, template: str | None = None, step: int | None = None
) -> None:
    """A checkpoint to a model directory; `tokenizer_file` and `template` as in `mixture`."""
    from xretrieval.data.vocabulary import Vocabulary
    from xretrieval.export import export as export_model
    from xretrieval.units.tokenizer import UnitTokenizer

    vocabulary = Vocabulary.open(tokenizer_file, UnitTokenizer.load(unit_tokenizer_dir).num_units, template)
    print(f"wrote {export_model(workdir, vocabulary, unit_tokenizer_dir, out_dir, step)}")


def evaluate(
    model_dir: str, units_dir: str, out_dir: str, split: str = "test", held_out_split: str | None = None, extra: dict | None = None
) -> dict:
    """Evaluates a model directory, prints the table, writes `report.json` and `report.png` to `out_dir`."""
    from xretrieval.evaluate import evaluation, report
    from xretrieval.search.retriever import Retriever
    from xretrieval.units.extract import read_index

    retriever = Retriever.load(model_dir)
    for name in (split, held_out_split):
        if name and read_index(os.path.join(units_dir, name))["fingerprint"] != retriever.unit_fingerprint:
            raise UserError(
                f"{os.path.join(units_dir, name)}: units of another unit tokenizer than {model_dir}'s; extract them with that one"
            )
    seen = retriever.model.trained_languages
    languages = evaluation.evaluate(retriever.encode_units, retriever.encode_text, seen, units_dir, split, held_out_split)
    results = {"headline": report.headline(languages), "languages": languages, **(extra or {})}
    report.print_report(results)
    for path in report.write_report(results, out_dir):
        print(f"wrote {path}")
    return results


def index(model_dir: str, units_dir: str, uri: str, splits: tuple[str, ...] = ("test",)) -> None:
    """Indexes every recording of unit records, and each sentence's text once a language."""
    from xretrieval.search.build import index_records
    from xretrieval.search.retriever import Retriever

    recordings, texts = index_records(Retriever.load(model_dir), [os.path.join(units_dir, split) for split in splits], uri)
    print(f"{recordings} recordings and {texts} texts are in {uri}")
