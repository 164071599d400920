"""Phones from espeak-ng's events, against the sound that they are said to be in."""

import itertools

import numpy as np
import pytest
import soundfile

from xretrieval.corpora.alignments import SILENCE, read_alignments
from xretrieval.corpora.manifest import read_manifest
from xretrieval.demo import corpus, phones, voices
from xretrieval.errors import UserError

SPOKEN = (
    ("Montag, Deutschland und Euro", voices.Voice("de", "f5", 50, 170)),
    ("понедельник, Германия и евро", voices.Voice("ru", "m3", 40, 200)),
    ("Monday, Brazil, and Euro", voices.Voice("en-us", "Annie", 60, 150)),
    ("lunes, Brasil y kuna", voices.Voice("es-419", "max", 45, 210)),
    ("torsdag, Danmark och euro", voices.Voice("sv", "m6", 35, 140)),
    ("piątek, Polska i złoty", voices.Voice("pl", "steph", 65, 180)),
)
VOWELS = frozenset("aeiouyæøœɐɑɒɔəɛɜɪʊʌʉɵ")


def energy(sound_T, phone):
    first, end = round(phone.start * 16_000), round(phone.end * 16_000)
    return np.mean(sound_T[first:end].astype(np.float64) ** 2)


@pytest.mark.parametrize(("text", "voice"), SPOKEN)
def test_events_change_no_sample(text, voice):
    plain_T, none = voices.synthesise(text, voice)
    assert not none
    for options in (voices.PHONEMES, voices.PHONEMES | voices.IPA):
        sound_T, found = voices.synthesise(text, voice, options)
        np.testing.assert_array_equal(sound_T, plain_T)
        assert len(found) > 10
        starts = [phoneme.sample for phoneme in found]
        assert starts == sorted(starts)
        assert starts[-1] <= len(plain_T)
    np.testing.assert_array_equal(phones.speak_with_phones(text, voice)[0], voices.speak(text, voice))


@pytest.mark.parametrize(("text", "voice"), SPOKEN)
def test_phones_fill_the_sound_and_pauses_are_where_it_is_quiet(text, voice):
    sound_T, found = phones.speak_with_phones(text, voice)
    assert found[0].start == 0
    assert all(one.end == other.start and one.end > one.start for one, other in itertools.pairwise(found))
    assert sum(round((phone.end - phone.start) * 16_000) for phone in found) == len(sound_T)
    assert not any(one.name == other.name == SILENCE for one, other in itertools.pairwise(found))
    # The comma's pause: longer than any closure, and nearly the longest stretch in which the sound stays below a hundredth of its peak.
    quiet_T = np.abs(sound_T.astype(int)) < np.abs(sound_T.astype(int)).max() / 100
    edges = np.flatnonzero(np.diff(np.r_[False, quiet_T, False].astype(int)))
    longest = max(zip(edges[::2], edges[1::2], strict=True), key=lambda stretch: stretch[1] - stretch[0])
    comma = max((phone for phone in found if phone.name == SILENCE), key=lambda phone: phone.end - phone.start)
    assert abs(longest[0] / 16_000 - comma.start) < 0.08  # what sounds before it dies away within
    assert abs(longest[1] / 16_000 - comma.end) < 0.03
    vowels = [energy(sound_T, phone) for phone in found if phone.name != SILENCE and VOWELS & set(phone.name)]
    pauses = [energy(sound_T, phone) for phone in found if phone.name == SILENCE and phone.end - phone.start > 0.05]
    assert len(vowels) >= 4
    assert pauses
    assert min(vowels) > 4 * max(pauses)
    assert np.median(vowels) > 50 * np.median(pauses)


def test_the_phones_of_a_word_by_name():
    _, found = phones.speak_with_phones("Montag, Deutschland und Euro", SPOKEN[0][1])
    assert [phone.name for phone in found][:6] == ["m", "o", "n", "t", "ɑ", "k"]
    _, russian = phones.speak_with_phones("понедельник, Германия и евро", SPOKEN[1][1])
    names = [phone.name for phone in russian]
    assert {"nʲ", "dʲ"} <= set(names)
    assert "ʲ" not in names
    assert "" not in names


def test_a_stop_has_its_closure_and_nothing_else_takes_silence():
    sound_T = np.ones(10_000, np.int16)
    sound_T[1_500:2_000] = sound_T[3_900:4_000] = sound_T[5_000:6_000] = sound_T[7_500:8_000] = 0
    named = [
        (0, "a"),
        (2_000, "t"),
        (2_200, ""),
        (3_000, "a"),
        (4_000, "k"),
        (5_000, SILENCE),
        (5_900, SILENCE),
        (6_000, "p"),
        (7_000, "n"),
    ]
    named += [(7_200, "ʲ"), (8_000, "s"), (9_000, "")]
    segments = phones._merged(named, sound_T)
    assert segments == [
        (SILENCE, 0),
        ("a", 0),
        ("t", 1_500),  # its closure
        ("a", 3_000),
        ("k", 4_000),  # 100 samples are no closure
        (SILENCE, 5_000),
        ("p", 6_000),  # a pause stays one
        ("nʲ", 7_000),
        ("s", 8_000),  # no stop
    ]
    timed = phones._timed(segments, 10_000, 7_256)
    assert [phone.name for phone in timed] == ["a", "t", "a", "k", SILENCE, "p", "nʲ", "s"]
    assert timed[-1].end == 7_256 / 16_000
    assert phones._label("(en)") == ""
    assert phones._label("ˈεː") == "ɛ"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    corpus.generate(str(folder), "de,en", "ru", train_sentences=1, validation_sentences=1, test_sentences=3, seed=5, num_workers=1)
    return folder


@pytest.mark.parametrize("manifest", ["test", "test_held_out_voices"])
def test_phones_of_a_corpus_are_those_of_its_recordings(made, manifest):
    path = phones.write_phones(str(made), manifest, num_workers=1)
    assert path == str(made / f"{manifest}.phones.jsonl")
    utterances = read_manifest(made / manifest)
    found = read_alignments(path, [utterance.id for utterance in utterances])
    assert len(found) == 9
    for utterance in utterances:
        assert found[utterance.id][-1].end == utterance.duration
        assert corpus.voice_of(manifest, utterance.language, utterance.sentence_id, 5).variant == utterance.speaker


def test_another_recording_or_manifest_is_refused(made, tmp_path):
    with pytest.raises(UserError, match="text_unseen_train: not a manifest of recordings"):
        phones.write_phones(str(made), "text_unseen_train")
    with pytest.raises(UserError, match=r"corpus.json: not there"):
        phones.write_phones(str(tmp_path), "test")
    audio = read_manifest(made / "validation")[0].recording
    samples_T, rate = soundfile.read(audio, dtype="int16")
    samples_T[1000] += 1
    soundfile.write(audio, samples_T, rate, subtype="PCM_16")
    with pytest.raises(UserError, match=r"not what espeak-ng says here"):
        phones.write_phones(str(made), "validation", num_workers=1)
    assert not (made / "validation.phones.jsonl").exists()
