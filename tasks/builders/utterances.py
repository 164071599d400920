"""What the builders share: an example is a manifest's utterance."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from xretrieval.corpora.manifest import Utterance
from xretrieval.corpora.readers.findings import Findings
from xretrieval.errors import UserError

# Sound stays in its file, by path: decoding is `xretrieval.corpora.audio`'s, with its limits, and a copy of the sound would double the corpus.
FEATURES = {field.name: tfds.features.Text() for field in dataclasses.fields(Utterance)} | {
    "start": tfds.features.Scalar(np.float64),
    "duration": tfds.features.Scalar(np.float64),
    "sampling_rate": tfds.features.Scalar(np.int64),
}
_ABSENT: Mapping[str, Any] = {"start": np.nan, "duration": np.nan, "sampling_rate": 0}


@dataclasses.dataclass(kw_only=True)
class LanguageConfig(tfds.core.BuilderConfig):
    """One language, by its FLEURS code."""

    language: str = ""


class UtteranceBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """A corpus, a language a config. What a manifest leaves empty is "", NaN, or a sampling rate of 0."""

    VERSION = tfds.core.Version("1.0.0")
    SPLITS: ClassVar[Sequence[str]] = ("train",)
    DESCRIPTION: ClassVar[str] = ""
    HOMEPAGE: ClassVar[str] = ""

    def utterances(self, source: str, split: str, findings: Findings) -> Iterator[Utterance]:
        """The utterances of a split, from the folder that the user downloaded."""
        raise NotImplementedError

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(FEATURES), homepage=self.HOMEPAGE, description=self.DESCRIPTION
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        source = str(dl_manager.manual_dir)
        return {split: self._generate_examples(source, split) for split in self.SPLITS}

    def _generate_examples(self, source: str, split: str):
        findings = Findings()
        found = 0
        for utterance in self.utterances(source, split, findings):
            found += 1
            yield utterance.id, {name: _filled(name, value) for name, value in vars(utterance).items()}
        if not found:
            raise UserError(f"{source}: no utterance of {self.name} {self.builder_config.name}, {split}")
        for reason, number in findings.skipped.items():
            print(f"{self.name} {self.builder_config.name}, {split}: skipped {number} x {reason} ({'; '.join(findings.places[reason])})")


def _filled(name: str, value: Any) -> Any:
    return _ABSENT.get(name, "") if value is None else value
