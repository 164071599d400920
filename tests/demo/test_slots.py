"""Every word that the corpus may say, in every language of its table."""

import unicodedata

import babel.localedata
import pytest
from babel.core import get_global

from xretrieval.demo import polyglot, sentences, slots
from xretrieval.errors import UserError
from xretrieval.languages import language

# ISO 15924 code -> how Unicode names the letters
SCRIPTS = {
    "Arab": "ARABIC", "Armn": "ARMENIAN", "Beng": "BENGALI", "Cyrl": "CYRILLIC", "Deva": "DEVANAGARI", "Ethi": "ETHIOPIC", "Geor": "GEORGIAN",
    "Grek": "GREEK", "Gujr": "GUJARATI", "Guru": "GURMUKHI", "Hans": "CJK", "Hant": "CJK", "Knda": "KANNADA", "Kore": "HANGUL", "Latn": "LATIN",
    "Mlym": "MALAYALAM", "Taml": "TAMIL", "Telu": "TELUGU",
}  # fmt: skip


def _words(code):
    """{slot: word} for easy and hard slots."""
    speaker = sentences.Speaker(code)
    every = [slots.Slot(kind, key) for level in slots.LEVELS for kind, keys in slots.keys(level).items() for key in keys]
    return {slot: speaker.words(slot) for slot in dict.fromkeys(every)}


def _normalised(text):
    text = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(" " if unicodedata.category(c)[0] == "P" else c for c in text).split())


@pytest.mark.parametrize("code", polyglot.LANGUAGES)
def test_words_are_complete_distinct_clean_and_in_the_languages_script(code):
    words = _words(code)
    by_text = {}
    for slot, word in words.items():
        first = by_text.setdefault(_normalised(word), slot)
        assert first == slot, f"{first} and {slot} are both {word!r}"
        assert slots.clean(word) == word
        assert not any(
            unicodedata.category(c) in ("Cc", "Co", "Cn") or unicodedata.bidirectional(c) in ("LRE", "RLE", "LRO", "RLO") for c in word
        )
        assert not set("\u200e\u200f\u061c()[]{}").intersection(word), word
        assert not any(part in word for part in ("length-", "mass-", "volume-", "duration-")), word
    letters = [c for word in words.values() for c in word if unicodedata.category(c)[0] == "L"]
    own = sum(unicodedata.name(c).startswith(SCRIPTS[language(code).script]) for c in letters)
    assert own / len(letters) > 0.97, f"{own / len(letters):.3f} of the letters are in its script"


def _own_data(name):
    """What CLDR says in a language and its parents, without the fallback for every language (root)."""
    merged = {}
    chain = []
    while name != "root":
        chain.append(name)
        name = get_global("parent_exceptions").get(name) or name.rpartition("_")[0] or "root"
    for parent in reversed(chain):
        babel.localedata.merge(merged, babel.localedata.load(parent, merge_inherited=False))
    return merged


@pytest.fixture
def fresh_babel():
    # load(merge_inherited=False) leaves half-filled data in babel's cache.
    babel.localedata._cache.clear()
    yield
    babel.localedata._cache.clear()


def test_words_are_each_languages_own_not_a_fallback(fresh_babel):
    kinds = slots.keys("hard")
    for code in polyglot.LANGUAGES:
        own = _own_data(polyglot.cldr_and_voice(code)[0])
        babel.localedata._cache.clear()
        for kind, field in (("territory", "territories"), ("language", "languages"), ("currency", "currency_names")):
            assert set(kinds[kind]) <= own[field].keys(), (code, kind)
        for field in ("days", "months"):
            assert any("wide" in names for names in own[field].values()), (code, field)
        assert own["list_patterns"]["standard"].keys() & {"end", "2"}, code
        for unit in {key.split(":")[1] for key in kinds["quantity"]}:
            assert unit in own["unit_patterns"], (code, unit)


def test_a_language_says_the_same_whatever_was_said_before():
    """babel overwrites data that languages share: after Azerbaijani, other months were Azerbaijani (python-babel/babel#1234)."""
    slot = slots.Slot("month", "02")
    assert sentences.Speaker("az_az").words(slot) == "fevral"
    german, czech = sentences.Speaker("de_de"), sentences.Speaker("cs_cz")
    assert (german.words(slot), czech.words(slot)) == ("Februar", "únor")
    assert german.words(slots.Slot("weekday", "0")) == "Montag"
    assert sentences.Speaker("fr_fr").words(slot) == "février"


@pytest.mark.parametrize(
    "code, slot, word",
    [
        ("de_de", slots.Slot("date", "03-07"), "7. März"),
        ("de_de", slots.Slot("quantity", "68:length-kilometer"), "68 Kilometer"),
        ("cmn_hans_cn", slots.Slot("quantity", "68:length-kilometer"), "68公里"),
        ("sw_ke", slots.Slot("quantity", "68:length-kilometer"), "kilomita 68"),
        ("ru_ru", slots.Slot("quantity", "22:duration-hour"), "22 часа"),
        ("pt_br", slots.Slot("territory", "PT"), "Portugal"),
    ],
)
def test_some_words(code, slot, word):
    assert sentences.Speaker(code).words(slot) == word


def test_conjunctions_with_an_open_ending_are_decided():
    say = sentences.Speaker("cy_gb").say
    euro, monday, arabic = slots.Slot("currency", "EUR"), slots.Slot("weekday", "0"), slots.Slot("language", "ar")
    assert say((monday, euro, arabic)) == "Dydd Llun, Ewro, ac Arabeg"
    assert say((euro, arabic, monday)) == "Ewro, Arabeg, a Dydd Llun"


def test_what_cldr_lacks_is_an_error():
    locale = slots.locale_of("de", "de_de")
    for slot in (slots.Slot("territory", "XX"), slots.Slot("quantity", "3:length-span"), slots.Slot("currency", "ABC")):
        with pytest.raises(UserError, match=f"no word for {slot.kind} '{slot.key}' in de"):
            slots.words(locale, slot)
    with pytest.raises(UserError, match="no CLDR data for Umbundu"):
        slots.locale_of("umb", "umb_ao")
    with pytest.raises(UserError, match="'easy' and 'hard'"):
        slots.keys("medium")
