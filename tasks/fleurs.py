"""FLEURS: the sentences of FLoRes read aloud in 102 languages; the English text of a sentence is its translation in the others.

    fleurs.speech_to_text.de_de
    fleurs.speech_to_english.de_de
    fleurs.text_to_english.de_de

Its test split is what the paper evaluates on. The train split holds other sentences, read by other people (about 10 hours a language).
"""

from tasks import task
from xretrieval.data.preprocessors import SPEECH_TO_ENGLISH, SPEECH_TO_TEXT, TEXT_TO_ENGLISH
from xretrieval.data.vocabulary import Vocabulary

KINDS = (SPEECH_TO_TEXT, SPEECH_TO_ENGLISH, TEXT_TO_ENGLISH)


def register(corpus: task.Corpus, vocabulary: Vocabulary) -> list[str]:
    """Registers its tasks and returns their names."""
    return task.register("fleurs", corpus, vocabulary, KINDS)
