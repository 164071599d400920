"""WikiMatrix: sentences of Wikipedia that were found to be translations of each other; the paper's text pairs.

wikimatrix.text_to_text.de_de.en_us
"""

from tasks import task
from xretrieval.data.preprocessors import TEXT_TO_TEXT
from xretrieval.data.vocabulary import Vocabulary

KINDS = (TEXT_TO_TEXT,)


def register(corpus: task.Corpus, vocabulary: Vocabulary) -> list[str]:
    """Registers its tasks and returns their names."""
    return task.register("wikimatrix", corpus, vocabulary, KINDS)
