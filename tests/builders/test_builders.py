"""The TFDS builders, by TFDS' own test case, on corpora that the test makes."""

import gzip
import os
import pathlib
import tempfile

import numpy as np
import pytest
import soundfile
import tensorflow_datasets as tfds

import tasks  # noqa: F401 (takes TensorFlow's hands off the devices)
from tasks.builders import covost2, fleurs, wikimatrix
from xretrieval.errors import UserError

FOLDER = tempfile.TemporaryDirectory()
ROOT = pathlib.Path(FOLDER.name)


def wav(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.random.default_rng(0).normal(size=1_600) * 0.1, 16_000)


def make():
    """One language of each corpus, two utterances a split."""
    for code, texts in (("de_de", ("Guten Tag", "Gute Nacht")), ("en_us", ("Good day", "Good night"))):
        for split in ("train", "dev", "test"):
            lines = []
            for number, text in enumerate(texts):
                wav(ROOT / "fleurs" / code / "audio" / split / f"{number}.wav")
                lines.append(f"{number}\t{number}.wav\t{text}\t{text.lower()}\t{' | '.join(text)}\t1600\tMALE\n")
            (ROOT / "fleurs" / code / f"{split}.tsv").write_text("".join(lines))
    (ROOT / "wikimatrix").mkdir()
    (ROOT / "wikimatrix/WikiMatrix.de-en.tsv.gz").write_bytes(
        gzip.compress(b"1.2\tGuten Tag\tGood day\n1.1\tGute Nacht\tGood night\n1.0\tx\ty\n")
    )
    (ROOT / "covost2/de/clips").mkdir(parents=True)
    rows, translated = ["client_id\tpath\tsentence\n"], ["path\ttranslation\tsplit\n"]
    for split in ("train", "dev", "test"):
        for number, (text, english) in enumerate((("Guten Tag", "Good day"), ("Gute Nacht", "Good night"))):
            name = f"{split}_{number}.mp3"
            wav(ROOT / "covost2/de/clips" / name.replace(".mp3", ".wav"))
            os.replace(ROOT / "covost2/de/clips" / name.replace(".mp3", ".wav"), ROOT / "covost2/de/clips" / name)
            rows.append(f"{split}\t{name}\t{text}\n")
            translated.append(f"{name}\t{english}\t{split}\n")
    (ROOT / "covost2/de/validated.tsv").write_text("".join(rows))
    (ROOT / "covost2/covost_v2.de_en.tsv").write_text("".join(translated))


make()


class _Case(tfds.testing.DatasetBuilderTestCase):
    BUILDER_CONFIG_NAMES_TO_TEST = ["de_de"]  # noqa: RUF012
    SKIP_CHECKSUMS = True
    OVERLAPPING_SPLITS = ["train", "validation", "test"]  # noqa: RUF012


class FleursTest(_Case):
    DATASET_CLASS = fleurs.Fleurs
    EXAMPLE_DIR = str(ROOT / "fleurs")
    SPLITS = {"train": 2, "validation": 2, "test": 2}  # noqa: RUF012


class Covost2Test(_Case):
    DATASET_CLASS = covost2.Covost2
    EXAMPLE_DIR = str(ROOT / "covost2")
    SPLITS = {"train": 2, "validation": 2, "test": 2}  # noqa: RUF012


class WikimatrixTest(_Case):
    DATASET_CLASS = wikimatrix.Wikimatrix
    EXAMPLE_DIR = str(ROOT / "wikimatrix")
    SPLITS = {"train": 2}  # noqa: RUF012


del _Case


def test_an_example_is_a_manifests_utterance(tmp_path):
    builder = fleurs.Fleurs(config="de_de", data_dir=tmp_path)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=ROOT / "fleurs"))
    found = sorted(tfds.as_numpy(builder.as_dataset(split="train")), key=lambda example: example["id"])
    assert [example["text"].decode() for example in found] == ["Guten Tag", "Gute Nacht"]
    assert [example["translation"].decode() for example in found] == ["Good day", "Good night"]
    assert found[0]["audio"].decode() == str(ROOT / "fleurs/de_de/audio/train/0.wav")
    assert np.isnan(found[0]["start"])
    assert found[0]["sampling_rate"] == 0


def test_there_is_a_config_for_every_language_that_a_corpus_has():
    assert len(fleurs.Fleurs.BUILDER_CONFIGS) == 102
    assert len(covost2.Covost2.BUILDER_CONFIGS) == 21
    assert {"mn_mn", "lv_lv", "cy_gb"}.isdisjoint(config.name for config in wikimatrix.Wikimatrix.BUILDER_CONFIGS)


def prepared(builder, manual_dir):
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual_dir))
    return {split: builder.info.splits[split].num_examples for split in builder.info.splits}


@pytest.mark.parametrize("builder, name", [(fleurs.Fleurs, "fleurs"), (covost2.Covost2, "covost2")])
def test_every_split_holds_its_own(builder, name, tmp_path):
    built = builder(config="de_de", data_dir=tmp_path)
    assert prepared(built, ROOT / name) == {"train": 2, "validation": 2, "test": 2}
    for split, examples in tfds.as_numpy(built.as_dataset()).items():
        assert {(example["split"].decode(), example["language"].decode()) for example in examples} == {(split, "de_de")}


def test_what_is_skipped_is_said_and_a_corpus_without_utterances_is_refused(tmp_path, capsys):
    manual_dir = tmp_path / "wikimatrix"
    manual_dir.mkdir()
    path = manual_dir / "WikiMatrix.de-en.tsv.gz"
    path.write_bytes(gzip.compress(b"1.2\tGuten Tag\tGood day\nx\ty\tz\n"))
    assert prepared(wikimatrix.Wikimatrix(config="de_de", data_dir=tmp_path / "out"), manual_dir) == {"train": 1}
    assert f"skipped 1 x the margin score is not a number ({path}:2: x)" in capsys.readouterr().out
    path.write_bytes(gzip.compress(b"1.0\tGuten Tag\tGood day\n"))
    with pytest.raises(UserError, match="no utterance of wikimatrix de_de, train"):
        prepared(wikimatrix.Wikimatrix(config="de_de", data_dir=tmp_path / "again"), manual_dir)
