"""`data inspect`: its figures against counts made here, its sample, its words and its picture."""

import collections

import numpy as np
import pytest
import seqio
import spoken_corpora

from tasks import mixtures
from tasks.recordings import Recordings
from tasks.texts import Texts
from tasks.unit_records import UnitRecords
from xretrieval.data import inspect as inspect_lib
from xretrieval.data.vocabulary import Vocabulary
from xretrieval.errors import UserError
from xretrieval.units.tokenizer import UnitTokenizer


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    root = tmp_path_factory.mktemp("inspected")
    _, vocabulary = spoken_corpora.make(root)
    tokenizer = UnitTokenizer.load(root / "unit_tokenizer")
    corpora = {
        "fleurs": UnitRecords(str(root / "units/fleurs"), vocabulary, tokenizer.fingerprint, ("train",)),
        "own": Recordings(str(root / "manifests/fleurs"), vocabulary, tokenizer, ("train",)),
        "wikimatrix": Texts(str(root / "manifests/wikimatrix"), ("train",)),
    }
    mixtures.register("inspected", corpora, vocabulary, {"speech_to_text": 1.0, "text_to_text": 1.0})
    return vocabulary


def task(name):
    return seqio.get_mixture_or_task(name)


def test_figures_are_those_of_the_examples(vocabulary):
    found = inspect_lib.inspect(task("fleurs.speech_to_text.de_de"), vocabulary)
    examples = list(task("fleurs.speech_to_text.de_de").get_dataset(sequence_length=None, split="train", shuffle=False).as_numpy_iterator())
    assert (found.available, found.one_in, found.examples) == (12, 1, 12)
    for name, side in found.sides.items():
        ids = np.concatenate([e[name] for e in examples])
        assert side.lengths == [len(e[name]) for e in examples]
        assert (side.ids, side.units, side.unknown) == (len(ids), (ids >= vocabulary.text_size).sum(), (ids == vocabulary.unknown_id).sum())
        assert inspect_lib.repeated(side.times) == 12 - len({tuple(e[name]) for e in examples})
    assert found.sides["inputs"].units > 0 == found.sides["targets"].units
    assert inspect_lib.repeated(found.pair_ids) == 6, "six sentences, each spoken twice"
    assert inspect_lib.repeated(found.sides["targets"].times) == 6
    assert inspect_lib.repeated(found.pairs) == 0


def test_examples_are_shown_behind_every_step(vocabulary, capsys):
    found = inspect_lib.inspect(task("own.speech_to_text.de_de"), vocabulary, shown=1)
    assert [name for name, _ in found.stages] == ["source", "to_units", "tokenize", "add_prefixes"]
    out = capsys.readouterr().out
    assert "inputs: /" in out
    assert "duration: 0.7" in out
    assert "targets: das kleine grüne Haus a 0\n" in out, "text, before it is tokenized"
    units = found.stages[1][1][0]["inputs"] - vocabulary.text_size
    shown = " ".join(map(str, units[:6]))
    assert f"inputs: ⟨{len(units)} units: {shown} …⟩  ({len(units)} IDs)" in out
    assert f"inputs: [German speech] ⟨{len(units)} units: {shown} …⟩  ({len(units) + 2} IDs)" in out
    assert "targets: [German text] das kleine grüne haus a 0" in out.replace("Haus", "haus")
    assert "All 12 examples of own.speech_to_text.de_de, train" in out


def test_a_large_task_is_sampled_whole_meanings_at_a_time_and_it_is_said(vocabulary, capsys):
    whole = inspect_lib.inspect(task("fleurs.speech_to_text.de_de"), vocabulary)
    capsys.readouterr()
    found = inspect_lib.inspect(task("fleurs.speech_to_text.de_de"), vocabulary, sample=5)
    assert found.one_in == 3
    kept = {pair: times for pair, times in whole.pair_ids.items() if pair % 3 == 0}
    assert found.pair_ids == collections.Counter(kept)
    assert 0 < found.examples < 12
    assert (
        f"A sample of fleurs.speech_to_text.de_de, train: {found.examples} of about 12 examples, those whose pair ID is a multiple of 3"
        in capsys.readouterr().out
    )


def test_unknown_characters_are_counted(vocabulary, tmp_path):
    spoken_corpora.texts(tmp_path, "train", {("de_de", "en_us"): 4})
    path = tmp_path / "train.jsonl"
    path.write_text(path.read_text().replace("kleine", "ж字ж", 2))
    mixtures.register("unknown", {"odd": Texts(str(tmp_path), ("train",))}, vocabulary, {"text_to_text": 1.0})
    assert inspect_lib.inspect(task("odd.text_to_text.de_de.en_us"), vocabulary).sides["inputs"].unknown == 2


def test_buckets_hold_every_length_once():
    lengths_N = np.random.default_rng(0).integers(1, 301, 1000)
    found = inspect_lib.buckets(lengths_N)
    assert len(found) <= 12
    assert [count for *_, count in found] == [int(((lengths_N >= first) & (lengths_N <= last)).sum()) for first, last, _ in found]
    assert [first for first, *_ in found[1:]] == [last + 1 for _, last, _ in found[:-1]]
    assert sum(count for *_, count in found) == 1000
    assert inspect_lib.buckets(np.array([1])) == [(1, 1, 1)]


def test_a_picture_is_drawn(vocabulary, tmp_path, capsys):
    inspect_lib.inspect(task("wikimatrix.text_to_text.de_de.en_us"), vocabulary, out_dir=str(tmp_path / "pictures"))
    path = tmp_path / "pictures/wikimatrix.text_to_text.de_de.en_us.train.png"
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert capsys.readouterr().out.endswith(f"wrote {path}\n")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        inspect_lib.inspect(task("wikimatrix.text_to_text.de_de.en_us"), vocabulary, out_dir=str(tmp_path / "file/x"))


def test_a_split_that_is_not_there_is_an_error(vocabulary):
    with pytest.raises(UserError, match="wikimatrix.text_to_text.de_de.en_us has no split 'test'; it has train"):
        inspect_lib.inspect(task("wikimatrix.text_to_text.de_de.en_us"), vocabulary, "test")


def test_long_texts_are_cut_with_a_note():
    vocabulary = Vocabulary.__new__(Vocabulary)
    assert inspect_lib.readable(b"a" * 200, vocabulary) == "a" * 160 + "… (200 characters)"
