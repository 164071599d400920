"""Importing takes the memory of a matrix, not of the model."""

import subprocess
import sys

import huggingface_folders as hf
import numpy as np
import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
CHILD = """
import re, sys
from xretrieval.model import pretrained
# Not `ru_maxrss`: that starts from what the process held that started this one.
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
before = peak()
pretrained.import_llm(*sys.argv[1:])
print(before, peak())
"""


def peak(tmp_path, sizes):
    """(bytes of the model, peak of an import's memory beyond that of the interpreter and its libraries)."""
    config = {**hf.GEMMA3, **sizes}
    tensors = hf.shapes(config)
    source = tmp_path / "source"
    source.mkdir()
    hf.write_json(source / "config.json", config)
    hf.write_tokenizer(source / "tokenizer.json")
    path = source / "model.safetensors"
    hf.write_empty(path, tensors)
    # Random bytes instead of a hole, which the system would not have to hold.
    rng, size = np.random.default_rng(0), path.stat().st_size
    with open(path, "r+b") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        while file.tell() < size:
            file.write(rng.bytes(min(1 << 24, size - file.tell())))
    run = subprocess.run([sys.executable, "-c", CHILD, str(source), str(tmp_path / "llm")], capture_output=True, text=True, check=True)
    before, after = map(int, run.stdout.split())
    print(f"{size / 1e6:.0f} MB of tensors: {before / 1e6:.0f} MB before, {(after - before) / 1e6:.0f} MB more at the peak")
    return size, after - before


def test_a_small_model(tmp_path):
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8, "vocab_size": 65536}
    size, more = peak(tmp_path, sizes)
    assert size > 110e6
    assert more < 0.3 * size


@pytest.mark.slow
def test_a_model_of_a_billion_parameters(tmp_path):
    sizes = {"hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26, "num_attention_heads": 4, "num_key_value_heads": 1}
    size, more = peak(tmp_path, {**sizes, "head_dim": 256, "vocab_size": 262144})
    assert 1.9e9 < size < 2.1e9
    assert more < 0.05 * size
