import itertools

import pytest

from xretrieval.demo import polyglot, sentences, slots
from xretrieval.errors import UserError

COUNTS = {"test": 100, "validation": 60, "train": 1500}


@pytest.fixture(scope="module", params=slots.LEVELS)
def composed(request):
    return sentences.compose(COUNTS, request.param, seed=0)


def test_counts_and_ids(composed):
    assert {split: len(part) for split, part in composed.items()} == COUNTS
    ids = [sentence_id for part in composed.values() for sentence_id in part]
    assert len(set(ids)) == len(ids)
    assert all(sentence_id.startswith(split) for split, part in composed.items() for sentence_id in part)


def test_no_combination_is_used_twice_in_any_order(composed):
    combinations = [frozenset(sentence) for part in composed.values() for sentence in part.values()]
    assert len(set(combinations)) == len(combinations)
    assert {len(combination) for combination in combinations} == {sentences.SLOTS_A_SENTENCE}
    assert all(len({slot.kind for slot in combination}) == sentences.SLOTS_A_SENTENCE for combination in combinations)


def test_training_hears_every_easy_word_of_the_test():
    composed = sentences.compose(COUNTS, "easy", seed=0)
    heard, tested = ({slot for sentence in composed[split].values() for slot in sentence} for split in ("train", "test"))
    assert tested <= heard


def test_a_split_does_not_depend_on_those_after_it():
    more = sentences.compose({"test": 100, "validation": 60, "train": 3000}, "easy", seed=0)
    less = sentences.compose({"test": 100, "validation": 60, "train": 10}, "easy", seed=0)
    assert more["test"] == less["test"]
    assert more["validation"] == less["validation"]
    assert list(itertools.islice(more["train"].items(), 10)) == list(less["train"].items())


def test_the_seed_changes_the_sentences():
    one, other = (sentences.compose(COUNTS, "easy", seed)["test"] for seed in (0, 1))
    assert len({frozenset(s) for s in one.values()} & {frozenset(s) for s in other.values()}) < 20


def test_some_sentences_have_not_changed():
    """Golden: a change here changes every corpus; raise `corpus._FORMAT` with it."""
    composed = sentences.compose({"test": 2, "validation": 1, "train": 1}, "easy", seed=0)
    german = sentences.Speaker("de_de")
    assert {sentence_id: german.say(sentence) for part in composed.values() for sentence_id, sentence in part.items()} == {
        "test-00000": "Renminbi Yuan, Montag und Australien",
        "test-00001": "Russischer Rubel, Peru und Montag",
        "validation-00000": "November, Vietnamesisch und Griechenland",
        "train-00000": "Samstag, Renminbi Yuan und Marokko",
    }


def test_more_sentences_than_combinations_is_an_error():
    with pytest.raises(UserError, match="20000 sentences asked for .* at most 10240.*slots='hard'"):
        sentences.compose({"train": 20000}, "easy", seed=0)


def test_the_languages_of_the_corpus():
    assert polyglot.TRAINABLE[0] == "en_us"
    assert len(polyglot.TRAINABLE) == 20
    assert len(polyglot.UNSEEN) >= 20
    assert not set(polyglot.TRAINABLE) & set(polyglot.UNSEEN)
    with pytest.raises(UserError, match="no Mongolian .mn_mn.: espeak-ng has no voice"):
        polyglot.cldr_and_voice("mn_mn")
    with pytest.raises(UserError, match="no Japanese .*kanji"):
        polyglot.cldr_and_voice("ja_jp")
