"""A model directory in use: text, recordings or units to embeddings."""

import os
from collections.abc import Sequence

import jax
import numpy as np

from xretrieval import mesh as mesh_lib
from xretrieval.corpora.audio import load_audio
from xretrieval.errors import UserError
from xretrieval.evaluate.embed import embed_sequences
from xretrieval.model import directory, tower


class Retriever:
    """Embeds both sides; the dot product of two embeddings is their similarity."""

    def __init__(self, model: directory.Model):
        self.model = model
        # One device: a search is one small batch. Evaluation of a large model on a mesh goes through `embed_sequences`.
        self._mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
        with jax.set_mesh(self._mesh):
            abstract = tower.abstract(model.config)
            missing = abstract.keys() ^ model.params.keys()
            if missing:
                raise UserError(
                    f"model.safetensors: tensor {min(missing)} is missing or too many for the tower in xretrieval.json; export again"
                )
            # One at a time out of the file, in its own dtype: an imported LLM's bfloat16 becomes float32 where it is used.
            self._params = {name: jax.device_put(x, abstract[name].sharding) for name, x in model.params.items()}

    @classmethod
    def load(cls, model_dir: str | os.PathLike) -> "Retriever":
        """Reads a model directory."""
        return cls(directory.read(model_dir))

    @property
    def fingerprint(self) -> str:
        """Identity of the model; an index remembers it."""
        return self.model.fingerprint

    @property
    def unit_fingerprint(self) -> str | None:
        """Of the unit tokenizer whose units it understands; None for an imported LLM."""
        return self.model.unit_tokenizer.fingerprint if self.model.unit_tokenizer else None

    @property
    def width(self) -> int:
        return self.model.config.embedding_width

    def encode_text(self, texts: Sequence[str], languages: str | Sequence[str], prompt: str | None = None) -> np.ndarray:
        """Embeddings of texts, float32 [N, E] of unit norm.

        Args:
          texts: N of them.
          languages: one code for all, or one a text; the prefix names it (that of an imported LLM is empty).
          prompt: name of one of an imported LLM's prompts (`model.prompts`), which is put in front of each text.
        """
        if isinstance(texts, str):
            raise UserError("encode_text takes a list of texts; put the one in brackets")
        if prompt is not None and prompt not in self.model.prompts:
            raise UserError(f"prompt {prompt!r}: this model has {', '.join(map(repr, self.model.prompts)) or 'none'}")
        before = self.model.prompts[prompt] if prompt is not None else ""
        return self._encode([self.model.vocabulary.encode_text(before + text) for text in texts], languages, "text")

    def encode_speech(self, recordings: Sequence[str | os.PathLike], languages: str | Sequence[str]) -> np.ndarray:
        """Embeddings of sound files of any rate, float32 [N, E] of unit norm."""
        if isinstance(recordings, str | os.PathLike):
            raise UserError("encode_speech takes a list of files; put the one in brackets")
        if self.model.unit_tokenizer is None:
            raise UserError("this model has no speech units: it is an imported LLM; train it on speech first")
        return self.encode_units(self.model.unit_tokenizer.encode_all([load_audio(path) for path in recordings]), languages)

    def encode_units(self, units: Sequence[Sequence[int] | np.ndarray], languages: str | Sequence[str]) -> np.ndarray:
        """Embeddings of recordings whose units are there already (unit records), float32 [N, E] of unit norm."""
        return self._encode([self.model.vocabulary.encode_units(u) for u in units], languages, "speech")

    def _encode(self, tokens: list[np.ndarray], languages: str | Sequence[str], modality: str) -> np.ndarray:
        codes = [languages] * len(tokens) if isinstance(languages, str) else list(languages)
        if len(codes) != len(tokens):
            raise UserError(f"{len(tokens)} items and {len(codes)} languages: give one language, or one an item")
        for i, ids in enumerate(tokens):
            if not len(ids):
                raise UserError(f"item {i} is empty: nothing to embed")
        sequences = [self.model.vocabulary.sequence(ids, code, modality) for code, ids in zip(codes, tokens, strict=True)]
        with jax.set_mesh(self._mesh):
            return embed_sequences(self.model.config, self._params, sequences)
