"""That espeak-ng really speaks the words of every language: its phonemes, which cost little, and the sound of sentences (slow)."""

import concurrent.futures
import ctypes
import functools
import multiprocessing
import os
import statistics

import pytest

from xretrieval.demo import polyglot, sentences, slots, voices

# Each is one word of its language; "USD" is among the easy slots, so that one sentence in 24 has it.
KNOWN = {"ky_kg": {"АКШ доллары"}}


@functools.cache
def _espeak():
    library_path, data = voices.espeak_paths()
    library = ctypes.CDLL(library_path)
    assert library.espeak_Initialize(2, 0, os.fsencode(data), 0x8000) > 0
    library.espeak_TextToPhonemes.restype = ctypes.c_char_p
    return library


def _phonemes(text):
    rest, heard = ctypes.c_char_p(text.encode()), []
    while rest.value:
        heard.append(_espeak().espeak_TextToPhonemes(ctypes.byref(rest), 1, 2).decode())
    return " ".join(heard)


def _listen(code, keys_a_kind):
    """Of a language: how many words were looked at (at most `keys_a_kind` of each kind), those said in English, those spelt out, pairs that sound alike."""
    speaker, voice = sentences.Speaker(code), polyglot.cldr_and_voice(code)[1]
    assert _espeak().espeak_SetVoiceByName(voice.encode()) == 0
    kinds = [(kind, keys) for level in slots.LEVELS for kind, keys in slots.keys(level).items()]
    some = dict.fromkeys(slots.Slot(kind, key) for kind, keys in kinds for key in keys[:: 1 + len(keys) // keys_a_kind])
    english, length, alike, first = [], {}, [], {}
    for slot in some:
        word = speaker.words(slot)
        phonemes = _phonemes(word)
        sound = "".join(c for c in phonemes if c not in "ˈˌ ")
        if "(en)" in phonemes:
            english.append(word)
        if not any(c.isdigit() for c in word):
            length[word] = len(sound) / len(word)
        if first.setdefault(sound, slot) != slot:
            alike.append((first[sound], slot))
    usual = statistics.median(length.values())
    return len(some), english, [word for word in length if length[word] > 4 * usual], alike


@pytest.mark.parametrize("keys_a_kind", [100, pytest.param(10_000, marks=pytest.mark.slow)])
def test_words_are_spoken_in_their_language_and_sound_different(keys_a_kind):
    listen = functools.partial(_listen, keys_a_kind=keys_a_kind)
    # In a process of its own: while a library is open here, nothing may be spoken here.
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
        results = dict(zip(polyglot.LANGUAGES, executor.map(listen, polyglot.LANGUAGES), strict=True))
    for code, (count, english, spelt, alike) in results.items():
        assert not alike, (code, alike)
        assert set(spelt) <= KNOWN.get(code, set()), (code, spelt)
        assert len(english) <= 0.05 * count, (code, english)


@pytest.mark.slow
@pytest.mark.parametrize("level", slots.LEVELS)
@pytest.mark.parametrize("code", polyglot.LANGUAGES)
def test_sentences_differ_in_sound(code, level):
    speaker, voice = sentences.Speaker(code), voices.Voice(polyglot.cldr_and_voice(code)[1], "m3", 50, 170)
    composed = sentences.compose({"test": 30}, level, seed=0)["test"]
    sounds = [voices.speak(speaker.say(sentence), voice) for sentence in composed.values()]
    assert len({sound_T.tobytes() for sound_T in sounds}) == len(sounds)
    assert all(0.7 < len(sound_T) / voices.SAMPLING_RATE < 8 for sound_T in sounds)
