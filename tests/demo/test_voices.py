import os
import subprocess
import sys

import numpy as np
import pytest

from xretrieval.demo import polyglot, voices
from xretrieval.errors import UserError

GERMAN = voices.Voice("de", "f5", 50, 170)
RUSSIAN = voices.Voice("ru", "m3", 40, 200)


def test_speech_does_not_depend_on_what_was_spoken_before():
    first = voices.speak("Montag, Deutschland und Euro", GERMAN)
    for _ in range(3):
        voices.speak("понедельник, Германия и евро", RUSSIAN)
    np.testing.assert_array_equal(voices.speak("Montag, Deutschland und Euro", GERMAN), first)


def test_speech_is_sound_of_a_sensible_length():
    for variant in voices.TRAINING_VARIANTS + voices.HELD_OUT_VARIANTS:
        sound_T = voices.speak("Monday, Brazil, and Euro", voices.Voice("en-us", variant, 50, 170))
        assert sound_T.dtype == np.int16
        assert 1.0 < len(sound_T) / voices.SAMPLING_RATE < 4.0, variant
        assert 500 < np.sqrt(np.mean(sound_T.astype(np.float64) ** 2)) < 10000, variant
        assert np.mean(np.abs(sound_T.astype(int)) >= 32767) < 0.01, variant


def test_each_part_of_a_voice_is_heard():
    text = "Monday, Brazil, and Euro"
    spoken = [
        voices.speak(text, voices.Voice(*voice)).tobytes()
        for voice in (
            ("en-us", "f5", 50, 170),
            ("en-us", "m3", 50, 170),
            ("en-us", "f5", 40, 170),
            ("en-us", "f5", 50, 200),
            ("de", "f5", 50, 170),
        )
    ]
    assert len(set(spoken)) == len(spoken)


def test_a_voice_depends_on_its_key_alone():
    drawn = [voices.draw_voice("de", voices.TRAINING_VARIANTS, 0, "de_de", number) for number in range(500)]
    assert drawn[7] == voices.draw_voice("de", voices.TRAINING_VARIANTS, 0, "de_de", 7)
    assert {voice.variant for voice in drawn} == set(voices.TRAINING_VARIANTS)
    assert (min(v.pitch for v in drawn), max(v.pitch for v in drawn)) == (35, 65)
    assert (min(v.words_a_minute for v in drawn), max(v.words_a_minute for v in drawn)) == (140, 210)
    assert len(voices.TRAINING_VARIANTS) >= 12
    assert len(voices.HELD_OUT_VARIANTS) >= 4
    assert not set(voices.TRAINING_VARIANTS) & set(voices.HELD_OUT_VARIANTS)


def test_every_variant_and_voice_is_in_the_wheel():
    data = voices.espeak_paths()[1]
    for variant in voices.TRAINING_VARIANTS + voices.HELD_OUT_VARIANTS:
        assert os.path.isfile(os.path.join(data, "voices", "!v", variant)), variant
    files = {name.lower() for _, _, names in os.walk(os.path.join(data, "lang")) for name in names}
    assert {polyglot.cldr_and_voice(code)[1] for code in polyglot.LANGUAGES} <= files


def test_unknown_voices_are_errors():
    with pytest.raises(UserError, match="no voice 'xyz"):
        voices.speak("text", voices.Voice("xyz", "f5", 50, 170))
    with pytest.raises(UserError, match="says nothing"):
        voices.speak("", GERMAN)


def test_a_library_that_another_package_holds_is_an_error():
    """Its state would leak from one utterance to the next."""
    code = (
        "import ctypes; from xretrieval.demo import voices; held = ctypes.CDLL(voices.espeak_paths()[0])\n"
        "try: voices.speak('Montag', voices.Voice('de', 'f5', 50, 170))\n"
        "except voices.UserError as error: print(error)"
    )
    assert (
        "already in use in this process" in subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    )


def test_without_the_wheel_the_error_names_the_extra():
    code = (
        "import sys; sys.modules['espeakng_loader'] = None\n"
        "from xretrieval.demo import voices\n"
        "try: voices.espeak_paths()\n"
        "except voices.UserError as error: print(error)"
    )
    assert "pip install -e '.[demo]'" in subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_a_long_path_to_the_wheel_works(tmp_path):
    """espeak-ng keeps 160 bytes of its data's path, and ends the process where it finds nothing."""
    deep = tmp_path.joinpath(*["d" * 40] * 5)
    deep.mkdir(parents=True)
    (deep / "data").symlink_to(voices.espeak_paths()[1])
    code = (
        f"import espeakng_loader; espeakng_loader.get_data_path = lambda: {str(deep / 'data')!r}\n"
        "from xretrieval.demo import voices; print(len(voices.espeak_paths()[1]), len(voices.speak('Montag', voices.Voice('de', 'f5', 50, 170))))"
    )
    length, samples = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert int(length) < 160
    assert int(samples) == len(voices.speak("Montag", GERMAN))
