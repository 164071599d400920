"""CoVoST-2: Common Voice recordings in 21 languages with transcripts and English translations (and in English); what the paper trains on.

covost2.speech_to_text.de_de       of the paper
covost2.speech_to_english.de_de    translation, which the paper leaves to be learnt from pairs of texts
covost2.text_to_english.de_de      CoVoST-2's own pairs of texts
"""

from tasks import task
from xretrieval.data.preprocessors import SPEECH_TO_ENGLISH, SPEECH_TO_TEXT, TEXT_TO_ENGLISH
from xretrieval.data.vocabulary import Vocabulary
from xretrieval.errors import UserError
from xretrieval.languages import table

KINDS = (SPEECH_TO_TEXT, SPEECH_TO_ENGLISH, TEXT_TO_ENGLISH)


def register(corpus: task.Corpus, vocabulary: Vocabulary) -> list[str]:
    """Registers its tasks and returns their names."""
    spoken = {code for code, language in table().items() if language.covost2} | {task.ENGLISH}
    others = corpus.sizes(SPEECH_TO_TEXT, "train").keys() - spoken
    if others:
        raise UserError(
            f"mixture.corpora: covost2 holds {', '.join(sorted(others))}, which CoVoST-2 lacks; give another corpus another name"
        )
    return task.register("covost2", corpus, vocabulary, KINDS)
