"""FLEURS: sentences of FLoRes read aloud in 102 languages, with their English where en_us is there as well."""

import os
from collections.abc import Iterator

from tasks.builders.utterances import LanguageConfig, UtteranceBuilder
from xretrieval.corpora.manifest import Utterance
from xretrieval.corpora.readers import fleurs
from xretrieval.corpora.readers.findings import Findings
from xretrieval.languages import table


class Fleurs(UtteranceBuilder):
    """FLEURS: sentences of FLoRes read aloud in 102 languages, with their English where en_us is there as well."""

    BUILDER_CONFIGS = [LanguageConfig(name=row.code, language=row.code, description=row.name) for row in table().values()]  # noqa: RUF012
    MANUAL_DOWNLOAD_INSTRUCTIONS = "manual_dir holds FLEURS's language folders, with extracted sound, archives, or parquet; sound of the latter two goes to audio/ there."
    SPLITS = ("train", "validation", "test")
    DESCRIPTION = "FLEURS: sentences of FLoRes read aloud in 102 languages, with their English where en_us is there as well."
    HOMEPAGE = "https://arxiv.org/abs/2205.12446"

    def utterances(self, source: str, split: str, findings: Findings) -> Iterator[Utterance]:
        return fleurs.read(source, findings, [self.builder_config.language], [split], os.path.join(source, "audio"))
