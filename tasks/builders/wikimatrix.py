"""WikiMatrix: mined pairs of a language's texts and English, from margin score 1.04 on."""

from collections.abc import Iterator

from tasks.builders.utterances import LanguageConfig, UtteranceBuilder
from xretrieval.corpora.manifest import Utterance
from xretrieval.corpora.readers import wikimatrix
from xretrieval.corpora.readers.findings import Findings
from xretrieval.languages import table


class Wikimatrix(UtteranceBuilder):
    """WikiMatrix: mined pairs of a language's texts and English, from margin score 1.04 on."""

    BUILDER_CONFIGS = [  # noqa: RUF012
        LanguageConfig(name=row.code, language=row.code, description=row.name) for row in table().values() if row.wikimatrix_english
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = "manual_dir holds WikiMatrix.*.tsv.gz."
    SPLITS = ("train",)
    DESCRIPTION = "WikiMatrix: mined pairs of a language's texts and English, from margin score 1.04 on."
    HOMEPAGE = "https://github.com/facebookresearch/LASER"

    def utterances(self, source: str, split: str, findings: Findings) -> Iterator[Utterance]:
        return wikimatrix.read(source, findings, [self.builder_config.language])
