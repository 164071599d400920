"""What an import leaves: a model directory that says where it is from, with its licence and its tokenizer; and what it says meanwhile."""

import dataclasses
import hashlib
import json
import subprocess
import sys

import huggingface_folders as hf
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from xretrieval.errors import UserError
from xretrieval.main import main
from xretrieval.model import directory, pretrained


def test_the_folder_is_described(tmp_path):
    source = hf.write_folder(tmp_path / "source", hf.QWEN3, hf.random_tensors(hf.shapes(hf.QWEN3), jnp.bfloat16), shards=2)
    (source / "pytorch_model.bin").write_bytes(b"a pickle")
    (source / "README.md").write_text("---\nlicense: apache-2.0\nlicense_link: https://a.b/LICENSE\n---\n# A model\n")
    (source / "LICENSE").write_text("Apache License")
    out = tmp_path / "llm"
    done = pretrained.import_llm(str(source), str(out))
    record = json.loads((out / "xretrieval.json").read_text())
    assert record["tower"] == json.loads(json.dumps(dataclasses.asdict(done.llm.config)))
    assert (record["text_tokens"], record["unit_tokens"], record["begin_tokens"], record["end_tokens"]) == (300, 0, [256], [])
    assert (record["tokenizer_file"], record["unit_tokenizer_fingerprint"], record["logit_scale"]) == ("tokenizer.json", None, None)
    assert (record["format_version"], record["trained_languages"]) == (2, [])
    assert (record["source"]["name"], record["source"]["family"], record["source"]["licence"]) == ("source", "qwen3", "apache-2.0")
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
    assert sorted(record["source"]["sha256"]) == sorted(["config.json", *shards, "tokenizer.json"])
    for name, digest in record["source"]["sha256"].items():
        assert hashlib.sha256((source / name).read_bytes()).hexdigest() == digest
    assert {path.name for path in out.iterdir()} == {
        "xretrieval.json",
        "model.safetensors",
        "tokenizer.json",
        "README.md",
        "NOTICE",
        "LICENSE",
        "tower.gin",
    }
    assert "apache-2.0 (https://a.b/LICENSE)" in (out / "NOTICE").read_text()
    assert str(tmp_path) not in "".join(path.read_text() for path in out.iterdir() if path.suffix != ".safetensors")
    assert done.parameters == sum(t.size for t in hf.random_tensors(hf.shapes(hf.QWEN3)).values())
    # The same source gives the same model, another tower another.
    again = directory.read(out).fingerprint
    pretrained.import_llm(str(source), str(out))
    assert directory.read(out).fingerprint == again == record["fingerprint"]
    hf.write_json(source / "config.json", hf.QWEN3 | {"rope_theta": 2000.0})
    pretrained.import_llm(str(source), str(out))
    assert directory.read(out).fingerprint != again


@pytest.mark.parametrize(
    "config,card,licence,notice",
    [
        (hf.GEMMA, None, "gemma", "ai.google.dev/gemma/terms"),
        (hf.GEMMA3, "---\nlicense: gemma\n---\n", "gemma", "ai.google.dev/gemma/terms"),
        (hf.QWEN3, "---\nlicense: other\nlicense_name: 'my-own'\n---\n", "my-own", "my-own"),
        (hf.QWEN3, "# no front matter\nlicense: mit\n", "unknown", "Its licence is not known"),
        (hf.QWEN3, None, "unknown", "Its licence is not known"),
    ],
)
def test_the_licence_goes_along(tmp_path, config, card, licence, notice):
    source = hf.write_folder(tmp_path / "source", config, hf.random_tensors(hf.shapes(config)))
    if card:
        (source / "README.md").write_text(card)
    assert pretrained.import_llm(str(source), str(tmp_path / "llm")).licence == licence
    assert notice in (tmp_path / "llm/NOTICE").read_text()
    assert ("Gemma Terms of Use" in (tmp_path / "llm/NOTICE").read_text()) == config["model_type"].startswith("gemma")


@pytest.mark.parametrize("begin,end", [("", ""), ("<bos>", ""), ("<bos>", "<eos>"), ("", "<eos>"), ("<bos> <bos>", "<eos>")])
def test_begin_and_end_tokens_come_from_the_tokenizer(tmp_path, begin, end):
    source = hf.write_folder(tmp_path / "source", hf.QWEN3, hf.random_tensors(hf.shapes(hf.QWEN3)))
    hf.write_tokenizer(source / "tokenizer.json", begin, end)
    # As in transformers 5, the settings beside a tokenizer.json do not count.
    hf.write_json(source / "tokenizer_config.json", {"add_bos_token": False, "eos_token": "<bos>"})
    pretrained.import_llm(str(source), str(tmp_path / "llm"))
    vocabulary = directory.read(tmp_path / "llm").vocabulary
    assert vocabulary.begin_ids == tuple(256 for _ in begin.split())
    assert vocabulary.end_ids == tuple(257 for _ in end.split())
    assert vocabulary.text_size == 300


def test_a_snapshot_in_a_download_cache_has_the_name_of_the_model(tmp_path):
    source = tmp_path / "models--google--gemma-2b/snapshots/0123abc"
    hf.write_folder(source, hf.GEMMA, hf.random_tensors(hf.shapes(hf.GEMMA)))
    assert pretrained.open_llm(str(source)).name == "google/gemma-2b"


def test_an_imported_llm_is_replaced_and_nothing_else(tmp_path):
    source, out = tmp_path / "source", tmp_path / "llm"
    hf.write_folder(source, hf.GEMMA, hf.random_tensors(hf.shapes(hf.GEMMA)))
    (source / "LICENSE.txt").write_text("old")
    pretrained.import_llm(str(source), str(out))
    (source / "LICENSE.txt").unlink()
    out.rename(tmp_path / "moved")
    (tmp_path / "moved/xretrieval.json").rename(tmp_path / "moved/xretrieval.json.tmp")  # as an import leaves it that was broken off
    pretrained.import_llm(str(source), str(tmp_path / "moved"))
    assert not list((tmp_path / "moved").glob("LICENSE*"))
    directory.read(tmp_path / "moved")
    record = json.loads((tmp_path / "moved/xretrieval.json").read_text())
    hf.write_json(tmp_path / "moved/xretrieval.json", record | {"unit_tokens": 7})
    with pytest.raises(UserError, match="moved: a trained model is there; give another --out"):
        pretrained.import_llm(str(source), str(tmp_path / "moved"))
    before = sorted(path.name for path in source.iterdir())
    with pytest.raises(UserError, match="source: not empty and not a model directory"):
        pretrained.import_llm(str(source), str(source))
    assert sorted(path.name for path in source.iterdir()) == before
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        pretrained.import_llm(str(source), str(tmp_path / "file"))


def test_the_verb_says_what_it_did(tmp_path, capsys):
    source = hf.write_folder(tmp_path / "source", hf.QWEN3, hf.random_tensors(hf.shapes(hf.QWEN3) | {"lm_head.weight": (300, 16)}))
    for name in ("pytorch_model.bin", "training_args.bin"):
        (source / name).write_bytes(b"a pickle")
    safetensors.numpy.save_file({"x": np.zeros(3, np.float32)}, source / "other.safetensors")
    assert main(["import-llm", str(source), "--out", str(tmp_path / "llm")]) == 0
    printed = capsys.readouterr().out
    expected = [
        "source (qwen3): ",
        "parameters in float32, 300 text tokens, licence: unknown",
        "left out",
        "lm_head.weight",
        f"wrote {tmp_path / 'llm'}",
    ]
    expected += [
        f"{name}: beside the files that the model is in, not read"
        for name in ("pytorch_model.bin", "training_args.bin", "other.safetensors")
    ]
    assert [text for text in expected if text not in printed] == []
    assert main(["import-llm", str(tmp_path / "none"), "--out", str(tmp_path / "llm")]) == 2
    error = capsys.readouterr().err
    assert "none: no such folder" in error
    assert len(error.splitlines()) == 1


LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, 8_000))
sys.argv = ["xretrieval", *sys.argv[1:]]
runpy.run_module("xretrieval", run_name="__main__", alter_sys=True)
"""


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(tmp_path):
    """A file that the system refuses to let grow stands for a disk without space."""
    source = hf.write_folder(tmp_path / "source", hf.QWEN3, hf.random_tensors(hf.shapes(hf.QWEN3)))
    flags = ["import-llm", str(source), "--out", str(tmp_path / "llm")]
    run = subprocess.run([sys.executable, "-c", LIMITED, *flags], capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 2, run.stderr
    assert len(run.stderr.splitlines()) == 1, run.stderr
    assert f"{tmp_path / 'llm/model.safetensors'}: cannot be written (File too large); free space" in run.stderr
    assert [path.name for path in (tmp_path / "llm").iterdir()] == ["xretrieval.json.tmp"]
    assert main(flags) == 0
    directory.read(tmp_path / "llm")
