"""Which query looks for what, with embeddings that say so."""

import numpy as np

from xretrieval.corpora.manifest import Utterance
from xretrieval.evaluate.evaluation import evaluate_records
from xretrieval.units.extract import UnitRecord


def record(language, sentence, text=None, **more):
    text = f"{language} {sentence}" if text is None else text
    utterance = Utterance(
        id=f"{language}{sentence}", sentence_id=str(sentence), audio="a.wav", text=text, language=language, split="test", **more
    )
    return UnitRecord(utterance, np.array([sentence], np.int32))


def translated(language, sentence, **more):
    return record(language, sentence, translation=f"en_us {sentence}", translation_language="en_us", **more)


def one_hot(numbers):
    return np.eye(10, dtype=np.float32)[list(numbers)]


def evaluate(records, **more):
    """A perfect model: a recording and a text are the unit vector of their sentence."""
    return evaluate_records(
        records,
        lambda units, languages: one_hot(int(u[0]) for u in units),
        lambda texts, languages: one_hot(int(t[-1]) for t in texts),
        ("de_de",),
    )


def test_a_perfect_model_finds_everything_but_the_same_meaning_in_another_language():
    found = evaluate([translated("de_de", i) for i in range(4)] + [record("en_us", i) for i in range(4)])
    german = found["de_de"]
    assert german["seen"]
    assert not found["en_us"]["seen"]
    for name in ("speech_to_text", "text_to_speech", "speech_to_english", "speech_to_text_joint_pool_any_language"):
        assert german[name]["R@1"] == 1.0, name
    # Its own text and the English one tie, and ties count against the model.
    assert german["speech_to_text_joint_pool"]["R@1"] == 0.0
    assert german["speech_to_text_joint_pool"]["pool_size"] == 8


def test_a_sentence_without_an_english_recording_is_a_candidate_and_no_query():
    found = evaluate([translated("de_de", i) for i in range(4)] + [record("en_us", i) for i in range(3)])
    assert found["en_us"]["text_to_speech"]["queries"] == 3
    assert found["en_us"]["speech_to_text"]["pool_size"] == 4
    assert found["de_de"]["speech_to_english"]["pool_size"] == 4


def test_a_translation_into_another_language_is_not_english():
    french = [record("de_de", i, translation=f"fr_fr {i}", translation_language="fr_fr") for i in range(3)]
    assert "speech_to_english" not in evaluate(french)["de_de"]
    mixed = evaluate([*french, translated("de_de", 3)])["de_de"]["speech_to_english"]
    assert (mixed["queries"], mixed["pool_size"]) == (1, 1)


def test_a_recording_without_text_is_left_out_and_counted(capsys):
    found = evaluate([translated("de_de", 0), translated("de_de", 1), record("de_de", 2, text="")])
    assert found["de_de"]["speech_to_text"]["queries"] == 2
    assert "1 recordings have no text" in capsys.readouterr().out
