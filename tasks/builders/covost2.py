"""CoVoST 2: Common Voice recordings with transcripts and English translations."""

from collections.abc import Iterator

from tasks.builders.utterances import LanguageConfig, UtteranceBuilder
from xretrieval.corpora.manifest import Utterance
from xretrieval.corpora.readers import covost2
from xretrieval.corpora.readers.findings import Findings
from xretrieval.languages import table


class Covost2(UtteranceBuilder):
    """CoVoST 2: Common Voice recordings with transcripts and English translations."""

    BUILDER_CONFIGS = [LanguageConfig(name=row.code, language=row.code, description=row.name) for row in table().values() if row.covost2]  # noqa: RUF012
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "manual_dir holds covost_v2.*.tsv beside Common Voice's language folders (`xretrieval data manifest covost2`)."
    )
    SPLITS = ("train", "validation", "test")
    DESCRIPTION = "CoVoST 2: Common Voice recordings with transcripts and English translations."
    HOMEPAGE = "https://github.com/facebookresearch/covost"

    def utterances(self, source: str, split: str, findings: Findings) -> Iterator[Utterance]:
        return covost2.read(source, findings, [self.builder_config.language], [split])
