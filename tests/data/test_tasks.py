"""Tasks of every kind and source: what their examples are, that training reads those very examples, and when they are built again."""

import functools

import packed_batches
import pytest
import seqio
import spoken_corpora

from tasks import manifest_index, mixtures, task
from tasks.recordings import Recordings
from tasks.texts import Texts
from tasks.unit_records import UnitRecords
from xretrieval.corpora.audio import load_audio
from xretrieval.corpora.manifest import read_manifest, write_manifest
from xretrieval.data import build
from xretrieval.data.pipeline import BatchPipeline, TaskData
from xretrieval.data.plan import plan
from xretrieval.data.records import pair_id
from xretrieval.data.vocabulary import Vocabulary
from xretrieval.errors import UserError
from xretrieval.units.tokenizer import UnitTokenizer

SPLITS = ("train", "validation")
RATES = {"covost2.speech_to_text": 2.0, "speech_to_english": 1.0, "text_to_english": 0.5, "fleurs.speech_to_text": 1.0}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpora")
    spoken_corpora.make(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(root):
    return UnitTokenizer.load(root / "unit_tokenizer")


@pytest.fixture(scope="module")
def vocabulary(root):
    return Vocabulary(root / "text/tokenizer.model", 24)


@pytest.fixture(scope="module")
def mixture(root, tokenizer, vocabulary):
    corpora = {
        "covost2": UnitRecords(str(root / "units/covost2"), vocabulary, tokenizer.fingerprint, SPLITS),
        "fleurs": UnitRecords(str(root / "units/fleurs"), vocabulary, tokenizer.fingerprint, SPLITS),
        "wikimatrix": Texts(str(root / "manifests/wikimatrix"), SPLITS),
        "raw": Recordings(str(root / "manifests/covost2"), vocabulary, tokenizer, SPLITS),
    }
    rates = {**RATES, "raw.speech_to_text": 1.0, "text_to_text": 1.0}
    return mixtures.register("all_kinds", corpora, vocabulary, rates, 2.0)


def examples(found, split="train"):
    return list(found.get_dataset(sequence_length=None, split=split, shuffle=False).as_numpy_iterator())


def test_there_is_a_task_a_kind_and_language(mixture):
    names = sorted(found.name for found in mixture.tasks)
    covost2 = [
        f"{kind}.{language}" for kind in ("speech_to_english", "speech_to_text", "text_to_english") for language in ("de_de", "mn_mn")
    ]
    assert [name for name in names if name.startswith("covost2")] == [f"covost2.{name}" for name in covost2]
    assert [name for name in names if name.startswith("raw")] == [f"raw.{name}" for name in covost2]
    fleurs = ["speech_to_english.de_de", "speech_to_text.de_de", "speech_to_text.en_us", "text_to_english.de_de"]
    assert [name for name in names if name.startswith("fleurs")] == [f"fleurs.{name}" for name in fleurs], (
        "English is not translated into itself"
    )
    pairs = ["de_de.en_us", "en_us.fr_fr", "fr_fr.en_us"]
    assert [name for name in names if name.startswith("wikimatrix")] == [f"wikimatrix.text_to_text.{pair}" for pair in pairs]


@pytest.mark.parametrize(
    "name,left,right",
    [
        ("covost2.speech_to_text.de_de", ("de_de", "speech"), ("de_de", "text")),
        ("covost2.speech_to_english.de_de", ("de_de", "speech"), ("en_us", "text")),
        ("covost2.text_to_english.de_de", ("de_de", "text"), ("en_us", "text")),
        ("wikimatrix.text_to_text.en_us.fr_fr", ("en_us", "text"), ("fr_fr", "text")),
    ],
)
def test_an_example_is_what_the_manifest_says(mixture, root, tokenizer, vocabulary, name, left, right):
    corpus = task.TaskName.parse(name).corpus
    lines = [
        u
        for u in read_manifest(root / f"manifests/{corpus}/train")
        if u.language == left[0] and (right[0] in (u.language, u.translation_language))
    ]
    expected = []
    for u in lines:
        ids = vocabulary.encode_text(u.text)
        if left[1] == "speech":
            ids = vocabulary.encode_units(tokenizer.encode(load_audio(u.audio, u.start, u.duration)))
        target = u.text if right[0] == u.language else u.translation
        sides = vocabulary.sequence(ids, *left), vocabulary.sequence(vocabulary.encode_text(target), *right)
        expected.append((*(side.tolist() for side in sides), pair_id(u.sentence_id)))
    found = [(e["inputs"].tolist(), e["targets"].tolist(), int(e["pair_id"])) for e in examples(seqio.get_mixture_or_task(name))]
    assert sorted(found) == sorted(expected)
    assert len(found) == {"covost2": 6, "wikimatrix": 5}[corpus]


def test_a_sentence_that_is_spoken_twice_gives_one_pair_of_texts(mixture):
    assert len(examples(seqio.get_mixture_or_task("fleurs.speech_to_english.de_de"))) == 12
    assert len(examples(seqio.get_mixture_or_task("fleurs.text_to_english.de_de"))) == 6


@pytest.mark.parametrize("kind", ["speech_to_text", "speech_to_english", "text_to_english"])
def test_a_task_over_sound_files_gives_the_ids_of_unit_records(mixture, kind):
    for language in ("de_de", "mn_mn"):
        for split in SPLITS:
            raw, bulk = (
                [(e["inputs"].tolist(), e["targets"].tolist(), int(e["pair_id"])) for e in examples(seqio.get_mixture_or_task(name), split)]
                for name in (f"raw.{kind}.{language}", f"covost2.{kind}.{language}")
            )
            assert sorted(raw) == sorted(bulk)
            assert len(raw) == (6 if split == "train" else 2)


def test_the_unit_step_is_in_front_of_the_cache(mixture):
    steps = [
        step.func if isinstance(step, functools.partial) else step
        for step in seqio.get_mixture_or_task("raw.speech_to_text.de_de").preprocessors
    ]
    assert [getattr(step, "__name__", type(step).__name__) for step in steps] == [
        "to_units",
        "tokenize",
        "CacheDatasetPlaceholder",
        "add_prefixes",
    ]


def test_windows_of_sound_do_not_change_the_ids(mixture, monkeypatch):
    found = seqio.get_mixture_or_task("raw.speech_to_text.de_de")
    together = [e["inputs"].tolist() for e in examples(found)]
    monkeypatch.setattr("tasks.recordings._WINDOW_SAMPLES", 20_000)
    assert [e["inputs"].tolist() for e in examples(found)] == together


def test_training_reads_what_seqio_yields(mixture, vocabulary, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "EXAMPLES_A_SHARD", 5)
    counts = build.build_records(mixture, vocabulary, str(tmp_path), SPLITS)
    assert counts["fleurs.speech_to_text.de_de"] == {"train": 12, "validation": 4}
    assert counts["wikimatrix.text_to_text.de_de.en_us"] == {"train": 30}, "WikiMatrix has no validation split"
    for found in mixture.tasks:
        if "mn_mn" in found.name:  # as German
            continue
        read = build.open_records(str(tmp_path), found, "train", vocabulary)
        _, kind, languages = task.TaskName.parse(found.name)
        data = TaskData(found.name, 1.0, read, task.prefixes(kind, languages, vocabulary), suffixes=task.suffixes(vocabulary))
        shape = plan([data.lengths()], len(read), 0, 1, 1).shape
        pipeline = BatchPipeline([data], len(read), vocabulary.size, 0, 1, shape)
        seen = packed_batches.pairs(pipeline.batch(0), 1, pipeline.shape.num_segments)
        yielded = [(e["inputs"].tolist(), e["targets"].tolist(), int(e["pair_id"])) for e in examples(found)]
        assert sorted(yielded) == sorted((list(left), list(right), pair) for left, right, pair in seen)


def test_the_whole_mixture_is_a_dataset(mixture):
    dataset = mixture.get_dataset(sequence_length={"inputs": 4096, "targets": 4096}, split="train", shuffle=False, num_epochs=1)
    assert len(list(dataset.take(20).as_numpy_iterator())) == 20


def test_neutral_prefixes_name_the_source_language_and_leave_the_translation(vocabulary):
    def words(*arguments):
        return [vocabulary.decode(side).strip() for side in task.prefixes(*arguments)]

    assert words("speech_to_text", "de_de", vocabulary, "fr_fr") == ["[French speech]", "[French text]"]
    assert words("speech_to_english", "de_de", vocabulary, "fr_fr") == ["[French speech]", "[English text]"]
    assert words("text_to_text", "de_de.en_us", vocabulary, "fr_fr") == ["[French text]", "[English text]"]
    assert words("text_to_text", "de_de.fr_fr", vocabulary) == ["[German text]", "[French text]"]


def test_records_are_built_again_when_texts_or_sounds_change(tmp_path, tokenizer, vocabulary):
    spoken_corpora.recordings(tmp_path / "spoken", "train", ["de_de", "fr_fr"], 2)
    spoken_corpora.texts(tmp_path / "written", "train", {("de_de", "en_us"): 3})
    spoken, written = Recordings(str(tmp_path / "spoken"), vocabulary, tokenizer, SPLITS), Texts(str(tmp_path / "written"), SPLITS)
    assert spoken.splits == written.splits == ("train",)
    rates = {"spoken.speech_to_text": 1.0, "written.text_to_text": 1.0}
    mixture = mixtures.register("changing", {"spoken": spoken, "written": written}, vocabulary, rates)
    build.build_records(mixture, vocabulary, str(tmp_path / "records"))
    opened = {
        found.name: functools.partial(build.open_records, str(tmp_path / "records"), found, "train", vocabulary) for found in mixture.tasks
    }
    for read in opened.values():
        read()
    lines = read_manifest(tmp_path / "written/train.jsonl")
    write_manifest(tmp_path / "written/train.jsonl", lines[:2])
    sound = next((tmp_path / "spoken").glob("de_de*.wav"))
    sound.write_bytes(sound.read_bytes() + b"\0\0")
    for name in ("written.text_to_text.de_de.en_us", "spoken.speech_to_text.de_de"):
        with pytest.raises(UserError, match="made with another text tokenizer, or from other units or texts"):
            opened[name]()
    opened["spoken.speech_to_text.fr_fr"]()
    assert build.build_records(mixture, vocabulary, str(tmp_path / "records"))["written.text_to_text.de_de.en_us"] == {"train": 2}
    opened["written.text_to_text.de_de.en_us"]()


def test_units_of_another_tokenizer_are_refused(root, vocabulary):
    with pytest.raises(UserError, match="units of another unit tokenizer than this run's; run `xretrieval units extract` with that one"):
        mixtures.register("other", {"covost2": UnitRecords(str(root / "units/covost2"), vocabulary, "f" * 64, SPLITS)}, vocabulary, RATES)


def test_a_language_that_covost2_lacks_is_an_error(tmp_path, tokenizer, vocabulary):
    spoken_corpora.recordings(tmp_path, "train", ["de_de", "en_us"], 1)
    corpora = {"covost2": Recordings(str(tmp_path), vocabulary, tokenizer, SPLITS)}
    mixtures.register("right", corpora, vocabulary, {"speech_to_text": 1.0})
    manifest = tmp_path / "train.jsonl"
    manifest.write_text(manifest.read_text().replace('"language": "de_de"', '"language": "pl_pl"'))
    with pytest.raises(UserError, match="covost2 holds pl_pl, which CoVoST-2 lacks"):
        mixtures.register("wrong", corpora, vocabulary, {"speech_to_text": 1.0})


def test_a_sound_that_cannot_be_read_names_the_task_and_the_file(tmp_path, tokenizer, vocabulary):
    spoken_corpora.recordings(tmp_path, "train", ["de_de"], 2)
    sound = next(tmp_path.glob("*.wav"))
    sound.write_bytes(b"RIFF")
    mixture = mixtures.register(
        "damaged", {"own": Recordings(str(tmp_path), vocabulary, tokenizer, SPLITS)}, vocabulary, {"speech_to_text": 1.0}
    )
    with pytest.raises(UserError, match=rf"^task own.speech_to_text.de_de, train: {sound}: "):
        build.build_records(mixture, vocabulary, str(tmp_path / "records"))


def test_counts_stay_beside_the_manifest_until_it_changes(tmp_path, monkeypatch):
    spoken_corpora.texts(tmp_path, "train", {("de_de", "en_us"): 3, ("en_us", "fr_fr"): 1})
    found = manifest_index.counts(str(tmp_path / "train"))
    assert found.pairs == {"de_de.en_us": 3, "en_us.fr_fr": 1}
    assert (tmp_path / "train.jsonl.counts.json").exists()
    with monkeypatch.context() as patched:
        patched.setattr(manifest_index, "scan", None)  # not read again
        assert manifest_index.counts(str(tmp_path / "train")) == found
    spoken_corpora.recordings(tmp_path, "train", ["de_de"], 2)
    assert manifest_index.counts(str(tmp_path / "train")).with_english == {"de_de": 2}
    (tmp_path / "train.jsonl").write_text('{"id": "1"}\n')
    with pytest.raises(UserError, match=r"train.jsonl:1: field language: missing"):
        manifest_index.counts(str(tmp_path / "train"))
