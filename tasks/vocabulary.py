"""xretrieval's tokenizer as a seqio.Vocabulary."""

import numpy as np
import seqio
import tensorflow as tf

from xretrieval.data.vocabulary import PAD_ID, Vocabulary


class ExtendedVocabulary(seqio.Vocabulary):
    """Text tokens and, above them, unit tokens; IDs equal to `xretrieval.data.vocabulary.Vocabulary`, which it calls, also in a graph.

    TensorFlow has an operation for SentencePiece and none for a `tokenizer.json`; the Python call costs as little (`_encode_tf`).
    """

    def __init__(self, vocabulary: Vocabulary):
        super().__init__(extra_ids=0)
        self.extended = vocabulary

    @property
    def _base_vocab_size(self) -> int:
        return self.extended.size

    @property
    def pad_id(self) -> int:
        return PAD_ID

    @property
    def bos_id(self) -> int | None:
        return self.extended.begin_ids[0] if self.extended.begin_ids else None

    @property
    def eos_id(self) -> int | None:
        return self.extended.end_ids[-1] if self.extended.end_ids else None

    @property
    def unk_id(self) -> int | None:
        return self.extended.unknown_id

    def _encode(self, s: str) -> list[int]:
        return self.extended.encode_text(s).tolist()

    def _decode(self, ids) -> str:
        return self.extended.decode(ids)

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        """IDs int32 [L] of a scalar string; integers pass through."""
        # seqio.preprocessors.tokenize also calls this on features that are IDs already (units).
        if s.dtype.is_integer:
            return s

        def encode(text):  # bytes, or an array of them where TensorFlow runs eagerly
            return self.extended.encode_text(np.asarray(text, object).item().decode())

        return tf.ensure_shape(tf.numpy_function(encode, [tf.ensure_shape(s, [])], tf.int32, stateful=False), [None])

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        """Strings of the last axis of `ids`."""

        def decode(ids):
            texts = [self.extended.decode(row).encode() for row in ids.reshape(-1, ids.shape[-1])]
            return np.array(texts, object).reshape(ids.shape[:-1])

        return tf.ensure_shape(tf.numpy_function(decode, [ids], tf.string, stateful=False), ids.shape[:-1])

    def __eq__(self, other) -> bool:
        return isinstance(other, ExtendedVocabulary) and other.extended.fingerprint == self.extended.fingerprint
